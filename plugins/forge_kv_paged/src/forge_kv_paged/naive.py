"""The naive cache: every sequence has one block, as long as the longest sequence. Nothing is shared, nothing is kept.

The simplest thing that is right: for tests, for comparison, and for batches whose sequences have nothing in common.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from forge.interfaces.kv_cache import CacheLimits, CacheShape, CacheUsage, Growth, KVCache
from forge_kv_paged.options import NaiveOptions, plan_blocks

if TYPE_CHECKING:
    from forge.interfaces.scheduler import Sequence


class NaiveKVCache(KVCache):
    """One block of `shape.block_size` positions a sequence."""

    def __init__(self, shape: CacheShape, options: NaiveOptions | None = None) -> None:
        self.shape = shape
        self.options = options or NaiveOptions()
        self._free = list(range(shape.num_blocks - 1, -1, -1))
        self._tables: dict[int, tuple[int]] = {}

    @classmethod
    def plan(cls, limits: CacheLimits, options: NaiveOptions | None = None) -> CacheShape:
        """One block of `max_model_len` positions for each sequence of a batch, or as many as fit."""
        blocks = plan_blocks(limits, options or NaiveOptions(), limits.max_model_len, most=limits.max_batch_size)
        return CacheShape(blocks, limits.max_model_len)

    @property
    def max_sequence_len(self) -> int:
        return self.shape.block_size

    def attach(self, seq: Sequence, limit: int) -> int:
        """Nothing is ever found; a block that the sequence already has is given back."""
        self.release(seq)
        return 0

    def grow(self, seq: Sequence, total: int) -> Growth:
        if total > self.shape.block_size:
            return Growth.FULL
        if total > 0 and seq.id not in self._tables:
            if not self._free:
                return Growth.FULL
            self._tables[seq.id] = (self._free.pop(),)
        return Growth.READY

    def publish(self, seq: Sequence, upto: int) -> None:
        """Nothing is reused."""

    def truncate(self, seq: Sequence, length: int) -> None:
        if length <= 0:
            self.release(seq)

    def release(self, seq: Sequence) -> None:
        self._free.extend(self._tables.pop(seq.id, ()))

    def table(self, seq: Sequence) -> Seq[int]:
        return self._tables.get(seq.id, ())

    def usage(self) -> CacheUsage:
        return CacheUsage(used=len(self._tables), cached=0, free=len(self._free), hits=0, queries=0)

    def check(self) -> None:
        blocks = [*self._free, *(block for table in self._tables.values() for block in table)]
        assert sorted(blocks) == list(range(self.shape.num_blocks)), "a block is lost, or in two places"
