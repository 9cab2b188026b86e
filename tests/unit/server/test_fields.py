"""Request fields: every wrong type and range is refused with its place; right ones reach the engine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.errors import BY_CODE, InvalidRequest
from forge.interfaces.loader import GenerationDefaults
from forge.server import openai
from forge.server.service import TextParts

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MINIMAL: dict[str, dict[str, Any]] = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, TEXT: {"prompt": "hi"}}

NOT_NUMBERS: tuple[Any, ...] = ("1", True, [], {})
NOT_INTEGERS: tuple[Any, ...] = (*NOT_NUMBERS, 1.5)
NOT_TEXTS: tuple[Any, ...] = (1, True, [], {})
NOT_BOOLEANS: tuple[Any, ...] = (1, 0, "true", [])

BOTH_WRONG: dict[str, tuple[Any, ...]] = {
    "model": NOT_TEXTS,
    "temperature": (*NOT_NUMBERS, -0.1, 2.1),
    "top_p": (*NOT_NUMBERS, 0, -1, 1.01),
    "top_k": (*NOT_INTEGERS, -2, 2**31),
    "min_p": (*NOT_NUMBERS, -0.1, 1.1),
    "repetition_penalty": (*NOT_NUMBERS, 0, -1, 1e300, 1e-300),
    "presence_penalty": (*NOT_NUMBERS, -2.1, 2.1),
    "frequency_penalty": (*NOT_NUMBERS, -2.1, 2.1),
    "seed": (*NOT_INTEGERS, -(2**63) - 1, 2**64),
    "n": (*NOT_INTEGERS, 0, -1, 129),
    "stop": (1, True, {}, "", ["a", ""], ["a"] * 17),
    "stop_token_ids": (1, "1", {}),
    "ignore_eos": NOT_BOOLEANS,
    "priority": (*NOT_INTEGERS, 2**40),
    "stream": NOT_BOOLEANS,
    "stream_options": (1, True, [], {"include_usage": True}),
    "logit_bias": (1, True, [], "x"),
    "tools": ([{"type": "function"}], {}, 1),
    "tool_choice": ("required", {"type": "function"}),
    "functions": ([{}],),
    "response_format": ({"type": "json_object"}, "text", 1),
    "json_schema": ({}, "x"),
    "regex": ("a", 1, True, []),
    "choice": (["a"], "a", 1),
    "structured_outputs": ({},),
    "guided_json": ({},),
    "guided_regex": ("a",),
    "guided_choice": (["a"],),
    "guided_grammar": ("a",),
    "audio": ({},),
    "modalities": (["audio"], ["text", "audio"], "text"),
    "best_of": (2,),
    "suffix": ("end",),
    "min_tokens": (1,),
    "repeat_penalty": (1.1,),
    "n_predict": (1,),
    "use_beam_search": (True,),
    "chat_template": ("x",),
}
CHAT_WRONG: dict[str, tuple[Any, ...]] = {
    "messages": (1, "x", {}, [], None),
    "max_tokens": (*NOT_INTEGERS, 0, -1, 2**31),
    "max_completion_tokens": (*NOT_INTEGERS, 0, -1, 2**31),
    "logprobs": NOT_BOOLEANS,
    "top_logprobs": (*NOT_INTEGERS, -1, 21, 3),
}
TEXT_WRONG: dict[str, tuple[Any, ...]] = {
    "prompt": (1, True, {}, [], [1, "x"], [1.5], [[1], "x"], [True], None, ["x"] * 257),
    "max_tokens": (*NOT_INTEGERS, -1, 2**31),
    "logprobs": (*NOT_INTEGERS, -1, 21),
    "echo": NOT_BOOLEANS,
}
CASES = [
    (path, name, value)
    for path, table in ((CHAT, BOTH_WRONG | CHAT_WRONG), (TEXT, BOTH_WRONG | TEXT_WRONG))
    for name, values in table.items()
    for value in values
]


@pytest.mark.parametrize(("path", "name", "value"), CASES, ids=lambda value: str(value)[:30])
async def test_a_wrong_field_is_refused_by_name(path: str, name: str, value: Any, http: Any, client: Any) -> None:
    response = await http.post(path, json=MINIMAL[path] | {name: value})
    body = await response.get_json()
    assert response.status_code == 400, body
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] in BY_CODE
    assert error["param"] == name
    assert name in error["message"]
    assert client.requests == []


NESTED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "image_url"}]}]},
     "messages[1].content[0].type"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}]},
     "messages[0].content[1].text"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
    (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"content": "a"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "tool", "content": None}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (CHAT, {"messages": ["hi"]}, "messages[0]"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
     "messages[0].tool_calls[0].function.arguments"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "f"}}]}]},
     "messages[0].tool_calls[0].id"),
    (CHAT, {"logit_bias": {"5": 101}}, "logit_bias.5"),
    (CHAT, {"logit_bias": {"5": "1"}}, "logit_bias.5"),
    (CHAT, {"logit_bias": {"5": None}}, "logit_bias.5"),
    (CHAT, {"logit_bias": {"258": 1}}, "logit_bias.258"),
    (CHAT, {"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    (CHAT, {"logit_bias": {"05": 1}}, "logit_bias.05"),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias.x"),
    (CHAT, {"stop_token_ids": [1, 258]}, "stop_token_ids[1]"),
    (CHAT, {"stop_token_ids": [1, "2"]}, "stop_token_ids[1]"),
    (CHAT, {"stop": ["a", 1]}, "stop[1]"),
    (CHAT, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    (TEXT, {"prompt": [1, 258]}, "prompt[1]"),
    (TEXT, {"prompt": [[1], [2, -1]]}, "prompt[1][1]"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "param"), NESTED, ids=[case[2] for case in NESTED])
async def test_a_wrong_value_inside_a_field_is_named_by_its_place(
    path: str, fields: dict[str, Any], param: str, http: Any, client: Any
) -> None:
    response = await http.post(path, json=MINIMAL[path] | fields)
    error = (await response.get_json())["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert client.requests == []


SMALL = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.sampled_from(["", "a", "text", "user"])
VALUES = st.recursive(
    SMALL,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "5", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = sorted({*BOTH_WRONG, *CHAT_WRONG, *TEXT_WRONG, "zzz", "user"})


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), st.sampled_from([CHAT, TEXT]))
@settings(max_examples=300, deadline=None)
def test_any_body_gives_a_request_or_a_clear_refusal(fields: dict[str, Any], path: str) -> None:
    read = openai.chat_completion if path == CHAT else openai.completion
    refusal = None
    try:
        wire, _ = read(MINIMAL[path] | fields)
        made = openai.engine_request(wire, "id", [1, 2], GenerationDefaults(), 258)
    except InvalidRequest as error:
        refusal = error
    if refusal is not None:
        assert refusal.param
        return
    assert made.n >= 1
    assert 0 <= made.sampling.temperature <= 2
    assert 0 <= made.sampling.seed < 2**64


async def test_fields_reach_the_engine(http: Any, client: Any) -> None:
    fields = {
        "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": -2,
        "frequency_penalty": 2, "logit_bias": {"65": -100, "0": 1.5}, "seed": -1, "n": 3, "stop": "END",
        "stop_token_ids": [257], "ignore_eos": True, "priority": -5, "max_completion_tokens": 7, "logprobs": True,
        "top_logprobs": 4,
    }  # fmt: skip
    response = await http.post(CHAT, json=MINIMAL[CHAT] | fields)
    assert response.status_code == 200
    assert "X-Forge-Ignored-Fields" not in response.headers
    [request] = client.requests
    assert bytes(request.prompt) == b"[user]hi[assistant]"
    assert (request.n, request.max_tokens, request.stop, request.stop_token_ids) == (3, 7, ["END"], [257])
    assert (request.ignore_eos, request.priority, request.prompt_logprobs) == (True, -5, False)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.5, 0, 0.25)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.5, -2.0, 2.0)
    assert sampling.logit_bias == {65: -100.0, 0: 1.5}
    assert (sampling.seed, sampling.logprobs) == (2**64 - 1, 4)


async def test_without_fields_neutral_values_and_a_random_seed_hold(http: Any, client: Any) -> None:
    for _ in range(2):
        await http.post(CHAT, json=MINIMAL[CHAT])
    first, second = client.requests
    assert (first.n, first.max_tokens, first.stop, first.sampling.logprobs) == (1, None, [], None)
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.top_k) == (1.0, 1.0, 0)
    assert first.sampling.seed != second.sampling.seed
    assert first.id != second.id


async def test_null_is_as_good_as_absent_everywhere(http: Any, client: Any) -> None:
    message = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "function_call": None}
    names = [*BOTH_WRONG, *CHAT_WRONG]
    body = dict.fromkeys(names) | {"messages": [*MINIMAL[CHAT]["messages"], message]}
    response = await http.post(CHAT, json=body)
    assert response.status_code == 200, await response.get_data(as_text=True)
    assert "X-Forge-Ignored-Fields" not in response.headers
    assert client.requests[0].sampling.temperature == 1.0


async def test_the_models_own_defaults_hold_where_a_request_says_nothing(http: Any, client: Any, service: Any) -> None:
    old: TextParts = service.text
    defaults = GenerationDefaults(temperature=0.25, top_k=7, top_p=0.75, min_p=0.125, repetition_penalty=1.25)
    service.text = TextParts(old.tokenizer, old.template, defaults, old.longest_token)
    await http.post(CHAT, json=MINIMAL[CHAT])
    await http.post(CHAT, json=MINIMAL[CHAT] | {"temperature": 0, "top_k": 0, "repetition_penalty": 1})
    advised, asked = (request.sampling for request in client.requests)
    assert (advised.temperature, advised.top_k, advised.top_p, advised.min_p) == (0.25, 7, 0.75, 0.125)
    assert advised.repetition_penalty == 1.25
    assert (asked.temperature, asked.top_k, asked.top_p, asked.repetition_penalty) == (0.0, 0, 0.75, 1.0)


async def test_harmless_and_unknown_fields_are_served_reported_and_logged_once(
    http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"user": "u", "store": True, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}}
    messages = [{"role": "user", "content": "hi", "zap": 1}, {"role": "user", "content": "hi", "zap": 2}]
    for _ in range(2):
        response = await http.post(CHAT, json=fields | {"messages": messages, "zip\r\nX-Evil: ☃": 1})
        assert response.status_code == 200
        reported = response.headers["X-Forge-Ignored-Fields"].split(", ")
        assert len(reported) == 4
        assert {"user", "store", "messages[].zap"} < set(reported)
        assert "X-Evil" not in response.headers
    logged = [record.getMessage() for record in caplog.records if "messages[].zap" in record.getMessage()]
    assert len(logged) == 1


async def test_very_many_unknown_fields_make_a_short_header(http: Any) -> None:
    response = await http.post(CHAT, json=MINIMAL[CHAT] | {f"field{i}" * 20: i for i in range(200)})
    assert response.headers["X-Forge-Ignored-Fields"].endswith("and 180 more")
    assert len(response.headers["X-Forge-Ignored-Fields"]) < 2000


async def test_content_parts_and_the_developer_role_reach_the_template_as_texts(http: Any, client: Any) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
    ]
    assert (await http.post(CHAT, json={"messages": messages})).status_code == 200
    assert bytes(client.requests[0].prompt) == b"[system]be brief[user]a\nb[assistant][assistant]"


def test_a_tool_history_is_given_to_the_template_with_parsed_arguments() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "7"}]
    wire, ignored = openai.chat_completion({"messages": messages})
    assert ignored == []
    parsed = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, "é"]}}}
    assert [message.for_template() for message in wire.messages] == [
        {"role": "assistant", "content": "", "tool_calls": [parsed]},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    ]


async def test_only_the_served_models_names_are_accepted(http: Any) -> None:
    for name in ("tiny", "/models/tiny.gguf"):
        response = await http.post(CHAT, json=MINIMAL[CHAT] | {"model": name})
        assert (await response.get_json())["model"] == "tiny"
    response = await http.post(CHAT, json=MINIMAL[CHAT] | {"model": "gpt-4"})
    error = (await response.get_json())["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'tiny'" in error["message"]


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("hi", [[256, 104, 105]]),
        (["a", "b"], [[256, 97], [256, 98]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([[]], [[256]]),
        ("</s>", [[256, 257]]),
    ],
)
async def test_a_prompt_may_be_text_or_ids_one_or_many(
    prompt: Any, ids: list[list[int]], http: Any, client: Any
) -> None:
    response = await http.post(TEXT, json={"prompt": prompt})
    assert response.status_code == 200
    assert sorted(request.prompt for request in client.requests) == sorted(ids)
    assert {request.max_tokens for request in client.requests} == {16}
    seeds = [request.sampling.seed for request in client.requests]
    assert len(set(seeds)) == len(seeds)


async def test_prompts_of_one_request_with_a_seed_get_the_answers_they_would_get_alone(http: Any, client: Any) -> None:
    await http.post(TEXT, json={"prompt": ["a", "b"], "seed": 5})
    assert [request.sampling.seed for request in client.requests] == [5, 5]


async def test_an_empty_prompt_needs_a_start_token(http: Any, client: Any, service: Any) -> None:
    service.text.tokenizer.encode = lambda text, **_: []
    assert (await http.post(TEXT, json={"prompt": ""})).status_code == 200
    assert client.requests[0].prompt == [256]
    service.text.tokenizer.bos_token_id = None
    response = await http.post(TEXT, json={"prompt": ""})
    error = (await response.get_json())["error"]
    assert (response.status_code, error["param"]) == (400, "prompt")


async def test_a_prompt_that_cant_fit_is_refused_before_it_is_tokenised(http: Any, client: Any, service: Any) -> None:
    def never(*_: Any, **__: Any) -> list[int]:
        raise AssertionError("tokenised")

    service.text.tokenizer.encode = never
    longest = len("</s>")  # the longest entry of the vocabulary
    response = await http.post(TEXT, json={"prompt": "x" * (512 * longest + 1)})
    error = (await response.get_json())["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "513" in error["message"]
    assert "512" in error["message"]


def test_every_field_that_is_read_is_in_the_tables_above() -> None:
    """Whoever adds a field to a wire type has to say here which values are wrong."""
    for cls, path in ((openai.ChatCompletion, CHAT), (openai.Completion, TEXT)):
        fields = {attribute.name for attribute in cls.__attrs_attrs__}
        assert fields <= {name for at, name, _ in CASES if at == path}


@pytest.mark.parametrize(
    ("prompt", "prompts", "place"),
    [
        ("a", ["a"], "prompt"),
        (["a", "b"], ["a", "b"], "prompt[0]"),
        ([1, 2], [[1, 2]], "prompt"),
        ([[1], []], [[1], []], "prompt[0]"),
    ],
)
def test_prompts_read_back_as_they_were_given(prompt: Any, prompts: list[Any], place: str) -> None:
    wire, _ = openai.completion({"prompt": prompt})
    assert list(wire.prompts) == prompts
    assert wire.place(0) == place
