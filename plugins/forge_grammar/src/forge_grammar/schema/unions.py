"""Unions of terms: products, what is surely empty among them, and the work that all this may cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from forge_grammar.options import GrammarOptions
from forge_grammar.schema.document import Document
from forge_grammar.schema.errors import SchemaError, limit_reached
from forge_grammar.schema.terms import (
    ANY_ARRAY,
    ANY_NUMBER,
    ANY_OBJECT,
    ANY_STRING,
    FALSE,
    TRUE,
    Arrays,
    Conjunction,
    Numbers,
    Objects,
    Strings,
    both,
    meet_arrays,
    meet_booleans,
    meet_numbers,
    meet_objects,
    meet_strings,
)
from forge_grammar.schema.values import KINDS

Term: TypeAlias = Any
"""True (null), frozenset[bool], Numbers, Strings, Arrays or Objects, by kind."""

_PROBE_DEPTH = 4

TOPS: dict[str, Term] = {
    "null": True, "boolean": frozenset({False, True}), "number": ANY_NUMBER, "string": ANY_STRING, "array": ANY_ARRAY,
    "object": ANY_OBJECT,
}  # fmt: skip
_MEET: dict[str, Callable[[Term, Term], Term | None]] = {
    "null": lambda a, b: True, "boolean": meet_booleans, "number": meet_numbers, "string": meet_strings,
    "array": meet_arrays, "object": meet_objects,
}  # fmt: skip


class Unions:
    """Operations on unions of terms. Errors of all methods: `SchemaError`."""

    def __init__(self, document: Document, options: GrammarOptions) -> None:
        self.document = document
        self._options = options
        self._deadline = time.monotonic() + options.max_seconds
        self._work = 0
        self._empty: dict[Conjunction, bool] = {}
        self._words: dict[Conjunction, frozenset[str] | None] = {}

    def conjunction(self, conjunction: Conjunction, kind: str) -> Sequence[Term]:
        """The values of a kind that match a conjunction, as a union of terms."""
        raise NotImplementedError

    def kinds(self, conjunction: Conjunction) -> frozenset[str]:
        """The kinds of values that a conjunction can have: as a short look tells, some of them none."""
        raise NotImplementedError

    def spend(self, amount: int) -> None:
        """Count work; refuse a schema that needs too much of it."""
        before = self._work
        self._work += amount
        if self._work > self._options.max_steps:
            raise limit_reached("", "", "max_steps", self._options.max_steps)
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
        if len(unique) > self._options.max_alternatives:
            pointer = self.document.pointer(schema)
            raise limit_reached(pointer, keyword, "max_alternatives", self._options.max_alternatives)
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
                    all(self._doomed(kind, term, depth + 1) for term in self.conjunction(conjunction, kind))
                    for kind in KINDS
                )
            except SchemaError:  # what is beyond us, or still being worked out, is refused where it's needed
                return False
            if found or depth == 0:
                self._empty[conjunction] = found
        return found

    def _overlap(self, kind: str, some: Sequence[Term], others: Sequence[Term]) -> bool:
        for a in some:
            for b in others:
                self.spend(1)
                if kind == "object" and self._told_apart(a, b):
                    continue
                met = _MEET[kind](a, b)
                if met is not None and not self._doomed(kind, met, 0):
                    return True
        return False

    def _told_apart(self, a: Objects, b: Objects) -> bool:
        """Whether a key that must be there has listed values in both, none in common: sooner found than what meets."""
        for name in a.required or b.required:
            words = self._listed_words(child_of(a, name))
            if words is not None:
                others = self._listed_words(child_of(b, name))
                if others is not None and words.isdisjoint(others):
                    return True
        return False

    def _listed_words(self, conjunction: Conjunction) -> frozenset[str] | None:
        """The values of a conjunction where they are a list of strings; None for others."""
        try:
            return self._words[conjunction]
        except KeyError:
            self._words[conjunction] = None  # while it is being found out
        try:
            terms = self.conjunction(conjunction, "string") if self.kinds(conjunction) == {"string"} else (ANY_STRING,)
        except SchemaError:  # refused where it's needed
            return None
        if all(term.words is not None for term in terms):
            self._words[conjunction] = frozenset().union(*(term.words for term in terms))
        return self._words[conjunction]


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


def declared_children(term: Objects) -> dict[str, Conjunction]:
    """What the value of each declared name must match, in order."""
    names = dict.fromkeys(name for group in term.groups for name in group.named)
    names.update(dict.fromkeys(term.required))
    names.update(dict.fromkeys(sorted(term.forbidden)))
    return {name: child_of(term, name) for name in names}


def merged_children(term: Objects) -> tuple[dict[str, Conjunction], Conjunction]:
    """The same where no group has patterns, sooner; and what all other values must match."""
    named: dict[str, Conjunction] = {}
    rest = TRUE
    for group in term.groups:
        if not named and not rest:
            named = group.named.copy()
        else:
            for name in named.keys() - group.named.keys() if group.rest else ():
                named[name] = both(named[name], group.rest)
            for name, child in group.named.items():
                named[name] = both(named.get(name, rest), child)
        rest = both(rest, group.rest)
    for name in term.required:
        if name not in named:
            named[name] = rest
    for name in sorted(term.forbidden):
        named[name] = FALSE
    return named, rest


def item_of(term: Arrays, index: int) -> Conjunction:
    """What the item at an index must match."""
    met = TRUE
    for group in term.groups:
        met = both(met, group.of(index))
    return met
