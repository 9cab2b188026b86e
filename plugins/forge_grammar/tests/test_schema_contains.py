"""Several `contains` of one array: what python-jsonschema finds valid is accepted, nothing else is; no dead ends."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from forge_grammar import _native
from forge_grammar.machine.machine import Configuration
from forge_grammar.options import GrammarOptions
from forge_grammar.program import flatten
from forge_grammar.schema import SchemaError, lower
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SOME = st.sampled_from(
    [
        {"type": "string"}, {"type": "integer"}, {"enum": ["a", 1]}, {"enum": [1, 2, None]}, {"const": "b"},
        {"not": {"type": "string"}}, {"type": ["string", "null"]}, {"minimum": 2}, True, {"maxLength": 1},
    ]
)  # fmt: skip
ITEMS = st.sampled_from(["a", "b", "ab", 1, 2, 3, None, True])
ARRAYS = st.lists(ITEMS, max_size=6)
QUIET = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    parts = [{"contains": each} for each in draw(st.lists(SOME, min_size=2, max_size=3))]
    schema: dict[str, Any] = {"type": "array", "allOf": parts}
    for keyword, value in (
        ("items", SOME),
        ("minItems", st.integers(0, 3)),
        ("prefixItems", st.lists(SOME, min_size=1)),
    ):
        if draw(st.booleans()) and draw(st.booleans()):
            schema[keyword] = draw(value)
    return schema


@QUIET
@given(schemas(), st.lists(ARRAYS, min_size=10, max_size=30))
def test_an_array_is_accepted_exactly_if_it_is_valid(oracle: Any, schema: Any, documents: list[Any]) -> None:
    try:
        oracle.check(schema, documents)
    except SchemaError as refusal:
        if "no value can satisfy" in refusal.reason:
            assert not any(map(oracle.judge(schema).is_valid, documents))


@QUIET
@given(schemas(), st.integers(0, 2**32))
def test_what_the_machine_begins_it_can_finish(oracle: Any, schema: Any, seed: int) -> None:
    try:
        at = Configuration.start(oracle.machine(schema, GrammarOptions(key_order="any", whitespace=0)))
    except SchemaError:
        return
    random = Random(seed)
    text = bytearray()
    while not (at.is_final and random.random() < 0.5):
        steps = {byte: after for byte in b'[],"ab12n3true' if (after := at.step(byte))}
        steps = steps or {byte: after for byte in range(256) if (after := at.step(byte))}
        if not steps:
            break
        ending = [byte for byte in steps if byte in b']"'] if len(text) > 40 else []
        text.append(random.choice(ending or list(steps)))
        at = steps[text[-1]]
        if len(text) > 300:
            return
    assert at.is_final, f"dead end after {bytes(text)!r}"
    assert oracle.judge(schema).is_valid(json.loads(text)), (schema, bytes(text))


@QUIET
@given(schemas(), st.lists(ARRAYS, min_size=5, max_size=10))
def test_the_compiled_machine_agrees(oracle: Any, schema: Any, documents: list[Any]) -> None:
    try:
        flat = flatten(lower(schema, GrammarOptions(key_order="any")))
    except SchemaError:
        return
    vocabulary = _native.Vocabulary([bytes([byte]) for byte in range(256)], [], [], 256, 1 << 20)
    grammar = _native.Grammar(vocabulary, flat.languages, flat.texts, flat.words)
    for document in documents:
        text = json.dumps(document).encode()
        matcher = grammar.matcher()
        accepted = matcher.validate(list(text)) == len(text) and all(map(matcher.accept, text)) and matcher.is_final
        assert accepted == oracle.judge(schema).is_valid(document), (schema, document)


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "array", "items": {"type": t}} for t in ("string", "number", "boolean")]},
        {"prefixItems": [True, {"type": "string"}], "contains": {}, "maxContains": 1, "type": "array"},
        {"type": "array", "items": {"type": "integer"}, "allOf": [{"contains": {"type": "number"}}, {"contains": {}}]},
        {
            "allOf": [{"contains": {"multipleOf": 2}}, {"contains": {"multipleOf": 3}}],
            "unevaluatedItems": {"minimum": 9},
        },
    ],
)
def test_what_counts_every_item_counts_the_length(oracle: Any, schema: Any) -> None:
    documents: list[Any] = [[], [1], ["a"], [True], [1, "a"], ["a", "b"], [6], [2, 3], [2, 10], [6, 7], [6, 9], "x"]
    valid, invalid = oracle.check(schema, documents)
    assert valid
    assert invalid


@pytest.mark.parametrize(
    "beside", [{"maxItems": 3}, {"uniqueItems": True}, {"minContains": 2, "contains": {"maxLength": 1}}]
)
def test_several_that_may_compete_for_items_are_refused(beside: dict[str, Any]) -> None:
    schema = {"allOf": [{"contains": {"type": "string"}}, {"contains": {"type": "null"}}, beside]}
    with pytest.raises(SchemaError, match="several of them in one array"):
        lower(schema, GrammarOptions())
