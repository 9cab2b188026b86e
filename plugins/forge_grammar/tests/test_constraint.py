"""The constraint as Forge calls it: what each specification is lowered to, and what its answers may be."""

from __future__ import annotations

from typing import Any

import pytest
from forge_grammar.constraint import GrammarConstraint
from forge_grammar.options import GrammarOptions

from forge.interfaces.constraint import Vocabulary

BYTES = tuple(bytes([byte]) for byte in range(256))
VOCABULARY = Vocabulary((*BYTES, b""), frozenset(), (256,), 257)
SCHEMA: dict[str, Any] = {
    "properties": {"b": {"type": "integer"}, "a": {"type": "integer"}},
    "required": ["a", "b"],
    "type": "object",
    "additionalProperties": False,
}


def accepts(constraint: GrammarConstraint, lowered: bytes, text: str) -> bool:
    """Whether a text is a whole answer."""
    tokens = [*text.encode(), 256]
    return constraint.compile(lowered, VOCABULARY).matcher().validate(tokens) == len(tokens)


@pytest.mark.parametrize(
    ("key_order", "strict", "any_order"),
    [
        ("strict", False, True),
        ("strict", True, False),
        ("schema", False, False),
        ("schema", True, False),
        ("any", False, True),
        ("any", True, True),
    ],
)
def test_keys_are_ordered_as_the_option_and_the_request_say(key_order: Any, strict: bool, any_order: bool) -> None:
    constraint = GrammarConstraint(GrammarOptions(key_order=key_order))
    lowered = constraint.lower("json_schema", SCHEMA, strict=strict)
    assert accepts(constraint, lowered, '{"b":1,"a":2}')
    assert accepts(constraint, lowered, '{"a":1,"b":2}') == any_order


def test_by_default_a_schema_is_exact_and_a_strict_request_ordered() -> None:
    constraint = GrammarConstraint(GrammarOptions())
    assert accepts(constraint, constraint.lower("json_schema", SCHEMA), '{"a":1,"b":2}')
    assert not accepts(constraint, constraint.lower("json_schema", SCHEMA, strict=True), '{"a":1,"b":2}')
