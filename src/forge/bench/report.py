"""What a benchmark found: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs

from forge import __version__
from forge.bench.machine import describe
from forge.bench.settings import SLO_METRICS, Settings, Stage
from forge.bench.stats import StageResult, Summary

FORMAT = 1
"""Of the JSON; goes up when a field changes its meaning or goes away."""

METRICS = ("ttft", "itl", "tpot", "e2e")

COLUMNS = (
    ("load", 9), ("ok", 5), ("failed", 6), ("tok/s", 8), ("total/s", 8), ("goodput", 7),
    ("TTFT p50", 9), ("p90", 8), ("p99", 8), ("ITL p50", 8), ("p90", 7), ("p99", 7),
    ("TPOT p50", 8), ("p90", 7), ("p99", 7), ("e2e p50", 8), ("p90", 7), ("p99", 7),
)  # fmt: skip

LEGEND = (
    "TTFT, ITL, TPOT in ms, e2e in s; tok/s: generated; total/s: with prompts; goodput: requests/s within the limits"
)


def stage_name(stage: Stage) -> str:
    """``4`` streams, or ``2.5/s``."""
    return str(stage.concurrency) if stage.rate is None else f"{stage.rate:g}/s"


def header() -> str:
    """The table's first line."""
    return "  ".join(f"{title:>{width}}" for title, width in COLUMNS)


def row(result: StageResult) -> str:
    """The table's line for a stage."""
    cells = [
        stage_name(result.stage),
        str(result.completed),
        str(sum(result.failures.values())),
        f"{result.output_rate:.1f}",
        f"{result.total_rate:.1f}",
        "-" if result.goodput is None else f"{result.goodput:.2f}",
        *_percentiles(result.ttft, 1e3, 1),
        *_percentiles(result.itl, 1e3, 2),
        *_percentiles(result.tpot, 1e3, 2),
        *_percentiles(result.e2e, 1, 2),
    ]
    return "  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS))


def failure_lines(result: StageResult) -> list[str]:
    """One line for each kind of failure."""
    return [f"  {count} failed, {kind}: {result.reasons[kind]}" for kind, count in result.failures.items()]


def _percentiles(summary: Summary | None, scale: float, digits: int) -> list[str]:
    if summary is None:
        return ["-"] * 3
    return [f"{value * scale:.{digits}f}" for value in (summary.median, summary.p90, summary.p99)]


def to_json(settings: Settings, results: Sequence[StageResult], *, requests: bool) -> dict[str, Any]:
    """Everything, as plain data; times in seconds, memory in bytes. requests: every single request's times too."""
    asked = attrs.asdict(settings, filter=attrs.filters.exclude(attrs.fields(Settings).api_key))
    return {
        "format": FORMAT,
        "forge": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(describe()),
        "settings": asked,
        "stages": [stage_json(result, requests=requests) for result in results],
    }


def stage_json(result: StageResult, *, requests: bool) -> dict[str, Any]:
    """One stage, as plain data."""
    without = attrs.filters.exclude(attrs.fields(StageResult).outcomes)
    data = attrs.asdict(result, filter=without)
    if requests:
        data["requests"] = [attrs.asdict(outcome) | {"tpot": outcome.tpot} for outcome in result.outcomes]
    return data


def conditions(settings: Settings, model: str) -> str:
    """What the table's figures are of, in a line."""
    limits: Mapping[str, float] = settings.slo
    parts = [
        f"{model} at {settings.url} ({settings.endpoint})",
        f"{settings.prompt_tokens} tokens in"
        + f", {settings.shared_prefix} of them shared" * bool(settings.shared_prefix),
        f"{settings.output_tokens} out" + ", end of sequence ignored" * settings.ignore_eos,
        f"temperature {settings.temperature:g}",
        f"seed {settings.seed}",
        *(f"{metric} <= {limits[metric]:g} s" for metric in SLO_METRICS if metric in limits),
    ]
    return "; ".join(parts)
