"""Servers for `compare.py`: how each is started, when it is up, what memory it has. One class for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
from attrs import evolve, frozen

from forge.bench.machine import usable_cpus
from forge.bench.run import Client
from forge.bench.settings import BenchError, Settings

STOP_SECONDS = 20.0


@frozen
class Contender:
    """A server to measure. command: with ``{port}`` in it, or None for one that runs already, at `url`."""

    name: str
    command: tuple[str, ...] | None
    url: str

    def settings(self, settings: Settings) -> Settings:
        """The same settings, for this server."""
        return evolve(settings, url=self.url)


@frozen
class Running:
    """A started server. startup: seconds from launch to a first request's first token, None if not launched here."""

    contender: Contender
    process: psutil.Process | None
    startup: float | None

    def memory(self) -> dict[str, int] | None:
        """Bytes of the server and all its children.

        resident: the sum of their resident sets. proportional: pages that several have are counted once (Linux).
        """
        if self.process is None:
            return None
        sums = {"resident": 0, "proportional": 0}
        for process in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                info = process.memory_full_info()
                sums["resident"] += info.rss
                sums["proportional"] += getattr(info, "pss", info.rss)
        return sums


def forge_server(command: list[str], model: str, arguments: list[str]) -> Contender:
    """Forge. command: how to call it, none for the one that this Python has."""
    start = command or [sys.executable, "-c", "from forge.cli import main; main()"]
    return _launched("forge", [*start, "run", "-m", model, "--port", "{port}", "--log-level", "error", *arguments])


def peer_server(text: str, model: str, streams: int, positions: int, arguments: list[str]) -> Contender:
    """``llama-server=BINARY``, ``vllm=BINARY:DIRECTORY`` (of the same weights as SafeTensors), or ``NAME=URL``.

    streams: how many sequences it has to hold at once; positions: tokens of the longest. Errors: `ValueError`.
    """
    name, _, what = text.partition("=")
    if what.startswith(("http://", "https://")):
        return Contender(name, None, what)
    if name == "llama-server" and what:
        command = [what, "-m", model, "--host", "127.0.0.1", "--port", "{port}", "--parallel", str(streams)]
        threads = str(len(usable_cpus()))
        return _launched(name, [*command, "--ctx-size", str(streams * positions), "--threads", threads, *arguments])
    if name == "vllm" and ":" in what:
        binary, _, weights = what.partition(":")
        command = [binary, "serve", weights, "--host", "127.0.0.1", "--port", "{port}", "--dtype", "bfloat16"]
        limits = ["--max-model-len", str(positions), "--max-num-seqs", str(streams)]
        return _launched(name, [*command, *limits, *arguments])
    raise ValueError(f"{text!r} is not llama-server=BINARY, vllm=BINARY:DIRECTORY or NAME=URL")


def _launched(name: str, command: list[str]) -> Contender:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Contender(name, tuple(part.replace("{port}", str(port)) for part in command), f"http://127.0.0.1:{port}")


@contextlib.asynccontextmanager
async def running(contender: Contender, settings: Settings, log: Path) -> AsyncIterator[Running]:
    """The server, from its start to its end; what it says goes to `log`. Errors: `BenchError` if it ends early."""
    if contender.command is None:
        yield Running(contender, None, None)
        return
    launched = time.perf_counter()
    with _started(contender.command, log) as process:
        await _first_token(contender, process, settings, log)
        yield Running(contender, psutil.Process(process.pid), time.perf_counter() - launched)


@contextlib.contextmanager
def _started(command: tuple[str, ...], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        _stop(process)


async def _first_token(contender: Contender, process: subprocess.Popen[bytes], settings: Settings, log: Path) -> None:
    deadline = time.monotonic() + settings.timeout
    while True:
        try:
            await Client.connect(contender.settings(settings))  # ends with an answer of one token
            return
        except BenchError as error:
            if process.poll() is not None:
                raise BenchError(f"{contender.name} ended with status {process.returncode}; see {log}") from error
            if time.monotonic() > deadline:
                raise BenchError(f"{contender.name} isn't up after {settings.timeout:g} s: {error}") from error
            await asyncio.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for child in left:
        child.kill()


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """A neighbour that burns the last processor until the block's end."""
    pin = f"import os; getattr(os, 'sched_setaffinity', print)(0, {{{usable_cpus()[-1]}}})\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", pin], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()
