"""Conjunctions of subschemas as unions of terms, one JSON kind at a time, with negation pushed down to the keywords."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forge_grammar.options import GrammarOptions
from forge_grammar.schema.document import Document
from forge_grammar.schema.drafts import Draft
from forge_grammar.schema.parts import Parts
from forge_grammar.schema.scalars import Scalars
from forge_grammar.schema.shapes import Shapes
from forge_grammar.schema.subschemas import LATE, Info
from forge_grammar.schema.terms import Conjunction, Numbers
from forge_grammar.schema.unions import TOPS, Term

_OBJECT_PARTS = frozenset({"dependencies", "dependentRequired", "dependentSchemas"})


class Algebra(Parts):
    """The terms of conjunctions of a document's subschemas. Errors of all methods: `SchemaError`."""

    def __init__(self, document: Document, options: GrammarOptions) -> None:
        super().__init__(document, options)
        self.scalars = Scalars(self.read, options.unknown_formats == "annotation")
        self.shapes = Shapes(self.read, self.scalars, self)
        self._terms: dict[tuple[int, str], tuple[Term, ...]] = {}
        self._met: dict[tuple[Conjunction, str], Sequence[Term]] = {}
        self._active: set[tuple[int, str]] = set()

    def conjunction(self, conjunction: Conjunction, kind: str) -> Sequence[Term]:
        """The values of a kind that match a conjunction, as a union of terms."""
        if len(conjunction) < 2:
            for key in conjunction:
                return self.terms(key, kind) if key else ()
            return (TOPS[kind],)
        at = conjunction, kind
        found = self._met.get(at)
        if found is None:
            found = self._met[at] = self._meet(conjunction, kind)
        return found

    def _meet(self, conjunction: Conjunction, kind: str) -> Sequence[Term]:
        if kind not in self.kinds(conjunction):
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
            if key > 0 and kind not in self.kinds_of(key):
                return ()
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
            if kind == LATE[part]:
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
            if kind == LATE[part]:
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
