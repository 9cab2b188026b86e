"""When requests are sent: so many at once, or as a Poisson process says."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from forge.bench.load import Time, closed_loop, open_loop, poisson_arrivals
from forge.bench.record import Outcome


class Answering:
    """Takes requests down; each is answered after `turns` turns of the event loop."""

    def __init__(self, turns: int, time: Time) -> None:
        self.turns = turns
        self.time = time
        self.sent: list[tuple[int, float, float]] = []
        self.open = 0
        self.most = 0

    async def __call__(self, index: int, due: float) -> Outcome:
        self.sent.append((index, due, self.time.now()))
        self.open += 1
        self.most = max(self.most, self.open)
        for _ in range(self.turns * (1 + index % 3)):
            await asyncio.sleep(0)
        self.open -= 1
        return Outcome(index=index, start=due, end=due)


@pytest.mark.parametrize(("streams", "requests"), [(1, 5), (4, 17), (8, 3)])
async def test_a_closed_loop_keeps_its_streams_busy_and_sends_each_request_once(
    streams: int, requests: int, simulated: Time
) -> None:
    send = Answering(5, simulated)
    outcomes = await closed_loop(streams, requests, send, simulated)
    assert [outcome.index for outcome in outcomes] == list(range(requests))
    assert sorted(index for index, _, _ in send.sent) == list(range(requests))
    assert send.most == min(streams, requests)


async def test_an_open_loop_sends_when_due_however_many_still_wait(simulated: Time) -> None:
    send = Answering(10_000, simulated)
    arrivals = [0.0, 0.5, 0.75, 4.0]
    await open_loop(arrivals, send, simulated)
    assert [due for _, due, _ in sorted(send.sent)] == arrivals
    assert send.most == 4


async def test_a_client_that_lags_counts_from_when_the_request_was_due(simulated: Time) -> None:
    async def slow_start(_: float) -> None:
        await simulated.sleep(3.0)

    send = Answering(0, simulated)
    outcomes = await open_loop([0.0, 1.0], send, Time(simulated.now, slow_start))
    assert [outcome.start for outcome in outcomes] == [0.0, 1.0]
    assert min(now for _, _, now in send.sent) == 3.0


def test_arrivals_are_a_poisson_process_that_the_seed_repeats() -> None:
    arrivals = np.array(poisson_arrivals(5.0, 4001, seed=3))
    assert arrivals[0] == 0.0
    gaps = np.diff(arrivals)
    # An exponential distribution: its mean is its standard deviation, and it has the quantiles -ln(1 - q) / rate.
    assert gaps.mean() == pytest.approx(0.2, rel=0.06)
    assert gaps.std() == pytest.approx(0.2, rel=0.1)
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(gaps, share) == pytest.approx(-np.log(1 - share) / 5.0, rel=0.12)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.06
    assert poisson_arrivals(5.0, 4001, seed=3) == arrivals.tolist()
    assert poisson_arrivals(5.0, 4001, seed=4) != arrivals.tolist()
    assert len(poisson_arrivals(1.0, 1, seed=0)) == 1
