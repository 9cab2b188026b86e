"""What Forge promises under load, measured over HTTP: ``python benchmarks/under_load.py PART [--model MODEL]``.

speculation: tokens per second with and without drafts, on a text that repeats itself and on chat. prefix: time to first
token of requests that share a system prompt, against a cold one. fairness: gaps between the tokens of running streams
while a long prompt comes. overload: ten times the load that can be sustained.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from servers import forge_server, running

from forge.bench.prompts import PromptMaker
from forge.bench.record import Outcome
from forge.bench.run import Client
from forge.bench.settings import Settings

POSITIONS = ("--max-model-len", "8192")


class Load:
    """A running server and requests to it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def ask(self, prompt: str, tokens: int, **fields: Any) -> Outcome:
        """One streamed answer of exactly so many tokens."""
        body = msgspec.json.decode(self.client.body(prompt, tokens)) | fields
        return await self.client.send(0, time.perf_counter(), msgspec.json.encode(body), tokens)

    async def together(self, prompts: Sequence[str], tokens: int, **fields: Any) -> tuple[float, list[Outcome]]:
        """All at once: tokens per second from the first request to the last token, and the outcomes."""
        begin = time.perf_counter()
        outcomes = await asyncio.gather(*(self.ask(prompt, tokens, **fields) for prompt in prompts))
        checked(outcomes)
        return len(prompts) * tokens / (time.perf_counter() - begin), list(outcomes)


def checked(outcomes: Sequence[Outcome]) -> None:
    """Stop at a failure."""
    for outcome in outcomes:
        if outcome.failure is not None:
            sys.exit(f"a request failed: {outcome.failure.message}")


async def with_server(model: str, arguments: Sequence[str], measure: Any, endpoint: str = "chat") -> Any:
    """Start a server, measure, stop it."""
    contender = forge_server([], model, [*POSITIONS, *arguments])
    settings = Settings(url=contender.url, endpoint=endpoint, seed=1)  # type: ignore[arg-type]
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        async with running(contender, settings, Path(log.name)) as server:
            return await measure(Load(await Client.connect(settings)), server)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# ---------------------------------------------------------------------------------------------------------- speculation


NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Greta", "Hugo", "Ines", "Jonas")
CITIES = ("Berlin", "Paris", "Rome", "Madrid", "Vienna", "Oslo", "Lisbon", "Prague", "Athens", "Dublin")


def document(variant: int) -> str:
    """A JSON text of some 300 tokens, to be written again with one change."""
    rng = random.Random(variant)
    names = rng.sample(NAMES, 8)
    cities = rng.sample(CITIES, 8)
    people = [{"id": i, "name": n, "city": c, "active": i % 2 == 0} for i, (n, c) in enumerate(zip(names, cities))]
    text = json.dumps(people, indent=1)
    changed = text.replace(names[0], "Nora", 1)
    return f"```json\n{text}\n```\nThe same with {names[0]} renamed to Nora:\n```json\n{changed[:70]}"


async def speculation(model: str, arguments: Sequence[str]) -> None:
    rates: dict[tuple[str, str, int], list[float]] = {}
    questions = PromptMaker(5)

    async def measure(load: Load, _: Any, *, drafter: str, endpoint: str, round_: int) -> None:
        await load.together([document(999)], 16)
        for streams in (1, 8):
            for turn in range(3 if streams == 1 else 2):
                first = 100 * round_ + 10 * turn
                if endpoint == "completions":
                    task, prompts, fields = "rewriting JSON", [document(first + i) for i in range(streams)], {}
                else:
                    task, fields = "chat", {"temperature": 1.0, "seed": 7}
                    prompts = [f"Tell me about {' and '.join(questions.more(3))}." for _ in range(streams)]
                rate, _ = await load.together(prompts, 160, **fields)
                rates.setdefault((task, drafter, streams), []).append(rate)

    for round_ in range(2):
        questions = PromptMaker(5 + round_)
        for drafter in ("none", "ngram"):
            for endpoint in ("completions", "chat"):
                questions = PromptMaker(5 + round_)
                flags = [*arguments, "--drafter", drafter]
                job = partial(measure, drafter=drafter, endpoint=endpoint, round_=round_)
                await with_server(model, flags, job, endpoint)
    for task in ("rewriting JSON", "chat"):
        for streams in (1, 8):
            plain, drafted = (statistics.median(rates[task, drafter, streams]) for drafter in ("none", "ngram"))
            print(f"{task}, {streams} streams: {plain:.0f} tok/s, {drafted:.0f} with drafts: {drafted / plain:.2f} x")


# --------------------------------------------------------------------------------------------------------------- prefix


async def prefix(model: str, arguments: Sequence[str]) -> None:
    async def measure(load: Load, _: Any) -> None:
        maker = PromptMaker(3)

        async def ttft(system: str, question: str) -> float:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            outcome = await load.ask("", 4, messages=messages)
            checked([outcome])
            assert outcome.ttft is not None
            return outcome.ttft

        cold = [await ttft(" ".join(maker.words(1000)), "What now?") for _ in range(5)]
        system = " ".join(maker.words(1000))
        await ttft(system, "First of all?")
        warm = [await ttft(system, " ".join(maker.words(8))) for _ in range(32)]
        c, w = statistics.median(cold), statistics.median(warm)
        print(f"1,000 tokens before: {1e3 * c:.0f} ms to the first token cold, {1e3 * w:.0f} ms shared by 32: "
              f"{c / w:.1f} x shorter")  # fmt: skip
        system = " ".join(maker.words(1000))
        together = await asyncio.gather(*(ttft(system, " ".join(maker.words(8))) for _ in range(32)))
        print(f"32 at once, prefix new: the slowest first token came after {1e3 * max(together):.0f} ms")

    await with_server(model, arguments, measure)


# ------------------------------------------------------------------------------------------------------------- fairness


async def fairness(model: str, arguments: Sequence[str]) -> None:
    async def measure(load: Load, _: Any) -> None:
        maker = PromptMaker(4)
        short = [" ".join(maker.words(30)) for _ in range(16)]
        long = " ".join(maker.words(5900))
        await load.together(short, 32)
        _, quiet = await load.together(short, 200)

        async def late() -> Outcome:
            await asyncio.sleep(0.7)
            return await load.ask(long, 4)

        streams, outcome = await asyncio.gather(load.together(short, 500), late())
        checked([outcome])
        assert outcome.ttft is not None
        begin, end = outcome.start, outcome.start + outcome.ttft
        before = [gap for each in quiet for gap in each.gaps]
        during = []
        for each in streams[1]:
            at = each.start + (each.ttft or 0.0)
            for gap in each.gaps:
                at += gap
                if begin <= at <= end:
                    during.append(gap)
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            b, d = percentile(before, share), percentile(during, share)
            print(f"16 streams, gaps {name}: {1e3 * b:.1f} ms quiet, {1e3 * d:.1f} ms beside a prompt of "
                  f"{outcome.prompt_tokens} tokens: {d / b:.2f} x")  # fmt: skip
        print(f"the long prompt's first token: {outcome.ttft:.1f} s; {len(during)} gaps")

    await with_server(model, arguments, measure)


# ------------------------------------------------------------------------------------------------------------- overload


async def overload(model: str, arguments: Sequence[str], seconds: float) -> None:
    async def measure(load: Load, server: Any) -> None:
        maker = PromptMaker(6)
        await load.together([" ".join(maker.words(40)) for _ in range(16)], 32)
        begin = time.perf_counter()
        _, calm = await load.together([" ".join(maker.words(40)) for _ in range(48)], 32)
        rate = 48 / (time.perf_counter() - begin)
        quiet = [await load.ask(" ".join(maker.words(40)), 32) for _ in range(5)]
        memory = server.memory()
        tasks = []
        begin = time.perf_counter()
        while (now := time.perf_counter() - begin) < seconds:
            while len(tasks) < 10 * rate * now:
                tasks.append(asyncio.create_task(load.ask(" ".join(maker.words(40)), 32)))
            await asyncio.sleep(0.005)
        outcomes = await asyncio.gather(*tasks)
        drained = time.perf_counter() - begin - seconds
        after = [await load.ask(" ".join(maker.words(40)), 32) for _ in range(3)]
        grown = server.memory()
        ends = Counter("ok" if o.failure is None else o.failure.message[:3] for o in outcomes)
        e2e = [o.e2e for o in outcomes if o.e2e is not None]
        checked([*calm, *quiet, *after])
        print(f"sustained {rate:.1f} requests/s; offered {10 * rate:.0f}/s for {seconds:g} s: {dict(ends)}")
        print(f"accepted: {statistics.median(e2e):.2f} s median, {percentile(e2e, 0.99):.2f} s p99 end to end; "
              f"queue empty {drained:.1f} s after the load")  # fmt: skip
        print(f"e2e alone: {statistics.median(o.e2e or 0 for o in quiet):.3f} s before, {after[0].e2e:.3f} s first "
              f"request afterwards")  # fmt: skip
        if memory and grown:
            print(f"resident: {memory['resident'] >> 20} MiB before, {grown['resident'] >> 20} MiB after")

    await with_server(model, ["--max-batch-size", "16", "--max-queue", "32", *arguments], measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speculation", "prefix", "fairness", "overload"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    known, arguments = parser.parse_known_args()
    if known.part == "overload":
        asyncio.run(overload(known.model, arguments, known.seconds))
    else:
        parts = {"speculation": speculation, "prefix": prefix, "fairness": fairness}
        asyncio.run(parts[known.part](known.model, arguments))


if __name__ == "__main__":
    main()
