"""Drafters: cheap guesses at a sequence's next tokens, verified by the model in the same forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from forge.interfaces.scheduler import Sequence


MAX_DRAFT = 16
"""The longest draft that is checked in one step."""


def _ids(tokens: Iterable[int]) -> tuple[int, ...]:
    return tuple(tokens)


def _floats(chances: Iterable[float]) -> tuple[float, ...]:
    return tuple(chances)


def _chances(draft: Draft, _: object, chances: tuple[float, ...]) -> None:
    if chances and len(chances) != len(draft.tokens):
        raise ValueError(f"{len(chances)} chances of {len(draft.tokens)} draft tokens")
    if not all(0.0 <= chance <= 1.0 for chance in chances):
        raise ValueError(f"a draft's chances must be between 0 and 1, got {chances}")


@frozen
class Draft:
    """A guess at what comes next, and how good it is.

    tokens: ids. chances: how likely each of them is right if those before it were; empty if the drafter can't tell,
    which then is taken to be as good as its drafts for the same sequence have been. Errors: `ValueError` for chances
    that aren't such.
    """

    tokens: tuple[int, ...] = field(default=(), converter=_ids)
    chances: tuple[float, ...] = field(default=(), converter=_floats, validator=_chances)

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> Draft:
        """Its first `count` tokens."""
        return self if count >= len(self.tokens) else Draft(self.tokens[:count], self.chances[:count])


class Drafter(ABC):
    """Proposes draft tokens. The factory is called without arguments, or with ``options=`` where it has some.

    A draft never changes what is generated: it is accepted as far as it equals what would have been sampled. How much
    of a proposal is worth checking in a step is the scheduler's business, which goes by its chances.
    """

    @abstractmethod
    def propose(self, seq: Sequence, limit: int) -> Draft | Seq[int]:
        """At most `limit` token ids that may follow ``seq.tokens``; empty when there's no good guess."""

    def observe(self, seq: Sequence, proposed: Seq[int], accepted: int) -> None:
        """Of the `proposed` tokens, those that were checked, the first `accepted` were right."""

    def release(self, seq: Sequence) -> None:
        """The sequence is over: forget it. Unknown sequences are fine."""


class AcceptanceWindow:
    """How often draft tokens were right, in the last `size` drafts.

    A draft token is tried if all before it were right. So a draft of 8 whose first 3 were right says: 3 of 4 tries.
    """

    def __init__(self, size: int) -> None:
        self._drafts: deque[tuple[int, int]] = deque(maxlen=size)
        self._right = self._tried = 0

    def add(self, proposed: int, accepted: int) -> None:
        """A draft of `proposed` tokens was checked, and `accepted` of them were right."""
        if len(self._drafts) == self._drafts.maxlen:
            right, tried = self._drafts[0]
            self._right -= right
            self._tried -= tried
        tried = min(proposed, accepted + 1)
        self._drafts.append((accepted, tried))
        self._right += accepted
        self._tried += tried

    def rate(self, prior: float, weight: float) -> float:
        """The share of tries that were right, as if `weight` more tries had been so at the rate `prior`."""
        return (self._right + weight * prior) / (self._tried + weight)


def as_draft(proposed: Draft | Seq[int]) -> Draft:
    """What a drafter proposed, whichever way it said so."""
    return proposed if isinstance(proposed, Draft) else Draft(proposed)
