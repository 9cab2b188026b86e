"""The constraint as Forge calls it: what each specification is lowered to, and what its answers may be."""

from __future__ import annotations

from typing import Any

import pytest
from forge_grammar.constraint import GrammarConstraint
from forge_grammar.options import GrammarOptions

from forge.errors import InvalidRequest
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


CALL: dict[str, Any] = {"properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "type": "object",
                        "additionalProperties": False}  # fmt: skip
TAG: dict[str, Any] = {
    "structures": [
        {"begin": "<call=weather>", "schema": CALL, "end": "</call>"},
        {"begin": "<call=wait>", "schema": {"type": "integer", "minimum": 0}, "end": "</call>"},
        {"begin": "[", "schema": {"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "end": "]"},
    ],
    "triggers": ["<call", "["],
}


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", True),
        ("free text, <b>with</b> tags and < signs <cal", True),
        ('x <call=weather>{"city":"Oslo"}</call> y', True),
        ('<call=weather>{"city":"Rome"}</call><call=wait>5</call>', True),
        ("<call=wait>17</call>.", True),
        ("[[null]] and [[ ]]", True),
        ('<call=weather>{"city":"Bonn"}</call>', False),
        ("<call=other>1</call>", False),
        ("<call", False),
        ("<call=wait>", False),
        ("<call=wait>1", False),
        ("<call=wait>1</call", False),
        ("<call=wait>-1</call>", False),
        ('<call=wait>{"city":"Oslo"}</call>', False),
        ("[[null,null]]", False),
        ("[1]", False),
    ],
)
def test_structures_follow_their_triggers_in_free_text(text: str, accepted: bool) -> None:
    constraint = GrammarConstraint(GrammarOptions())
    assert accepts(constraint, constraint.lower("structural_tag", TAG), text) is accepted


def test_what_follows_a_trigger_is_forced_as_far_as_the_structures_agree() -> None:
    constraint = GrammarConstraint(GrammarOptions(whitespace=0))
    matcher = constraint.compile(constraint.lower("structural_tag", TAG), VOCABULARY).matcher()
    assert matcher.is_final
    assert all(map(matcher.accept, b"so: <call"))
    assert matcher.forced() == b"=w"
    assert all(map(matcher.accept, b"=we"))
    assert matcher.forced() == b'ather>{"city":"'
    matcher.rollback(3)
    assert all(map(matcher.accept, b"=wait>0"))
    assert not matcher.is_final
    assert matcher.forced() == b"</call>"


def test_the_earliest_trigger_acts_even_within_the_beginning_of_another() -> None:
    tag = {
        "structures": [
            {"begin": "xabc", "schema": {"const": 1}, "end": ""},
            {"begin": "ab", "schema": {"const": 2}, "end": ";"},
        ],
        "triggers": ["xabc", "ab"],
    }
    constraint = GrammarConstraint(GrammarOptions())
    lowered = constraint.lower("structural_tag", tag)
    assert accepts(constraint, lowered, "xab2; xa")
    assert not accepts(constraint, lowered, "xabc1")


STRUCTURE = TAG["structures"][1]


@pytest.mark.parametrize(
    ("tag", "place"),
    [
        ([], None),
        ({"structures": [STRUCTURE]}, "/triggers"),
        ({"structures": [], "triggers": ["<"]}, "/structures"),
        ({"structures": [STRUCTURE], "triggers": ["<"], "at_least_one": True}, "/at_least_one"),
        ({"type": "text", "structures": [STRUCTURE], "triggers": ["<"]}, "/type"),
        ({"structures": [STRUCTURE], "triggers": [""]}, "/triggers/0"),
        ({"structures": [STRUCTURE], "triggers": ["<", 5]}, "/triggers/1"),
        ({"structures": [STRUCTURE], "triggers": ["<", "["]}, "/triggers/1"),
        ({"structures": [5], "triggers": ["<"]}, "/structures/0"),
        ({"structures": [{"begin": "<", "end": ""}], "triggers": ["<"]}, "/structures/0"),
        ({"structures": [{**STRUCTURE, "tail": ""}], "triggers": ["<"]}, "/structures/0/tail"),
        ({"structures": [{**STRUCTURE, "end": None}], "triggers": ["<"]}, "/structures/0/end"),
        ({"structures": [{**STRUCTURE, "begin": "x"}], "triggers": ["<"]}, "/structures/0/begin"),
        ({"structures": [STRUCTURE, STRUCTURE], "triggers": ["<"]}, "/structures/0/begin"),
        ({"structures": [STRUCTURE, {**STRUCTURE, "begin": "<c"}], "triggers": ["<"]}, "/structures/1/begin"),
        ({"structures": [{**STRUCTURE, "schema": {"not": {}}}], "triggers": ["<"]}, "/structures/0/schema"),
    ],
)
def test_a_structural_tag_that_isnt_one_is_refused_with_its_place(tag: Any, place: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        GrammarConstraint(GrammarOptions()).lower("structural_tag", tag)
    assert (refused.value.param or "").startswith(place or "")
    assert place is not None or not refused.value.param


def test_items_that_cant_all_be_distinct_are_refused_with_their_place() -> None:
    schema = {"properties": {"a": {"type": "array", "items": CALL, "minItems": 3, "uniqueItems": True}}}
    with pytest.raises(InvalidRequest, match="distinct") as refused:
        GrammarConstraint(GrammarOptions()).lower("json_schema", schema)
    assert refused.value.param == "/properties/a/uniqueItems"
