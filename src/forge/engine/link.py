"""The server's end of the channel (`forge.engine.channel`), in its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from forge.engine.channel import Frames
from forge.engine.request import FromEngine


class Link(asyncio.BufferedProtocol):
    """Hands on messages where they come, without a task that is woken for them.

    ended: done when no more will come; its exception is what `receive` raised, or a message that makes no sense.
    """

    def __init__(self, receive: Callable[[FromEngine], None]) -> None:
        self._receive = receive
        self._frames = Frames()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.space()

    def buffer_updated(self, nbytes: int) -> None:
        if self.ended.done():
            return
        try:
            for message in self._frames.messages(nbytes):
                self._receive(message)
        except Exception as error:
            self.ended.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
