"""The command line: ``forge run | bench | config | plugins | doctor | pull | models``, and whatever plugins add.

A `ForgeError` becomes one message on standard error and exit code 1, or 2 if the configuration is at fault. Nothing
here imports torch, and what only one command needs is imported there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import attrs
import click

from forge import __version__
from forge.cli.group import ForgeGroup
from forge.config import FLAGS, Config, Flag, Origins, load_config
from forge.plugins import Registry, load


@click.group(cls=ForgeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="forge")
def cli() -> None:
    """Serve language models; every part of the server is a plugin."""


def main() -> None:
    """The console script."""
    cli(prog_name="forge")


# ----------------------------------------------------------------------------------------- flags that commands share


class _FlagType(click.ParamType[Any]):
    def __init__(self, flag: Flag) -> None:
        self.name = flag.metavar
        self.flag = flag

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.flag.parse(value)
        except ValueError:
            wanted = self.flag.metavar.replace("N", "an integer").replace("|", " or ")
            self.fail(f"expected {wanted}, got {value!r}", param, ctx)


_config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Configuration file [default: forge.toml]."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _configured(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command all flags of the configuration, and the configuration that they and the file make."""

    @wraps(function)
    def command(config_path: Path | None, model: str | None, **values: Any) -> None:
        flags = {flag.name: values.pop(flag.keyword) for flag in FLAGS}
        if model is not None:
            if flags["--model-path"] is not None:
                raise click.UsageError("the model is named twice, as an argument and by --model-path")
            flags["--model-path"] = model
        function(*load_config(config_path, flags), **values)

    decorated: Callable[..., None] = command
    for flag in reversed(FLAGS):
        names = [flag.name, *([flag.short] if flag.short else []), flag.keyword]
        decorated = click.option(*names, type=_FlagType(flag), metavar=flag.metavar, help=flag.summary)(decorated)
    return click.argument("model", required=False)(_config_option(decorated))


def _installed(config: Config) -> Registry:
    return load(config.plugins.allow, config.plugins.deny)


# ------------------------------------------------------------------------------------------------------------ commands


@cli.command()
@_configured
def run(config: Config, origins: Origins) -> None:
    """Serve MODEL [default: smollm2] over HTTP."""
    from forge.components import component_options
    from forge.models import resolve
    from forge.server.launch import serve

    logging.basicConfig(level=config.server.log_level.upper(), format="%(levelname)s %(message)s")
    registry = _installed(config)
    component_options(config, origins, registry)  # rather now than after a download
    model_path = resolve(config.model.path, registry, progress=sys.stderr.isatty())
    asyncio.run(serve(config, registry, model_path))


class _Numbers(click.ParamType[tuple[Any, ...]]):
    """Numbers with commas between them."""

    def __init__(self, number: Callable[[str], Any], name: str) -> None:
        self.number = number
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return tuple(self.number(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected {self.name}, got {value!r}", param, ctx)


@cli.command()
@click.argument("url")
@click.option("--concurrency", type=_Numbers(int, "N,N,…"), help="Streams of the closed loops [default: 1,4,16].")
@click.option("--rate", type=_Numbers(float, "R,R,…"), help="Open loops: so many Poisson arrivals per second.")
@click.option("--requests", type=int, help="Requests of each stage [default: 2 a stream, 32 of an open loop].")
@click.option("--warmup", type=int, help="Unmeasured requests before each stage [default: 1 a stream, 4].")
@click.option("--prompt-tokens", type=int, default=158, show_default=True, help="Length of the prompts.")
@click.option("--shared-prefix", type=int, default=0, show_default=True, help="Tokens that all prompts begin with.")
@click.option("--output-tokens", type=int, default=64, show_default=True, help="Length of the answers.")
@click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Go on after an end of sequence.")
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--endpoint", type=click.Choice(["chat", "completions"]), default="chat", show_default=True)
@click.option("--model", help="What the server calls its model [default: the first that it lists].")
@click.option("--api-key", envvar="FORGE_BENCH_API_KEY", help="[env: FORGE_BENCH_API_KEY]")
@click.option("--slo", multiple=True, metavar="METRIC:SECONDS", help="A limit for goodput, on ttft, tpot or e2e.")
@click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds that a request may take.")
@click.option("--seed", type=int, help="Of prompts and arrivals [default: another one each time].")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures to this file.")
@click.option("--raw", is_flag=True, help="With --json: every request's times too.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw the figures into this PNG.")
def bench(json_path: Path | None, raw: bool, plot_path: Path | None, slo: tuple[str, ...], **values: Any) -> None:
    """Measure the OpenAI-compatible server at URL: latencies, throughput, failures.

    The exit code is 1 if a request failed.
    """
    from forge.bench.command import run_command
    from forge.bench.settings import Settings, parse_slo

    if values["rate"] and values["concurrency"]:
        raise click.UsageError("--rate (an open loop) and --concurrency (closed loops) exclude each other")
    if raw and json_path is None:
        raise click.UsageError("--raw needs --json")
    given = {name: value for name, value in values.items() if value is not None}
    try:
        settings = Settings(**given, slo=dict(parse_slo(text) for text in slo))
    except ValueError as error:
        raise click.UsageError(str(error.args[0])) from error
    if not run_command(settings, json_path, raw, plot_path):
        sys.exit(1)


@cli.command()
@click.argument("log_path", metavar="LOG", type=click.Path(path_type=Path))
@click.option("--at-once", type=click.IntRange(1), default=8, show_default=True, help="Requests that run together.")
@_configured
def replay(config: Config, origins: Origins, log_path: Path, at_once: int) -> None:
    """Run the requests of a log (server.request_log) on MODEL again and check that the same tokens come out.

    What else they depend on and is different here (version, weights, backend, options) is said first. The exit code
    is 1 if any differ, or if there was nothing to compare.
    """
    from collections import Counter

    from forge.cli.replay import replay as compare
    from forge.llm import LLM
    from forge.server.request_log import read_log

    logging.basicConfig(level=config.server.log_level.upper(), format="%(levelname)s %(message)s")
    entries = list(read_log(log_path))
    outcomes: Counter[str] = Counter()
    with LLM.configured(config, origins) as llm:
        here = llm.conditions()
        for difference in dict.fromkeys(d for entry in entries for d in entry.conditions.differences(here)):
            click.echo(f"different from when it was logged: {difference}")
        for comparison in compare(llm, entries, at_once):
            outcomes[comparison.outcome] += 1
            if comparison.outcome != "same":
                click.echo(f"{comparison.request_id}: {comparison.outcome}: {comparison.detail}")
    click.echo(f"{outcomes['same']} the same, {outcomes['different']} different, {outcomes['skipped']} skipped")
    if outcomes["different"] or not outcomes["same"]:
        sys.exit(1)


@cli.command("config")
@_json_option
@_configured
def show_config(config: Config, origins: Origins, as_json: bool) -> None:
    """Print the configuration and where each value comes from."""
    from forge.cli.settings import as_toml, effective

    settings = effective(config, origins, _installed(config))
    if as_json:
        click.echo(json.dumps([attrs.asdict(setting) for setting in settings], indent=2, default=str))
    else:
        click.echo(as_toml(settings), nl=False)


@cli.command()
@_config_option
@_json_option
def plugins(config_path: Path | None, as_json: bool) -> None:
    """List what is installed, what can run here, what is broken."""
    from forge.cli.report import plugin_report, plugin_text

    report = plugin_report(_installed(load_config(config_path)[0]))
    click.echo(json.dumps(report, indent=2) if as_json else plugin_text(report))


@cli.command()
@_config_option
@_json_option
def doctor(config_path: Path | None, as_json: bool) -> None:
    """Say what this machine can run, and why not the rest.

    The exit code is 1 if no backend can run.
    """
    from forge.cli.report import doctor_report, doctor_text

    report = doctor_report(_installed(load_config(config_path)[0]))
    click.echo(json.dumps(report, indent=2) if as_json else doctor_text(report))
    if report["chosen"] is None:
        sys.exit(1)


@cli.command()
@click.argument("name")
@_config_option
def pull(name: str, config_path: Path | None) -> None:
    """Fetch the model NAME if need be, and print its path."""
    from forge.models import resolve

    registry = _installed(load_config(config_path)[0])
    click.echo(resolve(name, registry, progress=sys.stderr.isatty()))


@cli.command()
@_config_option
@_json_option
def models(config_path: Path | None, as_json: bool) -> None:
    """List the models on this disk and the short names."""
    from forge.cli.report import model_report, model_text

    report = model_report(_installed(load_config(config_path)[0]))
    click.echo(json.dumps(report, indent=2) if as_json else model_text(report))
