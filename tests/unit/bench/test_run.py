"""A whole benchmark against a scripted server: prompts, requests, figures, failures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from forge.bench.load import Time
from forge.bench.prompts import WORDS
from forge.bench.run import REAL_TIME, Client
from forge.bench.settings import BenchError, Settings, Stage
from forge.errors import ConfigError

ONE = Stage(1, None, 1, 0)


def settings_for(server: Any, **changed: Any) -> Settings:
    return Settings(**{"url": server.url, "prompt_tokens": 60, "output_tokens": 3, "seed": 1} | changed)


def prompts_of(server: Any) -> list[str]:
    return [body["messages"][0]["content"] for body in server.bodies[1:]]


async def test_a_request_asks_for_what_the_settings_say(server: Any) -> None:
    client = await Client.connect(settings_for(server, temperature=0.5, ignore_eos=False, api_key="sesame"))
    await client.stage(ONE)
    (body,) = server.bodies[1:]
    assert body.pop("messages")[0]["role"] == "user"
    assert body == {
        "model": "fake", "max_tokens": 3, "temperature": 0.5, "ignore_eos": False, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert all("\r\nAuthorization: Bearer sesame\r\n" in head for head in server.heads)


async def test_completions_are_asked_for_at_their_own_path(server: Any) -> None:
    client = await Client.connect(settings_for(server, endpoint="completions", url=f"{server.url}/v1"))
    result = await client.stage(ONE)
    assert result.completed == 1
    assert "POST /v1/completions " in server.heads[-1]
    assert "prompt" in server.bodies[-1]


@pytest.mark.parametrize("words_per_token", [1, 2, None])
async def test_prompts_have_the_length_asked_for_with_the_templates_tokens(server: Any, words_per_token: int) -> None:
    server.words_per_token = words_per_token
    result = await (await Client.connect(settings_for(server))).stage(Stage(2, None, 5, 0))
    assert result.prompt_tokens == 5 * 60


async def test_a_server_that_cannot_count_is_asked_only_once(server: Any) -> None:
    server.words_per_token = None
    await (await Client.connect(settings_for(server))).stage(Stage(2, None, 5, 1))
    assert len(server.tokenized) == 1


async def test_no_two_prompts_begin_alike_warm_up_and_stages_included(server: Any) -> None:
    client = await Client.connect(settings_for(server))
    for _ in range(2):
        await client.stage(Stage(4, None, 20, 4))
    firsts = [prompt.split()[0] for prompt in prompts_of(server)]
    assert len(firsts) == 48
    assert len(set(firsts)) == 48


async def test_beginnings_differ_even_after_all_words_were_first(server: Any) -> None:
    client = await Client.connect(settings_for(server))
    made = [tuple(client.maker.words(40)[:3]) for _ in range(3 * len(WORDS))]
    assert len(set(made)) == len(made)
    assert len(set(WORDS)) == len(WORDS)


async def test_a_shared_prefix_is_shared_by_all_and_nothing_after_it(server: Any) -> None:
    result = await (await Client.connect(settings_for(server, shared_prefix=16))).stage(Stage(2, None, 6, 2))
    prompts = [prompt.split() for prompt in prompts_of(server)]
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 1
    assert len({prompt[16] for prompt in prompts}) == len(prompts) == 8
    assert result.prompt_tokens == 6 * 60


async def test_the_same_seed_sends_the_same_prompts(server: Any) -> None:
    for _ in range(2):
        await (await Client.connect(settings_for(server))).stage(ONE)
    prompts = prompts_of(server)
    assert prompts[0] == prompts[2]


async def test_warm_up_is_sent_and_not_measured(server: Any) -> None:
    result = await (await Client.connect(settings_for(server))).stage(Stage(2, None, 3, 5))
    assert len(server.bodies) == 1 + 5 + 3
    assert result.completed == len(result.outcomes) == 3


async def test_streams_run_side_by_side_and_no_more_than_asked_for(server: Any, wire: Any) -> None:
    release = asyncio.Event()
    client = await Client.connect(settings_for(server))
    good = wire.answer(3, {"prompt_tokens": 60})
    server.replies = [[wire.head(), release, *good]]
    running = asyncio.create_task(client.stage(Stage(3, None, 7, 0)))
    await server.opened(3)
    release.set()
    assert (await running).completed == 7
    assert server.most_open == 3


async def test_the_first_token_counts_when_it_comes_and_not_when_the_stream_opens(
    server: Any, wire: Any, ticking: Time
) -> None:
    gate = [asyncio.Event() for _ in range(3)]
    role, *rest = wire.answer(4, {"prompt_tokens": 60}, ["a", "b c d"])
    client = await Client.connect(settings_for(server, output_tokens=4), ticking)
    server.replies = [[wire.head(), role, gate[0], rest[0], gate[1], rest[1], gate[2], *rest[2:]]]
    running = asyncio.create_task(client.stage(ONE))
    for event in gate:
        await asyncio.sleep(0.03)
        event.set()
    (outcome,) = (await running).outcomes
    # The clock ticks once a read: the request, the role, the first text, the second, and the end.
    assert outcome.failure is None
    assert outcome.ttft == 2.0
    assert outcome.gaps == pytest.approx([1 / 3] * 3)
    assert outcome.output_tokens == 4
    assert outcome.chunks == 2


async def test_failures_are_counted_by_kind_with_a_reason_and_the_rest_goes_on(server: Any, wire: Any) -> None:
    client = await Client.connect(settings_for(server))
    good = [wire.head(), *wire.answer(3, {"prompt_tokens": 60})]
    server.replies = [
        [wire.whole(429, {"error": {"message": "the queue is full"}})],
        [wire.head(), wire.chunk(wire.event(delta={"content": "a"}))],
        [wire.head(), *wire.answer(2, {"prompt_tokens": 60})],
        [wire.head(), wire.chunk(wire.event(error={"message": "the engine died"})), b"0\r\n\r\n"],
        good,
    ]
    result = await client.stage(Stage(1, None, 6, 0))
    assert result.completed == 2
    assert result.failures == {"status": 1, "broken stream": 1, "token count": 1, "server error": 1}
    assert "429" in result.reasons["status"]
    assert "the queue is full" in result.reasons["status"]
    assert "closed" in result.reasons["broken stream"]
    assert result.reasons["token count"] == "2 tokens instead of 3"
    assert result.reasons["server error"] == "the engine died"
    assert result.output_tokens == 6


async def test_a_request_without_an_end_times_out_alone(server: Any, wire: Any) -> None:
    never = asyncio.Event()
    client = await Client.connect(settings_for(server, timeout=0.2), REAL_TIME)
    good = [wire.head(), *wire.answer(3, {"prompt_tokens": 60})]
    server.replies = [[wire.head(), never], good]
    result = await client.stage(Stage(1, None, 2, 0))
    never.set()
    assert result.failures == {"timeout": 1}
    assert result.completed == 1


async def test_an_open_loop_sends_at_the_seeds_arrivals(server: Any) -> None:
    client = await Client.connect(settings_for(server, rate=(200.0,), requests=5, warmup=1))
    (stage,) = client.settings.stages()
    result = await client.stage(stage)
    assert (stage.concurrency, stage.rate, result.completed) == (None, 200.0, 5)
    starts = [outcome.start for outcome in result.outcomes]
    assert starts == sorted(starts)


async def test_a_server_that_refuses_the_first_request_is_an_error_in_its_own_words(server: Any, wire: Any) -> None:
    server.replies = [[wire.whole(400, {"error": {"message": "no ignore_eos here"}})]]
    with pytest.raises(BenchError, match="no ignore_eos here"):
        await Client.connect(settings_for(server))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="shared prefix of 60"):
        Settings(url="http://h", prompt_tokens=60, shared_prefix=60)
    with pytest.raises(ValueError, match="must be >= 1"):
        Settings(url="http://h", concurrency=(0,))
