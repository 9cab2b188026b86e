"""Forge beside other servers of the same model: launched in turn, never two at once, in interleaved rounds.

    python benchmarks/compare.py MODEL.gguf --peer llama-server=/path/to/llama-server --rounds 5 --json out.json

Every round starts each server anew (start-up: launch to first token), offers closed loops through `forge.bench`, times
the first token of a long prompt, and reads the memory of all its processes under the greatest load. Printed are medians
over the rounds, the spread (least and greatest) and Forge's advantage: the median of the rounds' ratios, above 1 where
Forge is better. A loop of fixed length, timed on each processor before every server's turn, shows how quiet it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen
from servers import Contender, Running, busy_core, forge_server, peer_server, running

from forge.bench.machine import describe, spin_times
from forge.bench.report import stage_json
from forge.bench.run import Client
from forge.bench.settings import BenchError, Settings, Stage
from forge.bench.stats import StageResult
from forge.errors import ForgeError

MEMORY_SECONDS = 0.5
MARGIN = 64
"""Positions that a sequence may have more than the longest prompt and its answer."""

LOWER_IS_BETTER = ("TTFT", "ITL", "start-up", "memory")


@frozen
class Plan:
    """What every server is put through."""

    settings: Settings
    long_prompt: int
    long_requests: int
    busy: bool


@frozen
class Turn:
    """One server's figures of one round. figures: by name, in the unit that the name has."""

    server: str
    round: int
    spin: Sequence[float]
    figures: Mapping[str, float]
    stages: Sequence[StageResult] = field(repr=False)


async def turn(contender: Contender, plan: Plan, number: int, logs: Path) -> Turn:
    """Start the server, measure everything, stop it."""
    spin = spin_times()
    settings = contender.settings(evolve(plan.settings, seed=plan.settings.seed + number))
    async with running(contender, settings, logs / f"{contender.name}.log") as server:
        client = await Client.connect(settings)
        figures: dict[str, float] = {}
        if server.startup is not None:
            figures["start-up, s"] = server.startup
        stages = []
        peak: dict[str, int] = {}
        for stage in settings.stages():
            sampler = asyncio.create_task(_watch_memory(server, peak)) if _heaviest(stage, settings) else None
            result = await client.stage(stage)
            if sampler is not None:
                sampler.cancel()
                await asyncio.gather(sampler, return_exceptions=True)
            stages.append(result)
            load = "1 stream" if stage.concurrency == 1 else f"{stage.concurrency} streams"
            figures |= _figures(result, load)
            print(f"{contender.name:>14}  {load:>10}  {result.output_rate:8.1f} tok/s", flush=True)
        figures |= {f"memory ({name}), MB": nbytes / 1e6 for name, nbytes in peak.items()}
        long = await _long_prompts(settings, plan)
        stages.append(long)
        if long.ttft is not None:
            figures[f"TTFT of {plan.long_prompt} tokens, ms"] = long.ttft.median * 1e3
        if plan.busy:
            with busy_core():
                result = await client.stage(Stage(1, None, plan.settings.requests or 2, 1))
            stages.append(result)
            figures |= _figures(result, "1 stream, a busy neighbour")
    return Turn(contender.name, number, spin, figures, stages)


def _heaviest(stage: Stage, settings: Settings) -> bool:
    return stage.concurrency == max(settings.concurrency)


async def _watch_memory(server: Running, peak: dict[str, int]) -> None:
    while True:
        for name, nbytes in (server.memory() or {}).items():
            peak[name] = max(peak.get(name, 0), nbytes)
        await asyncio.sleep(MEMORY_SECONDS)


async def _long_prompts(settings: Settings, plan: Plan) -> StageResult:
    client = await Client.connect(evolve(settings, prompt_tokens=plan.long_prompt, output_tokens=2))
    return await client.stage(Stage(1, None, plan.long_requests, 1))


def _figures(result: StageResult, load: str) -> dict[str, float]:
    """Errors: `BenchError` if a request failed: servers are compared over the same work."""
    if result.failures:
        raise BenchError(f"{load}: {result.failures}; the first of each kind: {result.reasons}")
    figures = {f"{load}: tok/s": result.output_rate}
    if result.ttft is not None:
        figures[f"{load}: TTFT p50, ms"] = result.ttft.median * 1e3
    if result.itl is not None:
        figures |= {f"{load}: ITL p50, ms": result.itl.median * 1e3, f"{load}: ITL p99, ms": result.itl.p99 * 1e3}
    return figures


# -------------------------------------------------------------------------------------------------------------- report


def advantages(forge: Sequence[Turn], peer: Sequence[Turn], figure: str) -> list[float]:
    """Round by round, how many times better Forge is."""
    pairs = zip((turn.figures.get(figure) for turn in forge), (turn.figures.get(figure) for turn in peer))
    lower = any(name in figure for name in LOWER_IS_BETTER)
    return [theirs / ours if lower else ours / theirs for ours, theirs in pairs if ours and theirs]


def table(turns: Sequence[Turn]) -> str:
    """Medians with their spread, a line for each figure and server."""
    names = list(dict.fromkeys(turn.server for turn in turns))
    by_name = {name: [turn for turn in turns if turn.server == name] for name in names}
    lines = [f"{'':38}{'server':>14}{'median':>10}{'least':>10}{'greatest':>10}   Forge is better by (spread)"]
    for figure in dict.fromkeys(figure for turn in turns for figure in turn.figures):
        for name in names:
            values = [turn.figures[figure] for turn in by_name[name] if figure in turn.figures]
            if not values:
                continue
            line = f"{figure:38}{name:>14}{statistics.median(values):>10.2f}{min(values):>10.2f}{max(values):>10.2f}"
            ratios = advantages(by_name[names[0]], by_name[name], figure) if name != names[0] else []
            if ratios:
                line += f"   {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(line)
    return "\n".join(lines)


def to_json(plan: Plan, contenders: Sequence[Contender], turns: Sequence[Turn]) -> dict[str, Any]:
    """Everything, as plain data."""
    settings = plan.settings
    return {
        "machine": dict(describe()),
        "settings": {
            "prompt_tokens": settings.prompt_tokens,
            "output_tokens": settings.output_tokens,
            "long_prompt": plan.long_prompt,
            "concurrency": settings.concurrency,
            "seed": settings.seed,
        },
        "commands": {contender.name: contender.command for contender in contenders},
        "turns": [
            {
                "server": turn.server,
                "round": turn.round,
                "spin_ms": turn.spin,
                "figures": turn.figures,
                "stages": [stage_json(stage, requests=False) for stage in turn.stages],
            }
            for turn in turns
        ],
    }


# ------------------------------------------------------------------------------------------------------- command line


async def compare(contenders: Sequence[Contender], plan: Plan, rounds: int, logs: Path) -> list[Turn]:
    """A B A B …, saying what each turn found."""
    turns = []
    for number in range(rounds):
        for contender in contenders:
            taken = await turn(contender, plan, number, logs)
            turns.append(taken)
            spin = " ".join(f"{milliseconds:.0f}" for milliseconds in taken.spin)
            print(f"{contender.name:>14}  round {number + 1} done; fixed loop before it: {spin} ms", flush=True)
    return turns


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument(
        "--peer", action="append", default=[], help="llama-server=BINARY, vllm=BINARY:SAFETENSORS_DIRECTORY or NAME=URL"
    )
    parser.add_argument("--forge", default="", help="the command to measure [default: the forge of this Python]")
    parser.add_argument("--forge-arguments", default="", help="more flags for `forge run`, in one string")
    parser.add_argument("--peer-arguments", default="", help="more flags for launched peers, in one string")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, help="of each stage [default: 2 a stream]")
    parser.add_argument("--warmup", type=int, help="unmeasured requests before each stage [default: 1 a stream]")
    parser.add_argument("--prompt-tokens", type=int, default=158)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--long-prompt", type=int, default=1000, help="tokens of the prompt whose TTFT is measured")
    parser.add_argument("--long-requests", type=int, default=3)
    parser.add_argument("--busy-core", action="store_true", help="one stream once more, with one processor taken")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, help="where to keep what the servers say [default: a new directory]")
    return parser


def main() -> None:
    """Print what each turn finds, and a table at the end."""
    options = _arguments().parse_args()
    settings = Settings(
        url="http://127.0.0.1",
        concurrency=tuple(options.concurrency),
        requests=options.requests,
        warmup=options.warmup,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
    )
    plan = Plan(settings, options.long_prompt, options.long_requests, options.busy_core)
    logs = options.logs or Path(tempfile.mkdtemp(prefix="forge-compare-"))
    positions = max(options.long_prompt, options.prompt_tokens) + options.output_tokens + MARGIN
    more = options.peer_arguments.split()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("compare: terminated"))  # so that no server outlives this
    try:
        logs.mkdir(parents=True, exist_ok=True)
        contenders = [forge_server(options.forge.split(), options.model, options.forge_arguments.split())]
        contenders += [
            peer_server(text, options.model, max(options.concurrency), positions, more) for text in options.peer
        ]
        print(f"the servers' own words: {logs}")
        turns = asyncio.run(compare(contenders, plan, options.rounds, logs))
    except (ForgeError, ValueError, OSError) as error:
        sys.exit(f"compare: {error}")
    print(f"\n{table(turns)}")
    if options.json:
        options.json.write_text(json.dumps(to_json(plan, contenders, turns), indent=2) + "\n")


if __name__ == "__main__":
    main()
