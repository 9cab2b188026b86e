"""The server's view of an answer: nothing is lost when the reader is slow, and every end is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from forge.config import Config
from forge.engine.request import Delta, Request, Usage
from forge.engine.supervisor import Answer, EngineClient, merge
from forge.errors import EngineUnavailable
from forge.interfaces.sampler import TokenLogprobs


@pytest.fixture
def client() -> EngineClient:
    """A client whose engine was never started."""
    return EngineClient(Config(), Path("model.gguf"))


def delta(choice: int, text: str, *ids: int, finish: bool = False) -> Delta:
    return Delta(
        "r", choice, text, list(ids), [TokenLogprobs(-float(i)) for i in ids],
        finish_reason="stop" if finish else None, usage=Usage(1, 2, 0) if finish else None,
    )  # fmt: skip


async def test_a_slow_reader_gets_everything_in_order_with_what_waited_merged(client: EngineClient) -> None:
    answer = Answer(client, Request("r", [1], n=2))
    for piece in (delta(0, "a", 1), delta(1, "x", 7), delta(0, "b", 2), delta(0, "", 3, finish=True)):
        assert not answer.deliver(piece)
    assert answer.deliver(delta(1, "y", 8, finish=True))
    got = [piece async for piece in answer]
    assert [(d.choice, d.text, d.token_ids, d.finish_reason) for d in got] == [
        (0, "ab", [1, 2, 3], "stop"),
        (1, "xy", [7, 8], "stop"),
    ]
    assert [lp.token for lp in got[0].logprobs or ()] == [-1, -2, -3]
    assert got[0].usage == Usage(1, 2, 0)


async def test_a_waiting_reader_is_woken_by_each_delta(client: EngineClient) -> None:
    answer = Answer(client, Request("r", [1]))
    reading = asyncio.create_task(anext(answer))
    await asyncio.sleep(0)
    answer.deliver(delta(0, "a", 1))
    assert (await reading).text == "a"
    rest = asyncio.create_task(anext(answer))
    await asyncio.sleep(0)
    answer.fail(EngineUnavailable("the engine died"))
    with pytest.raises(EngineUnavailable, match="died"):
        await rest


async def test_what_came_before_the_engine_died_is_still_read(client: EngineClient) -> None:
    answer = Answer(client, Request("r", [1]))
    answer.deliver(delta(0, "a", 1))
    answer.fail(EngineUnavailable("the engine died"))
    assert (await anext(answer)).text == "a"
    with pytest.raises(EngineUnavailable):
        await anext(answer)


def test_merging_keeps_the_log_probabilities_of_either_side() -> None:
    with_some, without = delta(0, "a", 1), Delta("r", 0, "b")
    assert merge(with_some, without).logprobs == with_some.logprobs
    assert merge(without, with_some).logprobs == with_some.logprobs
    assert merge(without, without).logprobs is None


async def test_requests_before_the_engine_is_ready_are_refused(client: EngineClient) -> None:
    with pytest.raises(EngineUnavailable, match="loading"):
        await client.submit(Request("r", [1]))
    client.abort("unknown")
