"""Options of both caches, and the number of blocks that they lead to on a machine. Imports neither cache."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import field, frozen
from attrs.validators import ge, instance_of

from forge.errors import ConfigError
from forge.interfaces.kv_cache import CacheLimits


def _blocks(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    positive = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value != "auto" and not positive:
        raise ValueError(f"{attribute.name} must be 'auto' or a whole number from 1 on, not {value!r}")


def _fraction(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(f"{attribute.name} must be a number above 0 and at most 1, not {value!r}")


@frozen
class PagedOptions:
    """Options of the paged cache.

    block_size: positions in a block; small blocks waste little and share more, large ones have shorter tables.
    num_blocks: how many, or "auto": what fits into memory_fraction of the free memory, but never more than
    `max_batch_size` sequences of `max_model_len` positions could use. prefix_reuse: whether sequences share blocks.
    """

    block_size: int = field(default=16, validator=[instance_of(int), ge(1)])
    num_blocks: int | Literal["auto"] = field(default="auto", validator=_blocks)
    memory_fraction: float = field(default=0.5, validator=_fraction)
    prefix_reuse: bool = field(default=True, validator=instance_of(bool))


@frozen
class NaiveOptions:
    """Options of the naive cache.

    num_blocks: how many sequences it holds, or "auto": what fits into memory_fraction of the free memory, but never
    more than `max_batch_size`.
    """

    num_blocks: int | Literal["auto"] = field(default="auto", validator=_blocks)
    memory_fraction: float = field(default=0.5, validator=_fraction)


def plan_blocks(limits: CacheLimits, options: PagedOptions | NaiveOptions, block_size: int, most: int) -> int:
    """How many blocks of `block_size` positions to make: as the options say, at most `most` for "auto".

    Errors: `ConfigError` with the figures if the memory doesn't hold what is asked for, or not one block.
    """
    block_bytes = block_size * limits.bytes_per_token
    block = f"a block of {block_size:,} positions takes {block_bytes:,} bytes"
    if options.num_blocks != "auto":
        wanted = options.num_blocks * block_bytes
        if wanted > limits.free_bytes:
            raise ConfigError(
                f"kv_cache.options.num_blocks = {options.num_blocks:,}: {block}, all of them {wanted:,},"
                f" but only {limits.free_bytes:,} bytes are free"
            )
        return options.num_blocks
    budget = int(limits.free_bytes * options.memory_fraction)
    if block_bytes > budget:
        raise ConfigError(
            f"the KV cache doesn't fit: {block}, but {options.memory_fraction:g} (kv_cache.options.memory_fraction) of"
            f" {limits.free_bytes:,} free bytes is {budget:,}; free some memory, raise the fraction, or make blocks"
            " or --max-model-len smaller"
        )
    return min(most, budget // max(1, block_bytes))
