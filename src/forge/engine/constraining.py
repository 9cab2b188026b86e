"""Constraints in the engine's step: a matcher for each answer, the masks of a batch, and drafts that respect them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from forge.engine.request import Request
from forge.errors import EngineFault, InvalidRequest
from forge.interfaces.constraint import Constraint, Matcher, Vocabulary
from forge.interfaces.drafter import AcceptanceWindow, Draft, Drafter, as_draft
from forge.interfaces.scheduler import Batch, Sequence
from forge.text.tokenizer import Tokenizer

Masks = npt.NDArray[np.int32]
"""int32 ``[rows, ceil(vocabulary / 32)]``, a row for each token to be drawn."""


FORCED_WINDOW = 256
"""So many of the last drafts of forced text tell how likely the next one's tokens are right."""

FORCED_PRIOR = 0.95, 16.0
"""What is taken to be known of it before: a rate, and how many tries it counts for. A model seldom writes forced text
in other tokens than its tokenizer."""


class Constraining:
    """A constraint component with the vocabulary that it works on; both None where the configuration has none."""

    def __init__(self, constraint: Constraint | None = None, vocabulary: Vocabulary | None = None) -> None:
        self._constraint = constraint
        self._vocabulary = vocabulary

    def matchers(self, request: Request) -> Seq[Matcher | None]:
        """One for each of the request's answers; None if they're free. Errors: `InvalidRequest`."""
        if request.constraint is None:
            return [None] * request.n
        if self._constraint is None or self._vocabulary is None:
            raise InvalidRequest("this server was started without a constraint component")
        grammar = self._constraint.compile(request.constraint, self._vocabulary)
        return [grammar.matcher() for _ in range(request.n)]

    def masks(self, batch: Batch) -> Mapping[int, Masks]:
        """By sequence id, what may be drawn: a row after the sequence, and one after each of its drafts.

        Matchers are afterwards as they were. Errors: `EngineFault` if nothing may follow a sequence.
        """
        spans = [span for span in batch.spans if span.seq.matcher is not None and span.samples]
        if not spans or self._constraint is None or self._vocabulary is None:
            return {}
        matchers = [span.seq.matcher for span in spans if span.seq.matcher is not None]
        first = np.empty((len(spans), -(-self._vocabulary.size // 32)), dtype=np.int32)
        self._constraint.fill(matchers, first)
        if not first.any(axis=1).all():
            raise EngineFault("the constraint allows no token here")
        return {
            span.seq.id: _after_drafts(matcher, row, span.drafts) if span.drafts else row[None]
            for span, matcher, row in zip(spans, matchers, first)
        }


def _after_drafts(matcher: Matcher, first: npt.NDArray[np.int32], drafts: Seq[int]) -> Masks:
    """The row at hand, and one after each draft. After a draft that ends the answer or can't be, anything goes: what is
    drawn there isn't kept.
    """
    rows = np.full((1 + len(drafts), len(first)), -1, dtype=np.int32)
    rows[0] = first
    accepted = 0
    try:
        for token, row in zip(drafts, rows[1:]):
            if not matcher.accept(token):
                break
            accepted += 1
            matcher.fill(row)
            if not row.any():
                row.fill(-1)
    finally:
        matcher.rollback(accepted)
    return rows


class ConstrainedDrafter(Drafter):
    """Drafts what a grammar forces, and otherwise asks another drafter and cuts its drafts where the grammar forbids.

    Forced text is tokenised as the tokenizer would, but for its last token: what follows might belong to it. Like any
    draft it is checked by the model, so that it changes nothing but the number of steps ("jump-forward decoding").
    """

    def __init__(self, inner: Drafter | None, tokenizer: Tokenizer) -> None:
        self._inner = inner
        self._tokenizer = tokenizer
        self._certainty = AcceptanceWindow(FORCED_WINDOW)
        self._forces: set[int] = set()
        """Sequences whose last draft was forced text."""

    def propose(self, seq: Sequence, limit: int) -> Draft | Seq[int]:
        matcher = seq.matcher
        if matcher is not None:
            forced = self._forced(matcher)[:limit]
            if forced:
                self._forces.add(seq.id)
                forced = forced[: matcher.validate(forced)]
                return Draft(forced, (self._certainty.rate(*FORCED_PRIOR),) * len(forced))
            self._forces.discard(seq.id)
        if self._inner is None:
            return ()
        draft = as_draft(self._inner.propose(seq, limit))
        return draft if matcher is None else draft.first(matcher.validate(draft.tokens))

    def observe(self, seq: Sequence, proposed: Seq[int], accepted: int) -> None:
        if seq.id in self._forces:
            self._certainty.add(len(proposed), accepted)
        elif self._inner is not None:
            self._inner.observe(seq, proposed, accepted)

    def release(self, seq: Sequence) -> None:
        self._forces.discard(seq.id)
        if self._inner is not None:
            self._inner.release(seq)

    def _forced(self, matcher: Matcher) -> list[int]:
        text = matcher.forced().decode(errors="ignore")
        return self._tokenizer.encode(text, add_special=False, parse_special=False)[:-1] if text else []
