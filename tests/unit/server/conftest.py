"""A server around a scripted engine: a byte-level tokenizer, a client that says what the test wants, Hypercorn."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import attrs
import pytest

from forge.config import Config, ServerTable
from forge.engine.request import Delta, ModelInfo, Report, Request, Usage
from forge.errors import ForgeError, InvalidRequest
from forge.interfaces.loader import GenerationDefaults
from forge.interfaces.sampler import TokenLogprobs
from forge.server.app import create_app
from forge.server.listening import listen
from forge.server.run import run
from forge.server.service import Service, TextParts

BOS, EOS = 256, 257
SPECIAL = {BOS: "<s>", EOS: "</s>"}

Script = Callable[[Request], AsyncIterator[Delta]]


class ByteTokenizer:
    """One id a byte, and two special ones."""

    vocab_size = 258
    bos_token_id: int | None = BOS
    special_ids = frozenset(SPECIAL)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        ids: list[int] = []
        while text:
            special = next((i for i, name in SPECIAL.items() if text.startswith(name)), None) if parse_special else None
            taken = SPECIAL[special] if special is not None else text[0]
            ids += [special] if special is not None else list(taken.encode())
            text = text[len(taken) :]
        return [BOS, *ids] if add_special else ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        kept = [i for i in ids if not (skip_special and i in SPECIAL)]
        return b"".join(self.token_raw(i) for i in kept).decode(errors="replace")

    def token_text(self, token: int) -> str:
        return self.token_raw(token).decode(errors="replace")

    def token_raw(self, token: int) -> bytes:
        return SPECIAL[token].encode() if token in SPECIAL else bytes([token])


class PlainTemplate:
    """``[role]content`` for each message."""

    def render(
        self, messages: Sequence[dict[str, Any]], *, tools: Any = None, add_generation_prompt: bool = True
    ) -> str:
        if any(message["content"] == "raise" for message in messages):
            raise InvalidRequest("the chat template refuses these messages: no such thing", param="messages")
        if any(message["content"] == "crash" for message in messages):
            raise ZeroDivisionError("a secret of the server")
        return "".join(f"[{message['role']}]{message['content']}" for message in messages) + "[assistant]"


class FakeAnswer:
    """Plays a script; remembers that it was aborted."""

    def __init__(self, request: Request, script: Script) -> None:
        self.request = request
        self.aborted = asyncio.Event()
        self.taken = 0
        self.over = False
        self._deltas = script(request)
        self._ready: list[Delta] = []
        self._error: Exception | None = None
        self._wanted = asyncio.Event()
        self._playing: asyncio.Task[None] | None = None

    def listen(self, ring: Callable[[], None]) -> None:
        self._playing = asyncio.create_task(self._play(ring))

    async def _play(self, ring: Callable[[], None]) -> None:
        """Go on with the script when its last delta has been taken."""
        try:
            async for delta in self._deltas:
                self._ready.append(delta)
                self._wanted.clear()
                ring()
                await self._wanted.wait()
            self.over = True
        except Exception as error:
            self._error = error
        ring()

    def take(self) -> Delta | None:
        if self._ready:
            self.taken += 1
            self._wanted.set()
            return self._ready.pop()
        if self._error is not None:
            raise self._error
        return None

    def abort(self) -> None:
        self.aborted.set()
        if self._playing is not None:
            self._playing.cancel()


class FakeClient:
    """Accepts everything unless told otherwise, and answers by its script."""

    def __init__(self) -> None:
        self.state = "ready"
        self.detail = ""
        self.info: ModelInfo | None = ModelInfo(
            "llama", "torch", max_model_len=512, vocab_size=258, num_blocks=64, block_size=16, load_seconds=0.5
        )
        self.script: Script = say("Hello", " wörld")
        self.refusal: Callable[[Request], ForgeError | None] = lambda request: None
        self.answers: list[FakeAnswer] = []
        self.observers: list[Any] = []
        self.restarts = 0

    @property
    def requests(self) -> list[Request]:
        return [answer.request for answer in self.answers]

    async def report(self) -> Report:
        """An engine in the middle of its work."""
        return Report(
            running=2, waiting=3, used_blocks=16, cached_blocks=32, free_blocks=16, hits=40, queries=100,
            preemptions=1, steps=50, drafted=20, accepted=15,
        )  # fmt: skip

    async def submit(self, request: Request) -> FakeAnswer:
        await asyncio.sleep(0)
        if error := self.refusal(request):
            raise error
        answer = FakeAnswer(request, self.script)
        self.answers.append(answer)
        return answer


def scored(tokens: Sequence[int], alternatives: int) -> list[TokenLogprobs]:
    """Made-up log-probabilities: each token -0.5; the alternatives 97 + i at -1 - i, the last one impossible."""
    top = [(97 + i, -1.0 - i if i < alternatives - 1 else -math.inf) for i in range(alternatives)]
    return [TokenLogprobs(-0.5, tuple(top)) for _ in tokens]


def say(*pieces: str, finish: str = "stop", pause: float = 0.0, cached: int = 3) -> Script:
    """A script: every choice says these pieces, one a step; the usage is the true one."""

    async def script(request: Request) -> AsyncIterator[Delta]:
        top = request.sampling.logprobs
        for step, piece in enumerate(pieces):
            for choice in range(request.n):
                await asyncio.sleep(pause)
                ids = list(piece.encode())
                prompt = scored(request.prompt[1:], top or 0) if request.prompt_logprobs and step == 0 else None
                yield Delta(
                    request.id, choice, piece, ids, None if top is None else scored(ids, top), prompt_logprobs=prompt
                )
        count = len("".join(pieces).encode())
        for choice in range(request.n):
            reused = cached if choice == 0 else len(request.prompt) - 1
            usage = Usage(len(request.prompt), count, reused)
            logprobs = None if top is None else []
            yield Delta(request.id, choice, "", [], logprobs, finish_reason=finish, usage=usage)

    return script


@pytest.fixture
def tell() -> Callable[..., Script]:
    """The maker of scripts, for tests that want another one."""
    return say


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def service(client: FakeClient) -> Service:
    text = TextParts.of(ByteTokenizer(), PlainTemplate(), GenerationDefaults())
    return Service(client, "tiny", frozenset({"tiny", "/models/tiny.gguf"}), text)


@pytest.fixture
def config() -> Config:
    return Config(server=ServerTable(port=0, max_body_bytes=65536, drain_timeout=5.0))


@pytest.fixture
def http(config: Config, service: Service) -> Any:
    """Quart's test client: the app without a socket."""
    return create_app(config, service).test_client()


@attrs.frozen
class Running:
    """A server on a real port: its address, and the event that a signal would set."""

    url: str
    stop: asyncio.Event
    task: asyncio.Task[None]


@pytest.fixture
async def server(config: Config, service: Service) -> AsyncIterator[Callable[..., Any]]:
    """Start a server with Hypercorn on a free port; it is stopped after the test."""
    running: list[Running] = []

    async def start(drain_timeout: float = 5.0, change: Callable[[Any], None] = lambda app: None) -> Running:
        app = create_app(config, service)
        change(app)
        listening = listen("127.0.0.1", 0)
        stop, loading = asyncio.Event(), asyncio.create_task(asyncio.sleep(0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        async def serve() -> None:
            with listening:
                await run(app, service, listening, drain_timeout, stop, loading)

        running.append(Running(url, stop, asyncio.create_task(serve())))
        return running[-1]

    yield start
    for each in running:
        each.stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(each.task, 20)
