"""Every keyword, alone and beside others, on documents that python-jsonschema judges."""

from __future__ import annotations

from typing import Any

import pytest

D4 = "http://json-schema.org/draft-04/schema#"
D6 = "http://json-schema.org/draft-06/schema#"
D7 = "http://json-schema.org/draft-07/schema#"
D2019 = "https://json-schema.org/draft/2019-09/schema"

SCALARS: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    5,
    10,
    -1,
    -7,
    1.5,
    0.5,
    2.25,
    "",
    "a",
    "ab",
    "abc",
    "b",
    "été",
    "😀",
    'q"\\\n',
]
ARRAYS: list[Any] = [
    [],
    [1],
    [1, 1],
    [1, 2],
    [2, 1],
    [1, 2, 3],
    ["a"],
    ["a", "b"],
    ["a", 1],
    [1, "a"],
    [[1], [1]],
    [{}],
    [None, 1, "a", 1],
]
OBJECTS: list[Any] = [
    {}, {"a": 1}, {"a": "x"}, {"b": 1}, {"b": "x"}, {"a": 1, "b": 2}, {"a": "x", "b": "y"}, {"c": 1}, {"ab": 1, "a": 2},
    {"a": 1, "b": 2, "c": 3}, {"a": {"a": {"a": 1}}}, {"a": {"a": 1}}, {"a": None, "d": []},
    {"été": 1}, {"kind": "x", "n": 1},
    {"kind": "y", "s": "t"}, {"kind": "y", "n": 1}, {"a": [1, 2]},
]  # fmt: skip
DOCUMENTS = [*SCALARS, *ARRAYS, *OBJECTS]

SCHEMAS: dict[str, Any] = {
    "type": {"type": "string"},
    "type integer": {"type": "integer"},
    "type list": {"type": ["null", "array", "number"]},
    "enum": {"enum": [1, "a", None, True, [1, 2], {"a": 1}, 1.5]},
    "enum beside type": {"type": "string", "enum": [1, "a", "ab"]},
    "const": {"const": {"a": 1, "b": 2}},
    "const of a list": {"const": [1, "a"]},
    "lengths without type": {"minLength": 1, "maxLength": 2},
    "lengths beside pattern": {"type": "string", "pattern": "a", "minLength": 2, "maxLength": 2},
    "a counted class": {"type": "string", "pattern": "^[a-z]{1,200}$"},
    "a counted class of exactly so many": {"type": "string", "pattern": "^.{17}$"},
    "pattern": {"pattern": "^a"},
    "bounds": {"minimum": 1, "maximum": 2.25},
    "open bounds": {"exclusiveMinimum": 1, "exclusiveMaximum": 3},
    "both bounds": {"minimum": 1, "exclusiveMinimum": 1, "type": "number"},
    "multipleOf": {"multipleOf": 0.5},
    "multipleOf beside bounds": {"type": "integer", "multipleOf": 5, "minimum": 1},
    "properties": {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
    "required": {"required": ["a", "b"]},
    "additionalProperties": {"properties": {"a": True}, "additionalProperties": False},
    "additionalProperties schema": {"properties": {"a": {}}, "additionalProperties": {"type": "string"}},
    "patternProperties": {"patternProperties": {"^a": {"type": "integer"}, "b": {"minimum": 2}}},
    "patternProperties closed": {
        "properties": {"b": {}},
        "patternProperties": {"^a": {}},
        "additionalProperties": False,
    },
    "properties and patterns": {"properties": {"ab": {"maximum": 1}}, "patternProperties": {"a": {"type": "integer"}}},
    "propertyNames": {"propertyNames": {"maxLength": 1}},
    "propertyNames enum": {"propertyNames": {"enum": ["a", "b"]}, "minProperties": 1},
    "property counts": {"minProperties": 1, "maxProperties": 2},
    "dependentRequired": {"dependentRequired": {"a": ["b"], "c": ["a"]}},
    "dependentSchemas": {"dependentSchemas": {"a": {"properties": {"b": {"type": "string"}}, "required": ["b"]}}},
    "dependencies": {"$schema": D7, "dependencies": {"a": ["b"], "c": {"maxProperties": 1}, "ab": False}},
    "items": {"items": {"type": "integer"}},
    "items false": {"items": False},
    "item counts": {"minItems": 1, "maxItems": 2},
    "prefixItems": {"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"type": "null"}},
    "prefixItems closed": {"prefixItems": [{"type": "integer"}], "items": False},
    "items list": {"$schema": D7, "items": [{"type": "integer"}], "additionalItems": {"type": "string"}},
    "additionalItems alone": {"$schema": D7, "additionalItems": False},
    "uniqueItems": {"uniqueItems": True},
    "contains": {"contains": {"const": 1}},
    "contains counts": {"contains": {"const": 1}, "minContains": 2, "maxContains": 2},
    "contains at most": {"contains": {"type": "string"}, "minContains": 0, "maxContains": 1},
    "contains beside items": {"items": {"type": "integer"}, "contains": {"minimum": 2}},
    "allOf": {
        "allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"minimum": 1}}, "required": ["a"]}]
    },
    "allOf of patterns": {"allOf": [{"pattern": "^a"}, {"pattern": "b$"}, {"maxLength": 2}]},
    "anyOf": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}, {"type": "string", "minLength": 2}]},
    "oneOf of types": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    "oneOf that overlaps": {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "oneOf of numbers": {"oneOf": [{"type": "integer"}, {"minimum": 2}]},
    "oneOf by a discriminator": {
        "oneOf": [
            {"properties": {"kind": {"const": "x"}, "n": {"type": "integer"}}, "required": ["kind", "n"]},
            {"properties": {"kind": {"const": "y"}, "s": {"type": "string"}}, "required": ["kind", "s"]},
        ]
    },
    "oneOf of closed objects": {
        "oneOf": [
            {"properties": {"a": {}}, "additionalProperties": False},
            {"properties": {"a": {}, "b": {}}, "required": ["b"], "additionalProperties": False},
            {"properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
        ]
    },
    "oneOf beside what makes it disjoint": {
        "required": ["kind"],
        "oneOf": [{"properties": {"kind": {"enum": ["x"]}}}, {"properties": {"kind": {"enum": ["y"]}, "n": False}}],
    },
    "not of a key": {"not": {"required": ["a"]}},
    "not of keys": {"not": {"required": ["a", "b"]}},
    "not of a type": {"not": {"type": ["string", "integer"]}},
    "not of values": {"type": ["string", "integer"], "not": {"enum": ["a", 1]}},
    "not of an object": {"not": {"const": {"a": 1}}},
    "not of a list": {"not": {"enum": [[1, 2], []]}},
    "not of properties": {"not": {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}},
    "not of items": {"not": {"items": {"type": "integer"}}},
    "not of prefixItems": {"not": {"prefixItems": [{"const": 1}, {"const": 2}]}},
    "not of contains": {"not": {"contains": {"const": 1}}},
    "not of contains counts": {"not": {"contains": {"const": 1}, "minContains": 2, "maxContains": 3}},
    "not of bounds": {"not": {"minimum": 1, "maximum": 2, "type": "number"}},
    "not of multipleOf": {"type": "number", "not": {"multipleOf": 0.5}},
    "not of lengths": {"type": "string", "not": {"minLength": 1, "maxLength": 2, "pattern": "^a"}},
    "not of not": {"not": {"not": {"type": "string"}}},
    "not of anyOf": {"not": {"anyOf": [{"type": "object"}, {"minimum": 1}]}},
    "not of oneOf": {"not": {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}},
    "not of if": {"not": {"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"minProperties": 1}}},
    "not of counts": {"not": {"minProperties": 1, "maxProperties": 2, "minItems": 2}},
    "not of closed": {"not": {"properties": {"a": {}}, "additionalProperties": False}},
    "not of dependencies": {"not": {"dependentRequired": {"a": ["b"]}}},
    "if": {
        "if": {"properties": {"kind": {"const": "x"}}, "required": ["kind"]},
        "then": {"required": ["n"]},
        "else": {"maxProperties": 2},
    },
    "if without then": {"if": {"type": "string"}, "else": {"type": "integer"}},
    "if without else": {"if": {"type": "string"}, "then": {"minLength": 1}},
    "then without if": {"then": {"type": "string"}},
    "a reference": {"$defs": {"x": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/x"}}},
    "a reference with siblings": {"$defs": {"x": {"type": "integer"}}, "$ref": "#/$defs/x", "minimum": 2},
    "a reference that hides siblings": {
        "$schema": D7,
        "definitions": {"x": {"type": "integer"}},
        "$ref": "#/definitions/x",
        "minimum": 2,
    },
    "recursion": {"type": ["object", "integer"], "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
    "an alternative that never ends": {
        "$defs": {"x": {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"]}},
        "anyOf": [
            {"properties": {"b": {"$ref": "#/$defs/x"}}, "required": ["b"], "type": "object"},
            {"type": "string"},
        ],
    },
    "recursion under not": {"properties": {"a": {"not": {"$ref": "#"}}}, "required": ["a"]},
    "an anchor": {"$defs": {"x": {"$anchor": "here", "type": "integer"}}, "items": {"$ref": "#here"}},
    "an id": {
        "$id": "http://x.test/root",
        "$defs": {"x": {"$id": "leaf", "type": "string"}},
        "items": {"$ref": "leaf"},
    },
    "an old id": {
        "$schema": D4,
        "id": "http://x.test/root",
        "definitions": {"x": {"id": "#leaf", "type": "string"}},
        "items": {"$ref": "#leaf"},
    },
    "a pointer with escapes": {"$defs": {"a/b~c %": {"type": "string"}}, "items": {"$ref": "#/$defs/a~1b~0c%20%25"}},
    "old exclusive bounds": {
        "$schema": D4,
        "minimum": 1,
        "exclusiveMinimum": True,
        "maximum": 3,
        "exclusiveMaximum": False,
    },
    "draft 6": {"$schema": D6, "contains": {"const": 1}, "propertyNames": {"minLength": 2}, "exclusiveMinimum": 0},
    "a recursive reference": {
        "$schema": D2019,
        "type": ["object", "integer"],
        "additionalProperties": {"$recursiveRef": "#"},
    },
    "a dynamic reference": {
        "$dynamicAnchor": "node",
        "type": ["object", "integer"],
        "additionalProperties": {"$dynamicRef": "#node"},
    },
    "unevaluatedProperties": {
        "allOf": [{"properties": {"a": {}}}],
        "properties": {"b": {}},
        "unevaluatedProperties": False,
    },
    "unevaluatedProperties of branches": {
        "anyOf": [
            {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {}}, "required": ["b"]},
        ],
        "unevaluatedProperties": {"type": "string"},
    },
    "unevaluatedProperties under if": {
        "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
        "else": {"properties": {"b": {}}},
        "unevaluatedProperties": False,
    },
    "unevaluatedItems": {
        "prefixItems": [{"type": "integer"}],
        "anyOf": [{"prefixItems": [True, {"type": "string"}]}, True],
        "unevaluatedItems": False,
    },
    "unevaluatedItems beside contains": {"contains": {"type": "string"}, "unevaluatedItems": {"type": "integer"}},
    "true": True,
    "empty": {},
    "annotations": {
        "title": "t",
        "description": "d",
        "default": 1,
        "examples": [],
        "$comment": "c",
        "readOnly": True,
        "x-vendor": {"type": "string"},
        "deprecated": True,
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_document_is_accepted_exactly_if_it_is_valid(name: str, oracle: Any) -> None:
    valid, _ = oracle.check(SCHEMAS[name], DOCUMENTS)
    assert valid or name.startswith("a counted class of")


LONG = ["x" * n for n in (16, 17, 18, 199, 200, 201)]


@pytest.mark.parametrize("name", ["a counted class", "a counted class of exactly so many"])
def test_counted_classes_count_code_points(name: str, oracle: Any) -> None:
    assert min(oracle.check(SCHEMAS[name], [*LONG, "é" * 17, "😀" * 17])) > 0
    # Python's `$` would let a line break follow, that of ECMA-262 doesn't.
    assert not oracle.accepts(
        oracle.machine(SCHEMAS[name]), "x" * 16 + "\n" if "200" in str(SCHEMAS[name]) else "x" * 17 + "\n"
    )
