"""The client's HTTP against h11's, and the ways in which a response can be broken."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.bench.http import Address, BrokenResponse, ChunkedBody, Server
from forge.bench.settings import BenchError
from forge.errors import ConfigError


def chunked_by_h11(pieces: list[bytes]) -> bytes:
    """A whole chunked body, as h11 writes it as a server."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    while connection.next_event() is not h11.PAUSED and connection.their_state is not h11.DONE:
        pass
    connection.send(h11.Response(status_code=200, headers=[("Transfer-Encoding", "chunked")]))
    written = [connection.send(h11.Data(data=piece)) or b"" for piece in pieces]
    return b"".join([*written, connection.send(h11.EndOfMessage()) or b""])


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.lists(st.integers(0, 2000), max_size=6))
@settings(max_examples=100, deadline=None)
def test_chunked_bodies_are_read_as_h11_writes_them_wherever_they_are_cut(pieces: list[bytes], cuts: list[int]) -> None:
    written = chunked_by_h11(pieces)
    marks = sorted({0, len(written), *(min(cut, len(written)) for cut in cuts)})
    body = ChunkedBody()
    read = b"".join(body.feed(written[start:stop]) for start, stop in itertools.pairwise(marks))
    assert read == b"".join(pieces)
    assert body.done


def test_extensions_and_trailers_are_skipped() -> None:
    body = ChunkedBody()
    assert body.feed(b"3;why=so\r\nabc\r\n0\r\nSum: 1\r\n") == b"abc"
    assert not body.done
    body.feed(b"\r\n")
    assert body.done


@pytest.mark.parametrize("data", [b"x\r\nabc\r\n", b"\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b"1_0\r\n", b"1" * 70000])
def test_a_malformed_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenResponse):
        ChunkedBody().feed(data)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:8080", Address("h", 8080, False, "")),
        ("http://h:8080/v1/", Address("h", 8080, False, "")),
        ("https://h/api/v1", Address("h", 443, True, "/api")),
        ("http://[::1]:80", Address("::1", 80, False, "")),
    ],
)
def test_urls_may_end_with_v1_or_not(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize("url", ["h:8080", "ftp://h", "http://", "http://h:x", "http://h:99999", ""])
def test_what_is_no_servers_url_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        Address.parse(url)


async def reply(data: bytes) -> tuple[int, bytes]:
    """What the client reads from a server that says this and closes the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        server = Server(Address("127.0.0.1", listening.sockets[0].getsockname()[1], False, ""))
        async with server.request("GET", "/") as response:
            return response.status, await response.read()


async def test_bodies_end_by_length_by_chunks_or_with_the_connection(wire: Any) -> None:
    assert await reply(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef") == (200, b"abc")
    assert await reply(b"HTTP/1.0 404 No\r\n\r\nabc") == (404, b"abc")
    assert await reply(wire.head() + wire.chunk(b"ab") + wire.chunk(b"c") + b"0\r\n\r\n") == (200, b"abc")
    assert await reply(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n") == (
        204,
        b"",
    )


@pytest.mark.parametrize(
    "data",
    [
        b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
    ],
)  # fmt: skip
async def test_a_response_that_is_broken_or_cut_off_is_an_error_and_never_a_short_answer(data: bytes) -> None:
    with pytest.raises(BrokenResponse):
        await reply(data)


async def test_a_server_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(BenchError, match=r"127\.0\.0\.1:9 *"):
        await Server(Address("127.0.0.1", 9, False, "")).lookup("GET", "/v1/models")


async def test_a_body_is_handed_on_as_it_comes_until_the_reader_has_enough(wire: Any) -> None:
    go_on, gone = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(wire.head() + wire.chunk(b"a"))
        await go_on.wait()
        writer.write(wire.chunk(b"b") + wire.chunk(b"c")[:2])
        with contextlib.suppress(ConnectionError):
            await reader.read()  # the client goes away, though the answer isn't over
        writer.close()
        gone.set()

    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        go_on.set()
        return len(pieces) < 2

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        server = Server(Address("127.0.0.1", listening.sockets[0].getsockname()[1], False, ""))
        async with server.request("GET", "/") as response:
            await asyncio.wait_for(response.deliver(take), 10)
        await gone.wait()
        await asyncio.sleep(0.01)
    assert pieces == [b"a", b"b"]


async def test_what_the_reader_raises_reaches_whoever_waits() -> None:
    def take(piece: bytes) -> bool:
        raise ZeroDivisionError

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        server = Server(Address("127.0.0.1", listening.sockets[0].getsockname()[1], False, ""))
        async with server.request("GET", "/") as response:
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(response.deliver(take), 10)
        await asyncio.sleep(0.01)
