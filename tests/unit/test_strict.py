"""Strict structuring: what isn't exactly right is refused, with its place."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from attrs import field, frozen, make_class
from attrs.validators import ge, in_, instance_of, le, matches_re, max_len, min_len
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.errors import ConfigError, InvalidRequest
from forge.strict import Malformed, between, nearest, parse, place, structure, unknown_keys


@frozen
class Part:
    type: Literal["text"]
    text: str


@frozen
class Message:
    role: Literal["user", "system"]
    content: str | list[Part] | None = None


@frozen
class Chat:
    messages: list[Message] = field(validator=min_len(1))
    temperature: float = field(default=1.0, validator=between(0, 2))
    top_p: float = field(default=1.0, validator=[ge(0), le(1)])
    n: int | Literal["auto"] = "auto"
    stop: str | list[str] | None = None
    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    logit_bias: dict[str, float] = field(factory=dict)
    metadata: Mapping[str, Any] = field(factory=dict)
    tags: tuple[str, ...] = field(default=(), validator=max_len(3))
    stream: bool = False
    user: str | None = None
    seed: int | None = None


GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def refused(**changes: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        structure({**GOOD, **changes}, Chat, error=InvalidRequest)
    return caught.value


def test_a_right_request_becomes_exactly_its_values() -> None:
    data = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "system", "content": None}],
        "temperature": 1,
        "n": "auto",
        "stop": ["x"],
        "prompt": [[1, 2], []],
        "logit_bias": {"5": -100},
        "metadata": {"deep": [{"free": 1}]},
        "tags": ["a", "b"],
        "stream": True,
        "user": None,
    }
    assert structure(data, Chat, error=InvalidRequest) == Chat(
        messages=[Message("user", [Part("text", "a")]), Message("system")],
        temperature=1.0,
        stop=["x"],
        prompt=[[1, 2], []],
        logit_bias={"5": -100.0},
        metadata={"deep": [{"free": 1}]},
        tags=("a", "b"),
        stream=True,
    )
    assert type(structure({**GOOD, "temperature": 1}, Chat, error=InvalidRequest).temperature) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "80"}, '$.seed: expected an integer, got the text "80"'),
        ({"seed": True}, "$.seed: expected an integer, got true"),
        ({"seed": 1.0}, "$.seed: expected an integer, got 1.0"),
        ({"temperature": "1"}, '$.temperature: expected a number, got the text "1"'),
        ({"temperature": False}, "$.temperature: expected a number, got false"),
        ({"temperature": None}, "$.temperature: expected a number, got null"),
        ({"temperature": 10**400}, "$.temperature: expected a finite number"),
        ({"temperature": math.nan}, "$.temperature: expected a finite number"),
        ({"temperature": -math.inf}, "$.temperature: expected a finite number"),
        ({"seed": "x" * 99}, f'$.seed: expected an integer, got the text "{"x" * 40}…"'),
        ({"stream": 1}, "$.stream: expected true or false, got 1"),
        ({"user": ["a"]}, "$.user: expected a text, got a list"),
        ({"user": b"a"}, "$.user: expected a text, got a bytes"),
        ({"user": 10**5000}, "$.user: expected a text, got a huge integer"),
        ({"n": "automatic"}, '$.n: expected an integer or "auto", got the text "automatic"'),
        ({"n": True}, '$.n: expected an integer or "auto", got true'),
        ({"stop": 1}, "$.stop: expected a text or a list of texts, got 1"),
        ({"stop": ["a", 1]}, "$.stop[1]: expected a text, got 1"),
        ({"tags": "abc"}, '$.tags: expected a list of texts, got the text "abc"'),
        ({"tags": {"a": 1}}, "$.tags: expected a list of texts, got an object"),
        ({"metadata": [1]}, "$.metadata: expected an object, got a list"),
        ({"metadata": {1: 1}}, "$.metadata[1]: expected a text, got 1"),
        ({"logit_bias": {"a": "b"}}, '$.logit_bias.a: expected a number, got the text "b"'),
        ({"logit_bias": {"a b": None}}, '$.logit_bias["a b"]: expected a number, got null'),
        ({"messages": ["a"]}, '$.messages[0]: expected an object, got the text "a"'),
        ({"messages": [{}]}, "$.messages[0].role: is missing"),
        ({"messages": [{"role": "robot"}]}, '$.messages[0].role: expected "user" or "system", got the text "robot"'),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "text": ""}]}]},
            '$.messages[0].content[0].type: expected "text", got the text "image"',
        ),
        (
            {"prompt": [1, "a"]},
            "$.prompt: expected a text, a list of texts, a list of integers or a list of lists of integers, got a list",
        ),
        ({"temprature": 1}, '$.temprature: unknown key, did you mean "temperature"?'),
        ({"messages": [{"role": "user", "zzz": 1}]}, "$.messages[0].zzz: unknown key, known: content, role"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_place_and_reason(changes: dict[str, Any], message: str) -> None:
    assert refused(**changes).message == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 3}, "$.temperature: must be between 0 and 2, got 3.0"),
        ({"top_p": 1.5}, "$.top_p: must be at most 1, got 1.5"),
        ({"top_p": -1}, "$.top_p: must be at least 0, got -1.0"),
        ({"messages": []}, "$.messages: must have a length of at least 1, got 0"),
        ({"tags": ["a"] * 4}, "$.tags: must have a length of at most 3, got 4"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(changes: dict[str, Any], message: str) -> None:
    error = refused(**changes)
    assert error.message == message
    assert error.param == next(iter(changes))


def test_other_validators_keep_their_own_words_at_the_field_they_guard() -> None:
    def even(_: Any, attribute: Any, value: int) -> None:
        if value % 2:
            raise ValueError(f"'{attribute.name}' must be even")

    cls = make_class(
        "Guarded",
        {
            "a": field(type=int, default=0, validator=even),
            "b": field(type=str, default="x", validator=in_(("x", "y"))),
            "c": field(type=str, default="x", validator=matches_re("x+")),
            "d": field(type=Any, default=1, validator=instance_of(int)),
        },
    )
    for data, start in (
        ({"a": 1}, "a: must be even"),
        ({"b": "z"}, "b: must be in"),
        ({"c": "y"}, "c: must match regex"),
        ({"d": "y"}, "d: must be <class 'int'>"),
    ):
        with pytest.raises(ConfigError) as caught:
            structure(data, cls, error=ConfigError, root="")
        assert caught.value.message.startswith(start)


def test_a_rule_over_several_fields_is_reported_at_their_object() -> None:
    @frozen
    class Range:
        low: int
        high: int

        def __attrs_post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high")

    outer = make_class("Outer", {"range": field(type=Range)})
    with pytest.raises(ConfigError, match=r"^\$\.range: low is above high$"):
        structure({"range": {"low": 2, "high": 1}}, outer, error=ConfigError)


def test_several_problems_are_listed_and_param_names_the_first() -> None:
    error = refused(messages=[{"role": "user"}, {"role": 1}], seed="a", sed=1)
    assert error.message.split("; ") == [
        '$.messages[1].role: expected "user" or "system", got 1',
        '$.seed: expected an integer, got the text "a"',
        '$.sed: unknown key, did you mean "seed"?',
    ]
    assert error.param == "messages[1].role"


def test_a_body_of_wrong_items_costs_no_more_than_a_few() -> None:
    with pytest.raises(Malformed) as caught:
        parse({**GOOD, "stop": [1] * 1_000_000, "logit_bias": dict.fromkeys(map(str, range(100_000)))}, Chat)
    assert len(caught.value.problems) <= 12
    assert refused(stop=[1] * 1_000_000).message.endswith("; and more")


def test_a_hostile_key_is_cut_short_and_not_compared() -> None:
    assert len(refused(**{"temperature" * 100_000: 1}).message) < 400


@pytest.mark.parametrize("data", [None, 5, "x", [], True])
def test_something_else_than_an_object_is_refused(data: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^\$: expected an object, got ") as caught:
        structure(data, Chat, error=InvalidRequest)
    assert caught.value.param is None


def test_tolerated_unknown_keys_are_skipped_and_listed_wherever_they_are() -> None:
    data = {
        "messages": [{"role": "user", "name": "x", "content": [{"type": "text", "text": "t", "cache": 1}]}],
        "store": True,
        "metadata": {"free": {"to": "say"}},
    }
    chat = structure(data, Chat, error=InvalidRequest, ignore_unknown=True)
    assert chat.messages == [Message("user", [Part("text", "t")])]
    assert unknown_keys(data, Chat) == ["messages[0].name", "messages[0].content[0].cache", "store"]


def test_tolerance_of_unknown_keys_tolerates_nothing_else() -> None:
    with pytest.raises(InvalidRequest, match=r"\$\.seed: expected an integer"):
        structure({**GOOD, "store": 1, "seed": "1"}, Chat, error=InvalidRequest, ignore_unknown=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
chat_like = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("messages", "n", "stop", "prompt", "logit_bias", "tags", "seed", "x"), json_values)
)


def outcome(data: dict[str, Any]) -> Chat | InvalidRequest:
    try:
        return structure({**GOOD, **data}, Chat, error=InvalidRequest)
    except InvalidRequest as error:
        return error


@given(chat_like)
@settings(max_examples=150, deadline=None)
def test_whatever_a_client_sends_is_either_understood_or_a_400(data: dict[str, Any]) -> None:
    result = outcome(data)
    if isinstance(result, InvalidRequest):
        assert result.param
        assert result.message.startswith("$.")
    else:
        assert "x" not in data
        for name, value in data.items():  # accepted as it was, nothing converted
            assert name == "messages" or list_of(getattr(result, name)) == list_of(value)


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@given(
    st.lists(st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=3).map(lambda texts: texts or None)),
    st.floats(0, 2),
    st.integers(-(2**64), 2**64),
)
@settings(max_examples=50, deadline=None)
def test_right_requests_survive_json_unchanged(contents: list[Any], temperature: float, seed: int) -> None:
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": text} for text in content] if isinstance(content, list) else content,
        }
        for content in ["first", *contents]
    ]
    data = json.loads(json.dumps({"messages": messages, "temperature": temperature, "seed": seed}))
    chat = structure(data, Chat, error=InvalidRequest)
    assert (chat.temperature, chat.seed) == (temperature, seed)
    for message, sent in zip(chat.messages, messages, strict=True):
        parts = message.content
        assert sent["content"] == (
            [{"type": "text", "text": part.text} for part in parts] if isinstance(parts, list) else parts
        )


def test_threads_that_meet_a_new_class_at_once_all_get_it_right() -> None:
    cls = make_class(
        "Fresh", {f"field_{index}": field(type=int | Literal["auto"], default="auto") for index in range(40)}
    )
    results: list[Any] = []
    barrier = threading.Barrier(8)

    def work(value: int) -> None:
        barrier.wait()
        results.append((value, structure({"field_7": value}, cls, error=ConfigError).field_7))

    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [(value, value) for value in range(8)]


def test_a_bug_in_a_validator_is_not_blamed_on_the_data() -> None:
    def broken(*_: Any) -> None:
        raise AttributeError("a bug")

    cls = make_class("Buggy", {"a": field(type=int, validator=broken)})
    with pytest.raises(AttributeError, match="a bug"):
        structure({"a": 1}, cls, error=ConfigError)


def test_the_nearest_name_is_offered_only_if_it_is_near() -> None:
    assert nearest("prot", ["port", "host"]) == 'did you mean "port"?'
    assert nearest("zzz", ["port", "host"]) == "known: host, port"
    assert nearest("zzz", []) == "there are none"


def test_places_read_like_the_data() -> None:
    assert place(("a", 0, "b"), "$") == "$.a[0].b"
    assert place(("a", 0, "b c")) == 'a[0]["b c"]'
    assert place(()) == ""
