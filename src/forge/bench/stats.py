"""From single requests to a stage's figures. Percentiles interpolate linearly, as numpy's do by default."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from attrs import field, frozen

from forge.bench.record import Outcome
from forge.bench.settings import Stage


@frozen
class Summary:
    """What a distribution looks like; seconds."""

    count: int
    mean: float
    median: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary | None:
        """None of nothing."""
        array = np.fromiter(values, np.float64)
        if not array.size:
            return None
        median, p90, p99 = np.percentile(array, (50, 90, 99)).tolist()
        return cls(array.size, float(array.mean()), median, p90, p99, float(array.max()))


@frozen(kw_only=True)
class StageResult:
    """One stage's figures, over the requests that didn't fail.

    duration: seconds from the first request's start to the last one's end, failed ones included. Rates are per second
    of it. goodput: requests per second within all limits, None if there are no limits. failures: by kind, with one
    message of each kind in `reasons`.
    """

    stage: Stage
    duration: float
    completed: int
    failures: Mapping[str, int]
    reasons: Mapping[str, str]
    prompt_tokens: int
    output_tokens: int
    request_rate: float
    output_rate: float
    total_rate: float
    goodput: float | None
    ttft: Summary | None
    itl: Summary | None
    tpot: Summary | None
    e2e: Summary | None
    outcomes: Sequence[Outcome] = field(repr=False)


def meets(outcome: Outcome, slo: Mapping[str, float]) -> bool:
    """Whether a request is within all limits; one without a second token has no TPOT to miss."""
    if outcome.failure is not None:
        return False
    figures = {"ttft": outcome.ttft, "tpot": outcome.tpot, "e2e": outcome.e2e}
    return all((figure := figures[metric]) is None or figure <= limit for metric, limit in slo.items())


def aggregate(stage: Stage, outcomes: Sequence[Outcome], slo: Mapping[str, float]) -> StageResult:
    """The figures of at least one request."""
    duration = max(outcome.end for outcome in outcomes) - min(outcome.start for outcome in outcomes)
    good = [outcome for outcome in outcomes if outcome.failure is None]
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    prompt_tokens = sum(outcome.prompt_tokens or 0 for outcome in good)
    output_tokens = sum(outcome.output_tokens or 0 for outcome in good)

    def per_second(count: int) -> float:
        return count / duration if duration > 0 else 0.0

    return StageResult(
        stage=stage,
        duration=duration,
        completed=len(good),
        failures=dict(Counter(failure.kind for failure in failures)),
        reasons={failure.kind: failure.message for failure in reversed(failures)},
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        request_rate=per_second(len(good)),
        output_rate=per_second(output_tokens),
        total_rate=per_second(prompt_tokens + output_tokens),
        goodput=per_second(sum(meets(outcome, slo) for outcome in good)) if slo else None,
        ttft=Summary.of(outcome.ttft for outcome in good if outcome.ttft is not None),
        itl=Summary.of(gap for outcome in good for gap in outcome.gaps),
        tpot=Summary.of(outcome.tpot for outcome in good if outcome.tpot is not None),
        e2e=Summary.of(outcome.e2e for outcome in good if outcome.e2e is not None),
        outcomes=outcomes,
    )
