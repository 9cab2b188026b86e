"""Responses: OpenAI's shapes, whole and streamed, checked with the OpenAI client's own types."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from typing import Any

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from forge.engine.request import Delta, ErrorInfo, Usage
from forge.errors import EngineUnavailable
from forge.interfaces.sampler import TokenLogprobs
from forge.server import stream
from forge.server.logprobs import LegacyLogprobs, chat_logprobs, token_name

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK = {"messages": [{"role": "user", "content": "hi"}]}


def events(raw: bytes) -> list[Any]:
    """The data of each event, parsed; comments left out. Fails on anything that isn't a well-formed stream."""
    assert raw.endswith(b"\n\n")
    found: list[Any] = []
    for block in raw.removesuffix(b"\n\n").split(b"\n\n"):
        if block.startswith(b":"):
            continue
        [line] = block.split(b"\n")
        data = line.removeprefix(b"data: ")
        assert data != line
        found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return found


async def post(http: Any, path: str, body: Any) -> bytes:
    response = await http.post(path, json=body)
    raw: bytes = await response.get_data(as_text=False)
    assert response.status_code == 200, raw
    return raw


async def test_a_chat_answer_has_openais_shape(http: Any) -> None:
    answer = ChatCompletion.model_validate_json(await post(http, CHAT, ASK), strict=True)
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    assert answer.id.startswith("chatcmpl-")
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello wörld")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("[user]hi[assistant]")
    assert answer.usage.completion_tokens == len("Hello wörld".encode())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_of_several_choices_the_prompt_is_counted_once(http: Any) -> None:
    answer = ChatCompletion.model_validate_json(await post(http, CHAT, ASK | {"n": 3}), strict=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"Hello wörld"}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("[user]hi[assistant]")
    assert answer.usage.completion_tokens == 3 * len("Hello wörld".encode())
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_log_probabilities_name_tokens_bytes_and_alternatives(http: Any, client: Any, tell: Any) -> None:
    client.script = tell("é", finish="length")
    body = await post(http, CHAT, ASK | {"logprobs": True, "top_logprobs": 2})
    [choice] = ChatCompletion.model_validate_json(body, strict=True).choices
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [(found.token, found.bytes, found.logprob) for found in choice.logprobs.content] == [
        ("bytes:\\xc3", [0xC3], -0.5), ("bytes:\\xa9", [0xA9], -0.5),
    ]  # fmt: skip
    assert [(top.token, top.bytes, top.logprob) for top in choice.logprobs.content[0].top_logprobs] == [
        ("a", [97], -1.0), ("b", [98], -9999.0),
    ]  # fmt: skip


async def test_without_alternatives_only_the_tokens_own_probability_is_reported(http: Any) -> None:
    [choice] = ChatCompletion.model_validate_json(await post(http, CHAT, ASK | {"logprobs": True}), strict=True).choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(chr(found.bytes[0]) for found in choice.logprobs.content[:5] if found.bytes) == "Hello"
    assert all(found.top_logprobs == [] for found in choice.logprobs.content)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("logprobs", [False, True])
async def test_a_streamed_chat_answer_has_openais_shape(n: int, usage: bool, logprobs: bool, http: Any) -> None:
    body = ASK | {"stream": True, "n": n, "stream_options": {"include_usage": usage}, "logprobs": logprobs}
    *chunks, done = events(await post(http, CHAT, body))
    assert done == "[DONE]"
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in parsed}) == 1
    if usage:
        last = parsed.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens == n * len("Hello wörld".encode())
        assert last.usage.prompt_tokens == len("[user]hi[assistant]")
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert not any("usage" in chunk for chunk in chunks)
    by_choice = defaultdict(list)
    for chunk in parsed:
        [choice] = chunk.choices
        by_choice[choice.index].append(choice)
    assert sorted(by_choice) == list(range(n))
    for choices in by_choice.values():
        assert [choice.delta.role for choice in choices] == ["assistant", *[None] * (len(choices) - 1)]
        assert "".join(choice.delta.content or "" for choice in choices) == "Hello wörld"
        assert [choice.finish_reason for choice in choices] == [*[None] * (len(choices) - 1), "stop"]
        scored = [found for choice in choices if choice.logprobs for found in choice.logprobs.content or ()]
        assert bytes(itertools.chain.from_iterable(found.bytes or () for found in scored)) == (
            "Hello wörld".encode() if logprobs else b""
        )


async def test_stream_headers_keep_proxies_from_holding_events_back(http: Any) -> None:
    response = await http.post(CHAT, json=ASK | {"stream": True})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-cache", "no")


async def test_completions_of_several_prompts_and_choices_are_in_order(http: Any, client: Any) -> None:
    async def script(request: Any) -> Any:
        for choice in reversed(range(request.n)):
            text = f"{bytes(request.prompt[1:]).decode()}{choice}"
            yield Delta(request.id, choice, text, [1], finish_reason="length", usage=Usage(2, 1, choice))

    client.script = script
    raw = await post(http, TEXT, {"prompt": ["a", "b"], "n": 2})
    answer = Completion.model_validate_json(raw, strict=True)
    assert answer.id.startswith("cmpl-")
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 4)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("echo", [False, True])
async def test_a_completion_is_the_same_streamed_and_not(streamed: bool, logprobs: Any, echo: bool, http: Any) -> None:
    body = {"prompt": ["é", "x"], "n": 2, "echo": echo, "logprobs": logprobs, "stream": streamed}
    raw = await post(http, TEXT, body)
    texts: dict[int, str] = defaultdict(str)
    finishes: dict[int, list[Any]] = defaultdict(list)
    scored: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for part in events(raw)[:-1] if streamed else [json.loads(raw)]:
        assert (part["object"], part["id"][:5]) == ("text_completion", "cmpl-")
        for choice in part["choices"]:
            index = choice["index"]
            texts[index] += choice["text"]
            finishes[index] += [choice["finish_reason"]] if choice["finish_reason"] else []
            for name, values in (choice["logprobs"] or {}).items():
                scored[index][name] += values
    for index in range(4):
        prompt = "éx"[index // 2]
        assert texts[index] == (prompt if echo else "") + "Hello wörld"
        assert finishes[index] == ["stop"]
        if logprobs is None:
            assert index not in scored
            continue
        found = scored[index]
        echoed = ["<s>", *(["bytes:\\xc3", "bytes:\\xa9"] if prompt == "é" else ["x"])] if echo else []
        said = [*"Hello w", "bytes:\\xc3", "bytes:\\xb6", *"rld"]
        assert found["tokens"] == echoed + said
        assert found["token_logprobs"] == [*([None] if echo else []), *[-0.5] * (len(echoed + said) - echo)]
        assert [at for at, top in enumerate(found["top_logprobs"]) if top is None] == ([0] if echo else [])
        assert found["top_logprobs"][-1] == {"a": -1.0, "b": -9999.0, "d": -0.5}
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            if not token.startswith(("bytes:", "<s>")):
                assert texts[index][offset] == token


async def test_scoring_a_prompt_needs_no_generated_token(http: Any, client: Any, tell: Any) -> None:
    async def script(request: Any) -> Any:
        scores = [TokenLogprobs(-float(i), ((token, -float(i)),)) for i, token in enumerate(request.prompt[1:], 1)]
        yield Delta(request.id, 0, "", [], [], scores, "length", Usage(len(request.prompt), 0, 0))

    client.script = script
    raw = await post(http, TEXT, {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 1})
    [choice] = json.loads(raw)["choices"]
    assert (client.requests[0].max_tokens, client.requests[0].prompt_logprobs) == (0, True)
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"] == {
        "tokens": ["<s>", "a", "b"],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": [None, {"a": -1.0}, {"b": -2.0}],
        "text_offset": [0, 0, 1],
    }


async def test_echoed_token_ids_are_shown_with_their_special_tokens(http: Any) -> None:
    raw = await post(http, TEXT, {"prompt": [256, 97], "echo": True})
    assert json.loads(raw)["choices"][0]["text"] == "<s>aHello wörld"


def test_a_space_that_the_tokenizer_puts_first_takes_no_characters(service: Any) -> None:
    legacy = LegacyLogprobs(service.text.tokenizer, 0)
    ids = [256, *b" ab"]
    found = legacy.prompt(ids, [TokenLogprobs(-1.0)] * 3, "ab")
    assert found["tokens"] == ["<s>", " ", "a", "b"]
    assert found["text_offset"] == [0, 0, 0, 1]
    assert legacy.answer([99], [TokenLogprobs(-1.0)])["text_offset"] == [2]


def test_a_token_that_isnt_whole_characters_is_named_by_its_bytes() -> None:
    assert token_name(b"abc") == "abc"
    assert token_name("é".encode()[:1]) == "bytes:\\xc3"


def test_no_alternatives_beyond_those_asked_for_are_reported(service: Any) -> None:
    found = TokenLogprobs(-0.1, ((97, -0.1), (98, -2.0), (99, -3.0)))
    content = chat_logprobs(service.text.tokenizer, [97], [found], 2)["content"]
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["a", "b"]


# ------------------------------------------------------------------------------------------------- errors on the way


def failing(code: str, message: str) -> Any:
    async def script(request: Any) -> Any:
        yield Delta(request.id, 0, "Hel", [1])
        yield Delta(request.id, 0, finish_reason="error", usage=Usage(1, 1, 0), error=ErrorInfo(message, code))

    return script


async def test_an_error_in_a_stream_is_its_last_event(http: Any, client: Any) -> None:
    client.script = failing("engine_fault", "the sampler failed")
    *chunks, last = events(await post(http, CHAT, ASK | {"stream": True}))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "Hel"]
    expected = {"message": "the sampler failed", "type": "server_error", "param": None, "code": "engine_fault"}
    assert last == {"error": expected}


async def test_an_error_before_the_end_of_a_whole_answer_is_the_status(http: Any, client: Any) -> None:
    client.script = failing("engine_fault", "the sampler failed")
    response = await http.post(CHAT, json=ASK)
    assert response.status_code == 500
    assert (await response.get_json())["error"]["code"] == "engine_fault"


async def test_the_engines_death_ends_streams_with_an_error(http: Any, client: Any) -> None:
    async def script(request: Any) -> Any:
        yield Delta(request.id, 0, "Hel", [1])
        raise EngineUnavailable("the engine died", retry_after=1)

    client.script = script
    assert events(await post(http, CHAT, ASK | {"stream": True}))[-1]["error"]["code"] == "engine_unavailable"
    response = await http.post(CHAT, json=ASK)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_unexpected_exception_tells_the_client_only_where_to_look(
    streamed: bool, http: Any, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(request: Any) -> Any:
        yield Delta(request.id, 0, "Hel", [1])
        raise ZeroDivisionError("a secret of the server")

    client.script = script
    response = await http.post(CHAT, json=ASK | {"stream": streamed}, headers={"X-Request-Id": "req-7"})
    raw = await response.get_data(as_text=False)
    error = (events(raw)[-1] if streamed else json.loads(raw))["error"]
    assert response.status_code == (200 if streamed else 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "req-7" in error["message"]
    assert b"secret" not in raw
    [record] = [record for record in caplog.records if record.exc_info]
    assert "req-7" in record.getMessage()
    assert "a secret of the server" in str(record.exc_info)


async def test_every_answer_is_aborted_when_its_request_is_over(http: Any, client: Any) -> None:
    await post(http, TEXT, {"prompt": ["a", "b"]})
    await post(http, CHAT, ASK | {"stream": True})
    client.script = failing("engine_fault", "x")
    await http.post(CHAT, json=ASK)
    assert len(client.answers) == 4
    assert all(answer.aborted.is_set() for answer in client.answers)


async def test_one_refused_prompt_refuses_the_request_and_drops_the_others(http: Any, client: Any) -> None:
    client.refusal = lambda request: EngineUnavailable("no") if request.prompt[-1] == ord("b") else None
    response = await http.post(TEXT, json={"prompt": ["a", "b", "c"], "stream": True})
    assert response.status_code == 503
    assert len(client.answers) == 2
    assert all(answer.aborted.is_set() and answer.taken == 0 for answer in client.answers)


async def test_a_comment_keeps_a_silent_stream_alive(
    http: Any, client: Any, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.02)
    client.script = tell("late", pause=0.15)
    raw = await post(http, CHAT, ASK | {"stream": True})
    assert raw.count(b": keep-alive\n\n") >= 3
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(raw)[:-1]) == "late"


# ------------------------------------------------------------------------------------------------------ other routes


async def test_models_are_listed_and_found(http: Any) -> None:
    listed = await (await http.get("/v1/models")).get_json()
    assert listed["object"] == "list"
    [model] = [Model.model_validate(model, strict=True) for model in listed["data"]]
    assert model.id == "tiny"
    assert (await (await http.get("/v1/models/tiny")).get_json()) == listed["data"][0]
    response = await http.get("/v1/models/other/model")
    assert (response.status_code, (await response.get_json())["error"]["code"]) == (404, "model_not_found")


async def test_tokenize_and_detokenize_undo_each_other(http: Any) -> None:
    async def ask(path: str, **body: Any) -> Any:
        response = await http.post(path, json=body)
        assert response.status_code == 200
        return await response.get_json()

    assert await ask("/tokenize", content="hé</s>") == {"tokens": [104, 0xC3, 0xA9, 257]}
    assert await ask("/tokenize", content="h", add_special=True) == {"tokens": [256, 104]}
    assert await ask("/tokenize", content="</s>", parse_special=False) == {"tokens": list(b"</s>")}
    assert await ask("/tokenize", content="h", with_pieces=True) == {"tokens": [{"id": 104, "piece": "h"}]}
    assert await ask("/tokenize", content="") == {"tokens": []}
    assert await ask("/detokenize", tokens=[104, 0xC3, 0xA9, 257]) == {"content": "hé</s>"}
    assert await ask("/detokenize", tokens=[]) == {"content": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 1}, "content"),
        ("/tokenize", {"content": "a", "add_special": 1}, "add_special"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [1, "2"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [1, 258]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ],
)
async def test_wrong_tokenizer_requests_are_refused_by_name(path: str, body: Any, param: str, http: Any) -> None:
    response = await http.post(path, json=body)
    assert (response.status_code, (await response.get_json())["error"]["param"]) == (400, param)
