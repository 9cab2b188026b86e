"""Clients that go away, and clients that don't read: neither costs the others anything, nor memory."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from forge.testing.models import write_tiny_llama
from forge.testing.server import Server, chat, events, serve

STALLED = 4
"""Clients that don't read."""

UNREAD_BYTES = 4096
"""The receive buffer of a client that doesn't read."""

GROWTH = 64 << 20
"""Bytes that the server's process may grow by for all of them: some times their answers' size."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A tiny model with a long context that takes prompts in small pieces, so that each can be left half-way."""
    model = write_tiny_llama(tmp_path / "long.gguf", context_length=16384)
    flags = ("--threads", "1", "--num-blocks", "1200", "--max-batch-size", "8", "--max-prefill-tokens", "16")
    with serve(tmp_path, model, *flags) as server:
        server.wait()
        yield server


def metric(server: Server, name: str) -> float:
    """The sum of a metric's samples."""
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    found = [line for line in lines if line.split("{")[0].split(" ")[0] == f"forge:{name}"]
    assert found, name
    return sum(float(line.rpartition(" ")[2]) for line in found)


def eventually(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def send(server: Server, *, buffer: int | None = None, **fields: Any) -> socket.socket:
    """A connection on which a chat was asked for and nothing has been read. buffer: bytes it takes unread."""
    body = json.dumps(chat(**fields)).encode()
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def all_is_free(server: Server) -> bool:
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return all(metric(server, name) == 0 for name in names)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_leaves_the_queue_leaves_it_shorter_and_disturbs_nobody(server: Server, stream: bool) -> None:
    body = chat(stream=True, ignore_eos=True, max_tokens=2000, n=8)
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as busy:
        running = events(busy)
        next(running)
        waiting = [send(server, stream=stream, max_tokens=50) for _ in range(3)]
        eventually(lambda: metric(server, "num_requests_waiting") == 3, "they don't wait")
        for connection in waiting[:2]:
            connection.close()
        eventually(lambda: metric(server, "num_requests_waiting") == 1, "who left still waits")
        assert metric(server, "num_requests_running") == 8
        waiting[2].close()
        eventually(lambda: metric(server, "num_requests_waiting") == 0, "who left still waits")
        assert next(running)["choices"][0]["finish_reason"] is None
    eventually(lambda: all_is_free(server), "something is held for clients that left")
    assert metric(server, "time_to_first_token_seconds_count") == 8, "an answer for a client that left"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_leaves_during_the_prompt_frees_its_blocks_at_once(server: Server, stream: bool) -> None:
    long = [{"role": "user", "content": "abcdefghijkl" * 1300}]
    connection = send(server, stream=stream, messages=long, max_tokens=500, ignore_eos=True)
    eventually(lambda: metric(server, "kv_cache_usage_perc") > 0, "the prompt isn't begun")
    assert metric(server, "num_requests_running") == 1
    connection.close()
    eventually(lambda: all_is_free(server), "something is held for a client that left")
    assert metric(server, "time_to_first_token_seconds_count") == 0, "the whole prompt was computed"
    assert metric(server, "request_errors_total") == 1


@pytest.mark.parametrize("n", [1, 3])
def test_who_leaves_in_the_middle_of_an_answer_frees_its_blocks_and_others_go_on(server: Server, n: int) -> None:
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream(
        "POST", url, json=chat(stream=True, ignore_eos=True, max_tokens=3000, seed=1), timeout=120
    ) as other:
        going_on = events(other)
        next(going_on)
        body = chat(stream=True, ignore_eos=True, max_tokens=15_000, n=n)
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            stream = events(response)
            for _ in range(10):
                assert next(stream)["choices"]
            assert metric(server, "num_requests_running") == 1 + n
        eventually(lambda: metric(server, "num_requests_running") == 1, "its sequences live on")
        rest = list(going_on)
        assert rest[-1] == "[DONE]"
        assert rest[-2]["choices"][0]["finish_reason"] == "length"
    eventually(lambda: all_is_free(server), "something is held for a client that left")
    assert metric(server, "request_errors_total") == 1


def test_who_leaves_a_whole_answer_while_it_is_made_frees_its_blocks(server: Server) -> None:
    connection = send(server, stream=False, max_tokens=15_000, ignore_eos=True)
    eventually(lambda: metric(server, "time_to_first_token_seconds_count") == 1, "no token comes")
    connection.close()
    eventually(lambda: all_is_free(server), "something is held for a client that left")
    assert metric(server, "request_errors_total") == 1


def read(connection: socket.socket) -> tuple[str, int]:
    """The text of a streamed answer, read to its end, and how many events it came in."""
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    lines = [line for line in data.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert not [chunk for chunk in chunks if "error" in chunk]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    return text, len(chunks)


def test_clients_that_do_not_read_hold_up_nobody_and_are_not_kept_in_memory_without_bound(server: Server) -> None:
    url = f"{server.url}/v1/chat/completions"
    ask: dict[str, Any] = {"max_tokens": 1200, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    expected = httpx.post(url, json=chat(**ask, seed=3), timeout=120).json()["choices"][0]["message"]["content"]
    process = psutil.Process(server.process.pid)
    before = process.memory_full_info().uss
    stalled = [send(server, buffer=UNREAD_BYTES, stream=True, **ask, seed=3) for _ in range(STALLED)]
    eventually(lambda: metric(server, "num_requests_running") == STALLED, "they don't run")
    with httpx.stream("POST", url, json=chat(stream=True, max_tokens=200, ignore_eos=True), timeout=60) as response:
        assert list(events(response))[-1] == "[DONE]"
    grown = []
    while metric(server, "num_requests_running"):
        grown.append(process.memory_full_info().uss - before)
        time.sleep(0.1)
    assert httpx.post(url, json=chat(max_tokens=20, ignore_eos=True), timeout=60).status_code == 200
    grown.append(process.memory_full_info().uss - before)
    assert max(grown) < GROWTH
    with closing(stalled[0]):
        text, count = read(stalled[0])
    assert text == expected, "what was read late isn't what was said"
    assert count < ask["max_tokens"], "nothing waited: the connection took it all"
    for connection in stalled[1:]:
        connection.close()
    eventually(lambda: all_is_free(server), "something is held for clients that left")
    assert server.stop() == 0
