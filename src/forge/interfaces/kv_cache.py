"""KV caches: which block holds which tokens. Bookkeeping only: what a block holds is the backend's `Pages`.

Terms: a *block* is `block_size` consecutive positions of one sequence in every layer; a *table* lists a sequence's
blocks in order, so that position p lies in slot ``table[p // block_size] * block_size + p % block_size``.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

if TYPE_CHECKING:
    from forge.interfaces.scheduler import Sequence


class Growth(enum.Enum):
    """What `KVCache.grow` answers."""

    READY = "ready"
    """The blocks are there."""
    FULL = "full"
    """No block is free: preempt somebody, or wait."""
    LATER = "later"
    """Another sequence is computing the same prefix right now: wait until it publishes, then attach again."""


@frozen
class CacheLimits:
    """What a cache's shape is planned from.

    free_bytes: memory the backend can give. bytes_per_token: of one position in all layers. max_model_len: positions
    a sequence may have. max_batch_size: sequences in one step.
    """

    free_bytes: int
    bytes_per_token: int
    max_model_len: int
    max_batch_size: int


@frozen
class CacheShape:
    """How many blocks of how many positions."""

    num_blocks: int
    block_size: int

    @property
    def capacity(self) -> int:
        """Positions in all blocks."""
        return self.num_blocks * self.block_size


@frozen
class CacheUsage:
    """A snapshot. used: blocks that a live sequence holds. cached: blocks that hold a reusable prefix and nobody uses.

    free: all others. hits and queries: prompt tokens found and looked up since the start.
    """

    used: int
    cached: int
    free: int
    hits: int
    queries: int


@frozen
class CacheMiss:
    """Why a prompt's prefix was found no further than it was.

    reason: ``"new"``: nothing that follows this beginning has been seen; ``"diverged"``: what has been seen goes on
    differently from token `position` on; ``"evicted"``: it was there, and its blocks were needed; ``"disabled"``:
    prefixes aren't reused here, or this prompt's tokens are scored. position: the first token that wasn't found.
    """

    reason: Literal["new", "diverged", "evicted", "disabled"]
    position: int


class KVCache(ABC):
    """Gives blocks to sequences. The factory is called with ``(shape)``, plus ``options=`` where it has some."""

    shape: CacheShape

    @classmethod
    @abstractmethod
    def plan(cls, limits: CacheLimits, options: Any = None) -> CacheShape:
        """Choose the shape for this machine. Errors: `ConfigError` if not even one sequence of one block fits."""

    @property
    @abstractmethod
    def max_sequence_len(self) -> int:
        """The longest sequence that could ever be held, alone in the cache, in positions."""

    @abstractmethod
    def attach(self, seq: Sequence, limit: int) -> int:
        """Pin the longest reusable prefix of ``seq.tokens``: at most ``min(limit, len(tokens) - 1)`` positions.

        Returns how many positions are there already. May be called again for a sequence that has computed nothing of
        its own yet: it then looks further.
        """

    @abstractmethod
    def grow(self, seq: Sequence, total: int) -> Growth:
        """See to it that the sequence has blocks for `total` positions. On FULL and LATER nothing changes."""

    @abstractmethod
    def publish(self, seq: Sequence, upto: int) -> None:
        """Positions below `upto` are computed and final: their full blocks may be reused by others."""

    @abstractmethod
    def truncate(self, seq: Sequence, length: int) -> None:
        """Give back blocks beyond `length` positions (rejected drafts). Published blocks are never among them."""

    @abstractmethod
    def release(self, seq: Sequence) -> None:
        """Give back all blocks; published ones stay reusable until evicted. Unknown sequences are fine."""

    @abstractmethod
    def table(self, seq: Sequence) -> Seq[int]:
        """The sequence's blocks, in order."""

    def explain(self, seq: Sequence) -> CacheMiss | None:
        """Why `attach` found no more for a sequence that is about to compute; None if all that may be was found."""
        return None

    @abstractmethod
    def usage(self) -> CacheUsage:
        """How full it is."""

    @abstractmethod
    def check(self) -> None:
        """Prove the bookkeeping: every block is in exactly one state, every count is right. AssertionError if not."""
