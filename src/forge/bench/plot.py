"""A picture of a benchmark: throughput and latencies over the load. The only module that wants matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from forge.bench.report import stage_name
from forge.bench.settings import BenchError
from forge.bench.stats import StageResult


def require_matplotlib() -> None:
    """Errors: `BenchError` if there is none; ask before a benchmark rather than after it."""
    if find_spec("matplotlib") is None:
        raise BenchError("a plot needs matplotlib: pip install 'forge[bench]'")


def plot(results: Sequence[StageResult], title: str, path: Path) -> None:
    """Write a PNG. Stages without a single success are left out of the latencies. Errors: `BenchError`, `OSError`."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    rates, ttft, itl, e2e = figure.subplots(2, 2).flat
    figure.suptitle(title, fontsize=9, wrap=True)
    positions = range(len(results))
    rates.bar(positions, [result.output_rate for result in results])
    rates.set_title("generated tokens per second")
    for axes, metric, scale, unit in ((ttft, "ttft", 1e3, "ms"), (itl, "itl", 1e3, "ms"), (e2e, "e2e", 1, "s")):
        found = [(at, getattr(result, metric)) for at, result in enumerate(results)]
        for share in ("median", "p90", "p99"):
            points = [(at, getattr(summary, share) * scale) for at, summary in found if summary is not None]
            axes.plot([at for at, _ in points], [value for _, value in points], marker="o", label=share)
        axes.set_title(f"{metric.upper() if metric != 'e2e' else 'end to end'}, {unit}")
        axes.set_ylim(bottom=0)
        axes.legend()
    for axes in (rates, ttft, itl, e2e):
        axes.set_xticks(positions, [stage_name(result.stage) for result in results])
        axes.set_xlabel("streams" if results[0].stage.rate is None else "requests per second")
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
