"""HTTP/1.1 for a load generator: one request a connection, the body as it comes, next to no processor time.

The client shares its cores with the server that it measures, so it takes bytes where asyncio's transports bring them,
and the chunked coding off them itself. A chunk of one token costs 50 to 65 µs of processor time at 32 streams beside a
busy server, most of it the event loop's and the system's; h11 took half as much again, httpx more than twice as much.
It does what benchmarks need: JSON out; identity, chunked or unlimited bodies in; no redirects, cookies or proxies.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
from attrs import frozen

from forge.bench.settings import BenchError
from forge.errors import ConfigError

HEAD_LIMIT = 1 << 16
READ_SIZE = 1 << 16
LOOKUP_SECONDS = 60.0
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?", re.DOTALL)


class BrokenResponse(Exception):
    """The server's bytes aren't HTTP, or stopped before the end that they announced."""


@frozen
class Address:
    """Where a server is. path: what comes before ``/v1``, without a slash at its end."""

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Of a URL with or without ``/v1`` at its end. Errors: `ConfigError`."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not a server's URL; expected http://HOST:PORT")
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
        return cls(parts.hostname, port or (443 if tls else 80), tls, path)

    @property
    def authority(self) -> str:
        """The ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Body(Protocol):
    """How a body ends. done: it has."""

    done: bool

    def feed(self, data: bytes) -> bytes:
        """The content that these bytes complete. Errors: `BrokenResponse`."""

    def close(self) -> None:
        """The connection was closed. Errors: `BrokenResponse` if that's too early."""


class ChunkedBody:
    """Takes the chunked transfer coding off (RFC 9112, section 7.1). A chunk is handed on once it is complete."""

    def __init__(self) -> None:
        self.done = False
        self._rest: bytes | bytearray = b""

    def feed(self, data: bytes) -> bytes:
        buffer: bytes | bytearray = data
        if self._rest:
            buffer = bytearray(self._rest) if isinstance(self._rest, bytes) else self._rest
            buffer += data
        content, at = [], 0
        while not self.done and (line_end := buffer.find(b"\r\n", at)) >= 0:
            start, size = line_end + 2, _chunk_size(bytes(buffer[at:line_end]))
            if size == 0:
                # Trailers, if any, end with an empty line of their own.
                self.done = buffer.startswith(b"\r\n", start) or buffer.find(b"\r\n\r\n", start) >= 0
                break
            stop = start + size
            if len(buffer) < stop + 2:
                break
            if not buffer.startswith(b"\r\n", stop):
                raise BrokenResponse("a chunk is longer than it said")
            content.append(buffer[start:stop])
            at = stop + 2
        self._rest = buffer[at:] if at else buffer
        if len(self._rest) > HEAD_LIMIT and self._rest.find(b"\r\n", 0, HEAD_LIMIT) < 0:
            raise BrokenResponse("a chunk without a size")
        return b"".join(content)

    def close(self) -> None:
        raise BrokenResponse("the connection was closed in the middle of the response")


@lru_cache(1024)
def _chunk_size(line: bytes) -> int:
    """What a chunk's first line says. Errors: `BrokenResponse`."""
    matched = _CHUNK_SIZE.fullmatch(line)
    if matched is None:
        raise BrokenResponse(f"{line[:40]!r} is no chunk size")
    return int(matched[1], 16)


class PlainBody:
    """As many bytes as were announced, or, if None were, all until the connection is closed."""

    def __init__(self, length: int | None) -> None:
        self.done = length == 0
        self._left = length

    def feed(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        content = data[: self._left]
        self._left -= len(content)
        self.done = not self._left
        return content

    def close(self) -> None:
        if self._left is not None:
            raise BrokenResponse(f"the connection was closed {self._left} bytes before the response's end")
        self.done = True


class _Connection(asyncio.BufferedProtocol):
    """One connection to a server. What comes is handed to a function at once: no task is woken for a token."""

    def __init__(self) -> None:
        self._space = bytearray(READ_SIZE)
        self._unread = bytearray()
        self._take: Callable[[bytes], bool] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        self._error: Exception | None = None

    async def read(self, take: Callable[[bytes], bool]) -> None:
        """Hand what comes to `take`, and b"" once the connection is closed, until it answers that it has enough.

        Errors: what `take` raises; `OSError` of the connection.
        """
        self._take, self._ended = take, asyncio.get_running_loop().create_future()
        if self._unread:
            unread, self._unread = bytes(self._unread), bytearray()
            self._hand(unread)
        if self._closed:
            self._hand(b"")
        try:
            await self._ended
        finally:
            self._take = None

    def unread(self, data: bytes) -> None:
        """Give back what was taken too much."""
        self._unread[:0] = data

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        self._hand(bytes(memoryview(self._space)[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed, self._error = True, exc
        self._hand(b"")

    def _hand(self, data: bytes) -> None:
        if self._take is None or self._ended is None or self._ended.done():
            self._unread += data
            return
        try:
            if not data and self._error is not None:
                raise self._error
            if self._take(data):
                return
            self._ended.set_result(None)
        except Exception as error:
            self._ended.set_exception(error)


class Response:
    """A response whose head has been read. Header names are in lower case."""

    def __init__(self, status: int, headers: Mapping[str, str], connection: _Connection) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection

    async def deliver(self, take: Callable[[bytes], bool]) -> None:
        """Hand the body to `take` as it arrives, until it ends or is answered with False.

        Errors: `BrokenResponse` if it ends too early; `OSError`; what `take` raises.
        """
        body = self._body()

        def feed(data: bytes) -> bool:
            if not data:
                body.close()
            elif content := body.feed(data):
                return take(content) and not body.done
            return not body.done

        if not body.done:
            await self._connection.read(feed)

    async def read(self) -> bytes:
        """The whole body. Errors: as `deliver`."""
        content: list[bytes] = []

        def take(piece: bytes) -> bool:
            content.append(piece)
            return True

        await self.deliver(take)
        return b"".join(content)

    def _body(self) -> Body:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return ChunkedBody()
        length = self.headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise BrokenResponse(f"Content-Length: {length}")
        return PlainBody(None if length is None else int(length))


@frozen
class Server:
    """A server to send requests to, each on a connection of its own."""

    address: Address
    api_key: str | None = None

    @asynccontextmanager
    async def request(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[Response]:
        """Send a request; the connection is closed at the block's end. Errors: `OSError`, `BrokenResponse`."""
        address = self.address
        head = [
            f"{method} {address.path}{path} HTTP/1.1",
            f"Host: {address.authority}",
            "Accept-Encoding: identity",
            "Connection: close",
        ]
        if body:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        if self.api_key is not None:
            head.append(f"Authorization: Bearer {self.api_key}")
        transport, connection = await asyncio.get_running_loop().create_connection(
            _Connection, address.host, address.port, ssl=address.tls or None
        )
        try:
            transport.write("\r\n".join([*head, "", ""]).encode() + body)
            yield await _response(connection)
        finally:
            transport.close()

    async def lookup(self, method: str, path: str, body: Any = None) -> Any | None:
        """The JSON that a small request is answered with, None for any other status than 200.

        Errors: `BenchError` if there is no answer, or one that isn't JSON.
        """
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                async with self.request(method, path, b"" if body is None else msgspec.json.encode(body)) as response:
                    content = await response.read()
                    return msgspec.json.decode(content) if response.status == 200 else None
        except (OSError, BrokenResponse, msgspec.DecodeError) as error:
            # TimeoutError is an OSError that says nothing.
            reason = str(error) or f"no answer within {LOOKUP_SECONDS:.0f} s"
            raise BenchError(f"{method} {path} at {self.address.authority}: {reason}") from error


async def _response(connection: _Connection) -> Response:
    while True:
        lines = (await _head(connection)).decode("latin-1").split("\r\n")
        matched = re.match(r"HTTP/1\.[01] (\d{3})\b", lines[0])
        if matched is None:
            raise BrokenResponse(f"{lines[0][:40]!r} is no HTTP/1.1 status line")
        if matched[1].startswith("1"):
            continue  # interim, such as 100 Continue
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        return Response(int(matched[1]), headers, connection)


async def _head(connection: _Connection) -> bytes:
    """A response's head, with the empty line at its end."""
    head = bytearray()

    def take(data: bytes) -> bool:
        if not data:
            raise BrokenResponse("the connection was closed before the response")
        head.extend(data)
        end = head.find(b"\r\n\r\n")
        if (len(head) if end < 0 else end) > HEAD_LIMIT:
            raise BrokenResponse("the response's head is too long")
        if end >= 0:
            connection.unread(bytes(head[end + 4 :]))
            del head[end + 4 :]
        return end < 0

    await connection.read(take)
    return bytes(head)
