"""`forge run` as a process of its own, for tests: on a free port, with its log and plugins, ended with the block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

START_SECONDS = 120
FORGE = Path(sys.executable).parent / "forge"


class Server:
    """A running `forge run`, its address and its processes."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.log = process, log
        self.url = f"http://127.0.0.1:{port}"

    @property
    def engine(self) -> psutil.Process:
        """The engine process."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "forge.engine.process" in child.cmdline())

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=10)

    def wait(self, status: int = 200) -> float:
        """Wait for a health status; the seconds it took."""
        start = time.monotonic()
        while time.monotonic() - start < START_SECONDS:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.health().status_code == status:
                    return time.monotonic() - start
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"no {status} in {START_SECONDS} s:\n{self.log.read_text()}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serve(folder: Path, model: Path, *flags: str, **environment: str) -> Iterator[Server]:
    """Run a server on a free port until the block ends."""
    log = folder / "server.log"
    command = [str(FORGE), "run", "--model-path", str(model), "--port", "0", *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + START_SECONDS
        while "listening on" not in (said := log.read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        yield Server(process, int(said.split("listening on http://127.0.0.1:")[1].split()[0]), log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def install_plugin(folder: Path, name: str, source: str) -> dict[str, str]:
    """Write a module and the metadata of its distribution; the environment in which a server finds it."""
    info = folder / "plugins" / f"{name}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info.parent / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[forge]\n{name} = {name}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(info.parent), os.environ.get("PYTHONPATH"))))}


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a chat with one short message."""
    return {"messages": [{"role": "user", "content": "hello"}], **fields}


def events(response: httpx.Response) -> Iterator[Any]:
    """The data of each server-sent event: parsed, or "[DONE]"."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)
