"""The channel between server and engine: messages of `forge.engine.request` over a pair of sockets, or over a queue.

A frame is four bytes of length, one of the message's kind, and the message in msgpack.
"""

from __future__ import annotations

import contextlib
import queue
import select
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


class Frames:
    """Puts messages together from bytes that are read into one buffer, which grows for a frame that is larger."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_BYTES)
        self._filled = 0

    def space(self) -> memoryview:
        """Where to read to: at least one byte. It's to be forgotten before `messages`."""
        return memoryview(self._buffer)[self._filled :]

    def messages(self, count: int) -> list[Any]:
        """So many bytes were read there: the messages that they complete."""
        messages = []
        at, filled = 0, self._filled + count
        view = memoryview(self._buffer)
        while filled - at >= HEADER.size:
            (length,) = HEADER.unpack_from(view, at)
            start, end = at + HEADER.size, at + HEADER.size + length
            if end > filled:
                break
            messages.append(decode(view[start:end]))
            at = end
        self._keep(at, filled)
        return messages

    def _keep(self, at: int, filled: int) -> None:
        """Move what there is of the next frame to the start of a buffer that it fits in."""
        self._filled = filled - at
        if not self._filled:
            if len(self._buffer) > READ_BYTES:  # few frames are that large
                self._buffer = bytearray(READ_BYTES)
            return
        rest = self._buffer[at:filled]
        wanted = HEADER.size + (HEADER.unpack_from(rest)[0] if len(rest) >= HEADER.size else 0)
        if wanted > len(self._buffer):
            self._buffer = bytearray(max(wanted, 2 * len(self._buffer)))
        self._buffer[: len(rest)] = rest


class SocketChannel:
    """The engine's end of a socket to the server process."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._frames = Frames()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def receive(self, wait: bool) -> list[ToEngine]:
        while wait or self._poll.poll(0):
            try:
                count = self._socket.recv_into(self._frames.space())
            except ConnectionError:
                count = 0
            if not count:
                return [Stop()]
            messages: list[ToEngine] = self._frames.messages(count)
            if messages:
                return messages
        return []

    def send(self, message: FromEngine) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next receive says so
            self._socket.sendall(encode(message))


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
