"""Unevaluated keys and items: what counts as evaluated, and what the others must match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve

from forge_grammar.schema.drafts import Draft
from forge_grammar.schema.subschemas import Subschemas
from forge_grammar.schema.terms import TRUE, Arrays, ItemGroup, KeyGroup, Objects, meet_arrays, meet_objects
from forge_grammar.schema.unions import Term


class Unevaluated(Subschemas):
    """Terms under unevaluated keywords. Errors of all methods: `SchemaError`."""

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
                    rest = (
                        self.yes(self.kept({"anyOf": [*counted, self.read.schema(schema, keyword)]}))
                        if counted
                        else TRUE
                    )
            length = max((len(group.prefix) for group in groups), default=0)
            return meet_arrays(term, Arrays((ItemGroup((TRUE,) * length, rest, closed=True),)))
        named = {name: TRUE for group in groups for name in group.named}
        patterns = tuple((language, TRUE) for group in groups for language, _ in group.patterns)
        return meet_objects(term, Objects((KeyGroup(named, patterns, rest, closed=True),)))
