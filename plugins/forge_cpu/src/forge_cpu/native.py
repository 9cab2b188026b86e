"""The compiled kernels, where this installation has them; no torch.

For the backend, the probe and `forge doctor`. A platform without a compiler gets the package without its extension:
`extension()` is None then, and says so in the log once.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType

log = logging.getLogger(__name__)


@cache
def extension() -> ModuleType | None:
    """`forge_cpu._native`, or None where it wasn't built or can't be loaded (logged as a warning, once)."""
    try:
        return import_module("forge_cpu._native")
    except ImportError as error:
        log.warning("forge-cpu runs without its native kernels, several times slower: %s", error)
        return None


def instruction_sets() -> tuple[str, ...]:
    """Those that the kernels were built for and this processor runs, best first; empty without kernels."""
    native = extension()
    return tuple(native.isas()) if native is not None else ()
