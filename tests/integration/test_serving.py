"""`forge run` as its users meet it: real processes, the OpenAI client, a killed engine, clients that go away."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from forge.testing.models import write_tiny_llama
from forge.testing.server import FORGE, START_SECONDS, Server, chat, events, install_plugin, serve

AUDITOR = '''
"""Writes what is left when the engine stops."""
import json, os
from forge import hookimpl

@hookimpl
def forge_engine_stopped(engine):
    engine.check()
    usage = engine.parts.kv.usage()
    with open(os.environ["AUDIT"], "w") as file:
        json.dump({"used": usage.used, "idle": engine.idle, "running": len(engine.parts.scheduler.running)}, file)
'''

GATE = '''
"""Holds the engine up while it loads, until there is a file."""
import os, pathlib, time
from forge import Component, hookimpl

@hookimpl
def forge_samplers():
    return [Component(name="gated", factory="forge_gate:gated")]

def gated(backend):
    while not pathlib.Path(os.environ["GATE"]).exists():
        time.sleep(0.01)
    from forge.builtin.sampler import DefaultSampler
    return DefaultSampler(backend)
'''


@pytest.fixture
def tiny_server(tmp_path: Path, tiny_path: Path) -> Iterator[Server]:
    """The tiny model with a small cache, on one thread."""
    with serve(tmp_path, tiny_path, "--threads", "1", "--num-blocks", "600") as server:
        server.wait()
        yield server


@pytest.fixture
def patient_server(tmp_path: Path) -> Iterator[Server]:
    """A tiny model with a long context, so that an answer can take some seconds."""
    model = write_tiny_llama(tmp_path / "long.gguf", context_length=8192)
    with serve(tmp_path, model, "--threads", "1", "--num-blocks", "600") as server:
        server.wait()
        yield server


@pytest.mark.model
def test_the_real_model_answers_paris_to_the_openai_client_streamed_and_not(tmp_path: Path, smollm2_path: Path) -> None:
    with serve(tmp_path, smollm2_path) as server:
        server.wait()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
        model = client.models.list().data[0].id
        ask: Any = [{"role": "user", "content": "What is the capital of France?"}]
        whole = client.chat.completions.create(model=model, messages=ask, temperature=0)
        assert "Paris" in (whole.choices[0].message.content or "")
        assert whole.choices[0].finish_reason == "stop"
        stream = client.chat.completions.create(model=model, messages=ask, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == whole.choices[0].message.content
        assert sum(bool(piece) for piece in pieces) > 3
        assert server.stop() == 0


def test_the_server_answers_at_once_while_the_engine_loads_and_neither_imports_torch_for_native_kernels(
    tmp_path: Path, tiny_path: Path
) -> None:
    gate = tmp_path / "gate"
    environment = {**install_plugin(tmp_path, "forge_gate", GATE), "GATE": str(gate)}
    (tmp_path / "forge.toml").write_text('[sampler]\nname = "gated"\n')
    with serve(tmp_path, tiny_path, **environment) as server:
        first = server.health()
        assert first.status_code == 503
        assert first.json()["status"] == "loading"
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat())
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert int(refused.headers["Retry-After"]) > 0
        gate.touch()
        server.wait()
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat(max_tokens=3), timeout=60).status_code == 200
        for process in (server.process.pid, server.engine.pid):
            assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()
        assert server.stop() == 0


def test_a_killed_engine_ends_its_streams_with_an_error_and_comes_back(patient_server: Server) -> None:
    body = chat(stream=True, ignore_eos=True, max_tokens=7000)
    with httpx.stream("POST", f"{patient_server.url}/v1/chat/completions", json=body, timeout=60) as response:
        stream = events(response)
        next(stream)
        patient_server.engine.kill()
        rest = list(stream)
    assert rest[-1]["error"]["code"] == "engine_unavailable"
    assert "[DONE]" not in rest
    health = patient_server.health()
    assert (health.status_code, health.json()["status"]) == (503, "restarting")
    assert "signal 9" in health.json()["detail"]
    patient_server.wait()
    answer = httpx.post(
        f"{patient_server.url}/v1/chat/completions", json=chat(max_tokens=5, ignore_eos=True), timeout=60
    )
    assert answer.json()["usage"]["completion_tokens"] == 5
    assert patient_server.stop() == 0


def test_an_engine_that_dies_while_it_loads_again_is_started_until_it_lives(tiny_server: Server) -> None:
    for _ in range(2):
        before = tiny_server.engine
        before.kill()
        before.wait(10)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if tiny_server.engine.pid != before.pid:
                    break
            except StopIteration:
                time.sleep(0.05)
    tiny_server.wait()
    assert httpx.post(f"{tiny_server.url}/v1/chat/completions", json=chat(max_tokens=2), timeout=60).status_code == 200


def test_a_server_that_is_killed_takes_its_engine_with_it(tiny_server: Server) -> None:
    engine = tiny_server.engine
    tiny_server.process.kill()
    assert engine.wait(30) is not None or not engine.is_running()


def test_sigterm_lets_running_streams_end_and_refuses_new_ones(patient_server: Server) -> None:
    body = chat(stream=True, ignore_eos=True, max_tokens=4000)
    with httpx.stream("POST", f"{patient_server.url}/v1/chat/completions", json=body, timeout=60) as response:
        stream = events(response)
        next(stream)
        patient_server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with httpx.Client() as other:
            assert other.post(f"{patient_server.url}/v1/chat/completions", json=chat()).status_code == 503
        rest = list(stream)
    assert rest[-1] == "[DONE]"
    assert rest[-2]["choices"][0]["finish_reason"] == "length"
    assert patient_server.process.wait(30) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--backend", "nonsense"), "nonsense"),
        (("--max-model-len", "99999"), "512"),
        (("--num-blocks", "0"), "num_blocks"),
    ],
)
def test_a_start_that_cannot_work_ends_with_one_clear_line(
    tmp_path: Path, tiny_path: Path, flags: tuple[str, ...], words: str
) -> None:
    command = [str(FORGE), "run", "--model-path", str(tiny_path), "--port", "0", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode in (1, 2)
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture
def auditor(tmp_path: Path) -> dict[str, str]:
    """The environment for a server whose engine writes down what it holds when it stops."""
    return {**install_plugin(tmp_path, "forge_auditor", AUDITOR), "AUDIT": str(tmp_path / "audit.json")}


def test_200_streams_with_random_aborts_leave_nothing_behind(
    tmp_path: Path, tiny_path: Path, auditor: dict[str, str]
) -> None:
    with serve(tmp_path, tiny_path, "--threads", "1", "--num-blocks", "600", **auditor) as server:
        server.wait()
        asyncio.run(storm(server))
        deadline = time.monotonic() + 10
        while (left := psutil.Process(server.process.pid).num_fds()) > 40:
            assert time.monotonic() < deadline, f"{left} descriptors are still open"
            time.sleep(0.1)
        assert server.stop() == 0
    assert json.loads(Path(auditor["AUDIT"]).read_text()) == {"used": 0, "idle": True, "running": 0}


async def storm(server: Server) -> None:
    """Two hundred requests at once, many of which are given up at some moment."""
    rng = random.Random(1)
    limits = httpx.Limits(max_connections=200)

    async def one(client: httpx.AsyncClient, i: int) -> str:
        body = chat(stream=True, ignore_eos=True, max_tokens=40, seed=i, n=1 + i % 2)
        body["messages"][0]["content"] = "hello " * (1 + i % 30)
        patience = rng.choice([0, 1, 5, 20, None, None])
        if patience == 0:
            with pytest.raises(httpx.TimeoutException):
                await client.post(f"{server.url}/v1/chat/completions", json={**body, "stream": False}, timeout=0.01)
            return "gave up"
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            count, last = 0, ""
            async for line in response.aiter_lines():
                count, last = count + bool(line), line or last
                if patience is not None and count > patience:
                    return "left"
            return last

    async with httpx.AsyncClient(limits=limits, timeout=120) as client:
        ends = await asyncio.gather(*(one(client, i) for i in range(200)))
        assert ends.count("left") > 20
        assert ends.count("data: [DONE]") > 20
        again = await client.post(f"{server.url}/v1/chat/completions", json=chat(max_tokens=3, ignore_eos=True))
        assert again.json()["usage"]["completion_tokens"] == 3


def test_what_a_request_may_hold_is_bounded(tmp_path: Path, tiny_path: Path) -> None:
    limits = "[scheduler]\nmax_queue = 4\nmax_batch_size = 1\n[server]\nmax_body_bytes = 5000\n"
    (tmp_path / "forge.toml").write_text(limits)
    with serve(tmp_path, tiny_path, "--threads", "1", "--num-blocks", "64") as server:
        server.wait()
        url = f"{server.url}/v1/chat/completions"
        assert httpx.post(url, json=chat(user="x" * 6000)).status_code == 413
        long = chat()
        long["messages"][0]["content"] = "q" * 1000
        refused = httpx.post(url, json=long)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        body = chat(n=4, max_tokens=400, ignore_eos=True, stream=True)
        with httpx.stream("POST", url, json=body, timeout=60) as busy:
            stream = events(busy)  # kept: httpx closes the response with its iterator
            next(stream)
            second = httpx.post(url, json=chat(n=2, max_tokens=5), timeout=60)
        assert second.status_code == 429, second.text + server.log.read_text()
        assert second.json()["error"]["code"] == "queue_full"
        assert int(second.headers["Retry-After"]) > 0
        assert server.stop() == 0


def test_a_half_sent_body_does_not_hold_up_the_shutdown(tiny_server: Server) -> None:
    port = int(tiny_server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.3)
        tiny_server.process.send_signal(signal.SIGTERM)
        assert tiny_server.process.wait(20) == 0


def test_a_websocket_to_nowhere_is_turned_away_quietly(tiny_server: Server) -> None:
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    assert httpx.get(f"{tiny_server.url}/nothing", headers=headers).status_code == 404
    assert "Traceback" not in tiny_server.log.read_text()


@pytest.fixture
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs one of the scripts of this repository."""

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).resolve().parents[2]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            [root / "scripts" / name, *arguments], env={**os.environ, "PATH": path, **environment},
            capture_output=True, text=True, timeout=START_SECONDS,
        )  # fmt: skip

    return run


@pytest.mark.model
def test_the_server_script_passes(script: Callable[..., subprocess.CompletedProcess[str]], smollm2_path: Path) -> None:
    done = script("test_server.sh", str(smollm2_path))
    assert done.returncode == 0, done.stdout + done.stderr
