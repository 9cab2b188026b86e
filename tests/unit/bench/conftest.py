"""A server that says what a script tells it to, and a clock that counts how often it was read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from attrs import define, field

from forge.bench.load import Time


@define
class FakeServer:
    """HTTP on a loopback port.

    `replies` holds what is sent to streaming requests, one after the other and the last one again and again: bytes as
    they are, and events that are waited for in between. `bodies` are the streaming requests' JSON.
    """

    words_per_token: int | None = 1
    overhead: int = 20
    replies: list[list[bytes | asyncio.Event] | None] = field(factory=lambda: [None])
    bodies: list[dict[str, Any]] = field(factory=list)
    heads: list[str] = field(factory=list)
    tokenized: list[str] = field(factory=list)
    open_now: int = 0
    most_open: int = 0
    url: str = ""
    changed: asyncio.Condition = field(factory=asyncio.Condition)

    async def opened(self, number: int) -> None:
        """Wait until as many requests are being answered."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.open_now >= number)

    def tokens(self, text: str) -> int:
        """As many as the text has words, each counted `words_per_token` times."""
        return len(text.split()) * (self.words_per_token or 1)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        length = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length")]
        body = json.loads(await reader.readexactly(int(length[0]))) if length else {}
        path = head.split()[1]
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        async with self.changed:
            self.changed.notify_all()
        with contextlib.suppress(ConnectionError):
            if path.endswith("/v1/models"):
                writer.write(whole(200, {"data": [{"id": "fake"}]}))
            elif path.endswith("/tokenize"):
                self.tokenized.append(body["content"])
                found = {"tokens": [0] * self.tokens(body["content"])}
                writer.write(whole(200, found) if self.words_per_token else whole(404, {}))
            else:
                await self._stream(body, writer)
            await writer.drain()
        self.open_now -= 1
        writer.close()

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.bodies.append(body)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        usage = {"prompt_tokens": self.tokens(prompt) + self.overhead}
        for part in reply or [stream_head(), *answer_events(body["max_tokens"], usage)]:
            if isinstance(part, asyncio.Event):
                await part.wait()
            else:
                writer.write(part)
                await writer.drain()


def whole(status: int, content: object) -> bytes:
    """A response that isn't streamed."""
    data = json.dumps(content).encode()
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data)


def stream_head() -> bytes:
    """Of a chunked event stream."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(content: bytes) -> bytes:
    """In the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def event(**fields: Any) -> bytes:
    """A chat chunk as a server-sent event; delta, finish_reason, usage, error."""
    choice = {key: value for key, value in fields.items() if key in ("delta", "text", "finish_reason")}
    rest = {key: value for key, value in fields.items() if key not in choice}
    return b"data: " + json.dumps({"choices": [choice] if choice else [], **rest}).encode() + b"\n\n"


def answer_events(tokens: int, usage: dict[str, int], texts: list[str] | None = None) -> list[bytes]:
    """A whole good answer of `tokens` tokens, one a chunk unless `texts` says otherwise."""
    texts = ["word "] * tokens if texts is None else texts
    return [
        chunk(event(delta={"role": "assistant", "content": ""})),
        *(chunk(event(delta={"content": text})) for text in texts),
        chunk(event(delta={}, finish_reason="length")),
        chunk(event(usage=usage | {"completion_tokens": tokens})),
        chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
    ]


class Wire:
    """The functions above, for tests, which can't import this file."""

    whole = staticmethod(whole)
    head = staticmethod(stream_head)
    chunk = staticmethod(chunk)
    event = staticmethod(event)
    answer = staticmethod(answer_events)


@pytest.fixture
def wire() -> type[Wire]:
    return Wire


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    listening = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield fake


@pytest.fixture
def ticking() -> Time:
    """A clock that goes on by one second whenever it is read, and never lets anybody wait."""
    ticks = 0

    def now() -> float:
        nonlocal ticks
        ticks += 1
        return float(ticks)

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    return Time(now, sleep)


@pytest.fixture
def simulated() -> Time:
    """Simulated time: it goes on only while somebody sleeps, and then at once."""
    here = 0.0

    def now() -> float:
        return here

    async def sleep(seconds: float) -> None:
        nonlocal here
        until = here + seconds
        await asyncio.sleep(0)
        here = max(here, until)

    sleeping: Callable[[float], Awaitable[None]] = sleep
    return Time(now, sleeping)


@pytest.fixture
def server_factory() -> type[FakeServer]:
    """To start one in another event loop."""
    return FakeServer
