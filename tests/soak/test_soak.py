"""A minute of mixed load, or as many seconds as ``FORGE_SOAK_SECONDS`` says: afterwards nothing is left of it.

Streams, whole answers, structured output, choices, refusals, long prompts, slow readers, and clients that leave at any
moment. `make test` has the minute, `make test-all` half an hour.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from forge.testing.models import write_tiny_llama
from forge.testing.server import Server, chat, install_plugin, serve

SECONDS = float(os.environ.get("FORGE_SOAK_SECONDS", "60"))
WARM_UP = min(60.0, SECONDS / 3)
"""Until then buffers, pools and caches may grow to their size."""

CLIENTS = 12
GROWTH = 24 << 20
"""Bytes that the processes may have grown by after the warm-up, however long the load was."""

REST_SECONDS = 60

WITNESS = '''
"""Tells how many tasks the server has, and what is left when the engine stops."""
import asyncio, json, os
from forge import hookimpl

@hookimpl
def forge_app_created(app, client):
    async def tasks():
        return {"tasks": sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks())}
    app.add_url_rule("/witness", view_func=tasks)

@hookimpl
def forge_engine_stopped(engine):
    engine.check()
    usage = engine.parts.kv.usage()
    with open(os.environ["AUDIT"], "w") as file:
        json.dump({"used": usage.used, "idle": engine.idle, "running": len(engine.parts.scheduler.running)}, file)
'''

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 4},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 10}]},
]


@pytest.fixture
def witness(tmp_path: Path) -> dict[str, str]:
    """The environment for a server with a plugin that tells what it holds."""
    return {**install_plugin(tmp_path, "forge_witness", WITNESS), "AUDIT": str(tmp_path / "audit.json")}


def question(rng: random.Random) -> dict[str, Any]:
    """A request of any kind."""
    body = chat(max_tokens=rng.randint(1, 60), seed=rng.randrange(1 << 30), temperature=rng.choice([0, 0.7, 1]))
    words = rng.choice([1, 5, 30, 200])
    body["messages"][0]["content"] = " ".join(rng.choice(["the", "in", "an", "thing", "x"]) for _ in range(words))
    body["stream"] = rng.random() < 0.7
    kind = rng.choice(["plain", "plain", "schema", "object", "choices", "scored", "regex", "repeating"])
    if kind == "schema":
        form = {"name": "s", "schema": rng.choice(SCHEMAS)}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif kind == "object":
        body["response_format"] = {"type": "json_object"}
    elif kind == "regex":
        body["structured_outputs"] = {"regex": "[a-z]{3,20}"}
    elif kind == "choices":
        body.update(n=rng.randint(2, 4), stop=["zz", "e"])
    elif kind == "scored":
        body.update(logprobs=True, top_logprobs=rng.randint(0, 5), frequency_penalty=0.5)
    elif kind == "repeating":
        body["messages"][0]["content"] = "one two three " * 30
        body["ignore_eos"] = True
    return body


async def one(client: httpx.AsyncClient, rng: random.Random) -> str:
    """Ask, and read the answer to its end, or leave; what became of it."""
    fate = rng.random()
    if fate < 0.05:
        refused = await client.post("/v1/chat/completions", json=chat(temperature="hot", max_tokens=-1))
        assert refused.status_code == 400
        return "refused"
    body = question(rng)
    if fate < 0.15:
        try:
            await client.post("/v1/chat/completions", json=body, timeout=rng.uniform(0.001, 0.1))
        except httpx.TimeoutException:
            return "gave up"
        return "whole"
    if not body["stream"]:
        reply = await client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, (body, reply.text)
        return "whole"
    patience = rng.randrange(20) if fate < 0.4 else None
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, body
        count, last = 0, ""
        async for line in response.aiter_lines():
            count, last = count + bool(line), line or last
            if patience is not None and count > patience:
                return "left"
            if fate > 0.97:
                await asyncio.sleep(0.02)
    assert last == "data: [DONE]", (body, last)
    return "streamed"


async def load(server: Server, seconds: float, seed: int) -> Counter[str]:
    """Several clients for so long; how many requests ended which way."""
    end = time.monotonic() + seconds
    ends: Counter[str] = Counter()

    async def user(client: httpx.AsyncClient, rng: random.Random) -> None:
        while time.monotonic() < end:
            ends[await one(client, rng)] += 1

    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        await asyncio.gather(*(user(client, random.Random(seed + i)) for i in range(CLIENTS)))
    return ends


def anonymous(process: psutil.Process) -> int:
    """Bytes of memory that no file backs: whoever else has the same libraries open makes no difference to it."""
    info = process.memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def held(server: Server) -> dict[str, int]:
    """What the server holds: bytes, descriptors, threads and children of both processes, tasks, sequences, blocks."""
    processes = [psutil.Process(server.process.pid), server.engine]
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    figures = {line.split("{")[0].split(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}
    assert figures["forge:engine_restarts_total"] == 0
    tasks = httpx.get(f"{server.url}/witness", timeout=60).json()["tasks"]
    return {
        "bytes": sum(anonymous(process) for process in processes),
        "descriptors": sum(process.num_fds() for process in processes),
        "threads": sum(process.num_threads() for process in processes),
        "tasks": len(tasks),
        "sequences": int(figures["forge:num_requests_running"] + figures["forge:num_requests_waiting"]),
        "blocks": int(1e6 * figures["forge:kv_cache_usage_perc"]),
    }


def at_rest(server: Server, wanted: dict[str, int] | None = None) -> dict[str, int]:
    """What it holds once nothing runs and, if given, no more descriptors, threads and tasks than `wanted` are left."""
    deadline = time.monotonic() + REST_SECONDS
    while True:
        now = held(server)
        more = {name: now[name] for name in ("descriptors", "threads", "tasks") if wanted and now[name] > wanted[name]}
        if not now["sequences"] and not now["blocks"] and not more:
            return now
        assert time.monotonic() < deadline, f"{now} is left, before it was {wanted}"
        time.sleep(0.2)


@pytest.mark.timeout(SECONDS + 300)
def test_after_a_long_mixed_load_nothing_is_left(tmp_path: Path, witness: dict[str, str]) -> None:
    model = write_tiny_llama(tmp_path / "long.gguf", context_length=2048)
    with serve(tmp_path, model, "--threads", "1", "--num-blocks", "400", **witness) as server:
        server.wait()
        asyncio.run(load(server, WARM_UP, 1000))
        time.sleep(1)
        before = at_rest(server)
        ends = asyncio.run(load(server, SECONDS - WARM_UP, 2000))
        after = at_rest(server, before)
        print(f"{dict(ends)}\nbefore {before}\nafter  {after}")
        assert after["bytes"] - before["bytes"] < GROWTH
        for kind in ("refused", "gave up", "whole", "left", "streamed"):
            assert ends[kind] > 0, kind
        log = server.log.read_text()
        assert server.stop() == 0
    assert "Traceback" not in log
    audit = json.loads(Path(witness["AUDIT"]).read_text())
    assert audit == {"used": 0, "idle": True, "running": 0}
