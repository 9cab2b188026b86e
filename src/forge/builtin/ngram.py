"""The n-gram drafter: what followed the last time that the text went like this, in prompt or answer.

After prompt lookup decoding (Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding), with the index of an
LZ77 compressor: a table of heads by hash, and a chain of earlier positions with the same hash. It looks at token ids
only, and needs neither a model nor memory beyond a few bytes a token.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from attrs import field, frozen

from forge.errors import ConfigError
from forge.interfaces.drafter import AcceptanceWindow, Drafter
from forge.strict import between

if TYPE_CHECKING:
    from forge.interfaces.scheduler import Sequence

CANDIDATES = 8
"""Earlier places that are compared with the end of the text, the latest first."""

LONGEST_MATCH = 32
"""Matches count up to this length; of equally long ones the latest is taken."""

INDEX_PER_CALL = 2048
"""Tokens that one call indexes at most, about a millisecond's work: a long prompt takes a few."""

SMALLEST_TABLE = 256

NOWHERE = -1

FIRST_RATE, FIRST_WEIGHT = 0.8, 2.0
"""What a sequence that has had no draft checked yet is credited with."""


@frozen
class NgramOptions:
    """Options of the n-gram drafter.

    min_match: tokens that must be the same before a guess. max_draft and min_draft: bounds of a draft's length, which
    follows the acceptance of a sequence's last `window` drafts. max_tokens: of a longer text only so many tokens from
    its beginning are searched.
    """

    min_match: int = field(default=3, validator=between(1, LONGEST_MATCH))
    min_draft: int = field(default=1, validator=between(1, 64))
    max_draft: int = field(default=16, validator=between(1, 64))
    window: int = field(default=16, validator=between(1, 1024))
    max_tokens: int = field(default=1 << 17, validator=between(16, 1 << 24))

    def __attrs_post_init__(self) -> None:
        if self.min_draft > self.max_draft:
            raise ConfigError(
                f"min_draft: {self.min_draft} is more than max_draft, {self.max_draft}", param="min_draft"
            )


class SuffixIndex:
    """Finds earlier places where a growing text went as it does at its end.

    ::

        heads[hash of an n-gram]   where the last n-gram of that hash ends (one past its last token), or NOWHERE
        previous[end]              where the one before it with the same hash ends, or NOWHERE

    Hashes only find candidates, which are compared token by token. Eight to sixteen bytes a token; adding a token and
    finding the best match take constant time, amortised over the doublings of `heads`.
    """

    def __init__(self, tokens: Seq[int], gram: int, max_tokens: int) -> None:
        self.tokens = tokens
        self.gram = gram
        self.max_tokens = max_tokens
        self.indexed = 0
        """The n-grams that end here or before are in the index."""
        self._heads = array("i", [NOWHERE]) * SMALLEST_TABLE
        self._previous = array("i")

    @property
    def nbytes(self) -> int:
        """What the index holds."""
        return self._heads.itemsize * (len(self._heads) + len(self._previous))

    def extend(self, most: int) -> None:
        """Take in up to `most` of the tokens that are new, all but the last n-gram, for which a match is sought."""
        stop = min(len(self.tokens) - 1, self.indexed + most, self.max_tokens)
        if stop > len(self._heads):
            size = 2 * len(self._heads)
            while size < stop:
                size *= 2
            self._heads = array("i", [NOWHERE]) * size
            self._previous = array("i")
            self.indexed = 0
        heads, previous, gram, tokens = self._heads, self._previous, self.gram, self.tokens
        mask = len(heads) - 1
        previous.extend([NOWHERE] * (stop + 1 - len(previous)))
        for end in range(max(gram, self.indexed + 1), stop + 1):
            slot = hash(tuple(tokens[end - gram : end])) & mask
            previous[end] = heads[slot]
            heads[slot] = end
        self.indexed = max(self.indexed, stop)

    def find(self) -> int:
        """Where the longest earlier match of the text's end itself ends; NOWHERE if none has a whole n-gram."""
        tokens, gram = self.tokens, self.gram
        length = len(tokens)
        if length <= gram:
            return NOWHERE
        end = self._heads[hash(tuple(tokens[length - gram :])) & (len(self._heads) - 1)]
        best, longest = NOWHERE, gram - 1
        for _ in range(CANDIDATES):
            if end == NOWHERE:
                break
            common, most = 0, min(end, LONGEST_MATCH)
            while common < most and tokens[end - 1 - common] == tokens[length - 1 - common]:
                common += 1
            if common > longest:
                best, longest = end, common
                if longest == LONGEST_MATCH:
                    break
            end = self._previous[end]
        return best


class _Draftee:
    """What is known of one sequence."""

    def __init__(self, seq: Sequence, options: NgramOptions) -> None:
        self.index = SuffixIndex(seq.tokens, options.min_match, options.max_tokens)
        self.acceptance = AcceptanceWindow(options.window)


class NgramDrafter(Drafter):
    """Copies what followed the longest earlier match of a sequence's end.

    A draft is about as long as the run of right tokens to be expected: ``ceil(1 / (1 - acceptance))``, within bounds.
    """

    def __init__(self, options: NgramOptions | None = None) -> None:
        self.options = options or NgramOptions()
        self._draftees: dict[int, _Draftee] = {}

    def __len__(self) -> int:
        return len(self._draftees)

    def propose(self, seq: Sequence, limit: int) -> list[int]:
        draftee = self._draftees.get(seq.id)
        if draftee is None:
            draftee = self._draftees[seq.id] = _Draftee(seq, self.options)
        index = draftee.index
        index.extend(INDEX_PER_CALL)
        end = index.find()
        if end == NOWHERE:
            return []
        return continuation(seq.tokens, end, min(limit, self.draft_length(draftee.acceptance)))

    def draft_length(self, acceptance: AcceptanceWindow) -> int:
        """How many tokens to propose."""
        wrong = 1.0 - acceptance.rate(FIRST_RATE, FIRST_WEIGHT)
        expected = math.ceil(1.0 / wrong) if wrong > 1e-6 else self.options.max_draft
        return max(self.options.min_draft, min(expected, self.options.max_draft))

    def observe(self, seq: Sequence, proposed: Seq[int], accepted: int) -> None:
        draftee = self._draftees.get(seq.id)
        if draftee is not None:
            draftee.acceptance.add(len(proposed), accepted)

    def release(self, seq: Sequence) -> None:
        self._draftees.pop(seq.id, None)


def continuation(tokens: Seq[int], end: int, length: int) -> list[int]:
    """The `length` tokens from `end` on; where the text ends before, it repeats itself from `end`."""
    draft = list(tokens[end : end + length])
    while len(draft) < length:
        draft += draft[: length - len(draft)]
    return draft
