"""Aggregates against numpy, and who counts as good."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge.bench.record import Failure, Outcome
from forge.bench.settings import Stage, parse_slo
from forge.bench.stats import Summary, aggregate, meets
from forge.errors import ConfigError

STAGE = Stage(4, None, 3, 0)


def outcome(index: int, start: float, ttft: float, tokens: int, gap: float) -> Outcome:
    e2e = ttft + gap * (tokens - 1)
    gaps = (gap,) * (tokens - 1)
    return Outcome(
        index=index, start=start, end=start + e2e, prompt_tokens=100, output_tokens=tokens, chunks=tokens, ttft=ttft,
        e2e=e2e, gaps=gaps,
    )  # fmt: skip


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_percentiles_are_numpys(values: list[float]) -> None:
    summary = Summary.of(values)
    assert summary is not None
    assert (summary.count, summary.max) == (len(values), max(values))
    assert summary.mean == pytest.approx(np.mean(values))
    assert (summary.median, summary.p90) == pytest.approx((np.median(values), np.quantile(values, 0.9)))
    assert summary.p99 == pytest.approx(np.quantile(values, 0.99))


def test_nothing_has_no_percentiles() -> None:
    assert Summary.of([]) is None


def test_rates_count_successes_over_the_whole_time_and_failures_stay_visible() -> None:
    failed = [
        Outcome(index=2, start=1.0, end=10.0, failure=Failure("timeout", "no end after 9 s")),
        Outcome(index=3, start=1.0, end=2.0, failure=Failure("status", "429: full")),
        Outcome(index=4, start=1.0, end=2.0, failure=Failure("status", "503: down")),
    ]
    result = aggregate(STAGE, [outcome(0, 0.0, 1.0, 11, 0.1), outcome(1, 0.0, 2.0, 21, 0.2), *failed], {"ttft": 1.5})
    assert result.duration == 10.0
    assert result.completed == 2
    assert result.output_rate == 3.2
    assert result.total_rate == 23.2
    assert result.request_rate == 0.2
    assert result.goodput == 0.1
    assert result.failures == {"timeout": 1, "status": 2}
    assert result.reasons == {"timeout": "no end after 9 s", "status": "429: full"}
    assert result.itl is not None
    assert result.itl.count == 30
    assert result.itl.median == pytest.approx(np.median([0.1] * 10 + [0.2] * 20))
    assert result.tpot is not None
    assert result.tpot.mean == pytest.approx(0.15)


def test_a_stage_without_any_success_has_no_latencies() -> None:
    result = aggregate(STAGE, [Outcome(index=0, start=0.0, end=0.0, failure=Failure("connection", "refused"))], {})
    assert (result.completed, result.output_rate, result.goodput) == (0, 0.0, None)
    assert result.ttft is result.itl is result.tpot is result.e2e is None


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        ({"ttft": 1.0}, True), ({"ttft": 0.99}, False), ({"tpot": 0.5}, True), ({"tpot": 0.49}, False),
        ({"e2e": 6.0}, True), ({"e2e": 5.9}, False), ({"ttft": 1.0, "e2e": 5.9}, False), ({}, True),
    ],
)  # fmt: skip
def test_goodput_wants_all_limits_met(slo: dict[str, float], met: bool) -> None:
    assert meets(outcome(0, 0.0, 1.0, 11, 0.5), slo) is met


def test_an_answer_of_one_token_cannot_miss_a_limit_on_the_rest() -> None:
    assert meets(outcome(0, 0.0, 1.0, 1, 0.0), {"tpot": 1e-9})


def test_limits_are_read_and_bad_ones_named() -> None:
    assert parse_slo("ttft:0.5") == ("ttft", 0.5)
    for text in ("itl:1", "ttft", "ttft:", "ttft:x", "ttft:0", "ttft:-1", "ttft:nan", "ttft:inf", ":1"):
        with pytest.raises(ConfigError, match="--slo"):
            parse_slo(text)
