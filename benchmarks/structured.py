"""What a schema costs: tokens a second of one server with and without one, in turn, for so many streams at a time.

    python benchmarks/structured.py [MODEL] [--streams 16] [--rounds 3] [--tokens 64]

The schema's answers are longer than `--tokens`, so that both sides generate the same number of tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from forge import models, plugins
from forge.testing.server import serve

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "pattern": "^[a-z.]+@[a-z]+\\.(com|org)$"},
        "city": {"enum": ["Paris", "Rome", "Oslo"]},
    },
    "required": ["name", "age", "email", "city"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 40}


async def rate(url: str, streams: int, tokens: int, fields: dict[str, Any]) -> float:
    """Tokens a second of so many requests at once."""

    async def ask(client: httpx.AsyncClient, seed: int) -> int:
        body = {
            "messages": [{"role": "user", "content": f"Describe {seed} people."}],
            "max_tokens": tokens,
            "seed": seed,
        }
        reply = await client.post(f"{url}/v1/chat/completions", json=body | fields)
        reply.raise_for_status()
        return int(reply.json()["usage"]["completion_tokens"])

    async with httpx.AsyncClient(timeout=300) as client:
        start = time.perf_counter()
        counts = await asyncio.gather(*(ask(client, seed) for seed in range(streams)))
        return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    """Print both rates and their ratio, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    free, bound = {"ignore_eos": True}, {"json_schema": SCHEMA}
    ratios = []
    path = models.resolve(given.model, plugins.load())
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), path) as server:
        server.wait()
        for fields in (free, bound):  # warm up
            asyncio.run(rate(server.url, given.streams, given.tokens, fields))
        for _ in range(given.rounds):
            plain, structured = (
                asyncio.run(rate(server.url, given.streams, given.tokens, fields)) for fields in (free, bound)
            )
            ratios.append(structured / plain)
            print(f"free {plain:6.0f} tok/s   with the schema {structured:6.0f} tok/s   {ratios[-1]:.2f} x")
    print(f"median {statistics.median(ratios):.2f} x")


if __name__ == "__main__":
    main()
