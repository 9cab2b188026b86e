"""Registers the `grammar` constraint; imports nothing heavy."""

from __future__ import annotations

from forge import Component, hookimpl
from forge_grammar.options import GrammarOptions


@hookimpl
def forge_constraints() -> list[Component]:
    """Structured output."""
    return [
        Component(
            name="grammar",
            factory="forge_grammar.constraint:GrammarConstraint",
            options=GrammarOptions,
            summary="JSON Schema, regular expressions and choices, enforced exactly or refused",
        )
    ]
