"""Unique items that are arrays or objects: every way on leads to an end, and every answer is valid."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest
from forge_grammar import machine as python
from forge_grammar.cardinality import count_values, uncertain
from forge_grammar.native import extension
from forge_grammar.options import GrammarOptions
from forge_grammar.program import flatten
from forge_grammar.regular.dfa import INFINITE
from forge_grammar.schema import lower
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from forge.errors import InvalidRequest

BYTES = [bytes([byte]) for byte in range(256)]
PIECES = [
    b'{"',
    b'":',
    b'","',
    b'"},{"',
    b"],[",
    b'{"a":',
    b'"a":1',
    b"}]",
    b"1,",
    b',"b":',
    b"null",
    b"true",
    b"[]",
    b"{}",
]
TOKENS = [*BYTES, *PIECES]
EOS = len(TOKENS)
WIDTH = EOS + 3


def machines(schema: Any, key_order: Any = "any") -> list[Any]:
    """A matcher of each machine that is there, over `TOKENS`."""
    program = lower(schema, GrammarOptions(key_order=key_order, whitespace=1))
    if uncertain(program) is not None:
        raise InvalidRequest("uncertain")
    flat = flatten(program)
    found = []
    for part in filter(None, (python, extension())):
        vocabulary = part.Vocabulary([*TOKENS, b""], [], [EOS], WIDTH, 1 << 20)
        found.append(part.Grammar(vocabulary, flat.languages, flat.texts, flat.words).matcher())
    return found


def allowed(matchers: list[Any]) -> list[int]:
    """The tokens that may follow, on which all machines agree."""
    rows = np.zeros((len(matchers), -(-WIDTH // 32)), np.int32)
    for matcher, row in zip(matchers, rows):
        matcher.fill(row)
    sets = [np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist() for row in rows]
    for other in sets[1:]:
        assert other == sets[0], [TOKENS[t] if t < EOS else t for t in set(other) ^ set(sets[0])]
    return list(sets[0])


ENDING = [TOKENS.index(piece) for piece in (b"]", b"}", b":", b"1", b"0", b",", b'"')]


def walk(matchers: list[Any], rng: random.Random, patience: int = 60) -> str | None:
    """A whole answer, of random tokens; after some time of such that end soon. None: of too many."""
    text = b""
    for turn in range(400):
        ways = allowed(matchers)
        assert ways, f"a dead end after {text!r}"
        if ways == [EOS] or (EOS in ways and rng.random() < 0.5):
            return text.decode()
        ways = [token for token in ways if token != EOS and not TOKENS[token].isspace()]
        inside = re.sub(rb"\\.", b"", text).count(b'"') % 2
        ending = [token for token in (ENDING[-1:] if inside else ENDING) if token in ways]
        plain = [token for token in ways if all(32 <= byte < 127 for byte in TOKENS[token])]
        token = ending[0] if ending and turn > patience else rng.choice(plain or ways)
        for matcher in matchers:
            assert matcher.accept(token), (text, TOKENS[token])
        text += TOKENS[token]
    return None


scalars = st.sampled_from([
    {"enum": ["a"]}, {"enum": ["a", "b"]}, {"enum": [1, 2]}, {"enum": [1, "a", None]}, {"type": "boolean"},
    {"const": 1}, {"type": "integer", "minimum": 0, "maximum": 2}, {"type": "null"}, {"type": "integer"},
    {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.5}, {"type": "string", "maxLength": 3},
    {"type": "string", "maxLength": 1, "pattern": "^[ab]*$"},
])  # fmt: skip
NAMES = ("a", "b", "c")


@st.composite
def objects(draw: Any, children: st.SearchStrategy[Any]) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    schema: dict[str, Any] = {"type": "object", "properties": {name: draw(children) for name in names}}
    schema["required"] = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    others = draw(st.sampled_from([False, False, {"type": "boolean"}, {"const": 1}]))
    schema["additionalProperties"] = others
    if draw(st.booleans()) and draw(st.booleans()):
        schema["maxProperties"] = len(schema["required"]) + draw(st.integers(0, 2))
    if draw(st.booleans()) and draw(st.booleans()) and (names or others is not False):
        schema["minProperties"] = draw(st.integers(0, max(len(names), 1)))
    if others is not False and draw(st.booleans()):
        schema["propertyNames"] = {"enum": ["a", "b", "x", "y"]}
    return schema


@st.composite
def arrays(draw: Any, children: st.SearchStrategy[Any], unique: bool | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": draw(children)}
    schema["uniqueItems"] = draw(st.booleans()) if unique is None else unique
    if draw(st.booleans()):
        schema["minItems"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema["maxItems"] = schema.get("minItems", 0) + draw(st.integers(0, 3))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        schema["prefixItems"] = draw(st.lists(children, min_size=1, max_size=2))
    if kind == 1:
        schema["contains"] = draw(scalars)
    return schema


nested = st.recursive(
    scalars,
    lambda children: st.one_of(
        objects(children),
        arrays(children),
        st.fixed_dictionaries({"anyOf": st.lists(children, min_size=2, max_size=2)}),
    ),
    max_leaves=5,
)
schemas = arrays(st.one_of(objects(nested), arrays(nested), nested), unique=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schemas, st.sampled_from(["any", "schema"]), st.integers(0, 1 << 30))
def test_no_walk_ends_before_its_end_and_every_answer_is_valid(schema: Any, key_order: str, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(3):
        try:
            matchers = machines(schema, key_order)
        except InvalidRequest:
            return
        text = walk(matchers, rng)
        if text is not None:
            assert Draft202012Validator(schema).is_valid(json.loads(text)), (schema, text)


def ways_on(schema: Any, text: str, key_order: Any = "any") -> str:
    """The bytes that may follow a text, in all machines; a dollar for the end."""
    matchers = machines(schema, key_order)
    for byte in text.encode():
        for matcher in matchers:
            assert matcher.accept(byte), (text, chr(byte))
    ways = [token for token in allowed(matchers) if token == EOS or (token < 256 and not TOKENS[token].isspace())]
    return "".join("$" if token == EOS else chr(token) for token in ways)


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False
    }  # fmt: skip


def unique(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "uniqueItems": True, **more}


BIT = {"enum": [0, 1]}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.mark.parametrize(
    ("schema", "text", "ways"),
    [
        (unique(closed(a=BIT)), '[{"a":0},{"a":', "1"),
        (unique(closed(a=BIT)), '[{"a":0},{"a":1}', "]"),
        (unique(closed(a=BIT, b=BIT)), '[{"a":0,"b":1},{"b":', "01"),
        (unique(closed(a=BIT, b=BIT)), '[{"a":0,"b":1},{"b":1,"a":', "1"),
        (unique(closed(a=BIT, b=BIT)), '[{"a":0,"b":1},{"b":1,"a":1},{"b":', "0"),
        (unique(closed(a=BIT, b=BIT)), '[{"a":0,"b":0},{"b":1,"a":1},{"b":1,"a":0},{"a":', "1"),
        (unique(closed(a=BIT, b=BIT)), '[{"a":0,"b":0},{"b":1,"a":1},{"b":1,"a":0},{"a":1,"b":0}', "]"),
        (unique({"type": "array", "items": BIT, "minItems": 1, "maxItems": 2}), "[[0],[0", ","),
        (unique({"type": "array", "items": BIT, "minItems": 2, "maxItems": 2}), "[[0,1],[0,0],[", "1"),
        (unique({"type": "array", "items": DIGIT, "maxItems": 1}), "[[],[", "0123456789"),
        (unique(unique(BIT, minItems=2)), "[[0,1],[", "1"),
        (unique(unique(BIT, minItems=2)), "[[0,1],[1,0]", "]"),
        (unique({"type": "object"}), '[{"a":1},{"a":1', ",.0123456789eE"),
        (unique({}), "[1,[1],[1", ",.0123456789eE"),
        (unique({"type": "number"}), "[1,1.0", "0123456789eE"),
    ],
)
def test_only_what_can_become_a_new_item_is_written(schema: Any, text: str, ways: str) -> None:
    assert set(ways_on(schema, text)) == set(ways)


def test_a_text_that_can_only_become_an_earlier_item_isnt_begun() -> None:
    schema = unique(closed(a={"type": "string", "maxLength": 1}))
    assert "x" not in ways_on(schema, '[{"a":""},{"a":"x"},{"a":"')
    assert '"' not in ways_on(schema, '[{"a":""},{"a":"x"},{"a":"')
    assert "y" in ways_on(schema, '[{"a":""},{"a":"x"},{"a":"')


def test_keys_that_would_leave_nothing_new_are_left_out() -> None:
    schema = unique({"type": "object", "additionalProperties": {"const": 1}, "maxProperties": 1})
    assert '"' not in ways_on(schema, '[{"a":1},{"a')
    assert '"' in ways_on(schema, '[{"a":1},{"ab')
    assert "}" not in ways_on(schema, "[{},{")


def test_counts_of_values_are_never_too_high() -> None:
    values = {
        '{"enum": [1, 2, 2.0, "a"]}': 3,
        '{"type": "boolean"}': 2,
        '{"type": "integer", "minimum": 0, "maximum": 11}': 12,
        '{"type": "string", "pattern": "^[ab]{0,2}$"}': 7,
        '{"type": "string", "minLength": 1, "maxLength": 1}': 0x110000 - 0x800,
        '{"type": "string"}': INFINITE,
        '{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}': 4,
        '{"type": "array", "items": {"enum": [1, 2]}}': INFINITE,
        '{"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": true}': 6,
        json.dumps(closed(a=BIT, b={"enum": [1, 2, 3]})): 6,
        '{"type": "object"}': INFINITE,
    }
    for schema, count in values.items():
        program = lower({"uniqueItems": True, "type": "array", "items": json.loads(schema)}, GrammarOptions())
        (shape,) = (program.arrays[at] for at in program.types[program.root].arrays)
        assert count_values(program)[shape.rest] == count, schema


def test_only_what_unique_items_are_made_of_is_counted() -> None:
    assert not any(count_values(lower({"items": {"enum": [1, 2]}}, GrammarOptions())))
