"""Streams write their chunks straight to the connection, unless something stands between that has to see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import quart

from forge.engine.request import Delta, Request, Usage
from forge.server import stream as stream_module
from forge.server import transport
from forge.server.shapes import ChatShape

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
WORDS = tuple(f"wörd{i} " for i in range(20))


def spoken(text: str) -> str:
    """What a stream of events says."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return "".join(choice["delta"].get("content", "") for each in data[:-1] for choice in json.loads(each)["choices"])


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What took the short way."""
    seen: list[bytes] = []
    real = transport.Http1.write

    def write(self: transport.Http1, data: bytes) -> bool:
        sent = real(self, data)
        if sent:
            seen.append(data)
        return sent

    monkeypatch.setattr(transport.Http1, "write", write)
    return seen


async def ask(running: Any, **fields: Any) -> str:
    async with httpx.AsyncClient(base_url=running.url) as http:
        response = await http.post(CHAT, json=BODY | fields)
        assert response.status_code == 200
        return response.text


async def test_chunks_take_the_short_way_and_arrive_in_order(
    server: Any, client: Any, tell: Any, written: list[bytes]
) -> None:
    client.script = tell(*WORDS)
    assert spoken(await ask(await server())) == "".join(WORDS)
    assert len(written) >= len(WORDS)


async def test_several_choices_and_connections_that_go_on_keep_their_chunks_apart(
    server: Any, client: Any, tell: Any
) -> None:
    client.script = tell(*WORDS)
    running = await server()
    async with httpx.AsyncClient(base_url=running.url) as http:
        for _ in range(3):
            response = await http.post(CHAT, json=BODY | {"n": 3})
            data = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
            for index in range(3):
                mine = [choice for each in data for choice in each["choices"] if choice["index"] == index]
                assert "".join(choice["delta"].get("content", "") for choice in mine) == "".join(WORDS)
                assert mine[-1]["finish_reason"] == "stop"


def upper_case_bodies(app: Any) -> None:
    """What a plugin may do to responses."""

    async def shouted(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in body:
            yield piece.replace("wörd".encode(), "WÖRD".encode())

    @app.after_request
    async def wrap(response: quart.Response) -> quart.Response:
        if response.mimetype == "text/event-stream":
            response.response = response.iterable_body_class(shouted(response.response.iter))
        return response


def upper_case_messages(app: Any) -> None:
    """The same as ASGI middleware."""
    inner = app.asgi_app

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        async def shout(message: Any) -> None:
            if message["type"] == "http.response.body":
                message["body"] = message["body"].replace("wörd".encode(), "WÖRD".encode())
            await send(message)

        await inner(scope, receive, shout)

    app.asgi_app = outer


@pytest.mark.parametrize("change", [upper_case_bodies, upper_case_messages])
async def test_whoever_wraps_a_stream_sees_all_of_it(
    change: Callable[[Any], None], server: Any, client: Any, tell: Any, written: list[bytes]
) -> None:
    client.script = tell(*WORDS)
    assert spoken(await ask(await server(change=change))) == "".join(WORDS).replace("wörd", "WÖRD")
    assert not written


async def test_http_1_0_clients_get_the_bare_text(server: Any, client: Any, tell: Any, written: list[bytes]) -> None:
    client.script = tell(*WORDS)
    running = await server()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    content = json.dumps(BODY).encode()
    writer.write(b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(content), content))
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    assert "chunked" not in head.lower()
    assert spoken(body) == "".join(WORDS)
    assert not written


async def test_a_fault_where_deltas_arrive_ends_that_stream_with_an_error(
    server: Any, client: Any, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.script = tell(*WORDS)
    real = ChatShape.pieces

    def pieces(self: ChatShape, index: int, delta: Delta) -> Any:
        if delta.text == WORDS[5]:
            raise ZeroDivisionError("a secret of the server")
        return real(self, index, delta)

    running = await server()
    monkeypatch.setattr(ChatShape, "pieces", pieces)
    text = await ask(running)
    *chunks, last = [json.loads(line[6:]) for line in text.splitlines() if line]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "".join(WORDS[:5])
    assert "request" in last["error"]["message"]
    assert "secret" not in text


async def test_a_silent_engine_is_bridged_by_comments_between_chunks(
    server: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_SECONDS", 0.05)

    async def slow(request: Request) -> AsyncIterator[Delta]:
        yield Delta(request.id, 0, "a", [1])
        await asyncio.sleep(0.2)
        yield Delta(request.id, 0, "b", [1], finish_reason="stop", usage=Usage(1, 2, 0))

    client.script = slow
    text = await ask(await server())
    assert spoken(text) == "ab"
    between = text[text.index('"a"') : text.index('"b"')]
    assert between.count(": keep-alive") >= 2


async def test_a_reader_that_stops_for_a_while_loses_nothing(server: Any, client: Any) -> None:
    pieces = [f"{i:06d}" * 10_000 for i in range(400)]  # 24 MB, more than sockets and buffers hold

    async def much(request: Request) -> AsyncIterator[Delta]:
        for piece in pieces:
            yield Delta(request.id, 0, piece, [1])
        yield Delta(request.id, 0, finish_reason="stop", usage=Usage(1, 2, 0))

    client.script = much
    running = await server()
    async with httpx.AsyncClient(base_url=running.url) as http, http.stream("POST", CHAT, json=BODY) as response:
        await asyncio.sleep(0.3)
        [answer] = client.answers
        assert answer.taken < len(pieces)
        assert spoken((await response.aread()).decode()) == "".join(pieces)
