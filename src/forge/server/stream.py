"""From answers to bytes: a whole response, or server-sent events while the tokens come.

https://html.spec.whatwg.org/multipage/server-sent-events.html. Nothing is read from an answer before the last event was
taken by the connection, so a slow reader holds up its own answer and nobody else's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from forge.engine.request import Delta
from forge.errors import EngineUnavailable, ForgeError
from forge.server.errors import error_object, internal_error
from forge.server.shapes import Counts, Identity, Shape, encode

if TYPE_CHECKING:
    from forge.engine.supervisor import Answer

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
"""After so long without news a comment is sent, so that proxies and clients don't give up on a long prompt."""

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

Take = Callable[[int, Delta], bool]
"""Takes a delta of a prompt's answer where it comes from the engine; whether it will take the next one as well."""


class Reading:
    """The answers to one or more prompts, being read.

    It is a context, in which one goes on like this::

        while not reading.over:
            for prompt, delta in reading.news(): ...
            await reading.wait(take)

    While it waits, what comes is handed to `take` at once: a task that is woken for every token costs several times
    what becomes of the token. Errors of `news`: what ended an answer, `EngineUnavailable` once `cut` is set, and
    whatever `take` raised. Answers aren't aborted here. silence: after so many seconds without news, `silent` tells.
    """

    def __init__(self, answers: Sequence[Answer], cut: asyncio.Event, silence: float | None = None) -> None:
        self._reading = dict(enumerate(answers))
        self._cut = cut
        self._bell = asyncio.Event()
        self._bell.set()  # something may have come already
        self._take: Take | None = None
        self._failure: Exception | None = None
        self._silence = _Silence(silence, self._bell)

    def __enter__(self) -> Reading:
        for prompt, answer in self._reading.items():
            answer.listen(partial(self._ring, prompt))
        self._cutting = asyncio.create_task(self._cut.wait())
        self._cutting.add_done_callback(lambda _: self._bell.set())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._silence.stop()
        self._cutting.cancel()

    @property
    def over(self) -> bool:
        """Whether the last delta of every answer has been taken."""
        return not self._reading

    @property
    def silent(self) -> bool:
        """Whether there has been no news for that long; the time begins anew."""
        return self._silence.due()

    def news(self) -> Iterator[tuple[int, Delta]]:
        """What there is to take by now, as (prompt, delta)."""
        if self._failure is not None:
            raise self._failure
        for prompt in tuple(self._reading):
            while (delta := self._next(prompt)) is not None:
                yield prompt, delta

    async def wait(self, take: Take | None = None) -> None:
        """Wait until there's something to look at. Without `take` that is any news."""
        self._take = take
        try:
            await self._bell.wait()
        finally:
            self._take = None
        self._bell.clear()

    def _next(self, prompt: int) -> Delta | None:
        """The next delta of a prompt's answer, if there is one."""
        if self._cut.is_set():
            raise EngineUnavailable("the server is shutting down and could not wait for this answer any longer")
        answer = self._reading.get(prompt)
        if answer is None:
            return None
        delta = answer.take()
        if delta is not None:
            self._silence.broken()
            if delta.error is not None:
                raise delta.error.exception()
        if answer.over:
            del self._reading[prompt]
        return delta

    def _ring(self, prompt: int) -> None:
        """There may be something to take from this prompt's answer."""
        try:
            while self._take is not None and (delta := self._next(prompt)) is not None:
                if not self._take(prompt, delta):
                    self._take = None
        except Exception as error:  # of this answer: the engine's messages to others come the same way
            self._failure, self._take = error, None
        if self._take is None or self.over:
            self._bell.set()


class _Silence:
    """Rings a bell after so many seconds without news (None: never). One timer, moved when it goes off."""

    def __init__(self, seconds: float | None, bell: asyncio.Event) -> None:
        self._seconds, self._bell = seconds, bell
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._look)

    def broken(self) -> None:
        """There was news."""
        self._since = self._loop.time()

    def due(self) -> bool:
        """Whether it has been silent for that long; the time begins anew."""
        due = self._seconds is not None and self._loop.time() - self._since >= self._seconds
        if due:
            self._since = self._loop.time()
        return due

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        assert self._seconds is not None
        left = self._since + self._seconds - self._loop.time()
        if left <= 0:
            self._bell.set()
        self._timer = self._loop.call_later(left if left > 0 else self._seconds, self._look)


async def whole(
    shape: Shape, identity: Identity, answers: Sequence[Answer], n: int, cut: asyncio.Event
) -> dict[str, object]:
    """The body of a response that isn't streamed. Errors: as `Reading.news`."""
    counts, said = Counts(), [list[Delta]() for _ in range(n * len(answers))]

    def take(prompt: int, delta: Delta) -> bool:
        counts.add(prompt, delta)
        said[prompt * n + delta.choice].append(delta)
        return True

    with Reading(answers, cut) as reading:
        while not reading.over:
            await reading.wait(take)
            for prompt, delta in reading.news():
                take(prompt, delta)
    choices = [shape.whole(index, parts) for index, parts in enumerate(said)]
    return identity.fields(shape.whole_kind) | {"choices": choices, "usage": counts.usage()}


class EventStream:
    """A streamed response: iterate over its bytes. An error is an event too, the last one: no ``[DONE]`` follows it.

    write: a shorter way to the client than through the iteration, if whoever iterates knows one: it sends bytes at
    once, or says False, and they come by the iteration, which the client then holds up. What was written comes after
    what was iterated over, and before what will be.
    """

    def __init__(
        self,
        shape: Shape,
        identity: Identity,
        answers: Sequence[Answer],
        n: int,
        cut: asyncio.Event,
        *,
        include_usage: bool,
        request_id: str,
    ) -> None:
        self.write: Callable[[bytes], bool] | None = None
        self._shape, self._answers, self._n, self._cut = shape, answers, n, cut
        self._include_usage, self._request_id = include_usage, request_id
        self._head = b"data: " + encode(identity.fields(shape.chunk_kind)).removesuffix(b"}") + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._counts = Counts()
        self._events = self._run()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Nobody reads on."""
        await self._events.aclose()

    async def _run(self) -> AsyncGenerator[bytes, None]:
        try:
            opening = [self._shape.opening(index) for index in range(self._n * len(self._answers))]
            if first := b"".join(self._head + choice + self._tail for choice in opening if choice is not None):
                yield first
            async with aclosing(self._news()) as events:
                async for event in events:
                    yield event
            if self._include_usage:
                yield self._head + b'],"usage":' + encode(self._counts.usage()) + b"}\n\n"
            yield DONE
        except ForgeError as error:
            log.warning("request %s ended with an error in its stream: %s", self._request_id, error.message)
            yield _error_event(error)
        except Exception:  # the status has been sent: this event is the only way to tell the client
            log.exception("request %s failed in its stream", self._request_id)
            yield _error_event(internal_error(self._request_id))

    async def _news(self) -> AsyncGenerator[bytes, None]:
        """What the answers say, as far as it isn't written."""
        refused: list[bytes] = []

        def take(prompt: int, delta: Delta) -> bool:
            event = self._event(prompt, delta)
            if event and not (self.write is not None and self.write(event)):
                refused.append(event)
            return not refused

        with Reading(self._answers, self._cut, KEEP_ALIVE_SECONDS) as reading:
            while not reading.over:
                await reading.wait(None if self.write is None else take)
                while refused:
                    yield refused.pop()
                if reading.silent:
                    yield KEEP_ALIVE
                for prompt, delta in reading.news():
                    if event := self._event(prompt, delta):
                        yield event

    def _event(self, prompt: int, delta: Delta) -> bytes:
        """What the client is told of a delta, perhaps nothing."""
        self._counts.add(prompt, delta)
        pieces = self._shape.pieces(prompt * self._n + delta.choice, delta)
        return b"".join([self._head + piece + self._tail for piece in pieces])


def _error_event(error: ForgeError) -> bytes:
    return b"data: " + encode(error_object(error)) + b"\n\n"
