"""Schemas as unions of terms: the Boolean part of JSON Schema (`allOf`, `anyOf`, `oneOf`, `not`, `if`, references, ...),
one JSON kind at a time, and negation pushed down to the keywords.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from attrs import evolve, frozen

from forge_grammar.options import GrammarOptions
from forge_grammar.schema.document import Document, Schema
from forge_grammar.schema.drafts import ANNOTATIONS, CONSTRAINTS, Draft, objection
from forge_grammar.schema.errors import SchemaError, limit_reached
from forge_grammar.schema.scalars import NUMBER_KEYWORDS, STRING_KEYWORDS, Scalars
from forge_grammar.schema.shapes import ARRAY_KEYWORDS, OBJECT_KEYWORDS, Shapes
from forge_grammar.schema.terms import (
    ANY_ARRAY, ANY_NUMBER, ANY_OBJECT, ANY_STRING, FALSE, TRUE, Arrays, Conjunction, ItemGroup, KeyGroup, Numbers,
    Objects, Strings, both, meet_arrays, meet_booleans, meet_numbers, meet_objects, meet_strings,
)  # fmt: skip
from forge_grammar.schema.values import KINDS, Reader, kind_of, number_pairs

Term: TypeAlias = Any
"""True (null), frozenset[bool], Numbers, Strings, Arrays or Objects, by kind."""

MAX_ALTERNATIVES = 256
MAX_WORK = 400_000
_PROBE_DEPTH = 4
_MAX_SUBSETS = 6

TOPS: dict[str, Term] = {
    "null": True, "boolean": frozenset({False, True}), "number": ANY_NUMBER, "string": ANY_STRING, "array": ANY_ARRAY,
    "object": ANY_OBJECT,
}  # fmt: skip
_MEET: dict[str, Callable[[Term, Term], Term | None]] = {
    "null": lambda a, b: True, "boolean": meet_booleans, "number": meet_numbers, "string": meet_strings,
    "array": meet_arrays, "object": meet_objects,
}  # fmt: skip
_OWNER = {
    **dict.fromkeys(STRING_KEYWORDS, "string"), **dict.fromkeys(NUMBER_KEYWORDS, "number"),
    **dict.fromkeys(ARRAY_KEYWORDS, "array"), **dict.fromkeys(OBJECT_KEYWORDS, "object"),
}  # fmt: skip
_OBJECT_PARTS = frozenset({"dependencies", "dependentRequired", "dependentSchemas"})
_LATE = {"unevaluatedProperties": "object", "unevaluatedItems": "array"}


@frozen(slots=True, eq=False)
class Info:
    """What a subschema has. kinds: of JSON, by `type`; None for all. integer: no number that isn't one. own: kinds with
    keywords of their own; parts: other keywords in their order; late: unevaluated ones. redirect: it's only a `$ref`."""

    draft: Draft
    kinds: frozenset[str] | None
    integer: bool
    own: frozenset[str]
    parts: tuple[str, ...]
    late: tuple[str, ...]
    redirect: bool


class Algebra:
    """The terms of conjunctions of a document's subschemas. Errors of all methods: `SchemaError`."""

    def __init__(self, document: Document, options: GrammarOptions) -> None:
        self.document = document
        self._options = options
        self._deadline = time.monotonic() + options.max_seconds
        self._work = 0
        self.read = Reader(document)
        self.scalars = Scalars(self.read, options.unknown_formats == "annotation")
        self.shapes = Shapes(self.read, self.scalars, self)
        self.schemas: list[dict[str, Any]] = [{}]
        self._keys: dict[int, int] = {}
        self._info: dict[int, Info] = {}
        self._terms: dict[tuple[int, str], tuple[Term, ...]] = {}
        self._active: set[tuple[int, str]] = set()
        self._empty: dict[Conjunction, bool] = {}

    # Names of subschemas

    def yes(self, schema: Schema) -> Conjunction:
        """A value must match the schema."""
        if isinstance(schema, bool) or not schema:
            return FALSE if schema is False else TRUE
        key = self._keys.get(id(schema)) or self._key(schema)
        return frozenset({key}) if key else FALSE if key == 0 else TRUE

    def no(self, schema: Schema) -> Conjunction:
        """A value must not match it."""
        met = self.yes(schema)
        return TRUE if met == FALSE else FALSE if met == TRUE else frozenset(-key for key in met)

    def _key(self, schema: dict[str, Any]) -> int | None:
        """The number of a subschema, or of what it only refers to; 0 for nothing, None for anything."""
        target: Schema = schema
        seen = set()
        while "$ref" in target and self.info(target).redirect:
            if id(target) in seen:
                raise self.document.error(schema, "$ref", "refers to itself")
            seen.add(id(target))
            target = self.document.refer(target, "$ref")
            if isinstance(target, bool) or not target:
                return 0 if target is False else None
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
        if "$ref" in schema and draft <= Draft.D7:
            return Info(draft, None, False, frozenset(), ("$ref",), (), redirect=True)
        known = CONSTRAINTS[draft]
        own = set()
        parts = []
        late = []
        redirect = "$ref" in schema
        for keyword in schema:
            if keyword in ANNOTATIONS or keyword == "$recursiveAnchor":
                continue
            if keyword not in known:
                if reason := objection(keyword, draft):
                    raise self.document.error(schema, keyword, reason)
                continue
            redirect = redirect and keyword == "$ref"
            if (owner := _OWNER.get(keyword)) is not None:
                own.add(owner)
            elif keyword in _LATE:
                late.append(keyword)
            elif keyword not in ("type", "then", "else"):
                parts.append(keyword)
        parts.sort(key="oneOf".__eq__)
        kinds, integer = None, False
        if "type" in schema:
            names = self.read.types(schema)
            integer = "integer" in names and "number" not in names
            kinds = names - {"integer"} | ({"number"} if integer else set())
        return Info(draft, kinds, integer, frozenset(own), tuple(parts), tuple(late), redirect)

    # Terms

    def conjunction(self, conjunction: Conjunction, kind: str) -> Sequence[Term]:
        """The values of a kind that match a conjunction, as a union of terms."""
        if 0 in conjunction:
            return ()
        terms: Sequence[Term] = (TOPS[kind],)
        for key in sorted(conjunction, key=abs):
            terms = self._product(kind, terms, self.terms(key, kind), self.schemas[abs(key)], "")
            if not terms:
                break
        return terms

    def terms(self, key: int, kind: str) -> tuple[Term, ...]:
        """The values of a kind that match (or, with a negative key, don't match) a subschema."""
        at = key, kind
        found = self._terms.get(at)
        if found is None:
            schema = self.schemas[abs(key)]
            if at in self._active:
                raise self.document.error(schema, "", "refers to itself with no value in between")
            self._active.add(at)
            try:
                made = self._positive(schema, kind) if key > 0 else self._negative(schema, kind)
            finally:
                self._active.discard(at)
            found = self._terms[at] = tuple(self._alive(kind, made))
        return found

    def _of(self, conjunction: Conjunction, kind: str) -> Sequence[Term]:
        return self.conjunction(conjunction, kind)

    def _positive(self, schema: dict[str, Any], kind: str) -> Sequence[Term]:
        info = self.info(schema)
        if info.kinds is not None and kind not in info.kinds:
            return ()
        terms: Sequence[Term] = (TOPS[kind],)
        if kind == "number" and info.integer:
            terms = (Numbers(integer=True),)
        if kind in info.own:
            terms = self._product(kind, terms, self._own(schema, kind, info, positive=True), schema, "")
        for part in info.parts:
            if terms and (kind == "object" or part not in _OBJECT_PARTS):
                if part == "oneOf":
                    terms = self._one(schema, part, kind, terms)
                else:
                    terms = self._product(kind, terms, self._part(schema, part, kind), schema, part)
        for part in info.late:
            if kind == _LATE[part]:
                terms = [t for term in terms if (t := self._unevaluated(schema, part, term)) is not None]
        return terms

    def _negative(self, schema: dict[str, Any], kind: str) -> Sequence[Term]:
        info = self.info(schema)
        if info.kinds is not None and kind not in info.kinds:
            return (TOPS[kind],)
        terms: list[Term] = []
        if kind == "number" and info.integer:
            terms += self.scalars.numbers({"multipleOf": 1}, Draft.D2020, positive=False)
        if kind in info.own:
            terms += self._own(schema, kind, info, positive=False)
        for part in info.parts:
            if kind == "object" or part not in _OBJECT_PARTS:
                terms += self._not_part(schema, part, kind)
        for part in info.late:
            if kind == _LATE[part]:
                raise self.document.error(schema, part, "can't be negated")
        return self._union(kind, terms, schema, "not")

    def _own(self, schema: dict[str, Any], kind: str, info: Info, *, positive: bool) -> Sequence[Term]:
        """The keywords that are of one kind alone."""
        if kind == "string":
            return self.scalars.strings(schema, positive=positive)
        if kind == "number":
            return self.scalars.numbers(schema, info.draft, positive=positive)
        if kind == "array":
            return self.shapes.arrays(schema, info.draft) if positive else self.shapes.not_arrays(schema, info.draft)
        return self.shapes.objects(schema) if positive else self.shapes.not_objects(schema)

    def _part(self, schema: dict[str, Any], keyword: str, kind: str) -> Sequence[Term]:
        """A keyword that is of several kinds."""
        match keyword:
            case "enum" | "const":
                return self._values(self._listed(schema, keyword), kind)
            case "$ref":
                return self._of(self.yes(self.document.refer(schema, keyword)), kind)
            case "$dynamicRef" | "$recursiveRef":
                return self._of(self.yes(self.document.dynamic(schema, keyword)), kind)
            case "not":
                return self._hidden(kind, self._of(self.no(self.read.schema(schema, keyword)), kind))
            case "allOf":
                terms: Sequence[Term] = (TOPS[kind],)
                for child in self.read.schemas(schema, keyword):
                    terms = self._product(kind, terms, self._of(self.yes(child), kind), schema, keyword)
                return terms
            case "anyOf":
                return self._any(schema, keyword, kind)
            case "if":
                return self._conditional(schema, kind)
        return self._dependencies(schema, keyword)

    def _not_part(self, schema: dict[str, Any], keyword: str, kind: str) -> Sequence[Term]:
        """The negation of a keyword that is of several kinds."""
        match keyword:
            case "enum" | "const":
                return self._not_values(schema, keyword, kind)
            case "$ref":
                return self._of(self.no(self.document.refer(schema, keyword)), kind)
            case "$dynamicRef" | "$recursiveRef":
                return self._of(self.no(self.document.dynamic(schema, keyword)), kind)
            case "not":
                return self._of(self.yes(self.read.schema(schema, keyword)), kind)
            case "allOf":
                return [t for child in self.read.schemas(schema, keyword) for t in self._of(self.no(child), kind)]
            case "anyOf":
                return self._none(schema, keyword, kind, self.read.schemas(schema, keyword))
            case "oneOf":
                children = self.read.schemas(schema, keyword)
                found = list(self._none(schema, keyword, kind, children))
                positive = [self._of(self.yes(child), kind) for child in children]
                for i, some in enumerate(positive):
                    for others in positive[:i]:
                        found += self._product(kind, some, others, schema, keyword)
                return found
            case "if":
                condition = self.read.schema(schema, "if")
                found = []
                for premise, branch in ((self.yes(condition), "then"), (self.no(condition), "else")):
                    if branch in schema:
                        wrong = self._of(self.no(self.read.schema(schema, branch)), kind)
                        found += self._product(kind, self._of(premise, kind), wrong, schema, branch)
                return found
        return self._not_dependencies(schema, keyword)

    def _none(self, schema: dict[str, Any], keyword: str, kind: str, children: Iterable[Schema]) -> Sequence[Term]:
        terms: Sequence[Term] = (TOPS[kind],)
        for child in children:
            terms = self._product(kind, terms, self._of(self.no(child), kind), schema, keyword)
        return terms

    def _any(self, schema: dict[str, Any], keyword: str, kind: str) -> Sequence[Term]:
        branches = [terms for child in self.read.schemas(schema, keyword) if (terms := self._of(self.yes(child), kind))]
        if not self.document.unevaluated or kind not in ("object", "array"):
            return self._union(kind, [term for terms in branches for term in terms], schema, keyword)
        # A value may match several branches, and each adds to what is evaluated: all the sets of branches.
        if len(branches) > _MAX_SUBSETS:
            raise self.document.error(schema, keyword, f"more than {_MAX_SUBSETS} branches under unevaluated keywords")
        sets: list[Sequence[Term]] = []
        for terms in branches:
            sets += [terms, *(self._product(kind, earlier, terms, schema, keyword) for earlier in sets)]
        return self._union(kind, [term for terms in sets for term in terms], schema, keyword)

    def _one(self, schema: dict[str, Any], keyword: str, kind: str, context: Sequence[Term]) -> Sequence[Term]:
        """Each branch, with what holds beside it, without those other branches that overlap it there."""
        children = self.read.schemas(schema, keyword)
        branches = [(child, terms) for child in children if (terms := self._of(self.yes(child), kind))]
        found: list[Term] = []
        inside = [self._product(kind, context, terms, schema, keyword) for _, terms in branches]
        for i, terms in enumerate(inside):
            for j, (other, whole) in enumerate(branches):
                if i != j and terms and self._overlap(kind, terms, whole):
                    negative = self._hidden(kind, self._of(self.no(other), kind))
                    terms = self._alive(kind, self._product(kind, terms, negative, schema, keyword))
            found += terms
        return self._union(kind, found, schema, keyword)

    def _overlap(self, kind: str, some: Sequence[Term], others: Sequence[Term]) -> bool:
        for a in some:
            for b in others:
                self.spend(1)
                met = _MEET[kind](a, b)
                if met is not None and not self._doomed(kind, met, 0):
                    return True
        return False

    def _conditional(self, schema: dict[str, Any], kind: str) -> Sequence[Term]:
        if "then" not in schema and "else" not in schema and not self.document.unevaluated:
            return (TOPS[kind],)
        condition = self.read.schema(schema, "if")
        found: list[Term] = []
        for premise, branch in ((self.yes(condition), "then"), (self.no(condition), "else")):
            terms = self._of(premise, kind)
            if branch == "else":
                terms = self._hidden(kind, terms)
            if branch in schema:
                then = self._of(self.yes(self.read.schema(schema, branch)), kind)
                terms = self._product(kind, terms, then, schema, branch)
            found += terms
        return self._union(kind, found, schema, "if")

    def _dependencies(self, schema: dict[str, Any], keyword: str) -> Sequence[Term]:
        """`dependencies`, `dependentRequired` and `dependentSchemas`: for each name, it isn't there or the rest holds."""
        terms: Sequence[Term] = (ANY_OBJECT,)
        for name, then in self._dependents(schema, keyword):
            present = self._product("object", (Objects(required=(name,)),), then, schema, keyword)
            either = [Objects(forbidden=frozenset({name})), *present]
            terms = self._product("object", terms, either, schema, keyword)
        return terms

    def _dependents(self, schema: dict[str, Any], keyword: str) -> list[tuple[str, Sequence[Term]]]:
        value = schema[keyword]
        if not isinstance(value, dict):
            raise self.document.error(schema, keyword, "must be an object")
        found: list[tuple[str, Sequence[Term]]] = []
        for name, then in value.items():
            if isinstance(then, (dict, bool)) and keyword != "dependentRequired":
                found.append((name, self._of(self.yes(then), "object")))
            elif keyword != "dependentSchemas":
                names = [then] if isinstance(then, str) and keyword == "dependencies" else then
                found.append((name, (Objects(required=self.read.names(schema, keyword, names)),)))
            else:
                raise self.document.error(schema, keyword, "must be an object of schemas")
        return found

    def _not_dependencies(self, schema: dict[str, Any], keyword: str) -> Sequence[Term]:
        found: list[Term] = []
        for name, then in schema[keyword].items():
            if isinstance(then, (dict, bool)):
                wrong = self._of(self.no(then), "object")
            else:
                names = [then] if isinstance(then, str) else self.read.names(schema, keyword, then)
                wrong = [Objects(forbidden=frozenset({n})) for n in names]
            found += self._product("object", (Objects(required=(name,)),), wrong, schema, keyword)
        return found

    # Values

    def _listed(self, schema: dict[str, Any], keyword: str) -> list[Any]:
        if keyword == "const":
            return [schema["const"]]
        values = schema["enum"]
        if not isinstance(values, list):
            raise self.document.error(schema, keyword, "must be a list")
        return values

    def _values(self, values: list[Any], kind: str) -> Sequence[Term]:
        own = [value for value in values if kind_of(value) == kind]
        if not own:
            return ()
        if kind == "null":
            return (True,)
        if kind == "boolean":
            return (frozenset(own),)
        if kind == "string":
            return (Strings(frozenset(own)),)
        if kind == "number":
            return (Numbers(frozenset(pair for value in own for pair in number_pairs(value))),)
        return [self._exactly(value) for value in own]

    def _exactly(self, value: Any) -> Objects | Arrays:
        if isinstance(value, dict):
            named = {name: self._const(child) for name, child in value.items()}
            return Objects((KeyGroup(named, (), FALSE, evaluates=False),), tuple(value))
        items = tuple(self._const(child) for child in value)
        return Arrays((ItemGroup(items, FALSE, evaluates=False),), len(value), len(value))

    def _const(self, value: Any) -> Conjunction:
        return self.yes(self.kept({"enum": [value]}))

    def kept(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema of our own making, kept so that its identity stays its own."""
        self.schemas.append(schema)
        self._keys[id(schema)] = len(self.schemas) - 1
        return schema

    def _not_values(self, schema: dict[str, Any], keyword: str, kind: str) -> Sequence[Term]:
        own = [value for value in self._listed(schema, keyword) if kind_of(value) == kind]
        if not own:
            return (TOPS[kind],)
        if kind == "null":
            return ()
        if kind == "boolean":
            rest = frozenset({True, False}) - frozenset(own)
            return (rest,) if rest else ()
        if kind == "string":
            return (Strings(excluded=frozenset(own)),)
        if kind == "number":
            return (Numbers(excluded=frozenset(number_pairs(value)[0][0] for value in own)),)
        terms: Sequence[Term] = (TOPS[kind],)
        for value in own:
            terms = self._product(kind, terms, self._other_than(value), schema, keyword)
        return terms

    def _other_than(self, value: Any) -> Sequence[Term]:
        size = len(value)
        if isinstance(value, dict):
            found: list[Term] = [Objects(forbidden=frozenset({name})) for name in value]
            for name, child in value.items():
                wrong = self.no(self.kept({"enum": [child]}))
                found.append(Objects((KeyGroup({name: wrong}, evaluates=False),), (name,)))
            return [*found, Objects(low=size + 1)]
        found = [Arrays(low=size + 1)]
        if size:
            found.append(Arrays(high=size - 1))
        for index, child in enumerate(value):
            wrong = self.no(self.kept({"enum": [child]}))
            found.append(Arrays((ItemGroup((*[TRUE] * index, wrong), evaluates=False),), low=index + 1))
        return found

    # Unevaluated

    def _hidden(self, kind: str, terms: Sequence[Term]) -> Sequence[Term]:
        """The terms, no longer counting as evaluation."""
        if not self.document.unevaluated or kind not in ("object", "array"):
            return terms
        if kind == "array":
            terms = [evolve(t, contains=tuple(evolve(c, evaluates=False) for c in t.contains)) for t in terms]
        return [evolve(t, groups=tuple(evolve(g, evaluates=False) for g in t.groups)) if t.groups else t for t in terms]

    def _unevaluated(self, schema: dict[str, Any], keyword: str, term: Term) -> Term | None:
        """A term whose unevaluated keys or items match the schema of the keyword."""
        groups = [group for group in term.groups if group.evaluates]
        if any(group.closed for group in groups):
            return term
        rest = self.yes(self.read.schema(schema, keyword))
        if keyword == "unevaluatedItems":
            if self.document.resource(schema).draft is Draft.D2020:
                counted = [self.schemas[key] for c in term.contains if c.evaluates for key in c.child]
                if counted or any(not c.child for c in term.contains if c.evaluates):
                    rest = self.yes(self.kept({"anyOf": [*counted, self.read.schema(schema, keyword)]})) if counted else TRUE
            length = max((len(group.prefix) for group in groups), default=0)
            return meet_arrays(term, Arrays((ItemGroup((TRUE,) * length, rest, closed=True),)))
        named = {name: TRUE for group in groups for name in group.named}
        patterns = tuple((language, TRUE) for group in groups for language, _ in group.patterns)
        return meet_objects(term, Objects((KeyGroup(named, patterns, rest, closed=True),)))

    # Unions

    def spend(self, amount: int) -> None:
        """Count work; refuse a schema that needs too much of it."""
        before = self._work
        self._work += amount
        if self._work > MAX_WORK:
            raise limit_reached("", "", "work", MAX_WORK)
        if before >> 8 != self._work >> 8 and time.monotonic() > self._deadline:
            raise limit_reached("", "", "max_seconds", self._options.max_seconds)

    def _product(
        self, kind: str, some: Sequence[Term], others: Sequence[Term], schema: dict[str, Any], keyword: str
    ) -> Sequence[Term]:
        """All that is in both unions."""
        top = TOPS[kind]
        if len(others) == 1 and others[0] is top:
            return some
        if len(some) == 1 and some[0] is top:
            return others
        self.spend(len(some) * len(others))
        meet = _MEET[kind]
        return self._union(kind, [m for a in some for b in others if (m := meet(a, b)) is not None], schema, keyword)

    def _union(self, kind: str, terms: Sequence[Term], schema: dict[str, Any], keyword: str) -> Sequence[Term]:
        if len(terms) < 2:
            return terms
        top = TOPS[kind]
        # What other terms evaluate still matters where something is unevaluated.
        if not (self.document.unevaluated and kind in ("object", "array")) and any(term == top for term in terms):
            return (top,)
        unique = list(dict.fromkeys(_merged(kind, terms)))
        if len(unique) > 8:
            unique = list(self._alive(kind, unique))
        if len(unique) > MAX_ALTERNATIVES:
            pointer = self.document.pointer(schema)
            raise limit_reached(pointer, keyword, "alternatives", MAX_ALTERNATIVES)
        return unique

    def _alive(self, kind: str, terms: Sequence[Term]) -> Sequence[Term]:
        if kind != "object" or len(terms) < 2:
            return terms
        return [term for term in terms if not self._doomed(kind, term, 0)]

    def _doomed(self, kind: str, term: Term, depth: int) -> bool:
        """Whether a term is surely empty: a key or item that must be there can't."""
        if kind == "object":
            for name in term.required:
                if self._hopeless(child_of(term, name), depth):
                    return True
        elif kind == "array":
            return any(self._hopeless(item_of(term, index), depth) for index in range(min(term.low, 8)))
        return False

    def _hopeless(self, conjunction: Conjunction, depth: int) -> bool:
        """Whether nothing matches a conjunction, as far as a short look tells; False where unsure."""
        if 0 in conjunction:
            return True
        if depth >= _PROBE_DEPTH or (len(conjunction) < 2 and min(conjunction, default=1) > 0):
            return False
        found = self._empty.get(conjunction)
        if found is None:
            try:
                found = all(
                    all(self._doomed(kind, term, depth + 1) for term in self.conjunction(conjunction, kind)) for kind in KINDS
                )
            except SchemaError:  # what is beyond us, or still being worked out, is refused where it's needed
                return False
            if found or depth == 0:
                self._empty[conjunction] = found
        return found


def _merged(kind: str, terms: Sequence[Term]) -> Sequence[Term]:
    """The terms, with all their finite sets as one."""
    if kind == "string":
        words = frozenset().union(*(term.words for term in terms if term.words is not None))
        return [*([Strings(words)] if words else ()), *(term for term in terms if term.words is None)]
    if kind == "number":
        values = frozenset().union(*(term.values for term in terms if term.values is not None))
        return [*([Numbers(values)] if values else ()), *(term for term in terms if term.values is None)]
    return [frozenset().union(*terms)] if kind == "boolean" else terms


def child_of(term: Objects, name: str) -> Conjunction:
    """What the value of a key must match."""
    if name in term.forbidden:
        return FALSE
    met = TRUE
    for group in term.groups:
        child = group.of(name)
        if child and child != met:
            met = both(met, child)
    return met


def item_of(term: Arrays, index: int) -> Conjunction:
    """What the item at an index must match."""
    met = TRUE
    for group in term.groups:
        met = both(met, group.of(index))
    return met

