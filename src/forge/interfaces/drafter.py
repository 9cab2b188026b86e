"""Drafters: cheap guesses at a sequence's next tokens, verified by the model in the same forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forge.interfaces.scheduler import Sequence


class Drafter(ABC):
    """Proposes draft tokens. The factory is called without arguments, or with ``options=`` where it has some.

    A draft never changes what is generated: it is accepted as far as it equals what would have been sampled.
    """

    @abstractmethod
    def propose(self, seq: Sequence, limit: int) -> list[int]:
        """At most `limit` token ids that may follow ``seq.tokens``; empty when there's no good guess."""

    def observe(self, seq: Sequence, proposed: Seq[int], accepted: int) -> None:
        """The first `accepted` of the `proposed` tokens were right."""

    def release(self, seq: Sequence) -> None:
        """The sequence is over: forget it. Unknown sequences are fine."""
