"""Serve the default model and measure streams at several concurrencies, beside another server if one is given.

    python benchmarks/serving.py [--peer http://127.0.0.1:9090] [--model MODEL] [--concurrency 1 4 16] [--rounds 3]

Each round measures Forge and then the peer with the same prompts, so that a noisy machine treats both alike; figures
are medians over the rounds. TTFT: time to first token; ITL: gaps between tokens, pooled over all requests of a round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from attrs import define, field

WORDS = ("river", "stone", "lamp", "cloud", "seven", "paper", "north", "glass", "field", "quiet")


@define
class Round:
    """What one round of requests took; times in seconds."""

    seconds: float
    tokens: int = 0
    first: list[float] = field(factory=list)
    gaps: list[float] = field(factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


async def stream(client: httpx.AsyncClient, url: str, number: int, tokens: int, into: Round) -> None:
    """One streamed answer of exactly `tokens` tokens to a prompt that shares no prefix with the others."""
    prompt = f"{number} {time.monotonic_ns()} " + " ".join(WORDS[(number + i * i) % 10] for i in range(120))
    body = {
        "model": "default", "messages": [{"role": "user", "content": prompt}], "stream": True, "temperature": 0,
        "max_tokens": tokens, "ignore_eos": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    models = (await client.get(f"{url}/v1/models")).json()
    body["model"] = models["data"][0]["id"]
    last = start = time.perf_counter()
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if usage := chunk.get("usage"):
                into.tokens += usage["completion_tokens"]
            elif chunk["choices"] and chunk["choices"][0].get("delta", {}).get("content"):
                now = time.perf_counter()
                (into.first if last == start else into.gaps).append(now - last)
                last = now


async def measure(url: str, concurrency: int, tokens: int) -> Round:
    """`concurrency` streams at once, twice each."""
    taken = Round(0.0)

    async def worker(number: int) -> None:
        for turn in range(2):
            await stream(client, url, number + turn * concurrency, tokens, taken)

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        start = time.perf_counter()
        await asyncio.gather(*(worker(i) for i in range(concurrency)))
        taken.seconds = time.perf_counter() - start
    return taken


@contextlib.contextmanager
def forge(model: str, port: int) -> Iterator[str]:
    """A Forge server on this machine."""
    command = [
        str(Path(sys.executable).parent / "forge"),
        "run",
        "-m",
        model,
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with status {process.returncode}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Print a table of medians, and ratios if there is a peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--port", type=int, default=8089)
    parser.add_argument("--peer", help="URL of another OpenAI-compatible server that serves the same model")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with forge(options.model, options.port) as url:
        servers = {"forge": url} | ({"peer": options.peer} if options.peer else {})
        for name in servers.values():
            asyncio.run(measure(name, 1, 8))  # warm up
        print(f"{'streams':>8} {'server':>8} {'tok/s':>8} {'TTFT ms':>9} {'ITL p50 ms':>11} {'ITL p99 ms':>11}")
        for concurrency in options.concurrency:
            rounds: dict[str, list[Round]] = {name: [] for name in servers}
            for _ in range(options.rounds):
                for name, address in servers.items():
                    rounds[name].append(asyncio.run(measure(address, concurrency, options.tokens)))
            for name, taken in rounds.items():
                rate = statistics.median(r.rate for r in taken)
                first = statistics.median(t for r in taken for t in r.first)
                gaps = statistics.quantiles([g for r in taken for g in r.gaps], n=100)
                print(
                    f"{concurrency:>8} {name:>8} {rate:>8.1f} {first * 1e3:>9.1f}"
                    f" {gaps[49] * 1e3:>11.2f} {gaps[98] * 1e3:>11.2f}"
                )
            if "peer" in rounds:
                ratio = statistics.median(a.rate / b.rate for a, b in zip(rounds["forge"], rounds["peer"]))
                print(f"{concurrency:>8} {'ratio':>8} {ratio:>8.2f}")


if __name__ == "__main__":
    main()
