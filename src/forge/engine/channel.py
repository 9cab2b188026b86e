"""The channel between server and engine: messages of `forge.engine.request` over a pair of sockets, or over a queue.

A frame is four bytes of length, one of the message's kind, and the message in msgpack.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from forge.engine.request import (
    Abort,
    Accepted,
    Deltas,
    FromEngine,
    Inspect,
    LoadFailed,
    Ready,
    Refused,
    Report,
    Start,
    Stop,
    Submit,
    ToEngine,
)

_KINDS: tuple[type, ...] = (Start, Submit, Abort, Stop, Ready, LoadFailed, Accepted, Refused, Deltas, Inspect, Report)
_NUMBER = {kind: i for i, kind in enumerate(_KINDS)}
_DECODERS: tuple[msgspec.msgpack.Decoder[Any], ...] = tuple(msgspec.msgpack.Decoder(kind) for kind in _KINDS)
_encode = msgspec.msgpack.Encoder().encode

HEADER = struct.Struct("!I")
"""The length of what follows, in bytes."""

READ_BYTES = 1 << 16


def encode(message: ToEngine | FromEngine) -> bytes:
    """One frame, header included."""
    body = _encode(message)
    return HEADER.pack(len(body) + 1) + bytes((_NUMBER[type(message)],)) + body


def decode(frame: bytes | memoryview) -> Any:
    """The message of a frame without its header."""
    return _DECODERS[frame[0]].decode(frame[1:])


class Channel(Protocol):
    """The engine's end."""

    def receive(self, wait: bool) -> list[ToEngine]:
        """Messages that have come, in order; with `wait`, at least one. `Stop` when the other end is gone."""

    def send(self, message: FromEngine) -> None:
        """Send a message; what can't be delivered any more is dropped."""


class SocketChannel:
    """The engine's end of a socket to the server process."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()

    def receive(self, wait: bool) -> list[ToEngine]:
        while True:
            try:
                data = self._socket.recv(READ_BYTES, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return []
            except ConnectionError:
                data = b""
            if not data:
                return [Stop()]
            self._buffer += data
            messages = self._frames()
            if messages:
                return messages

    def send(self, message: FromEngine) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next receive says so
            self._socket.sendall(encode(message))

    def _frames(self) -> list[ToEngine]:
        messages = []
        at = 0
        with memoryview(self._buffer) as view:
            while len(view) - at >= HEADER.size:
                (length,) = HEADER.unpack_from(view, at)
                end = at + HEADER.size + length
                if end > len(view):
                    break
                messages.append(decode(view[at + HEADER.size : end]))
                at = end
        del self._buffer[:at]
        return messages


class LocalChannel:
    """Both ends in one process: `put` on one side, `deliver` is called in the engine's thread on the other."""

    def __init__(self, deliver: Callable[[FromEngine], None]) -> None:
        self._queue: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self.send = deliver

    def put(self, message: ToEngine) -> None:
        """Hand a message to the engine; from any thread."""
        self._queue.put(message)

    def receive(self, wait: bool) -> list[ToEngine]:
        messages = [self._queue.get()] if wait else []
        while True:
            try:
                messages.append(self._queue.get_nowait())
            except queue.Empty:
                return messages
