"""Keywords that are of several kinds of values (`allOf`, `anyOf`, `oneOf`, `not`, `if`, references, dependencies), and
their negations, as unions of terms of one kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from forge_grammar.schema.document import Schema
from forge_grammar.schema.listed import Listed
from forge_grammar.schema.terms import ANY_OBJECT, Objects
from forge_grammar.schema.unevaluated import Unevaluated
from forge_grammar.schema.unions import TOPS, Term

_MAX_SUBSETS = 6


class Parts(Listed, Unevaluated):
    """Terms of keywords. Errors of all methods: `SchemaError`."""

    def _part(self, schema: dict[str, Any], keyword: str, kind: str) -> Sequence[Term]:
        """A keyword that is of several kinds."""
        match keyword:
            case "enum" | "const":
                return self._values(self._listed(schema, keyword), kind)
            case "$ref":
                return self.conjunction(self.yes(self.document.refer(schema, keyword)), kind)
            case "$dynamicRef" | "$recursiveRef":
                return self.conjunction(self.yes(self.document.dynamic(schema, keyword)), kind)
            case "not":
                return self._hidden(kind, self.conjunction(self.no(self.read.schema(schema, keyword)), kind))
            case "allOf":
                terms: Sequence[Term] = (TOPS[kind],)
                for child in self.read.schemas(schema, keyword):
                    terms = self._product(kind, terms, self.conjunction(self.yes(child), kind), schema, keyword)
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
                return self.conjunction(self.no(self.document.refer(schema, keyword)), kind)
            case "$dynamicRef" | "$recursiveRef":
                return self.conjunction(self.no(self.document.dynamic(schema, keyword)), kind)
            case "not":
                return self.conjunction(self.yes(self.read.schema(schema, keyword)), kind)
            case "allOf":
                return [
                    t for child in self.read.schemas(schema, keyword) for t in self.conjunction(self.no(child), kind)
                ]
            case "anyOf":
                return self._none(schema, keyword, kind, self.read.schemas(schema, keyword))
            case "oneOf":
                children = self.read.schemas(schema, keyword)
                found = list(self._none(schema, keyword, kind, children))
                positive = [self.conjunction(self.yes(child), kind) for child in children]
                for i, some in enumerate(positive):
                    for others in positive[:i]:
                        found += self._product(kind, some, others, schema, keyword)
                return found
            case "if":
                condition = self.read.schema(schema, "if")
                found = []
                for premise, branch in ((self.yes(condition), "then"), (self.no(condition), "else")):
                    if branch in schema:
                        wrong = self.conjunction(self.no(self.read.schema(schema, branch)), kind)
                        found += self._product(kind, self.conjunction(premise, kind), wrong, schema, branch)
                return found
        return self._not_dependencies(schema, keyword)

    def _none(self, schema: dict[str, Any], keyword: str, kind: str, children: Iterable[Schema]) -> Sequence[Term]:
        terms: Sequence[Term] = (TOPS[kind],)
        for child in children:
            terms = self._product(kind, terms, self.conjunction(self.no(child), kind), schema, keyword)
        return terms

    def _any(self, schema: dict[str, Any], keyword: str, kind: str) -> Sequence[Term]:
        children = self.read.schemas(schema, keyword)
        if not self.document.unevaluated or kind not in ("object", "array"):
            found: list[Term] = []
            for child in children:
                terms = self.conjunction(self.yes(child), kind)
                if TOPS[kind] in terms:  # nothing to add
                    return (TOPS[kind],)
                found += terms
            return self._union(kind, found, schema, keyword)
        branches = [terms for child in children if (terms := self.conjunction(self.yes(child), kind))]
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
        branches = [(child, terms) for child in children if (terms := self.conjunction(self.yes(child), kind))]
        found: list[Term] = []
        inside = [self._product(kind, context, terms, schema, keyword) for _, terms in branches]
        for i, terms in enumerate(inside):
            for j, (other, whole) in enumerate(branches):
                if i != j and terms and self._overlap(kind, terms, whole):
                    negative = self._hidden(kind, self.conjunction(self.no(other), kind))
                    terms = self._alive(kind, self._product(kind, terms, negative, schema, keyword))
            found += terms
        return self._union(kind, found, schema, keyword)

    def _conditional(self, schema: dict[str, Any], kind: str) -> Sequence[Term]:
        if "then" not in schema and "else" not in schema and not self.document.unevaluated:
            return (TOPS[kind],)
        condition = self.read.schema(schema, "if")
        found: list[Term] = []
        for premise, branch in ((self.yes(condition), "then"), (self.no(condition), "else")):
            terms = self.conjunction(premise, kind)
            if branch == "else":
                terms = self._hidden(kind, terms)
            if branch in schema:
                then = self.conjunction(self.yes(self.read.schema(schema, branch)), kind)
                terms = self._product(kind, terms, then, schema, branch)
            found += terms
        return self._union(kind, found, schema, "if")

    def _dependencies(self, schema: dict[str, Any], keyword: str) -> Sequence[Term]:
        """`dependencies`, `dependentRequired`, `dependentSchemas`: each name isn't there, or what it asks for holds."""
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
                found.append((name, self.conjunction(self.yes(then), "object")))
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
                wrong = self.conjunction(self.no(then), "object")
            else:
                names = [then] if isinstance(then, str) else self.read.names(schema, keyword, then)
                wrong = [Objects(forbidden=frozenset({n})) for n in names]
            found += self._product("object", (Objects(required=(name,)),), wrong, schema, keyword)
        return found
