"""What can't be exact is refused, with pointer, keyword and reason; limits are named."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import asdict
from forge_grammar.constraint import GrammarConstraint
from forge_grammar.options import GrammarOptions
from forge_grammar.schema import SchemaError, lower

from forge.errors import InvalidRequest

D4 = "http://json-schema.org/draft-04/schema#"
D7 = "http://json-schema.org/draft-07/schema#"

REFUSED: list[tuple[Any, str, str, str]] = [
    (1, "", "", "object or a boolean"),
    (False, "", "", "no value can satisfy"),
    ({"type": "strin"}, "", "type", "type of JSON"),
    ({"properties": {"a": {"minLength": -1}}}, "/properties/a", "minLength", "non-negative integer"),
    ({"required": True}, "", "required", "list of strings"),
    ({"enum": 1}, "", "enum", "must be a list"),
    ({"enum": [float("inf")]}, "", "enum", "isn't finite"),
    ({"const": {"a": float("nan")}}, "", "enum", "isn't finite"),
    ({"enum": ["\ud800"]}, "", "", "lone surrogate"),
    ({"properties": {"\ud800": {}}}, "", "", "lone surrogate"),
    ({"allOf": []}, "", "allOf", "not empty"),
    ({"items": [{"type": "string"}]}, "", "items", "must be a schema"),
    ({"multipleOf": 0}, "", "multipleOf", "greater than 0"),
    ({"exclusiveMinimum": True}, "", "exclusiveMinimum", "must be a number"),
    ({"properties": {"a/b~": {"pattern": "("}}}, "/properties/a~1b~0", "pattern", "'('"),
    ({"pattern": r"(a)\1"}, "", "pattern", "backreference"),
    ({"additionalproperties": False}, "", "additionalproperties", "is `additionalProperties` meant?"),
    ({"Required": ["a"]}, "", "Required", "is `required` meant?"),
    ({"$schema": D4, "const": 1}, "", "const", "draft 6"),
    ({"$schema": D7, "prefixItems": [True]}, "", "prefixItems", "draft 2020-12"),
    ({"dependencies": {"a": ["b"]}}, "", "dependencies", "draft 7"),
    ({"$schema": "http://json-schema.org/draft-03/schema#"}, "", "$schema", "supported draft"),
    ({"items": {"$ref": "#/$defs/none"}}, "/items", "$ref", "no schema"),
    ({"items": {"$ref": "http://x.test/s"}}, "/items", "$ref", "nothing is fetched"),
    ({"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}, "", "$ref", "itself"),
    ({"allOf": [{"$ref": "#"}]}, "", "", "refers to itself"),
    ({"type": "string", "format": "idn-hostname"}, "", "format", "the format 'idn-hostname' can't be enforced"),
    ({"additonalProperties": False}, "", "additonalProperties", "is `additionalProperties` meant?"),
    ({"type": "object", "require": ["a"]}, "", "require", "is `required` meant?"),
    ({"not": {"patternProperties": {"^a": {"type": "string"}}}}, "/not", "patternProperties", "other key exists"),
    ({"not": {"uniqueItems": True}}, "/not", "uniqueItems", "can't be negated"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "", "", "no value can satisfy"),
    ({"type": "object", "required": ["a"], "properties": {"a": False}}, "", "", "no value can satisfy"),
    ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "", "", "no value can satisfy"),
    ({"type": "object", "minProperties": 3, "propertyNames": {"enum": ["a", "b"]}}, "", "", "no value can satisfy"),
    ({"uniqueItems": True, "const": [False, "b", False]}, "", "", "no value can satisfy"),
    ({"type": "array", "uniqueItems": True, "minItems": 3, "items": {"enum": ["a", "b"]}}, "", "", "no value"),
    ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "", "", "no value can satisfy"),
    ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "", "", "no value can satisfy"),
    ({"type": "object", "minProperties": 2, "properties": {"a": {}}, "additionalProperties": False}, "", "", "no val"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "pointer", "keyword", "reason"), REFUSED)
def test_a_refusal_says_where_which_and_why(schema: Any, pointer: str, keyword: str, reason: str) -> None:
    with pytest.raises(SchemaError) as caught:
        lower(schema, GrammarOptions())
    assert (caught.value.pointer, caught.value.keyword) == (pointer, keyword)
    assert reason in caught.value.reason
    assert caught.value.reason in caught.value.message
    assert isinstance(caught.value, InvalidRequest)


def test_an_unknown_format_can_be_an_annotation(oracle: Any) -> None:
    schema = {"type": "string", "format": "colour"}
    assert oracle.accepts(oracle.machine(schema, GrammarOptions()), "red")
    with pytest.raises(SchemaError, match="unknown format 'colour'"):
        lower(schema, GrammarOptions(unknown_formats="refuse"))


def test_too_many_subschemas_are_refused_by_the_name_of_the_limit() -> None:
    with pytest.raises(SchemaError, match=r"constraint\.options\.max_nodes = 10 "):
        lower({"properties": {str(i): {} for i in range(20)}}, GrammarOptions(max_nodes=10))


def test_a_union_that_explodes_is_refused_by_the_name_of_the_limit() -> None:
    clauses = [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(30)]
    with pytest.raises(SchemaError, match=r"constraint\.options\.max_alternatives = 256"):
        lower({"allOf": clauses}, GrammarOptions())


@pytest.mark.parametrize(
    ("options", "schema"),
    [
        (GrammarOptions(max_states=50), {"type": "string", "pattern": "^(one|two){30}$"}),
        (GrammarOptions(max_states=10), {"type": "number", "exclusiveMinimum": 17.25}),
        (GrammarOptions(max_work=100), {"type": "string", "pattern": "^[a-f]+(x|yz){9}$"}),
        (GrammarOptions(max_states=30), {"allOf": [{"pattern": "^(a{7})*$"}, {"pattern": "^(a{9})*$"}]}),
        (GrammarOptions(max_steps=100), {"properties": {str(i): {"enum": [i]} for i in range(99)}}),
        (GrammarOptions(max_schema_bytes=100), {"title": "x" * 100}),
        (GrammarOptions(max_seconds=1e-9), {"properties": {str(i): {"enum": [i]} for i in range(999)}}),
    ],
)
def test_each_limit_is_an_option_and_named_as_that(options: GrammarOptions, schema: Any) -> None:
    (name,) = (field for field, value in asdict(options).items() if value != asdict(GrammarOptions())[field])
    with pytest.raises(InvalidRequest, match=rf"constraint\.options\.{name}\b"):
        GrammarConstraint(options).lower("json_schema", schema)
    GrammarConstraint(GrammarOptions()).lower("json_schema", schema)


@pytest.mark.parametrize(("kind", "spec"), [("regex", "(ab|cd){30}"), ("choice", ["x" * 30, "y" * 20])])
def test_a_regex_and_a_choice_keep_to_the_limits_too(kind: str, spec: object) -> None:
    with pytest.raises(InvalidRequest, match=r"constraint\.options\.max_states"):
        GrammarConstraint(GrammarOptions(max_states=20)).lower(kind, spec)
    GrammarConstraint(GrammarOptions()).lower(kind, spec)


def test_nesting_and_chains_of_references_have_no_depth_limit_of_their_own(oracle: Any) -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(150):
        deep = {"type": "array", "items": deep}
    document: Any = "x"
    for _ in range(150):
        document = [document]
    program = oracle.machine(deep)
    assert oracle.accepts(program, document)
    assert not oracle.accepts(program, document[0])


def test_uninhabited_parts_vanish_and_the_rest_stays(oracle: Any) -> None:
    schema = {
        "properties": {"a": {"allOf": [{"type": "string"}, {"type": "integer"}]}, "b": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        "type": "object",
    }
    program = oracle.machine(schema)
    assert [oracle.accepts(program, document) for document in ({"b": 1}, {"a": 1}, {"a": "x", "b": 1})] == [
        True,
        False,
        False,
    ]


def test_in_place_nesting_beyond_the_stack_is_refused() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(2000):
        deep = {"allOf": [deep]}
    with pytest.raises(SchemaError, match="nested too deeply"):
        lower(deep, GrammarOptions())
