"""``forge bench``: options to `Settings`, a table while the stages run, files at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from forge.bench.plot import plot, require_matplotlib
from forge.bench.report import LEGEND, conditions, failure_lines, header, row, to_json
from forge.bench.run import Client
from forge.bench.settings import BenchError, Settings
from forge.bench.stats import StageResult


def run_command(settings: Settings, json_path: Path | None, raw: bool, plot_path: Path | None) -> bool:
    """Measure, print and write; False if any request failed. Errors: `BenchError`, `ConfigError`."""
    if plot_path is not None:
        require_matplotlib()
    model, results = asyncio.run(_measure(settings, click.echo))
    if json_path is not None:
        _written(json_path, lambda: json_path.write_text(_dump(to_json(settings, results, requests=raw))))
    if plot_path is not None:
        _written(plot_path, lambda: plot(results, conditions(settings, model), plot_path))
    return not any(result.failures for result in results)


async def _measure(settings: Settings, say: Callable[[str], None]) -> tuple[str, list[StageResult]]:
    client = await Client.connect(settings)
    say(f"{conditions(settings, client.model)}\n\n{header()}")
    results = []
    for stage in settings.stages():
        results.append(await client.stage(stage))
        say("\n".join([row(results[-1]), *failure_lines(results[-1])]))
    say(f"\n{LEGEND}")
    return client.model, results


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"


def _written(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise BenchError(f"{path} can't be written: {error.strerror}") from error
