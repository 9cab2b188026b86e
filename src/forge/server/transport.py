"""What Hypercorn has no setting for: connections that end with their client, and a shorter way for streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h11
import hypercorn.asyncio.run
import hypercorn.protocol
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol.events import Body, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

if TYPE_CHECKING:
    from hypercorn.typing import ASGISendCallable


def improve_hypercorn() -> None:
    """Let Hypercorn use the classes below; once or more often."""
    vars(hypercorn.asyncio.run)["TCPServer"] = Connection
    vars(hypercorn.protocol)["H11Protocol"] = Http1


class Http1(H11Protocol):
    """Hypercorn's HTTP/1, with a shorter way for the chunks of a stream: at 32 streams those are most of its work.

    h11 frames chunks (RFC 9112, section 7.1) without remembering them, so that they needn't pass through it.
    """

    _chunked = False
    """Whether what is sent now are a response's chunks."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        connection = getattr(self.send, "__self__", None)
        self._write = connection.write if isinstance(connection, Connection) else None

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Body) and self._chunked and event.data:
            await self.send(RawData(data=_chunk(event.data)))
            return
        self._chunked = False
        await super().stream_send(event)
        if isinstance(event, Response):
            framed = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in event.headers)
            http = self.connection  # of a websocket it's something else
            http11 = isinstance(http, h11.Connection) and http.their_http_version == b"1.1"
            self._chunked = not framed and http11 and http.our_state is h11.SEND_BODY

    def write(self, data: bytes) -> bool:
        """Send a chunk of the response at once, as far as its client keeps up; False: it isn't sent."""
        return self._chunked and self._write is not None and self._write(_chunk(data))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def direct_write(send: ASGISendCallable) -> Callable[[bytes], bool] | None:
    """What writes chunks of a response straight to the client's connection; None where there's no such way.

    `send` is what an app was called with: of Hypercorn, if no middleware stands between, and for HTTP/1.
    """
    stream = getattr(send, "__self__", None)
    protocol = getattr(stream.send, "__self__", None) if isinstance(stream, HTTPStream) else None
    return protocol.write if isinstance(protocol, Http1) else None


class Connection(TCPServer):
    """Hypercorn's connection, which by itself notices only at its idle time-out that an idle client has left: until
    then each one would hold a descriptor. An answer that ends after its client has left would start that timer anew,
    and hold three tasks.
    """

    _left = False

    def write(self, data: bytes) -> bool:
        """Send this at once; False, and nothing is sent, while earlier data waits for the client or it has left."""
        transport = self.writer.transport
        if self.send_lock.locked() or transport.is_closing() or transport.get_write_buffer_size():
            return False
        transport.write(data)
        return True

    async def protocol_send(self, event: Event) -> None:
        """Hand something to the client or to the timer."""
        if isinstance(event, Updated) and self._left:
            return
        if isinstance(event, RawData) and self.write(event.data):
            if not self.writer.transport.get_write_buffer_size():
                return  # all of it is with the system: nothing to wait for
            event = RawData(data=b"")
        await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        self._left = True
        await self.idle_task.stop()
