"""KV caches for Forge: `paged`, which shares prefixes between sequences, and `naive`, which doesn't.

Only registers them: the caches themselves are imported when they're chosen.
"""

from __future__ import annotations

from forge import Component, hookimpl
from forge_kv_paged.options import NaiveOptions, PagedOptions


@hookimpl
def forge_kv_caches() -> list[Component]:
    """The two caches of this distribution."""
    return [
        Component(
            name="paged",
            factory="forge_kv_paged.paged:PagedKVCache",
            options=PagedOptions,
            summary="small blocks, shared between sequences with the same prefix",
        ),
        Component(
            name="naive",
            factory="forge_kv_paged.naive:NaiveKVCache",
            options=NaiveOptions,
            summary="one block a sequence, nothing shared",
        ),
    ]
