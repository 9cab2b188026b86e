"""Reading the values of keywords: what isn't as its draft wants it is refused with its pointer."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from forge_grammar.program import json_text
from forge_grammar.schema.document import Document, Schema

KINDS = ("null", "boolean", "number", "string", "array", "object")


def kind_of(value: object) -> str:
    """The JSON kind of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def number_pairs(value: float) -> list[tuple[Decimal, str]]:
    """A number with its JSON texts: 1.0 may be written as an integer too."""
    exact = decimal(value)
    texts = {json_text(value)}
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        texts.add(str(int(value)))
    return [(exact, text) for text in sorted(texts)]


def decimal(value: float) -> Decimal:
    """The number as it was written."""
    return Decimal(value) if isinstance(value, int) else Decimal(repr(value))


class Reader:
    """Typed access to the keywords of subschemas. Errors of all methods: `SchemaError`."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def count(self, schema: dict[str, Any], keyword: str, default: int) -> int:
        """A number of characters, items, or properties."""
        value = schema.get(keyword, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if keyword in schema and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise self.document.error(schema, keyword, "must be a non-negative integer")
        if value > 2**31 - 2:
            raise self.document.error(schema, keyword, "must be less than 2147483647")
        return int(value)

    def number(self, schema: dict[str, Any], keyword: str) -> Decimal:
        """A bound or divisor."""
        value = schema[keyword]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.document.error(schema, keyword, "must be a number")
        return decimal(value)

    def text(self, schema: dict[str, Any], keyword: str) -> str:
        """A string."""
        value = schema[keyword]
        if not isinstance(value, str):
            raise self.document.error(schema, keyword, "must be a string")
        return value

    def flag(self, schema: dict[str, Any], keyword: str) -> bool:
        """A boolean; false where the keyword is absent."""
        value = schema.get(keyword, False)
        if not isinstance(value, bool):
            raise self.document.error(schema, keyword, "must be a boolean")
        return value

    def schema(self, schema: dict[str, Any], keyword: str) -> Schema:
        """A subschema."""
        return self._schema(schema, keyword, schema[keyword])

    def schemas(self, schema: dict[str, Any], keyword: str) -> list[Schema]:
        """A list of subschemas."""
        value = schema[keyword]
        if not isinstance(value, list) or not value:
            raise self.document.error(schema, keyword, "must be a list of schemas, not empty")
        return [self._schema(schema, keyword, child) for child in value]

    def schema_map(self, schema: dict[str, Any], keyword: str) -> dict[str, Schema]:
        """Subschemas by names or patterns."""
        value = schema.get(keyword, {})
        if not isinstance(value, dict):
            raise self.document.error(schema, keyword, "must be an object of schemas")
        for child in value.values():
            if not isinstance(child, (dict, bool)):
                raise self.document.error(schema, keyword, "must be an object of schemas")
        return value

    def names(self, schema: dict[str, Any], keyword: str, value: object) -> tuple[str, ...]:
        """A list of property names."""
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.document.error(schema, keyword, "must be a list of strings")
        return tuple(dict.fromkeys(value))

    def types(self, schema: dict[str, Any]) -> frozenset[str]:
        """The values of `type`."""
        value = schema["type"]
        names = frozenset([value] if isinstance(value, str) else value if isinstance(value, list) else [])
        if not names or not names <= {*KINDS, "integer"}:
            raise self.document.error(schema, "type", f"must be a type of JSON or a list of them, not {value!r:.60}")
        return names

    def _schema(self, schema: dict[str, Any], keyword: str, value: object) -> Schema:
        if not isinstance(value, (dict, bool)):
            raise self.document.error(schema, keyword, "must be a schema (an object or a boolean)")
        return value
