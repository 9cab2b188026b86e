"""The short way for subschemas without Boolean parts, which most are: straight from keywords to a type.

The same types as by way of terms (`build`), only sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge_grammar.program import NONE, ArrayShape, StringTerm, TypeNode, json_text
from forge_grammar.schema.document import Schema
from forge_grammar.schema.drafts import ANNOTATIONS
from forge_grammar.schema.terms import ANY_TEXT, TRUE, UNBOUNDED

if TYPE_CHECKING:
    from forge_grammar.schema.build import Builder
    from forge_grammar.schema.subschemas import Info

_LEAF = ANNOTATIONS | {"type"}
_SCALARS = frozenset({"string", "integer", "number", "boolean", "null"})
_KINDS = ("null", "boolean", "number", "string", "array", "object")
_SLOW_OBJECT = frozenset({"patternProperties", "propertyNames"})
_SLOW_ARRAY = frozenset({"contains", "prefixItems"})
_ENUM_ONLY = (("enum",), ("const",))


class Plain:
    """Types of plain subschemas, for a builder. Errors of all methods: `SchemaError`."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._algebra = builder.algebra
        self._ids: dict[int, int] = {}
        self._leaves: dict[str, int] = {}

    def type_of(self, schema: Schema) -> int:
        """The type of a subschema."""
        made = self._ids.get(id(schema))
        if made is None:
            made = self._leaf(schema) if type(schema) is dict else None
            if made is None:
                made = self._builder.type_of(self._algebra.yes(schema))
            self._ids[id(schema)] = made
        return made

    def _leaf(self, schema: dict[str, Any]) -> int | None:
        """The type of a scalar without more, or of listed strings; None for others."""
        name = schema.get("type")
        if type(name) is str and name in _SCALARS:
            if _LEAF.issuperset(schema) or self._algebra.info(schema).scalar:
                made = self._leaves.get(name)
                if made is None:
                    made = self._leaves[name] = self._builder.type_of(
                        self._algebra.yes(self._algebra.kept({"type": name}))
                    )
                return made
        if "enum" in schema:
            info = self._algebra.info(schema)
            if info.parts == ("enum",) and not info.own and (node := self._listed(schema, info)) is not None:
                return self._builder.added(node)
        return None

    def node(self, schema: dict[str, Any]) -> TypeNode | None:
        """The type of a subschema as it stands; None if it isn't plain."""
        info = self._algebra.info(schema)
        if info.late:
            return None
        if info.parts:
            return self._listed(schema, info) if info.parts in _ENUM_ONLY and not info.own else None
        literals: list[str] = []
        strings: tuple[StringTerm, ...] = ()
        numbers: tuple[int, ...] = ()
        arrays: tuple[int, ...] = ()
        objects: tuple[int, ...] = ()
        for kind in _KINDS if info.kinds is None else info.kinds:
            if kind == "string":
                strings = self._strings(schema, info, literals)
            elif kind == "object":
                if not _SLOW_OBJECT.isdisjoint(schema):
                    return None
                objects = self._object(schema)
            elif kind == "array":
                if not _SLOW_ARRAY.isdisjoint(schema) or type(schema.get("items")) is list:
                    return None
                if "uniqueItems" in schema and "minItems" in schema:
                    return None
                arrays = self._array(schema)
            elif kind == "number":
                numbers = self._numbers(schema, info)
            else:
                literals += ("null",) if kind == "null" else ("false", "true")
        literals.sort()
        return TypeNode(tuple(literals), strings, numbers, arrays, objects)

    def _listed(self, schema: dict[str, Any], info: Info) -> TypeNode | None:
        """`enum` or `const` of strings."""
        values = schema["enum"] if info.parts == ("enum",) else [schema["const"]]
        if type(values) is not list or any(type(value) is not str for value in values):
            return None
        if info.kinds is not None and "string" not in info.kinds:
            return TypeNode()
        return TypeNode(tuple(sorted(set(map(json_text, values)))))

    def _strings(self, schema: dict[str, Any], info: Info, literals: list[str]) -> tuple[StringTerm, ...]:
        if "string" not in info.own:
            return (StringTerm(self._builder.language(ANY_TEXT)),)
        return self._builder.string_terms(self._algebra.scalars.strings(schema, positive=True), literals)

    def _numbers(self, schema: dict[str, Any], info: Info) -> tuple[int, ...]:
        terms = self._algebra.scalars.numbers(schema, info.draft, positive=True)
        return self._builder.number_languages(terms, integer=info.integer)

    def _object(self, schema: dict[str, Any]) -> tuple[int, ...]:
        read = self._algebra.read
        declared = read.schema_map(schema, "properties") if "properties" in schema else {}
        required = read.names(schema, "required", schema["required"]) if "required" in schema else ()
        minimum = read.count(schema, "minProperties", 0) if "minProperties" in schema else 0
        maximum = read.count(schema, "maxProperties", UNBOUNDED) if "maxProperties" in schema else UNBOUNDED
        if maximum != UNBOUNDED and max(minimum, len(required)) > maximum:
            return ()
        type_of = self.type_of
        ids = [type_of(child) for child in declared.values()]
        names = list(declared)
        rest = self._rest(schema)
        if missing := [name for name in required if name not in declared]:
            names += missing
            ids += [rest] * len(missing)
        classes = () if rest == NONE else ((ANY_TEXT, rest),)
        found = self._builder.object_shape(names, ids, frozenset(required), classes, (minimum, maximum))
        return () if found is None else (found,)

    def _rest(self, schema: dict[str, Any]) -> int:
        if "additionalProperties" not in schema:
            return self._builder.type_of(TRUE)
        return self.type_of(self._algebra.read.schema(schema, "additionalProperties"))

    def _array(self, schema: dict[str, Any]) -> tuple[int, ...]:
        read = self._algebra.read
        minimum = read.count(schema, "minItems", 0)
        maximum = read.count(schema, "maxItems", UNBOUNDED)
        if maximum != UNBOUNDED and minimum > maximum:
            return ()
        unique = read.flag(schema, "uniqueItems") and maximum not in (0, 1)
        rest = NONE
        if maximum != 0:
            rest = self.type_of(read.schema(schema, "items")) if "items" in schema else self._builder.type_of(TRUE)
        if rest == NONE:
            if minimum:
                return ()
            maximum = 0
        shape = ArrayShape((), rest, minimum, maximum, unique)
        return (self._builder.array_shape(shape),)
