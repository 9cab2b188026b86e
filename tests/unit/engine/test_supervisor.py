"""The supervisor against engines that misbehave: whatever they do, requests end, health tells, and a new one starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.config import Config
from forge.engine import supervisor
from forge.engine.request import Request
from forge.engine.supervisor import EngineClient
from forge.errors import EngineUnavailable, ForgeError, UnsupportedModel

PRELUDE = """
import os, socket, sys, time
from pathlib import Path
from forge.engine.channel import SocketChannel, encode
from forge.engine.request import *
sock = socket.socket(fileno=int(sys.argv[1]))
channel = SocketChannel(sock)
channel.receive(wait=True)
runs = Path("runs"); count = len(runs.read_text()) if runs.exists() else 0; runs.write_text("x" * (count + 1))
ready = lambda: channel.send(Ready(ModelInfo("fake", "fake", 100, 10, 1, 1, 0.0)))
"""
ECHO = """
ready()
while True:
    for message in channel.receive(wait=True):
        if isinstance(message, Stop):
            sys.exit(0)
        if isinstance(message, Submit):
            channel.send(Accepted(message.request.id))
            channel.send(Deltas([Delta(message.request.id, 0, "hi", finish_reason="stop", usage=Usage(1, 1, 0))]))
"""

Fake = Callable[[str], EngineClient]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A function that makes a client whose engine process runs a script instead."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 1.0)
    real = asyncio.create_subprocess_exec

    def make(script: str) -> EngineClient:
        path = tmp_path / "engine.py"
        path.write_text(PRELUDE + textwrap.dedent(script))

        async def start(*command: str, **options: Any) -> asyncio.subprocess.Process:
            return await real(sys.executable, str(path), command[-1], cwd=tmp_path, **options)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
        return EngineClient(Config(), Path("model.gguf"))

    return make


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def answer(client: EngineClient, name: str = "r") -> str:
    return "".join([delta.text async for delta in await client.submit(Request(name, [1]))])


async def test_an_engine_serves_and_stops_when_told(fake: Fake) -> None:
    client = fake(ECHO)
    await client.start()
    assert (await client.ready()).architecture == "fake"
    assert await answer(client) == "hi"
    await client.stop()
    assert client.state == "stopped"
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await answer(client)


@pytest.mark.parametrize(
    "death",
    ["os._exit(3)", "os.kill(os.getpid(), 9)", "sock.sendall(b'\\0\\0\\0\\5garbage')", "sock.close(); time.sleep(60)"],
    ids=["exits", "killed", "garbage", "closes its channel and lingers"],
)
async def test_whatever_ends_an_engine_its_requests_fail_and_the_next_one_serves(fake: Fake, death: str) -> None:
    script = (
        f"""
if count == 0:
    ready()
    [message] = channel.receive(wait=True)
    channel.send(Accepted(message.request.id))
    {death}
    time.sleep(60)
"""
        + ECHO
    )
    client = fake(script)
    await client.start()
    await client.ready()
    with pytest.raises(EngineUnavailable, match="died"):
        await answer(client)
    assert client.state != "ready"
    await until(lambda: client.state == "ready")
    assert await answer(client) == "hi"
    await client.stop()


async def test_a_request_that_was_never_accepted_fails_with_the_engine(fake: Fake) -> None:
    client = fake("if count == 0:\n    ready()\n    channel.receive(wait=True)\n    os._exit(1)\n" + ECHO)
    await client.start()
    await client.ready()
    with pytest.raises(EngineUnavailable, match="died"):
        await client.submit(Request("r", [1]))
    await client.stop()


async def test_what_the_engine_could_not_load_is_said_and_not_tried_again(fake: Fake, tmp_path: Path) -> None:
    client = fake("channel.send(LoadFailed(ErrorInfo('no such tensor type', 'unsupported_model')))")
    await client.start()
    with pytest.raises(UnsupportedModel, match="tensor type"):
        await client.ready()
    await client.stop()
    assert (tmp_path / "runs").read_text() == "x"


async def test_an_engine_that_dies_before_it_is_ready_says_its_status(fake: Fake) -> None:
    client = fake("os._exit(7)")
    await client.start()
    with pytest.raises(ForgeError, match="status 7"):
        await client.ready()
    assert client.state == "failed"
    await client.stop()


async def test_stopping_does_not_wait_for_a_pause_before_a_restart(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    client = fake("ready()\nos._exit(1)")
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 600.0)
    await client.start()
    await client.ready()
    await until(lambda: client.state == "restarting")
    async with asyncio.timeout(20):
        await client.stop()
    assert client.state == "stopped"


async def test_stopping_ends_an_engine_that_loads_or_does_not_listen(fake: Fake) -> None:
    for script in ("time.sleep(600)", "ready()\ntime.sleep(600)"):
        client = fake(script)
        await client.start()
        await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            await client.stop()
        assert client.state == "stopped"


async def test_a_process_that_cannot_be_started_is_a_failure_not_a_hang(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = fake(ECHO)

    async def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    await client.start()
    with pytest.raises(EngineUnavailable, match="Too many open files"):
        await client.ready()
    await client.stop()


async def test_a_caller_that_gives_up_before_acceptance_aborts_its_request(fake: Fake, tmp_path: Path) -> None:
    script = """
    ready()
    seen = []
    while True:
        seen += [type(message).__name__ for message in channel.receive(wait=True)]
        Path("seen").write_text(" ".join(seen))
        if seen[-1] == "Stop":
            sys.exit(0)
    """
    client = fake(script)
    await client.start()
    await client.ready()
    waiting = asyncio.create_task(client.submit(Request("r", [1])))
    await until(lambda: (tmp_path / "seen").exists())
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await client.stop()
    assert (tmp_path / "seen").read_text() == "Submit Abort Stop"


async def test_the_engine_restarts_even_when_the_server_holds_many_descriptors(fake: Fake) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        client = fake(ECHO)
        await client.start()
        await client.ready()
        assert await answer(client) == "hi"
        await client.stop()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
