"""From answers to bytes: a whole response, or server-sent events while the tokens come.

https://html.spec.whatwg.org/multipage/server-sent-events.html. Nothing is read from an answer before the last event was
taken by the connection, so a slow reader holds up its own answer and nobody else's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
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


async def deltas(
    answers: Sequence[Answer], cut: asyncio.Event, silence: float | None = None
) -> AsyncGenerator[tuple[int, Delta] | None, None]:
    """What the answers to one or more prompts say, as it comes: (prompt, delta); None after `silence` seconds of none.

    Errors: what ended an answer, or `EngineUnavailable` once `cut` is set. Answers aren't aborted here.
    """
    bell = asyncio.Event()
    bell.set()  # something may have come already
    silent = _Silence(silence, bell)
    cutting = asyncio.create_task(cut.wait())
    cutting.add_done_callback(lambda _: bell.set())
    for answer in answers:
        answer.listen(bell.set)
    reading = dict(enumerate(answers))
    try:
        while reading:
            await bell.wait()
            bell.clear()
            if silent.due():
                yield None
            for prompt, answer in tuple(reading.items()):
                while (delta := _taken(answer, cut)) is not None:
                    silent.broken()
                    yield prompt, delta
                if answer.over:
                    del reading[prompt]
    finally:
        silent.stop()
        cutting.cancel()
        await asyncio.gather(cutting, return_exceptions=True)


def _taken(answer: Answer, cut: asyncio.Event) -> Delta | None:
    """The answer's next delta, if there is one. Errors: as `deltas`."""
    if cut.is_set():
        raise EngineUnavailable("the server is shutting down and could not wait for this answer any longer")
    delta = answer.take()
    if delta is not None and delta.error is not None:
        raise delta.error.exception()
    return delta


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
    """The body of a response that isn't streamed. Errors: as `deltas`."""
    counts, said = Counts(), [list[Delta]() for _ in range(n * len(answers))]
    async with aclosing(deltas(answers, cut)) as source:
        async for item in source:
            if item is not None:
                prompt, delta = item
                counts.add(prompt, delta)
                said[prompt * n + delta.choice].append(delta)
    choices = [shape.whole(index, parts) for index, parts in enumerate(said)]
    return identity.fields(shape.whole_kind) | {"choices": choices, "usage": counts.usage()}


async def events(
    shape: Shape,
    identity: Identity,
    answers: Sequence[Answer],
    n: int,
    cut: asyncio.Event,
    *,
    include_usage: bool,
    request_id: str,
) -> AsyncIterator[bytes]:
    """A streamed response. An error is an event too, and the last one: no ``[DONE]`` follows it."""
    head = b"data: " + encode(identity.fields(shape.chunk_kind)).removesuffix(b"}") + b',"choices":['
    tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
    counts = Counts()
    try:
        opening = [shape.opening(index) for index in range(n * len(answers))]
        if first := b"".join(head + choice + tail for choice in opening if choice is not None):
            yield first
        async with aclosing(deltas(answers, cut, KEEP_ALIVE_SECONDS)) as source:
            async for item in source:
                if item is None:
                    yield KEEP_ALIVE
                    continue
                prompt, delta = item
                counts.add(prompt, delta)
                pieces = shape.pieces(prompt * n + delta.choice, delta)
                if news := b"".join(head + piece + tail for piece in pieces):
                    yield news
        if include_usage:
            yield head + b'],"usage":' + encode(counts.usage()) + b"}\n\n"
        yield DONE
    except ForgeError as error:
        log.warning("request %s ended with an error in its stream: %s", request_id, error.message)
        yield _error_event(error)
    except Exception:  # the status has been sent: this event is the only way to tell the client
        log.exception("request %s failed in its stream", request_id)
        yield _error_event(internal_error(request_id))


def _error_event(error: ForgeError) -> bytes:
    return b"data: " + encode(error_object(error)) + b"\n\n"
