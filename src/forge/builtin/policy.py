"""What a step may cost: how many prompt tokens fit beside decodes, and which drafts are worth checking.

Pure arithmetic on a `StepCost`; knows no sequence and no cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any, Literal

from attrs import Attribute, field, frozen
from attrs.validators import gt

from forge.interfaces.drafter import MAX_DRAFT

if TYPE_CHECKING:
    from forge.interfaces.cost import StepCost

STALL = 2.5
"""With prompts beside it, a decoding step may take at most so many times what it takes alone. A stream's p99 gap
between tokens then stays within three times its quiet value, what the server adds included."""

SMOOTH_SECONDS = 0.02
"""A step of this length is always fine: nobody reads faster than 50 tokens a second."""

ALONE_SECONDS = 0.25
"""Where nobody decodes, a step of prompts may take so long: whoever comes next waits for its end."""

UNKNOWN_TOKENS = 512
"""The chunk budget while nothing is known of what a step takes."""

LEAST_TOKENS = 16
"""The chunk budget's lower bound: prompts always go on."""

GAIN = 1.01
"""Drafts are given where they raise the expected tokens per second by so much at least."""


def _positive(_: Any, attribute: Attribute[Any], value: float | str) -> None:
    if not isinstance(value, str) and value <= 0:
        raise ValueError(f"'{attribute.name}' must be more than 0 seconds, got {value}")


@frozen
class ContinuousOptions:
    """Options of the continuous scheduler.

    step_time: seconds that a step may take which has prompts beside decodes; "auto": 2.5 times what the decodes take
    alone, or 0.02 if that's more. aging: seconds of waiting that outweigh one step of priority. drafts: which are
    checked: "auto": those that are expected to bring more than they cost; "all": all that fit.
    """

    step_time: float | Literal["auto"] = field(default="auto", validator=_positive)
    aging: float = field(default=30.0, validator=gt(0))
    drafts: Literal["auto", "all"] = "auto"


@frozen
class Pace:
    """How long steps may take. seconds: with decodes in them; None: `STALL` times what they take alone."""

    seconds: float | None = None

    def prompt_tokens(self, cost: StepCost, decodes: int, most: int) -> int:
        """The chunk budget beside so many decodes: at most `most`, at least `LEAST_TOKENS`."""
        quiet = cost.seconds(max(1, decodes))
        if quiet is None:
            return min(most, UNKNOWN_TOKENS)
        if not decodes:
            target = max(ALONE_SECONDS, self.seconds or 0.0)
        else:
            target = self.seconds or max(SMOOTH_SECONDS, STALL * quiet)
        return min(most, max(LEAST_TOKENS, cost.rows_within(target, decodes + most) - decodes))


def affordable(cost: StepCost, rows: int, chances: Mapping[int, Seq[float]]) -> dict[int, int]:
    """How many draft tokens of each sequence to check beside `rows` other rows, so that tokens per second are most.

    chances: for each sequence's draft tokens, how likely each is right if those before it were. With all tokens sorted
    by how likely they're reached and right, the best choice is a beginning of that list; within a sequence that falls,
    so it is a beginning of each draft too. Sequences that get none aren't in the answer.
    """
    alone = cost.at_best(rows)
    if alone is None:
        return {key: len(each) for key, each in chances.items()}
    reached = [(chance, -i, key) for key, each in chances.items() for i, chance in enumerate(accumulate(each, mul))]
    reached.sort(reverse=True)
    best, best_rate = 0, GAIN * rows / alone
    expected = float(rows)
    for count, (chance, _, _) in enumerate(reached, start=1):
        expected += chance
        if count > 32 and count % (count // 16):  # of many, a sixteenth more or less makes no difference
            continue
        rate = expected / (cost.at_best(rows + count) or alone)
        if rate > best_rate:
            best, best_rate = count, rate
    return dict(Counter(key for _, _, key in reached[:best]))


def draft_limit(cost: StepCost, rows: int) -> int:
    """The longest drafts worth asking for beside `rows` rows that decode: 0 if even sure ones would not pay."""
    alone = cost.at_best(rows)
    if alone is None or rows < 1:
        return MAX_DRAFT
    for more in (1, 3, 8, 16, 32, 64):
        if (rows + more) * alone > GAIN * rows * (cost.at_best(rows + more) or alone):
            return MAX_DRAFT
    return 0
