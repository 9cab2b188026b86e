"""The subschemas that terms are made of: their numbers, what each has, and which kinds of values it can allow."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from forge_grammar.options import GrammarOptions
from forge_grammar.schema.document import Document, Schema
from forge_grammar.schema.drafts import ANNOTATIONS, CONSTRAINTS, Draft, objection
from forge_grammar.schema.errors import SchemaError
from forge_grammar.schema.scalars import NUMBER_KEYWORDS, STRING_KEYWORDS
from forge_grammar.schema.shapes import ARRAY_KEYWORDS, OBJECT_KEYWORDS
from forge_grammar.schema.terms import FALSE, TRUE, Conjunction
from forge_grammar.schema.unions import Unions
from forge_grammar.schema.values import KINDS, Reader, kind_of

ALL_KINDS = frozenset(KINDS)
LATE = {"unevaluatedProperties": "object", "unevaluatedItems": "array"}

_OWNER = {
    **dict.fromkeys(STRING_KEYWORDS, "string"), **dict.fromkeys(NUMBER_KEYWORDS, "number"),
    **dict.fromkeys(ARRAY_KEYWORDS, "array"), **dict.fromkeys(OBJECT_KEYWORDS, "object"),
}  # fmt: skip


@frozen(slots=True, eq=False)
class Info:
    """What a subschema has. kinds: of JSON, by `type`; None for all. integer: no number that isn't one. own: kinds with
    keywords of their own; parts: other keywords in their order; late: unevaluated ones. redirect: it's only a `$ref`.
    scalar: its type where it has no more than one, of scalars.
    """

    draft: Draft
    kinds: frozenset[str] | None
    integer: bool
    own: frozenset[str]
    parts: tuple[str, ...]
    late: tuple[str, ...]
    redirect: bool
    scalar: str | None


_INFOS: dict[object, Info] = {}
"""By draft, keywords in their order, and type; what was refused isn't there."""
_MAX_INFOS = 10_000


class Subschemas(Unions):
    """The subschemas of a document. Errors of all methods: `SchemaError`."""

    def __init__(self, document: Document, options: GrammarOptions) -> None:
        super().__init__(document, options)
        self.read = Reader(document)
        self.schemas: list[dict[str, Any]] = [{}]
        self._keys: dict[int, int] = {}
        self._info: dict[int, Info] = {}
        self._kinds: dict[int, frozenset[str]] = {}

    def yes(self, schema: Schema) -> Conjunction:
        """A value must match the schema."""
        if isinstance(schema, bool) or not schema:
            return FALSE if schema is False else TRUE
        key = self._keys.get(id(schema)) or self._key(schema)
        return frozenset((key,)) if key else FALSE if key == 0 else TRUE

    def no(self, schema: Schema) -> Conjunction:
        """A value must not match it."""
        met = self.yes(schema)
        return TRUE if met == FALSE else FALSE if met == TRUE else frozenset(-key for key in met)

    def kept(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema of our own making, kept so that its identity stays its own."""
        self.schemas.append(schema)
        self._keys[id(schema)] = len(self.schemas) - 1
        return schema

    def _key(self, schema: dict[str, Any]) -> int | None:
        """The number of a subschema, or of what it only refers to; 0 for nothing, None for anything."""
        target = schema
        seen = set()
        while "$ref" in target and self.info(target).redirect:
            if id(target) in seen:
                raise self.document.error(schema, "$ref", "refers to itself")
            seen.add(id(target))
            referred = self.document.refer(target, "$ref")
            if isinstance(referred, bool) or not referred:
                return 0 if referred is False else None
            target = referred
        key = self._keys.get(id(target))
        if key is None:
            key = self._keys[id(target)] = len(self.schemas)
            self.schemas.append(target)
        self._keys[id(schema)] = key
        return key

    def info(self, schema: dict[str, Any]) -> Info:
        """What a subschema has; its unknown keywords are judged here."""
        found = self._info.get(id(schema))
        if found is None:
            found = self._info[id(schema)] = self._inspect(schema)
        return found

    def _inspect(self, schema: dict[str, Any]) -> Info:
        draft = self.document.resource(schema).draft
        kind = schema.get("type")
        key = draft, tuple(schema), tuple(kind) if type(kind) is list else kind
        try:
            found = _INFOS.get(key)
        except TypeError:  # a type that is no type, refused below
            found = None
        if found is None:
            found = self._look(schema, draft)
            if len(_INFOS) < _MAX_INFOS:
                _INFOS[key] = found
        return found

    def _look(self, schema: dict[str, Any], draft: Draft) -> Info:
        if "$ref" in schema and draft <= Draft.D7:
            return Info(draft, None, False, frozenset(), ("$ref",), (), redirect=True, scalar=None)
        own = set()
        parts = []
        late = []
        redirect = "$ref" in schema
        for keyword in schema:
            if keyword in ANNOTATIONS or keyword == "$recursiveAnchor":
                continue
            if keyword not in CONSTRAINTS[draft]:
                if reason := objection(keyword, draft):
                    raise self.document.error(schema, keyword, reason)
                continue
            redirect = redirect and keyword == "$ref"
            if (owner := _OWNER.get(keyword)) is not None:
                own.add(owner)
            elif keyword in LATE:
                late.append(keyword)
            elif keyword not in ("type", "then", "else"):
                parts.append(keyword)
        parts.sort(key="oneOf".__eq__)
        kinds, integer = None, False
        scalar = None
        if "type" in schema:
            names = self.read.types(schema)
            integer = "integer" in names and "number" not in names
            kinds = names - {"integer"} | ({"number"} if integer else set())
            if len(names) == 1 and not (own or parts or late) and kinds.isdisjoint(("array", "object")):
                (scalar,) = names
        return Info(draft, kinds, integer, frozenset(own), tuple(parts), tuple(late), redirect, scalar)

    def kinds(self, conjunction: Conjunction) -> frozenset[str]:
        """The kinds of values that a conjunction can have: as a short look tells, some of them none."""
        if 0 in conjunction:
            return frozenset()
        met = ALL_KINDS
        for key in conjunction:
            if key > 0:
                met &= self.kinds_of(key)
        return met

    def without_idle(self, conjunction: Conjunction) -> Conjunction:
        """The conjunction without negations of what only allows other kinds of values."""
        if min(conjunction, default=0) >= 0:
            return conjunction
        kinds = self.kinds(conjunction)
        return frozenset(key for key in conjunction if key > 0 or not kinds.isdisjoint(self.kinds_of(-key)))

    def kinds_of(self, key: int) -> frozenset[str]:
        """The kinds of values that a subschema can allow."""
        found = self._kinds.get(key)
        if found is None:
            self._kinds[key] = ALL_KINDS  # what refers to itself may be any
            found = self._kinds[key] = self._kinds_of(self.schemas[key])
        return found

    def _kinds_of(self, schema: dict[str, Any]) -> frozenset[str]:
        info = self.info(schema)
        found = ALL_KINDS if info.kinds is None else info.kinds
        try:
            for part in info.parts:
                if part == "enum":
                    found &= frozenset(map(kind_of, schema["enum"]))
                elif part == "const":
                    found &= {kind_of(schema["const"])}
                elif part == "$ref":
                    found &= self.kinds(self.yes(self.document.refer(schema, "$ref")))
                elif part == "allOf":
                    for child in self.read.schemas(schema, part):
                        found &= self.kinds(self.yes(child))
                elif part in ("anyOf", "oneOf"):
                    branches = self.read.schemas(schema, part)
                    found &= frozenset().union(*[self.kinds(self.yes(child)) for child in branches])
        except (SchemaError, TypeError):  # refused where it's needed
            return ALL_KINDS if info.kinds is None else info.kinds
        return found
