"""The process: signals, addresses, names, a load that fails."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge.config import Config, ModelTable
from forge.errors import ConfigError, UnsupportedModel
from forge.server.app import create_app
from forge.server.launch import model_names
from forge.server.listening import listen
from forge.server.run import run

SERVE = """
import asyncio, sys
from pathlib import Path
from types import SimpleNamespace
from forge.config import Config, ConstraintTable, ServerTable
from forge.engine.request import Delta, Usage
from forge.interfaces.loader import GenerationDefaults
from forge.server import launch, run
from forge.server.service import TextParts

class Client:
    state, detail, info = "ready", "", None
    def __init__(self, config, path): self.observers = []
    async def start(self): pass
    async def ready(self): pass
    async def stop(self): print("engine stopped", flush=True)
    async def submit(self, request):
        return Answer(request)

class Answer:
    def __init__(self, request):
        self.request, self.left, self.ready, self.over = request, 20, False, False
    def listen(self, ring):
        def tick():
            self.ready, more = True, self.left > 1
            ring()
            if more: asyncio.get_running_loop().call_later(0.1, tick)
        asyncio.get_running_loop().call_later(0.1, tick)
    def take(self):
        if not self.ready: return None
        self.ready = False
        self.left -= 1
        self.over = not self.left
        last = {"finish_reason": "stop", "usage": Usage(1, 20, 0)} if self.over else {}
        return Delta(self.request.id, 0, "word ", [1], **last)
    def abort(self): pass

class Text:
    vocab_size, bos_token_id, special_ids = 256, None, frozenset()
    def encode(self, text, **_): return list(text.encode())
    def token_raw(self, token): return bytes([token])
    def render(self, messages): return messages[0]["content"]

launch.EngineClient = Client
run._read_text = lambda registry, path: TextParts.of(Text(), Text(), GenerationDefaults())
registry = SimpleNamespace(notify=lambda hook, app, client: print(hook, type(client).__name__, flush=True))
config = Config(server=ServerTable(port=int(sys.argv[1]), drain_timeout=30.0), constraint=ConstraintTable("none"))
asyncio.run(launch.serve(config, registry, Path("/models/tiny.gguf")))
print("ended", flush=True)
"""
"""A whole server process around an engine that says 20 words in two seconds."""


@pytest.fixture
def process() -> Any:
    """A server process and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield started, f"http://127.0.0.1:{port}"
    finally:
        started.kill()
        started.communicate()


async def healthy(started: subprocess.Popen[str], url: str) -> None:
    """Wait until the server takes requests; fail with its last words if it ends instead."""
    async with asyncio.timeout(30), httpx.AsyncClient() as http:
        while True:
            assert started.poll() is None, started.communicate()
            try:
                if (await http.get(f"{url}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


ASK = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_after_its_last_stream(process: Any, number: signal.Signals) -> None:
    started, url = process
    await healthy(started, url)
    async with (
        httpx.AsyncClient(base_url=url) as http,
        http.stream("POST", "/v1/chat/completions", json=ASK) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        started.send_signal(number)
        rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert sum('"content":"word "' in line for line in rest) == 20
    out, err = await asyncio.to_thread(started.communicate, timeout=10)
    assert (started.returncode, out.splitlines()) == (0, ["forge_app_created Client", "engine stopped", "ended"]), err


async def test_a_second_signal_ends_the_process_at_once(process: Any) -> None:
    started, url = process
    await healthy(started, url)
    async with (
        httpx.AsyncClient(base_url=url) as http,
        http.stream("POST", "/v1/chat/completions", json=ASK) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        started.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert started.poll() is None
        started.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in lines:
                pass
    await asyncio.to_thread(started.communicate, timeout=5)
    assert started.returncode == -signal.SIGTERM


async def test_a_load_that_fails_ends_the_server_with_its_error(config: Config, service: Any) -> None:
    async def load() -> None:
        await asyncio.sleep(0.05)
        raise UnsupportedModel("no such pre-tokenizer")

    app = create_app(config, service)
    with listen("127.0.0.1", 0) as listening, pytest.raises(UnsupportedModel, match="no such pre-tokenizer"):
        await run(app, service, listening, 1.0, asyncio.Event(), asyncio.create_task(load()))


def test_an_address_that_cant_be_had_is_a_config_error() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: .*in use"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match="can't listen on"):
        listen("no.such.host.invalid", 1)


@pytest.mark.parametrize(
    ("reference", "served", "path", "name"),
    [
        ("smollm2", None, "/cache/SmolLM2.gguf", "smollm2"),
        ("/models/tiny.gguf", None, "/models/tiny.gguf", "tiny"),
        ("/models/Tiny-7B/", None, "/models/Tiny-7B", "Tiny-7B"),
        ("hf:owner/repo", None, "/cache/0123abc", "owner/repo"),
        ("pypi:thing==1#Model.Q4.gguf", None, "/cache/x/Model.Q4.gguf", "Model.Q4"),
        ("smollm2", "mine", "/cache/SmolLM2.gguf", "mine"),
    ],
)
def test_a_model_is_called_by_its_short_name_or_file_name(
    reference: str, served: str | None, path: str, name: str
) -> None:
    made, names = model_names(Config(model=ModelTable(path=reference, served_name=served)), Path(path))
    assert made == name
    assert {name, reference, path, Path(path).name} <= names
