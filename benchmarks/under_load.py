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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
from attrs import evolve
from servers import Running, forge_server, running

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


@asynccontextmanager
async def forge_at_work(model: str, arguments: Sequence[str]) -> AsyncIterator[tuple[dict[str, Load], Running]]:
    """A started server: requests to it by endpoint, and its processes."""
    contender = forge_server([], model, [*POSITIONS, *arguments])
    chat = Settings(url=contender.url, seed=1)
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        async with running(contender, chat, Path(log.name)) as server:
            each = (chat, evolve(chat, endpoint="completions"))
            yield {settings.endpoint: Load(await Client.connect(settings)) for settings in each}, server


async def with_server(
    model: str, arguments: Sequence[str], measure: Callable[[Load, Running], Awaitable[None]]
) -> None:
    """Start a server, measure its chat, stop it."""
    async with forge_at_work(model, arguments) as (loads, server):
        await measure(loads["chat"], server)


def metric(load: Load, name: str) -> float:
    """A counter of a server's metrics."""
    with urlopen(f"{load.client.settings.url}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"forge:{name} "))


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# ---------------------------------------------------------------------------------------------------------- speculation


NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Greta", "Hugo", "Ines", "Jonas")
CITIES = ("Berlin", "Paris", "Rome", "Madrid", "Vienna", "Oslo", "Lisbon", "Prague", "Athens", "Dublin")
ANSWER = 128
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "rewriting JSON": ("completions", {"temperature": 0.0}),
    "chat": ("chat", {"temperature": 1.0, "seed": 7}),
}


def document(variant: int) -> str:
    """A JSON text of some 300 tokens, which is to be written again with another version number."""
    rng = random.Random(variant)
    people = [
        {"id": rng.randrange(100, 999), "name": name, "city": rng.choice(CITIES), "active": rng.random() < 0.5}
        for name in rng.sample(NAMES, 8)
    ]
    text = json.dumps({"version": 1, "people": people}, indent=2)
    changed = text.replace('"version": 1', '"version": 2')
    return f"```json\n{text}\n```\nThe same with version 2:\n```json\n{changed[: changed.index('},') + 2]}"


async def speculation(model: str, arguments: Sequence[str], streams: Sequence[int], turns: int) -> None:
    """Two servers, one without drafts, answer the same prompts in turn; prompts are computed before, so that it is
    decoding that counts.
    """
    questions = PromptMaker(5)

    def prompts(task: str, turn: int, count: int) -> list[str]:
        if task == "chat":
            return [f"Tell me about {' and '.join(questions.more(3))}." for _ in range(count)]
        return [document(100 * turn + i) for i in range(count)]

    async def rates(both: Sequence[Load], asked: list[str], backwards: bool, **fields: Any) -> list[float]:
        found = [0.0, 0.0]
        for i in (1, 0) if backwards else (0, 1):
            await both[i].together(asked, 1, **fields)
            found[i], _ = await both[i].together(asked, ANSWER, **fields)
        return found

    async with (
        forge_at_work(model, [*arguments, "--drafter", "none"]) as (plain, _),
        forge_at_work(model, arguments) as (drafting, _),
    ):
        for task, (endpoint, fields) in TASKS.items():
            both = plain[endpoint], drafting[endpoint]
            for count in streams:
                pairs = [
                    await rates(both, prompts(task, turn, count), turn % 2 == 1, **fields) for turn in range(turns)
                ]
                ratios = sorted(drafted / without for without, drafted in pairs)
                without, drafted = (statistics.median(each) for each in zip(*pairs))
                print(
                    f"{task}, {count} streams: {without:.0f} tok/s, {drafted:.0f} with drafts: "
                    f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    flush=True,
                )
            names = ("spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total")
            drafted, right = (metric(both[1], name) for name in names)
            print(f"  draft tokens so far: {drafted:.0f} checked, {right:.0f} right")


# --------------------------------------------------------------------------------------------------------------- prefix


async def prefix(model: str, arguments: Sequence[str]) -> None:
    async def measure(load: Load, _: Running) -> None:
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
    async def measure(load: Load, _: Running) -> None:
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


def resident(server: Running) -> int:
    """Bytes of all processes of a server that was started here."""
    memory = server.memory()
    assert memory is not None
    return memory["resident"]


async def overload(model: str, arguments: Sequence[str], seconds: float) -> None:
    async def measure(load: Load, server: Running) -> None:
        maker = PromptMaker(6)
        await load.together([" ".join(maker.words(40)) for _ in range(16)], 32)
        begin = time.perf_counter()
        _, calm = await load.together([" ".join(maker.words(40)) for _ in range(32)], 32)
        rate = 32 / (time.perf_counter() - begin)
        quiet = [await load.ask(" ".join(maker.words(40)), 32) for _ in range(5)]
        memory, peak, waiting = resident(server), 0, 0.0
        tasks = []
        begin = looked = time.perf_counter()
        while (now := time.perf_counter() - begin) < seconds:
            while len(tasks) < 10 * rate * now:
                tasks.append(asyncio.create_task(load.ask(" ".join(maker.words(40)), 32)))
            if time.perf_counter() - looked > 2:
                looked, peak = time.perf_counter(), max(peak, resident(server))
                waiting = max(waiting, await asyncio.to_thread(metric, load, "num_requests_waiting"))
            await asyncio.sleep(0.005)
        outcomes = await asyncio.gather(*tasks)
        drained = time.perf_counter() - begin - seconds
        after = [await load.ask(" ".join(maker.words(40)), 32) for _ in range(3)]
        begin = time.perf_counter()
        _, again = await load.together([" ".join(maker.words(40)) for _ in range(32)], 32)
        rate_after = 32 / (time.perf_counter() - begin)
        ends = Counter("ok" if o.failure is None else o.failure.message[:3] for o in outcomes)
        e2e = [o.e2e for o in outcomes if o.e2e is not None]
        checked([*calm, *quiet, *after, *again])
        print(f"sustained {rate:.1f} requests/s; offered {10 * rate:.0f}/s for {seconds:g} s: {dict(ends)}")
        print(f"accepted: {statistics.median(e2e):.2f} s median, {percentile(e2e, 0.99):.2f} s p99 end to end; "
              f"queue empty {drained:.1f} s after the load")  # fmt: skip
        soon = ", ".join(f"{outcome.e2e:.3f}" for outcome in after)
        print(f"alone: {statistics.median(o.e2e or 0 for o in quiet):.3f} s end to end before; the first three once "
              f"the last answer had come: {soon} s")  # fmt: skip
        print(f"sustained right afterwards: {rate_after:.1f} requests/s; most that waited: {waiting:.0f}")
        print(f"resident: {memory >> 20} MiB before, {peak >> 20} at most during the load, "
              f"{resident(server) >> 20} after")  # fmt: skip

    await with_server(model, ["--max-batch-size", "16", "--max-queue", "32", *arguments], measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speculation", "prefix", "fairness", "overload"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16], help="of speculation")
    parser.add_argument("--turns", type=int, default=5, help="of speculation")
    known, arguments = parser.parse_known_args()
    parts = {
        "speculation": lambda: speculation(known.model, arguments, known.streams, known.turns),
        "prefix": lambda: prefix(known.model, arguments),
        "fairness": lambda: fairness(known.model, arguments),
        "overload": lambda: overload(known.model, arguments, known.seconds),
    }
    asyncio.run(parts[known.part]())


if __name__ == "__main__":
    main()
