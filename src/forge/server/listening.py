"""The listening socket: had before anything else is begun, so that a taken port is told at once."""

from __future__ import annotations

import contextlib
import socket
import weakref
from typing import Any

from forge.errors import ConfigError

BACKLOG = 2048
"""Connections that may wait to be accepted."""


class Listening(socket.socket):
    """A listening socket that can end the connections which came through it.

    Hypercorn waits for what it has written to be read, so that a client which reads nothing could hold it forever.
    """

    def __init__(self, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection and remember it."""
        connection, address = super().accept()
        self._accepted.add(connection)
        return connection, address

    def disconnect(self) -> None:
        """End all connections that are still open, whatever waits to be sent."""
        for connection in list(self._accepted):
            with contextlib.suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)


def listen(host: str, port: int) -> Listening:
    """A listening socket; port 0 is any free one. `ConfigError` if it can't be had."""
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with contextlib.ExitStack() as undo:
            listening = undo.enter_context(Listening(family))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
            undo.pop_all()
            return listening
    except OSError as error:
        raise ConfigError(f"server: can't listen on {host}:{port}: {error.strerror or error}") from error
