"""Structured output fields: each way to ask reaches the constraint, conflicts are refused, and lowering is shared."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from forge.errors import InvalidRequest
from forge.interfaces.constraint import Constraint, Grammar, Vocabulary
from forge.server.service import Service
from forge.server.structured import Lowering, Specification

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
ASKING: dict[str, dict[str, Any]] = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, TEXT: {"prompt": "hi"}}
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
TAG = {"structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}], "triggers": ["<a>"]}


class Recorder(Constraint):
    """Lowers to JSON; refuses what says so; remembers its calls, and waits for `go` in each."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, bool]] = []
        self.go = threading.Event()
        self.go.set()

    def lower(self, kind: str, spec: object, *, strict: bool = False) -> bytes:
        self.go.wait(10)
        self.calls.append((kind, spec, strict))
        if spec == {"not": {}}:
            raise InvalidRequest("no value can satisfy this schema", param="/not")
        return json.dumps([kind, spec]).encode()

    def compile(self, lowered: bytes, vocabulary: Vocabulary) -> Grammar:
        raise AssertionError("the server compiles nothing")


@pytest.fixture
def recorder(service: Service) -> Recorder:
    recorder = Recorder()
    service.lowering = Lowering(recorder)
    return recorder


WAYS: list[tuple[dict[str, Any], tuple[str, Any]]] = [
    ({"json_schema": SCHEMA}, ("json_schema", SCHEMA)),
    ({"json_schema": True}, ("json_schema", True)),
    ({"regex": "[a-z]+"}, ("regex", "[a-z]+")),
    ({"choice": ["yes", "no"]}, ("choice", ["yes", "no"])),
    ({"response_format": {"type": "json_object"}}, ("json_object", None)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
        ("json_schema", SCHEMA),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, ("json_schema", SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, ("json_schema", SCHEMA)),
    ({"structured_outputs": {"regex": "a|b"}}, ("regex", "a|b")),
    ({"structured_outputs": {"choice": ["a"]}}, ("choice", ["a"])),
    ({"structured_outputs": {"json_object": True}}, ("json_object", None)),
    ({"structured_outputs": {"structural_tag": TAG}}, ("structural_tag", TAG)),
    ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, ("structural_tag", TAG)),
    ({"response_format": {"type": "structural_tag"} | TAG}, ("structural_tag", TAG)),
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("fields", "wanted"), WAYS, ids=lambda value: str(value)[:40])
async def test_every_way_to_ask_reaches_the_engine(
    path: str, fields: dict[str, Any], wanted: tuple[str, Any], http: Any, client: Any, recorder: Recorder
) -> None:
    response = await http.post(path, json=ASKING[path] | fields)
    assert response.status_code == 200, await response.get_json()
    assert recorder.calls == [(*wanted, "strict" in str(fields))]
    [request] = client.requests
    assert request.constraint == json.dumps(list(wanted)).encode()
    assert (
        list(json.loads(request.constraint)[1] or {}) == list(wanted[1] or {}) if isinstance(wanted[1], dict) else True
    )


@pytest.mark.parametrize("strict", [None, False, True])
async def test_strict_is_what_the_request_says(strict: bool | None, http: Any, client: Any, recorder: Recorder) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": strict, "schema": SCHEMA}}
    response = await http.post(CHAT, json=ASKING[CHAT] | {"response_format": form})
    assert response.status_code == 200
    assert recorder.calls == [("json_schema", SCHEMA, strict is True)]


async def test_a_request_without_a_constraint_has_none(http: Any, client: Any, recorder: Recorder) -> None:
    response = await http.post(CHAT, json=ASKING[CHAT] | {"response_format": {"type": "text"}})
    assert response.status_code == 200
    assert client.requests[0].constraint is None
    assert recorder.calls == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": {}, "regex": "a"}, "regex"),
    ({"choice": ["a"], "response_format": {"type": "json_object"}}, "choice"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
    ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ({"response_format": {"type": "structural_tag", "triggers": ["<a>"]}}, "response_format.structures"),
    ({"response_format": {"type": "json_object"} | TAG}, "response_format.structures"),
    ({"structured_outputs": {"structural_tag": "{"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"structural_tag": TAG, "regex": "a"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"structural_tag": "{}"}, "ignore_eos": True}, "ignore_eos"),
    ({"choice": "yes"}, "choice"),
    ({"regex": 5}, "regex"),
    ({"json_schema": {"not": {}}}, "json_schema.not"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        "response_format.json_schema.schema.not",
    ),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:40])
async def test_what_cant_be_is_refused_with_its_place(
    fields: dict[str, Any], param: str, http: Any, client: Any, recorder: Recorder
) -> None:
    response = await http.post(CHAT, json=ASKING[CHAT] | fields)
    body = await response.get_json()
    assert response.status_code == 400, body
    assert body["error"]["param"] == param
    assert client.requests == []


async def test_the_same_schema_is_lowered_once_however_many_ask(recorder: Recorder) -> None:
    lowering, spec = Lowering(recorder), Specification("json_schema", SCHEMA, "json_schema")
    recorder.go.clear()
    asking = [asyncio.create_task(lowering.lower(spec)) for _ in range(8)]
    await asyncio.sleep(0.05)
    asking[0].cancel()  # one client leaves; the others still get theirs
    recorder.go.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert len({result for result in results[1:] if isinstance(result, bytes)}) == 1
    assert len(recorder.calls) == 1
    assert lowering.lower_now(spec) == results[1]
    assert len(recorder.calls) == 1


async def test_schemas_that_differ_in_order_alone_are_different(recorder: Recorder) -> None:
    lowering = Lowering(recorder)
    turned = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    first, second = [
        await lowering.lower(Specification("json_schema", schema, "json_schema")) for schema in (SCHEMA, turned)
    ]
    assert first != second


async def test_a_strict_request_has_a_result_of_its_own(recorder: Recorder) -> None:
    lowering = Lowering(recorder)
    for strict in (False, True, False, True):
        await lowering.lower(Specification("json_schema", SCHEMA, "json_schema", strict))
    assert [strict for *_, strict in recorder.calls] == [False, True]


async def test_a_refusal_is_not_remembered(recorder: Recorder) -> None:
    lowering, spec = Lowering(recorder), Specification("json_schema", {"not": {}}, "json_schema")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="json_schema: no value can satisfy"):
            await lowering.lower(spec)
    assert len(recorder.calls) == 2
