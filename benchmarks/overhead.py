"""What a decode step costs outside the kernels, on both sides of the border between server and engine.

    python benchmarks/overhead.py [MODEL] [--streams 1 8 32] [--profile]

Engine: wall-clock time of a step less that inside forge-cpu's native calls, with the frames sent to a process that
throws them away; the median of all steps in which every sequence decodes. Server: processor time of a real server's
own process for each step while so many streams are read from it: decoding frames, Server-Sent Events, JSON, sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
from attrs import evolve, frozen
from structured import SCHEMA

from forge import assemble, models, plugins
from forge.bench.http import Address, Server
from forge.components import optional_component
from forge.config import Config, load_config
from forge.engine.channel import SocketChannel
from forge.engine.engine import Engine
from forge.engine.request import Deltas, Request
from forge.interfaces.sampler import SamplingParams
from forge.server.structured import Lowering, Specification
from forge.testing.server import serve

PROMPT, TOKENS, SETTLE = 158, 200, 8
"""Tokens of prompts and answers; decode steps that aren't counted at first."""

GREEDY = SamplingParams(temperature=0.0)
KINDS: Mapping[str, tuple[SamplingParams, bool]] = {
    "greedy": (GREEDY, False),
    "sampled": (SamplingParams(temperature=0.8, top_p=0.95, top_k=40, repetition_penalty=1.1, seed=7), False),
    "schema": (GREEDY, True),
}
"""How tokens are drawn, and whether a JSON schema constrains them."""

FIELDS: Mapping[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "ignore_eos": True},
    "sampled": {
        "temperature": 0.8, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1, "seed": 7, "ignore_eos": True,
    },
    "schema": {"temperature": 0, "json_schema": SCHEMA},
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- engine


class Stopwatch:
    """Adds up the seconds spent in what it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **keywords)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


class Timed:
    """An object whose methods a stopwatch times."""

    def __init__(self, inner: Any, watch: Stopwatch) -> None:
        self._inner, self._watch = inner, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        wrapped = self._watch.wrap(value) if callable(value) else value
        setattr(self, name, wrapped)
        return wrapped


@contextmanager
def drained() -> Iterator[socket.socket]:
    """One end of a pair of sockets whose other end a process reads and forgets."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        while theirs.recv(1 << 16):
            pass
        os._exit(0)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        os.waitpid(child, 0)


@frozen
class EngineSide:
    """Medians in milliseconds of decode steps: of a whole one, outside the kernels, and of sending what it brought."""

    step: float
    outside: float
    sending: float


def time_engine(engine: Engine, watch: Stopwatch, kind: str, streams: int, constraint: bytes | None) -> EngineSide:
    """Run so many sequences at once to their ends."""
    sampling, constrained = KINDS[kind]
    rng = random.Random(streams)
    steps: list[tuple[float, float, float]] = []
    with drained() as sock:
        channel = SocketChannel(sock)
        for index in range(streams):
            prompt = [rng.randrange(100, 10_000) for _ in range(PROMPT)]
            engine.submit(
                Request(
                    f"{kind}-{index}", prompt, evolve(sampling, seed=index), max_tokens=TOKENS,
                    ignore_eos=not constrained, constraint=constraint if constrained else None,
                )
            )  # fmt: skip
        while not engine.idle:
            running = engine.parts.scheduler.running
            decoding = len(running) == streams and all(seq.num_computed == len(seq.tokens) - 1 for seq in running)
            watch.seconds, began = 0.0, time.perf_counter()
            engine.admit(channel)
            deltas = engine.step()
            computed = time.perf_counter()
            if deltas:
                channel.send(Deltas(deltas))
            ended = time.perf_counter()
            if decoding:
                steps.append((ended - began, ended - began - watch.seconds, ended - computed))
    columns = list(zip(*steps[SETTLE:]))
    return EngineSide(*(statistics.median(column) * 1e3 for column in columns))


def build(config: Config, path: Path) -> tuple[Engine, Stopwatch]:
    """An engine whose native calls are timed."""
    engine = assemble.build(config, plugins.load(), path)
    watch = Stopwatch()
    backend: Any = engine.parts.backend
    native = backend._model(engine.parts.model)
    if native is None:
        raise SystemExit("overhead: this model doesn't run in one native call")
    backend._models[engine.parts.model] = Timed(native, watch)
    backend._native = Timed(backend._native, watch)
    return engine, watch


# -------------------------------------------------------------------------------------------------------------- server


async def read_streams(url: str, kind: str, streams: int, process: psutil.Process) -> float:
    """Milliseconds of the server's processor time for each step, while all of so many streams are answered."""
    server = Server(Address.parse(url))
    chunks = [0] * streams
    ended = False

    async def stream(index: int) -> None:
        nonlocal ended
        words = random.Random(index).choices(("river", "stone", "cloud", "light", "seven"), k=PROMPT - 30)
        body = {"messages": [{"role": "user", "content": " ".join(words)}], "stream": True, "max_tokens": TOKENS}
        async with server.request("POST", "/v1/chat/completions", msgspec.json.encode(body | FIELDS[kind])) as reply:
            await reply.deliver(partial(count, index))
        ended = True

    def count(index: int, data: bytes) -> bool:
        chunks[index] += data.count(b"data: ")
        return True

    tasks = [asyncio.create_task(stream(index)) for index in range(streams)]
    while min(chunks) < SETTLE and not ended:  # noqa: ASYNC110 (chunks are counted in many places)
        await asyncio.sleep(0.005)
    cpu, seen = processor_time(process), sum(chunks)
    while not ended:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    cpu, steps = processor_time(process) - cpu, (sum(chunks) - seen) / streams
    await asyncio.gather(*tasks)
    return cpu / steps * 1e3


def processor_time(process: psutil.Process) -> float:
    """Seconds that a process's threads have run: to the nanosecond where Linux tells, else to the clock's tick."""
    try:
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, ValueError, IndexError):
        times = process.cpu_times()
        return float(times.user + times.system)


# ---------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Print a line for each kind and number of streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--profile", action="store_true", help="of the engine alone, where its time goes")
    given = parser.parse_args()
    config, _ = load_config(None, {"--model-path": given.model})
    config = evolve(config, drafter=evolve(config.drafter, name="none"))  # a step then draws one token a sequence
    registry = plugins.load()
    path = models.resolve(given.model, registry)
    constraint = None
    if "schema" in given.kinds:
        lowering = Lowering(optional_component(config, registry, "constraint"))
        constraint = lowering.lower_now(Specification("json_schema", SCHEMA, "json_schema"))
    engine, watch = build(config, path)
    sides: dict[tuple[str, int], EngineSide] = {}
    time_engine(engine, watch, "greedy", max(given.streams), None)  # warm up
    for kind in given.kinds:
        for streams in given.streams:
            profile = cProfile.Profile()
            if given.profile:
                profile.enable()
            sides[kind, streams] = time_engine(engine, watch, kind, streams, constraint)
            if given.profile:
                profile.disable()
                print(f"--- {kind}, {streams} streams")
                pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    engine.close()
    if given.profile:
        return
    print("ms a step          streams    engine   outside   (sending)    server CPU    outside + server")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), path, "--drafter", "none") as server:
        server.wait()
        process = psutil.Process(server.process.pid)
        asyncio.run(read_streams(server.url, "greedy", max(given.streams), process))  # warm up
        for (kind, streams), side in sides.items():
            cpu = statistics.median(asyncio.run(read_streams(server.url, kind, streams, process)) for _ in range(3))
            print(
                f"{kind:>16}  {streams:>9}  {side.step:>8.2f}  {side.outside:>8.3f}  {side.sending:>10.3f}"
                f"  {cpu:>12.3f}  {side.outside + cpu:>18.3f}"
            )


if __name__ == "__main__":
    main()
