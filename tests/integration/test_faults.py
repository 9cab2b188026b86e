"""Faults and overload as clients meet them: stuck and dying engines, storms of cancellations, time limits, replays."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge.testing.models import write_tiny_llama
from forge.testing.server import FORGE, chat, events, install_plugin, serve

SABOTEUR = '''
"""Does harm on the word that a request brings as its stop string."""
import os, time
from forge import hookimpl

@hookimpl
def forge_engine_started(engine):
    forward = engine.parts.backend.forward
    def sabotaged(model, inputs):
        stops = {s for live in engine.requests.values() for seq in live.values() for s in seq.request.stop}
        if "sleep for ever" in stops:
            time.sleep(1000)
        if "abort" in stops:
            os.abort()
        return forward(model, inputs)
    engine.parts.backend.forward = sabotaged
'''


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "long.gguf", context_length=16384)


@pytest.fixture
def saboteur(tmp_path: Path) -> dict[str, str]:
    """The environment for a server with a plugin that does harm on demand."""
    return install_plugin(tmp_path, "forge_saboteur", SABOTEUR)


@pytest.fixture
def server(tmp_path: Path, model: Path) -> Iterator[Any]:
    flags = ("--threads", "1", "--num-blocks", "1200", "--request-log", "log.jsonl")
    with serve(tmp_path, model, *flags) as server:
        server.wait()
        yield server


def post(server: Any, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=chat(**fields), timeout=60)


def metric(server: Any, name: str) -> float:
    """The sum of a metric's samples."""
    lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    found = [line for line in lines if line.split("{")[0].split(" ")[0] == f"forge:{name}"]
    assert found, name
    return sum(float(line.rpartition(" ")[2]) for line in found)


@pytest.mark.parametrize("harm", ["sleep for ever", "abort"])
def test_an_engine_that_hangs_or_aborts_is_started_anew(
    tmp_path: Path, model: Path, saboteur: dict[str, str], harm: str
) -> None:
    (tmp_path / "forge.toml").write_text("[server]\nwatchdog_timeout = 2.0\n")
    with serve(tmp_path, model, "--threads", "1", "--num-blocks", "300", **saboteur) as server:
        server.wait()
        before = server.engine.pid
        body = chat(stream=True, ignore_eos=True, max_tokens=50, stop=[harm])
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
            assert list(events(response))[-1]["error"]["code"] == "engine_unavailable"
        server.wait()
        assert server.engine.pid != before
        assert post(server, max_tokens=3, ignore_eos=True).json()["usage"]["completion_tokens"] == 3
        assert metric(server, "engine_restarts_total") == 1
        assert server.stop() == 0


def test_a_storm_of_cancellations_does_not_hold_up_the_next_request(server: Any) -> None:
    async def storm() -> None:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=200), timeout=0.5) as client:
            body = chat(max_tokens=10_000, ignore_eos=True, stream=False)
            sent = [client.post(f"{server.url}/v1/chat/completions", json=body) for _ in range(200)]
            results = await asyncio.gather(*sent, return_exceptions=True)
            assert all(isinstance(result, httpx.TransportError) for result in results)

    asyncio.run(storm())
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json=chat(max_tokens=10, ignore_eos=True), timeout=5
    )  # the time is part of the promise
    assert answer.json()["usage"]["completion_tokens"] == 10
    deadline = time.monotonic() + 20
    while metric(server, "num_requests_running") + metric(server, "num_requests_waiting"):
        assert time.monotonic() < deadline, "cancelled requests live on"
        time.sleep(0.1)
    assert metric(server, "kv_cache_usage_perc") == 0


def test_time_limits_end_what_waits_and_what_runs_too_long(tmp_path: Path, model: Path) -> None:
    limits = "[scheduler]\nmax_batch_size = 1\nqueue_timeout = 1.0\nrequest_timeout = 3.0\n"
    (tmp_path / "forge.toml").write_text(limits)
    with serve(tmp_path, model, "--threads", "1", "--num-blocks", "1200") as server:
        server.wait()
        url = f"{server.url}/v1/chat/completions"
        body = chat(stream=True, ignore_eos=True, max_tokens=16_000)
        with httpx.stream("POST", url, json=body, timeout=60) as busy:
            stream = events(busy)
            next(stream)
            waited = post(server, max_tokens=5)
            assert (waited.status_code, waited.json()["error"]["code"]) == (503, "queue_timeout")
            assert int(waited.headers["Retry-After"]) > 0
            assert list(stream)[-1]["error"]["code"] == "deadline_exceeded"
        assert post(server, max_tokens=5, ignore_eos=True).status_code == 200
        assert server.stop() == 0


HUNGRY = '''
"""A backend that asks for more memory than there is."""
import torch
from forge import Component, hookimpl
from forge.interfaces.backend import Backend

class Hungry(Backend):
    def kv_pages(self, layer, blocks, block_size):
        torch.empty(1 << 46, dtype=torch.uint8).fill_(1)

@hookimpl
def forge_backends():
    return [Component("hungry", factory="forge_hungry:Hungry", summary="too much")]
'''


def test_running_out_of_memory_at_load_is_said_with_what_to_do(tmp_path: Path, model: Path) -> None:
    environment = {**os.environ, **install_plugin(tmp_path, "forge_hungry", HUNGRY)}
    command = [str(FORGE), "run", "-m", str(model), "--port", "0", "--backend", "hungry"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "memory" in last
    assert "num_blocks" in last
    assert "Traceback" not in done.stderr


def test_memory_that_is_not_there_ends_the_start_with_one_clear_line(tmp_path: Path, model: Path) -> None:
    command = [str(FORGE), "run", "-m", str(model), "--port", "0", "--num-blocks", str(1 << 30)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert "num_blocks" in done.stderr or "memory" in done.stderr.lower()
    assert "Traceback" not in done.stderr.splitlines()[-1]


def test_metrics_and_usage_tell_of_hits_misses_and_drafts(server: Any) -> None:
    text = "one two three four five six seven " * 12
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 80, "ignore_eos": True}
    cold = post(server, temperature=0, **ask).json()["usage"]
    warm = post(server, temperature=0, **ask).json()["usage"]
    assert cold["prompt_tokens_details"] == {"cached_tokens": 0, "cache_miss": {"reason": "new", "position": 0}}
    assert warm["prompt_tokens_details"]["cached_tokens"] >= cold["prompt_tokens"] - 16
    ask["messages"] = [{"role": "user", "content": text.replace("four", "vier", 1)}]
    late = post(server, temperature=0, **ask).json()["usage"]["prompt_tokens_details"]
    assert late["cache_miss"]["reason"] == "diverged"
    assert late["cached_tokens"] <= late["cache_miss"]["position"] < late["cached_tokens"] + 16
    drafted = cold["completion_tokens_details"]
    assert metric(server, "prefix_cache_hits_total") >= warm["prompt_tokens_details"]["cached_tokens"]
    assert metric(server, "prefix_cache_queries_total") > metric(server, "prefix_cache_hits_total")
    assert metric(server, "spec_decode_num_accepted_tokens_total") >= drafted["accepted_prediction_tokens"]
    assert metric(server, "time_to_first_token_seconds_count") == 3
    assert metric(server, "generation_tokens_total") == 240
    assert metric(server, "inter_token_latency_seconds_count") > 0
    assert metric(server, "request_queue_time_seconds_count") == 3


def replay(folder: Path, model: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(FORGE), "replay", "log.jsonl", str(model), "--threads", "1", "--num-blocks", "1200", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_replay_brings_the_logged_tokens_again_and_notices_others(tmp_path: Path, model: Path, server: Any) -> None:
    for i in range(6):
        assert post(server, max_tokens=20, n=1 + i % 2, seed=None if i % 3 else i, ignore_eos=True).status_code == 200
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", timeout=60,
        json=chat(stream=True, max_tokens=12_000, ignore_eos=True),
    ) as response:  # fmt: skip
        stream = events(response)
        for _ in range(5):
            next(stream)
    time.sleep(0.5)
    assert server.stop() == 0
    log = tmp_path / "log.jsonl"
    assert log.stat().st_mode & 0o077 == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["complete"] for line in lines] == [True] * 6 + [False]
    log.write_text("\n".join(json.dumps(line) for line in lines[:6]) + "\n")
    done = replay(tmp_path, model, "--drafter", "none", "--max-prefill-tokens", "7")
    assert (done.returncode, done.stdout) == (0, "6 the same, 0 different, 0 skipped\n"), done.stderr
    lines[2]["answers"][0]["token_ids"][3] += 1
    log.write_text("\n".join(json.dumps(line) for line in lines[:6]) + "\n")
    done = replay(tmp_path, model)
    assert done.returncode == 1
    assert "choice 0: token 3 was" in done.stdout


def test_a_replay_says_what_is_different_from_when_it_was_logged(tmp_path: Path, model: Path, server: Any) -> None:
    assert post(server, max_tokens=20, seed=1, ignore_eos=True).status_code == 200
    assert server.stop() == 0
    (tmp_path / "forge.toml").write_text('[backend.options]\nactivation_bits = 8\n[constraint]\nname = "none"\n')
    done = replay(tmp_path, model)
    assert "different from when it was logged: backend.options.activation_bits was" in done.stdout
    assert 'different from when it was logged: constraint.name was "grammar" and is "none"' in done.stdout
    (tmp_path / "forge.toml").unlink()
    other = write_tiny_llama(tmp_path / "other.gguf", context_length=16384, seed=9)
    done = replay(tmp_path, other)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "different from when it was logged: the model's files are others"


@pytest.mark.parametrize("redact", ["answers", "prompts"])
def test_a_redacted_log_holds_no_text(tmp_path: Path, model: Path, redact: str) -> None:
    (tmp_path / "forge.toml").write_text(f'[server]\nrequest_log = "log.jsonl"\nrequest_log_redact = "{redact}"\n')
    with serve(tmp_path, model, "--threads", "1", "--num-blocks", "300") as server:
        server.wait()
        assert post(server, max_tokens=9, ignore_eos=True, seed=4, stop=["secret"]).status_code == 200
        assert server.stop() == 0
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["answers"][0]["token_ids"] is None
    assert line["answers"][0]["tokens"] == 9
    assert (line["request"]["prompt"] == []) == (redact == "prompts")
    assert ("secret" in json.dumps(line)) == (redact == "answers")
    done = replay(tmp_path, model)
    last = done.stdout.splitlines()[-1]
    assert last == (
        "1 the same, 0 different, 0 skipped" if redact == "answers" else "0 the same, 0 different, 1 skipped"
    )


def test_no_request_however_malformed_is_a_500_or_harms_the_server(server: Any) -> None:
    rng = random.Random(8)
    odd: list[Any] = [None, True, -1, 0, 2**70, 1e308, "", "\x00", "x" * 500, [], {}, [[]], {"a": [1]}]
    fields = ["messages", "max_tokens", "temperature", "top_p", "stop", "n", "seed", "logit_bias", "stream", "logprobs"]
    with httpx.Client(timeout=60) as client:
        for _ in range(300):
            body: dict[str, Any] = chat(max_tokens=2)
            for name in rng.sample(fields, rng.randint(1, 3)):
                body[name] = rng.choice(odd)
            data = bytearray(json.dumps(body).encode())
            if rng.random() < 0.4:
                for _ in range(rng.randint(1, 4)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            path = rng.choice(["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
            response = client.post(server.url + path, content=bytes(data))
            assert response.status_code in (200, 400, 404, 429), (path, bytes(data), response.text)
            if response.status_code != 200:
                assert response.json()["error"]["message"]
    assert post(server, max_tokens=3, ignore_eos=True).json()["usage"]["completion_tokens"] == 3


def test_bytes_that_are_no_http_get_an_error_or_a_closed_connection_and_harm_nobody(server: Any) -> None:
    rng = random.Random(12)
    body = json.dumps(chat(max_tokens=2)).encode()
    whole = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    crafted = [
        b"",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        whole.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nContent-Length"),
        whole.replace(b"Content-Length: ", b"Content-Length: -"),
        whole.replace(b"Content-Length: ", b"Content-Length: 9e9"),
        whole.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
        whole.replace(b"Host: x", b"Host : x"),
    ]
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data) - len(body))
            data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 4))
        crafted.append(bytes(data))
    statuses = [status_of(server, data) for data in crafted]
    assert {status for status in statuses if status is not None} <= {
        200,
        400,
        404,
        405,
        408,
        413,
        415,
        422,
        431,
        501,
        505,
    }
    assert statuses.count(400) > 20
    assert post(server, max_tokens=3, ignore_eos=True).json()["usage"]["completion_tokens"] == 3
    assert "Traceback" not in server.log.read_text()


def status_of(server: Any, data: bytes) -> int | None:
    """What the server says to some bytes after which nothing more comes; None if it closes the connection."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1 << 12)
        except ConnectionError:
            return None
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else None
