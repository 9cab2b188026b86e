"""HTTP/1.1 for a load generator: one request a connection, the body as it comes, next to no processor time.

The client shares its cores with the server that it measures, so it reads a stream with plain asyncio. For a chunk
of one token, from the socket to its figures, that took 65 to 99 µs of processor time where h11 over the same
sockets took 95 to 180 and httpx 184 to 232 (each three times, in turns, on a busy machine). It does what benchmarks
need: JSON out; identity, chunked or unlimited bodies in; no redirects, cookies or proxies.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
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


class ChunkedBody:
    """Takes the chunked transfer coding off (RFC 9112, section 7.1). A chunk is handed on once it is complete."""

    def __init__(self) -> None:
        self.done = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The content that these bytes complete. Errors: `BrokenResponse`."""
        buffer = self._buffer
        buffer += data
        content = []
        while not self.done and (line_end := buffer.find(b"\r\n")) >= 0:
            matched = _CHUNK_SIZE.fullmatch(bytes(buffer[:line_end]))
            if matched is None:
                raise BrokenResponse(f"{bytes(buffer[:40])!r} is no chunk size")
            start, size = line_end + 2, int(matched[1], 16)
            if size == 0:
                # Trailers, if any, end with an empty line of their own.
                self.done = buffer.startswith(b"\r\n", start) or buffer.find(b"\r\n\r\n", start) >= 0
                break
            stop = start + size
            if len(buffer) < stop + 2:
                break
            if not buffer.startswith(b"\r\n", stop):
                raise BrokenResponse("a chunk is longer than it said")
            content.append(bytes(buffer[start:stop]))
            del buffer[: stop + 2]
        if len(buffer) > HEAD_LIMIT and buffer.find(b"\r\n", 0, HEAD_LIMIT) < 0:
            raise BrokenResponse("a chunk without a size")
        return b"".join(content)


class Response:
    """A response whose head has been read. Header names are in lower case."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body, as it arrives. Errors: `BrokenResponse` if it ends too early."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            body = ChunkedBody()
            while not body.done:
                if not (data := await self._reader.read(READ_SIZE)):
                    raise BrokenResponse("the connection was closed in the middle of the response")
                if content := body.feed(data):
                    yield content
            return
        length = self.headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise BrokenResponse(f"Content-Length: {length}")
        left = None if length is None else int(length)
        while left != 0:
            data = await self._reader.read(READ_SIZE if left is None else min(left, READ_SIZE))
            if not data and left is None:
                return
            if not data:
                raise BrokenResponse(f"the connection was closed {left} bytes before the response's end")
            left = None if left is None else left - len(data)
            yield data

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.pieces()])


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
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=address.tls or None, limit=HEAD_LIMIT
        )
        try:
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            yield await _head(reader)
        finally:
            writer.close()

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


async def _head(reader: asyncio.StreamReader) -> Response:
    while True:
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError as error:
            raise BrokenResponse("the connection was closed before the response") from error
        except asyncio.LimitOverrunError as error:
            raise BrokenResponse("the response's head is too long") from error
        matched = re.match(r"HTTP/1\.[01] (\d{3})\b", lines[0])
        if matched is None:
            raise BrokenResponse(f"{lines[0][:40]!r} is no HTTP/1.1 status line")
        if matched[1].startswith("1"):
            continue  # interim, such as 100 Continue
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        return Response(int(matched[1]), headers, reader)
