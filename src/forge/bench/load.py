"""Who sends when: a closed loop (so many streams, each with one request after the other) or Poisson arrivals."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence

from attrs import frozen

from forge.bench.record import Outcome

Send = Callable[[int, float], Awaitable[Outcome]]
"""Sends the request of this index, which counts from this time on the clock (seconds), and waits for its end."""


@frozen
class Time:
    """A clock in seconds, and waiting by it: the event loop's, or a test's."""

    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]


async def closed_loop(streams: int, requests: int, send: Send, time: Time) -> list[Outcome]:
    """All requests, `streams` at a time: the next is sent when one has ended."""
    waiting = iter(range(requests))

    async def stream() -> list[Outcome]:
        return [await send(index, time.now()) for index in waiting]

    return sorted(
        itertools.chain.from_iterable(await asyncio.gather(*(stream() for _ in range(min(streams, requests))))),
        key=lambda outcome: outcome.index,
    )


async def open_loop(arrivals: Sequence[float], send: Send, time: Time) -> list[Outcome]:
    """A request at each of these times, in seconds from now, however many are still waiting for their answers.

    A request counts from the time at which it was due, so that a client that lags behind makes no figure better.
    """
    start = time.now()

    async def arrive(index: int, offset: float) -> Outcome:
        await time.sleep(max(0.0, start + offset - time.now()))
        return await send(index, start + offset)

    return await asyncio.gather(*(arrive(index, offset) for index, offset in enumerate(arrivals)))


def poisson_arrivals(rate: float, requests: int, seed: int) -> list[float]:
    """When requests of a Poisson process of `rate` per second arrive, the first at 0; seconds."""
    draw = random.Random(seed)
    gaps = (draw.expovariate(rate) for _ in range(requests - 1))
    return list(itertools.accumulate(gaps, initial=0.0))
