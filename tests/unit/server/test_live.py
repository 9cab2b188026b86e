"""The server on a real port: the OpenAI client, clients that leave or don't read, big bodies, long streams."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from forge.engine.request import Delta
from forge.errors import ContextLengthExceeded, QueueFull
from forge.server import app as app_module
from forge.server import errors as errors_module
from forge.server import run as run_module
from forge.server.app import create_app
from forge.server.listening import listen
from forge.server.run import hypercorn_settings

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
STREAM = ASK | {"stream": True}


async def endless(request: Any) -> AsyncIterator[Delta]:
    """A word every few milliseconds, for ever."""
    while True:
        await asyncio.sleep(0.005)
        for choice in range(request.n):
            yield Delta(request.id, choice, "word ", [1])


def big(text: str) -> Any:
    """As fast as it is read, for ever, a long text at a time."""

    async def script(request: Any) -> AsyncIterator[Delta]:
        while True:
            await asyncio.sleep(0)
            yield Delta(request.id, 0, text, [1])

    return script


async def eventually(condition: Any, seconds: float = 3.0) -> bool:
    """Whether it becomes true."""
    end = asyncio.get_running_loop().time() + seconds
    for _ in iter(lambda: condition() or asyncio.get_running_loop().time() > end, True):
        await asyncio.sleep(0.01)
    return bool(condition())


async def until_first_word(lines: AsyncIterator[str]) -> None:
    async for line in lines:
        if "word" in line:
            return


# ------------------------------------------------------------------------------------------------- the OpenAI client


async def test_the_openai_client_chats_completes_streams_and_lists(server: Any) -> None:
    running = await server()
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as ai:
        messages: Any = ASK["messages"]
        whole = await ai.chat.completions.create(model="tiny", messages=messages, n=2)
        assert [choice.message.content for choice in whole.choices] == ["Hello wörld"] * 2
        texts = ["", ""]
        chunks = await ai.chat.completions.create(
            model="tiny", messages=messages, n=2, stream=True, stream_options={"include_usage": True}
        )
        usage = None
        async for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == ["Hello wörld"] * 2
        assert usage is not None
        assert usage.completion_tokens == 24
        completion = await ai.completions.create(model="tiny", prompt=["a", "b"], echo=True)
        assert [choice.text for choice in completion.choices] == ["aHello wörld", "bHello wörld"]
        pieces = [
            part.choices[0].text async for part in await ai.completions.create(model="tiny", prompt="a", stream=True)
        ]
        assert "".join(pieces) == "Hello wörld"
        assert [model.id async for model in ai.models.list()] == ["tiny"]
        assert (await ai.models.retrieve("tiny")).id == "tiny"


async def test_the_openai_client_sees_errors_of_the_right_class(server: Any, client: Any) -> None:
    running = await server()
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as ai:
        messages: Any = ASK["messages"]
        with pytest.raises(openai.BadRequestError) as bad:
            await ai.chat.completions.create(model="tiny", messages=messages, temperature=9)
        assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
        with pytest.raises(openai.NotFoundError) as missing:
            await ai.chat.completions.create(model="other", messages=messages)
        assert missing.value.code == "model_not_found"
        client.refusal = lambda _: QueueFull("too many requests wait", retry_after=1)
        with pytest.raises(openai.RateLimitError):
            await ai.chat.completions.create(model="tiny", messages=messages, stream=True)
        client.refusal = lambda _: ContextLengthExceeded("too long")
        with pytest.raises(openai.BadRequestError, match="too long"):
            await ai.chat.completions.create(model="tiny", messages=messages)
        client.refusal = lambda _: None

        async def dies(request: Any) -> AsyncIterator[Delta]:
            yield Delta(request.id, 0, "Hel", [1])
            raise QueueFull("in the middle")

        client.script = dies
        with pytest.raises(openai.APIError, match="in the middle"):
            async for _ in await ai.chat.completions.create(model="tiny", messages=messages, stream=True):
                pass


# --------------------------------------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("body", [STREAM, ASK, STREAM | {"n": 3}], ids=["streamed", "whole", "several"])
async def test_a_client_that_goes_away_is_aborted_at_once(body: dict[str, Any], server: Any, client: Any) -> None:
    client.script = endless
    running = await server()
    async with httpx.AsyncClient(base_url=running.url) as http:
        if body.get("stream"):
            async with http.stream("POST", CHAT, json=body) as response:
                await until_first_word(response.aiter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                await http.post(CHAT, json=body, timeout=0.3)
    [answer] = client.answers
    assert await eventually(answer.aborted.is_set, 1.0)
    taken = answer.taken
    await asyncio.sleep(0.1)
    assert answer.taken <= taken + 1


async def test_all_prompts_of_a_client_that_goes_away_are_aborted(server: Any, client: Any) -> None:
    client.script = endless
    running = await server()
    body = {"prompt": ["a", "b", "c"], "stream": True}
    async with (
        httpx.AsyncClient(base_url=running.url) as http,
        http.stream("POST", "/v1/completions", json=body) as got,
    ):
        await until_first_word(got.aiter_lines())
    assert await eventually(lambda: len(client.answers) == 3 and all(a.aborted.is_set() for a in client.answers))


async def test_a_client_that_leaves_before_the_engine_has_accepted_leaves_nothing(server: Any, client: Any) -> None:
    submitted, cancelled = asyncio.Event(), asyncio.Event()

    async def never(_: Any) -> Any:
        submitted.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    client.submit = never
    running = await server()
    async with httpx.AsyncClient(base_url=running.url) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post(CHAT, json=ASK, timeout=0.3)
    assert submitted.is_set()
    assert await eventually(cancelled.is_set, 1.0)


async def test_after_many_streams_with_random_aborts_nothing_is_left(
    server: Any, client: Any, tell: Any, service: Any
) -> None:
    chance = random.Random(7)
    client.script = tell(*["word "] * 20, pause=0.002)
    running = await server()
    async with httpx.AsyncClient(base_url=running.url) as http:
        await http.get("/health")
    tasks_before = len(asyncio.all_tasks())
    whole = 0

    async def one(http: httpx.AsyncClient, leave_after: int | None) -> None:
        nonlocal whole
        async with http.stream("POST", CHAT, json=STREAM) as response:
            lines = 0
            async for line in response.aiter_lines():
                lines += 1
                if leave_after is not None and lines > leave_after:
                    return
                whole += line == "data: [DONE]"

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=running.url, limits=limits, timeout=30) as http:
        leaving = [chance.choice([None, chance.randrange(30)]) for _ in range(120)]
        await asyncio.gather(*(one(http, after) for after in leaving))
    assert whole == leaving.count(None)
    assert await eventually(lambda: len(service.in_flight) == 0)
    assert len(client.answers) == 120
    assert all(answer.aborted.is_set() for answer in client.answers)
    assert await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before)


async def test_a_client_that_doesnt_read_holds_up_only_itself(server: Any, client: Any, tell: Any) -> None:
    client.script = big("x" * 10_000)
    running = await server()
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = json.dumps(STREAM).encode()
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    assert await eventually(lambda: len(client.answers) == 1 and client.answers[0].taken > 10)
    taken = -1
    while client.answers[0].taken != taken:  # until the buffers between us are full
        taken = client.answers[0].taken
        await asyncio.sleep(0.3)
    client.script = tell("fine")
    async with httpx.AsyncClient(base_url=running.url) as http:
        assert (await http.post(CHAT, json=ASK)).json()["choices"][0]["message"]["content"] == "fine"
    assert client.answers[0].taken == taken
    assert not client.answers[0].aborted.is_set()
    assert reader.at_eof() is False
    writer.transport.abort()
    assert await eventually(client.answers[0].aborted.is_set)


# ------------------------------------------------------------------------------------------------------- limits of size


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
@pytest.mark.parametrize("size", [70_000, 20_000_000])
async def test_a_body_over_the_limit_gets_its_413_however_it_is_sent(declared: bool, size: int, server: Any) -> None:
    running = await server()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, 50_000):
            yield b" " * min(50_000, size - start)

    headers = {"Content-Length": str(size)} if declared else {}
    async with httpx.AsyncClient(base_url=running.url, timeout=20) as http:
        response = await http.post(CHAT, content=pieces(), headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "payload_too_large"
        assert (await http.post(CHAT, json=ASK)).status_code == 200


async def test_a_refused_body_that_never_ends_is_given_up(
    server: Any, monkeypatch: pytest.MonkeyPatch, service: Any
) -> None:
    monkeypatch.setattr(errors_module, "LINGER_SECONDS", 0.2)
    running = await server()
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" % CHAT.encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"payload_too_large" in answer
    assert await eventually(lambda: len(service.in_flight) == 0)
    writer.close()


async def test_a_body_that_comes_too_slowly_is_a_408(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(errors_module, "LINGER_SECONDS", 0.1)
    running = await server()
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"mess' % CHAT.encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"request_timeout" in answer
    writer.close()


async def test_refusals_reach_clients_that_are_still_sending(server: Any, service: Any) -> None:
    service.in_flight.stopping = True
    running = await server()
    async with httpx.AsyncClient(base_url=running.url, timeout=20) as http:
        response = await http.post(CHAT, content=b" " * 5_000_000)
    assert response.status_code == 503
    assert response.headers["Connection"] == "close"


# ------------------------------------------------------------------------------------------------------ limits of time


async def test_a_stream_outlives_every_timeout(
    server: Any, client: Any, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(run_module, "KEEP_ALIVE_SECONDS", 0.2)
    monkeypatch.setattr(run_module, "LAST_WORDS_SECONDS", 0.2)
    client.script = tell(*["word "] * 5, pause=0.3)
    running = await server()
    async with httpx.AsyncClient(base_url=running.url) as http:
        streamed, whole = await asyncio.gather(http.post(CHAT, json=STREAM), http.post(CHAT, json=ASK))
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert whole.json()["choices"][0]["message"]["content"] == "word " * 5


def test_no_setting_of_quart_or_hypercorn_limits_a_responses_time(config: Any, service: Any) -> None:
    app = create_app(config, service)
    assert app.config["RESPONSE_TIMEOUT"] is None
    assert app.config["MAX_CONTENT_LENGTH"] == config.server.max_body_bytes
    with listen("127.0.0.1", 0) as listening:
        settings = hypercorn_settings(listening)
        assert settings.create_sockets().insecure_sockets == [listening]
    assert settings.read_timeout is None
    assert settings.max_requests is None


# -------------------------------------------------------------------------------------------------------- shutting down


async def test_on_a_signal_running_streams_end_in_peace_and_new_requests_are_refused(
    server: Any, client: Any, tell: Any, service: Any
) -> None:
    client.script = tell(*["word "] * 10, pause=0.1)
    running = await server(drain_timeout=10.0)
    async with httpx.AsyncClient(base_url=running.url) as http, http.stream("POST", CHAT, json=STREAM) as response:
        lines = response.aiter_lines()
        await until_first_word(lines)
        whole = asyncio.create_task(http.post(CHAT, json=ASK))
        assert await eventually(lambda: len(client.answers) == 2)
        running.stop.set()
        assert await eventually(lambda: service.in_flight.stopping)
        refused = await http.post(CHAT, json=ASK)
        assert (refused.status_code, refused.headers["Connection"]) == (503, "close")
        assert refused.headers["Retry-After"] == "5"
        health = await http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "stopping")
        rest = [line async for line in lines]
        assert rest[-2:] == ["data: [DONE]", ""]
        assert (await whole).status_code == 200
    await asyncio.wait_for(asyncio.shield(running.task), 5)
    async with httpx.AsyncClient(base_url=running.url) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("/health")


async def test_answers_that_outlast_the_drain_end_with_an_error(server: Any, client: Any) -> None:
    client.script = endless
    running = await server(drain_timeout=0.3)
    async with httpx.AsyncClient(base_url=running.url) as http, http.stream("POST", CHAT, json=STREAM) as response:
        lines = response.aiter_lines()
        await until_first_word(lines)
        whole = asyncio.create_task(http.post(CHAT, json=ASK))
        assert await eventually(lambda: len(client.answers) == 2)
        running.stop.set()
        rest = [line async for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        refused = await whole
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
    assert all(answer.aborted.is_set() for answer in client.answers)
    await asyncio.wait_for(asyncio.shield(running.task), 5)


async def test_a_client_that_doesnt_read_cant_keep_the_server_from_ending(
    server: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "LAST_WORDS_SECONDS", 0.3)
    client.script = big("x" * 10_000)
    running = await server(drain_timeout=0.3)
    host, port = running.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = json.dumps(STREAM).encode()
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    assert await eventually(lambda: len(client.answers) == 1 and client.answers[0].taken > 10)
    running.stop.set()
    await asyncio.wait_for(asyncio.shield(running.task), 5)
    writer.transport.abort()
