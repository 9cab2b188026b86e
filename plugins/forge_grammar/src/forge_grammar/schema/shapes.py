"""Keywords of objects and arrays as terms."""

from __future__ import annotations

from itertools import combinations
from typing import Any, Protocol

from forge_grammar.regular import Language
from forge_grammar.schema.document import Schema
from forge_grammar.schema.drafts import Draft
from forge_grammar.schema.scalars import Scalars
from forge_grammar.schema.terms import (
    FALSE, TRUE, UNBOUNDED, Arrays, Conjunction, Counted, ItemGroup, KeyGroup, Objects,
)  # fmt: skip
from forge_grammar.schema.values import Reader

OBJECT_KEYWORDS = (
    "properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties", "propertyNames",
)  # fmt: skip
ARRAY_KEYWORDS = (
    "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains",
)  # fmt: skip

_FEW_KEYS = 64
_FEW_OPTIONAL = 6


class Keys(Protocol):
    """Names subschemas for conjunctions."""

    def yes(self, schema: Schema) -> Conjunction:
        """A value must match the schema."""

    def no(self, schema: Schema) -> Conjunction:
        """A value must not match it."""


class Shapes:
    """Terms of objects and arrays, by subschema."""

    def __init__(self, reader: Reader, scalars: Scalars, keys: Keys) -> None:
        self._read = reader
        self._scalars = scalars
        self._keys = keys

    def objects(self, schema: dict[str, Any]) -> list[Objects]:
        """What the object keywords of a schema say."""
        required = self._read.names(schema, "required", schema["required"]) if "required" in schema else ()
        low = self._read.count(schema, "minProperties", 0)
        high = self._read.count(schema, "maxProperties", UNBOUNDED)
        names = self._keys.yes(self._read.schema(schema, "propertyNames")) if "propertyNames" in schema else TRUE
        if high != UNBOUNDED and max(low, len(required)) > high:
            return []
        group = self._group(schema)
        return [Objects((group,) if group else (), required, frozenset(), names, low, high)]

    def _group(self, schema: dict[str, Any]) -> KeyGroup | None:
        yes = self._keys.yes
        named = {name: yes(child) for name, child in self._read.schema_map(schema, "properties").items()}
        patterns = tuple(
            (self._scalars.pattern(schema, "patternProperties", pattern), yes(child))
            for pattern, child in self._read.schema_map(schema, "patternProperties").items()
        )
        closed = "additionalProperties" in schema
        rest = yes(self._read.schema(schema, "additionalProperties")) if closed else TRUE
        return KeyGroup(named, patterns, rest, closed=closed) if named or patterns or closed else None

    def not_objects(self, schema: dict[str, Any]) -> list[Objects]:
        """The negation of the object keywords of a schema."""
        required = self._read.names(schema, "required", schema["required"]) if "required" in schema else ()
        found = [Objects(forbidden=frozenset({name})) for name in required]
        if low := self._read.count(schema, "minProperties", 0):
            found.append(Objects(high=low - 1))
        if (high := self._read.count(schema, "maxProperties", UNBOUNDED)) != UNBOUNDED:
            found.append(Objects(low=high + 1))
        named = self._read.schema_map(schema, "properties")
        found += [self._has(name, child) for name, child in named.items() if self._keys.no(child) != FALSE]
        languages = []
        for pattern, child in self._read.schema_map(schema, "patternProperties").items():
            languages.append(self._scalars.pattern(schema, "patternProperties", pattern))
            if self._keys.no(child) != FALSE:
                words = languages[-1].words(_FEW_KEYS)
                if words is None:
                    raise self._read.document.error(schema, "patternProperties", _EXISTS)
                found += [self._has(word, child) for word in words]
        if "additionalProperties" in schema:
            found += self._others(schema, list(named), languages, required)
        if "propertyNames" in schema and self._keys.no(self._read.schema(schema, "propertyNames")) != FALSE:
            raise self._read.document.error(schema, "propertyNames", _EXISTS)
        return found

    def _has(self, name: str, child: Schema) -> Objects:
        """Objects in which a key is there, and its value doesn't match `child`."""
        return Objects((KeyGroup({name: self._keys.no(child)}, evaluates=False),), (name,))

    def _others(
        self, schema: dict[str, Any], named: list[str], languages: list[Language], required: tuple[str, ...]
    ) -> list[Objects]:
        """Objects that have all of `required` and some key of another name whose value is wrong: where any value is,
        those with more keys than declared ones, for each set of declared ones."""
        if (wrong := self._keys.no(self._read.schema(schema, "additionalProperties"))) == FALSE:
            return []
        optional = [name for name in named if name not in required]
        if languages or wrong != TRUE or len(optional) > _FEW_OPTIONAL or any(name not in named for name in required):
            raise self._read.document.error(schema, "additionalProperties", _EXISTS)
        found = []
        for size in range(len(optional) + 1):
            for chosen in combinations(optional, size):
                present = (*required, *chosen)
                absent = frozenset(optional) - frozenset(chosen)
                found.append(Objects((), present, absent, low=len(present) + 1))
        return found

    def arrays(self, schema: dict[str, Any], draft: Draft) -> list[Arrays]:
        """What the array keywords of a schema say."""
        low = self._read.count(schema, "minItems", 0)
        high = self._read.count(schema, "maxItems", UNBOUNDED)
        if high != UNBOUNDED and low > high:
            return []
        prefix, rest, closed = self._items(schema, draft)
        groups: tuple[ItemGroup, ...] = ()
        if prefix or closed:
            rest_of = self._keys.yes(rest)
            groups = (ItemGroup(tuple(self._keys.yes(child) for child in prefix), rest_of, closed=closed),)
        contains = tuple(self._contains(schema, draft))
        if any(c.high != UNBOUNDED and c.low > c.high for c in contains):
            return []
        return [Arrays(groups, low, high, self._read.flag(schema, "uniqueItems"), contains)]

    def not_arrays(self, schema: dict[str, Any], draft: Draft) -> list[Arrays]:
        """The negation of the array keywords of a schema."""
        found = []
        if low := self._read.count(schema, "minItems", 0):
            found.append(Arrays(high=low - 1))
        if (high := self._read.count(schema, "maxItems", UNBOUNDED)) != UNBOUNDED:
            found.append(Arrays(low=high + 1))
        prefix, rest, _ = self._items(schema, draft)
        for index, child in enumerate(prefix):
            if (wrong := self._keys.no(child)) != FALSE:
                found.append(Arrays((ItemGroup((*[TRUE] * index, wrong), evaluates=False),), low=index + 1))
        if (wrong := self._keys.no(rest)) == TRUE:
            found.append(Arrays(low=len(prefix) + 1))
        elif wrong != FALSE:
            counted = Counted(wrong, self._keys.yes(rest), 1, UNBOUNDED, len(prefix), evaluates=False)
            found.append(Arrays(low=len(prefix) + 1, contains=(counted,)))
        for counted in self._contains(schema, draft):
            if counted.high != UNBOUNDED:
                found.append(Arrays(contains=(Counted(counted.child, counted.other, counted.high + 1, UNBOUNDED, evaluates=False),)))
            if counted.low == 1:
                found.append(Arrays((ItemGroup((), counted.other, evaluates=False),)))
            elif counted.low:
                found.append(Arrays(contains=(Counted(counted.child, counted.other, 0, counted.low - 1, evaluates=False),)))
        if self._read.flag(schema, "uniqueItems"):
            raise self._read.document.error(schema, "uniqueItems", "can't be negated")
        return found

    def _items(self, schema: dict[str, Any], draft: Draft) -> tuple[list[Schema], Schema, bool]:
        """The schemas of the first items and of the rest, and whether the latter is stated."""
        if draft is Draft.D2020:
            prefix = self._read.schemas(schema, "prefixItems") if "prefixItems" in schema else []
            return prefix, self._read.schema(schema, "items") if "items" in schema else True, "items" in schema
        if not isinstance(schema.get("items"), list):
            return [], self._read.schema(schema, "items") if "items" in schema else True, "items" in schema
        prefix = self._read.schemas(schema, "items") if schema["items"] else []
        closed = "additionalItems" in schema
        return prefix, self._read.schema(schema, "additionalItems") if closed else True, closed

    def _contains(self, schema: dict[str, Any], draft: Draft) -> list[Counted]:
        if "contains" not in schema:
            return []
        child = self._read.schema(schema, "contains")
        low, high = 1, UNBOUNDED
        if draft >= Draft.D2019:
            low = self._read.count(schema, "minContains", 1)
            high = self._read.count(schema, "maxContains", UNBOUNDED)
        if not low and high == UNBOUNDED and not self._read.document.unevaluated:
            return []
        return [Counted(self._keys.yes(child), self._keys.no(child), low, high)]


_EXISTS = "its negation says that some other key exists, which can't be enforced exactly"
