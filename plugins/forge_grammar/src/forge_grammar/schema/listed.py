"""Listed values (`enum`, `const`) and their negations, as unions of terms of one kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from forge_grammar.schema.subschemas import Subschemas
from forge_grammar.schema.terms import (
    FALSE,
    TRUE,
    Arrays,
    Conjunction,
    ItemGroup,
    KeyGroup,
    Numbers,
    Objects,
    Strings,
)  # fmt: skip
from forge_grammar.schema.unions import TOPS, Term
from forge_grammar.schema.values import kind_of, number_pairs


class Listed(Subschemas):
    """Terms of listed values. Errors of all methods: `SchemaError`."""

    def _listed(self, schema: dict[str, Any], keyword: str) -> list[Any]:
        values = [schema["const"]] if keyword == "const" else schema["enum"]
        if not isinstance(values, list):
            raise self.document.error(schema, keyword, "must be a list")
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise self.document.error(schema, keyword, "a number that isn't finite")
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
