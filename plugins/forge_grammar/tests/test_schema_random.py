"""Random schemas and documents: the machine accepts what python-jsonschema finds valid, and never runs into a dead end."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_grammar.machine.machine import Configuration
from forge_grammar.options import GrammarOptions
from forge_grammar.schema import SchemaError

NAMES = st.sampled_from(["a", "b", "ab", "c"])
SCALARS = st.sampled_from([None, True, False, 0, 1, 2, 3, -1, 1.5, "", "a", "ab", "b", "abc"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)
COUNTS = st.integers(0, 3)
BOUNDS = st.sampled_from([0, 1, 2, 1.5])
TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "null", "boolean"])
REFERENCES = st.sampled_from([{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}])
LEAVES = {
    "type": TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True),
    "enum": st.lists(VALUES, min_size=1, max_size=3),
    "const": VALUES,
    "pattern": st.sampled_from(["^a", "b$", "^[ab]*$", "a", "^.{1,2}$"]),
    "required": st.lists(NAMES, min_size=1, max_size=2, unique=True),
    "uniqueItems": st.booleans(),
    "multipleOf": st.sampled_from([1, 2, 0.5]),
    "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=1), max_size=2),
    **dict.fromkeys(["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"], COUNTS),
    **dict.fromkeys(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"], BOUNDS),
}
PATTERNS = st.sampled_from(["^a", "b", "c$"])


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    # Only a value inside may be of the whole schema again: python-jsonschema never ends otherwise.
    inside = inner | st.just({"$ref": "#"})
    names = st.dictionaries(NAMES, inside, min_size=1, max_size=3)
    optional = {
        **LEAVES,
        **dict.fromkeys(["allOf", "anyOf", "oneOf", "prefixItems"], several),
        **dict.fromkeys(["not", "if", "then", "else", "propertyNames"], inner),
        **dict.fromkeys(["items", "contains", "additionalProperties", "unevaluatedProperties", "unevaluatedItems"], inside),
        "properties": names,
        "dependentSchemas": st.dictionaries(NAMES, inner, min_size=1, max_size=2),
        **dict.fromkeys(["minContains", "maxContains"], COUNTS),
        "patternProperties": st.dictionaries(PATTERNS, inside, min_size=1, max_size=2),
    }
    pairs = st.sampled_from(sorted(optional)).flatmap(lambda name: st.tuples(st.just(name), optional[name]))
    return st.lists(pairs, min_size=1, max_size=4).map(dict)


LEAF = st.booleans() | st.fixed_dictionaries({}, optional=LEAVES).map(lambda s: dict(list(s.items())[:3]))
SMALL = LEAF | REFERENCES
SCHEMAS = st.builds(
    lambda schema, x, y: {**schema, "$defs": {"x": x, "y": y}}, _around(st.recursive(SMALL, _around, max_leaves=8)), LEAF, LEAF
)
QUIET = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@QUIET
@given(SCHEMAS, st.lists(VALUES, min_size=5, max_size=20))
def test_a_document_is_accepted_exactly_if_it_is_valid(oracle: Any, schema: Any, documents: list[Any]) -> None:
    try:
        oracle.check(schema, documents)
    except SchemaError as refusal:
        if "no value can satisfy" in refusal.reason:
            assert not any(map(oracle.judge(schema).is_valid, documents))


@QUIET
@given(SCHEMAS, st.sampled_from(["schema", "any"]), st.integers(0, 2**32))
def test_whatever_the_machine_writes_can_be_finished_and_is_valid(oracle: Any, schema: Any, order: Any, seed: int) -> None:
    try:
        program = oracle.machine(schema, GrammarOptions(key_order=order, whitespace=0))
    except SchemaError:
        return
    text = _write(Configuration.start(program), Random(seed))
    if text is not None:
        assert oracle.judge(schema).is_valid(json.loads(text)), (schema, text)


BYTES = b'{}[]",:0123-.trufalsn abc'


def _write(at: Configuration, random: Random) -> bytes | None:
    """A random output of a machine; None if it became too long, or a number longer than Python's float is exact."""
    text = bytearray()
    while not (at.is_final and random.random() < 0.6):
        steps = {byte: after for byte in BYTES if (after := at.step(byte))}
        steps = steps or {byte: after for byte in range(256) if (after := at.step(byte))}
        assert steps or at.is_final, f"dead end after {bytes(text)!r}"
        if not steps:
            break
        ending = [byte for byte in steps if byte in b'}]"'] if len(text) > 20 else []
        byte = random.choice(ending or list(steps))
        text.append(byte)
        at = steps[byte]
        if len(text) > 200 or text[-12:].isdigit():
            return None
    return bytes(text)
