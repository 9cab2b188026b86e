"""The n-gram drafter: what followed the last time that the text went like this, in prompt or answer.

After prompt lookup decoding (Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding), with the index of an
LZ77 compressor: a table of heads by hash, and a chain of earlier positions with the same hash. It looks at token ids
only, and needs neither a model nor memory beyond a few bytes a token.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from forge.errors import ConfigError
from forge.interfaces.drafter import AcceptanceWindow, Draft, Drafter
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

NEARBY = (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8)
"""Where a copy was interrupted, these places around are looked at first."""

FIRST_RATE, FIRST_WEIGHT = 0.8, 2.0
"""What a sequence that has had no draft checked yet is credited with."""

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Matches from one of these lengths up to the next are taken to be equally good."""

FIRST_RATES = (0.1, 0.25, 0.4, 0.55, 0.65, 0.75, 0.8, 0.85, 0.9, 0.95)
"""How often the token after such a match is right, as long as nothing is known: a little less than in chats."""

RATES_WEIGHT = 8.0
"""How many matches `FIRST_RATES` count for."""

RATES_MEMORY = 256.0
"""Of so many matches of a length the older half counts half."""

OWN_WEIGHT = 16.0
"""How many tries the rate of all matches of a length counts for in that of one sequence."""


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


@frozen
class Match:
    """A place where the text went as it does at its end. end: one past its last token. length: in tokens."""

    end: int
    length: int


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

    def find(self, near: int = NOWHERE) -> Match | None:
        """The longest earlier match of the text's end; None if none has a whole n-gram.

        near: where one is to be expected. Of equally long matches the nearest to it is taken if it's `NEARBY`, else the
        latest.
        """
        tokens, gram = self.tokens, self.gram
        length = len(tokens)
        if length <= gram:
            return None
        best, longest = NOWHERE, gram - 1
        if near != NOWHERE:
            for offset in NEARBY:
                if not 0 < near + offset < length or longest == LONGEST_MATCH:
                    continue
                common = self._common(near + offset)
                if common > longest:
                    best, longest = near + offset, common
        end = self._heads[hash(tuple(tokens[length - gram :])) & (len(self._heads) - 1)]
        for _ in range(CANDIDATES):
            if end == NOWHERE or longest == LONGEST_MATCH:
                break
            common = self._common(end)
            if common > longest:
                best, longest = end, common
            end = self._previous[end]
        return None if best == NOWHERE else Match(best, longest)

    def _common(self, end: int) -> int:
        """How many tokens before `end` are the text's last ones, up to `LONGEST_MATCH`."""
        tokens, last = self.tokens, len(self.tokens) - 1
        common, most = 0, min(end, LONGEST_MATCH)
        while common < most and tokens[end - 1 - common] == tokens[last - common]:
            common += 1
        return common


class MatchRates:
    """How often the token after a match was right, by the length of the match; recent matches count most."""

    def __init__(self) -> None:
        self._right = [RATES_WEIGHT * rate for rate in FIRST_RATES]
        self._tried = [RATES_WEIGHT] * len(FIRST_RATES)

    def rate(self, length: int) -> float:
        """Between 0 and 1."""
        kind = bisect_right(LENGTHS, length) - 1
        return self._right[kind] / self._tried[kind]

    def add(self, length: int, right: bool) -> None:
        """A match of this length was followed by the token that was guessed, or by another."""
        kind = bisect_right(LENGTHS, length) - 1
        self._right[kind] += right
        self._tried[kind] += 1
        if self._tried[kind] >= RATES_MEMORY:
            self._right[kind] /= 2
            self._tried[kind] /= 2


@define(eq=False)
class _Guess:
    """What was proposed last: where in the sequence, by which match, and the first token."""

    at: int
    match: Match
    token: int
    checked: bool = False


class _Draftee:
    """What is known of one sequence."""

    def __init__(self, seq: Sequence, options: NgramOptions) -> None:
        self.index = SuffixIndex(seq.tokens, options.min_match, options.max_tokens)
        self.acceptance = AcceptanceWindow(options.window)
        self.guess: _Guess | None = None


class NgramDrafter(Drafter):
    """Copies what followed the longest earlier match of a sequence's end.

    A draft is about as long as the run of right tokens to be expected: ``ceil(1 / (1 - acceptance))``, within bounds.
    How good it is it tells by the length of the match, which grows with each token that is right; and it learns from
    every guess whether it was right, also from those that were never checked because they seemed too dear.
    """

    def __init__(self, options: NgramOptions | None = None) -> None:
        self.options = options or NgramOptions()
        self.rates = MatchRates()
        self._draftees: dict[int, _Draftee] = {}

    def __len__(self) -> int:
        return len(self._draftees)

    def propose(self, seq: Sequence, limit: int) -> Draft:
        draftee = self._draftees.get(seq.id)
        if draftee is None:
            draftee = self._draftees[seq.id] = _Draftee(seq, self.options)
        tokens, index, last = seq.tokens, draftee.index, draftee.guess
        near = NOWHERE
        if last is not None:
            near = last.match.end + len(tokens) - last.at
            if not last.checked and last.at < len(tokens):
                right = tokens[last.at] == last.token
                draftee.acceptance.add(1, right)
                self.rates.add(last.match.length, right)
        index.extend(INDEX_PER_CALL)
        match = index.find(near)
        if match is None:
            if last is not None:
                last.checked = True  # nothing more is to be learned from it, but where the copy was
            return Draft()
        draft = continuation(tokens, match.end, min(limit, self.draft_length(draftee.acceptance)))
        draftee.guess = _Guess(len(tokens), match, draft[0])
        chances = [draftee.acceptance.rate(self.rates.rate(match.length + i), OWN_WEIGHT) for i in range(len(draft))]
        return Draft(draft, chances)

    def draft_length(self, acceptance: AcceptanceWindow) -> int:
        """How many tokens to propose."""
        wrong = 1.0 - acceptance.rate(FIRST_RATE, FIRST_WEIGHT)
        expected = math.ceil(1.0 / wrong) if wrong > 1e-6 else self.options.max_draft
        return max(self.options.min_draft, min(expected, self.options.max_draft))

    def observe(self, seq: Sequence, proposed: Seq[int], accepted: int) -> None:
        draftee = self._draftees.get(seq.id)
        if draftee is None:
            return
        draftee.acceptance.add(len(proposed), accepted)
        if draftee.guess is not None:
            draftee.guess.checked = True
            for i in range(min(len(proposed), accepted + 1)):
                self.rates.add(draftee.guess.match.length + i, i < accepted)

    def release(self, seq: Sequence) -> None:
        self._draftees.pop(seq.id, None)


def continuation(tokens: Seq[int], end: int, length: int) -> list[int]:
    """The `length` tokens from `end` on; where the text ends before, it repeats itself from `end`."""
    draft = list(tokens[end : end + length])
    while len(draft) < length:
        draft += draft[: length - len(draft)]
    return draft
