"""The Python machine on strings, numbers, literals, gaps and raw text."""

from __future__ import annotations

import json

import pytest
from forge_grammar.machine.grammar import Program as Machine
from forge_grammar.machine.machine import Configuration, accepts_text, viable_prefix
from forge_grammar.program import (
    NONE,
    ArrayShape,
    ObjectShape,
    Program,
    Property,
    RootKind,
    StringTerm,
    Trigger,
    TypeNode,
    flatten,
)
from forge_grammar.regular.language import Language

ANY = Language.any()
INTEGER = Language.regex(r"-?(0|[1-9][0-9]{0,3})", whole=True)


def value(node: TypeNode, *languages: Language, **options: object) -> Machine:
    """A machine for one JSON value of a type."""
    return machine(Program(RootKind.JSON, 0, [node], languages=[x.to_bytes() for x in languages], **options))


def machine(program: Program) -> Machine:
    return Machine.of(flatten(program))


def string(language: Language, low: int = 0, high: int = NONE, *excluded: str) -> Machine:
    return value(TypeNode(strings=(StringTerm(0, low, high, excluded),)), language)


def ways_on(configuration: Configuration) -> bytes:
    return bytes(byte for byte in range(256) if configuration.step(byte))


def after(machine_: Machine, text: str | bytes) -> Configuration:
    configuration = Configuration.start(machine_).run(text.encode() if isinstance(text, str) else text)
    assert configuration is not None
    return configuration


@pytest.mark.parametrize("text", ["", "a", "é", "😀", "\x7f", "\u2028", 'q"\\/\b\f\n\r\t', "\x00\x1f", "\uffff", "𝄞x"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_free_string_is_whatever_python_writes(text: str, ascii_only: bool) -> None:
    assert accepts_text(string(ANY), json.dumps(text, ensure_ascii=ascii_only).encode())


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        (b'"\n"', 1),
        (b'"\\x"', 2),
        (b'"\\u00g0"', 5),
        (b'"\\u0041"', 5),  # printable ASCII is written as it is
        (b'"\\u0022"', 5),
        (b'"\\udc00"', 4),  # a low surrogate first
        (b'"\\ud800"', 7),  # a high surrogate alone
        (b'"\\ud800\\n"', 8),
        (b'"\\ud800\\u0041"', 9),
        (b'"\\ud800\\ud800"', 10),
        (b'"\xc0\x80"', 1),  # overlong
        (b'"\xe0\x80\x80"', 2),
        (b'"\xed\xa0\x80"', 2),  # a surrogate in UTF-8
        (b'"\xf4\x90\x80\x80"', 2),  # beyond the last code point
        (b'"\xf5"', 1),
        (b'"\x80"', 1),
        (b'"\xc3"', 2),
        (b'"a"b', 3),
        (b' "a"', 0),
    ],
)
def test_what_is_no_string_is_refused_at_the_first_byte_that_cant_be_mended(text: bytes, prefix: int) -> None:
    assert viable_prefix(string(ANY), text) == prefix
    assert not accepts_text(string(ANY), text)


@pytest.mark.parametrize("text", [b'"\\u00E9"', b'"\\ud83D\\uDe00"', b'"\\u007f"', b'"\\u000a"', b'"\\u001F"'])
def test_hexadecimal_digits_may_have_either_case(text: bytes) -> None:
    assert accepts_text(string(ANY), text)


def test_lengths_count_code_points_beside_a_pattern_and_through_escapes() -> None:
    letters = string(Language.regex("^[aé😀]*$"), 2, 3)
    for good in ['"aé"', '"😀😀😀"', r'"\u00e9\ud83d\ude00a"', r'"a\u00E9"']:
        assert accepts_text(letters, good.encode()), good
    for bad in ['"a"', '"aaaa"', r'"a\u00e8"', '"ab"']:
        assert not accepts_text(letters, bad.encode()), bad
    assert ways_on(after(letters, '"aéa')) == b'"'
    assert ways_on(after(letters, '"a')) == b"\\a\xc3\xf0"


def test_a_character_that_has_begun_is_followed_only_by_what_the_pattern_allows() -> None:
    language = string(Language.regex("^[é😀]$"))
    assert ways_on(after(language, b'"\xc3')) == b"\xa9"
    assert ways_on(after(language, b'"\xf0\x9f')) == b"\x98"
    assert ways_on(after(language, b'"\\')) == b"u"
    assert ways_on(after(language, b'"\\u')) == b"0Dd"
    assert ways_on(after(language, b'"\\u0')) == b"0"
    assert ways_on(after(language, b'"\\u00e')) == b"9"
    assert ways_on(after(language, b'"\\ud83d')) == b"\\"
    assert ways_on(after(language, b'"\\ud83d\\u')) == b"Dd"
    assert ways_on(after(language, b'"\\ud83d\\ude')) == b"0"


def test_a_forbidden_character_is_forbidden_escaped_too() -> None:
    language = string(Language.regex("^[^\\n\\\\]*$"))
    assert accepts_text(language, rb'"\t\u2028"')
    assert not accepts_text(language, rb'"\n"')
    assert not accepts_text(language, rb'"\u000a"')
    assert not accepts_text(language, rb'"\\"')


def test_lengths_that_no_word_has_lead_nowhere() -> None:
    # Words of even length, at least five code points: six at least.
    language = string(Language.regex("^(ab|ba)*$"), 5, 7)
    assert accepts_text(language, b'"ababab"')
    assert ways_on(after(language, '"abab')) == b"ab"
    assert ways_on(after(language, '"ababab')) == b'"'


def test_an_excluded_string_is_refused_at_its_end_only_where_others_go_on() -> None:
    language = string(Language.regex("^(ab|abc|b)$"), 0, NONE, "ab", "b")
    assert ways_on(after(language, '"')) == b"a"
    assert ways_on(after(language, '"ab')) == b"c"
    assert accepts_text(language, b'"abc"')
    assert not accepts_text(string(ANY, 0, NONE, "ab"), rb'"ab"')
    assert not accepts_text(string(ANY, 0, NONE, "é"), rb'"\u00e9"')
    assert not accepts_text(string(ANY, 0, NONE, "\n"), rb'"\u000A"')


def test_exclusions_that_leave_no_word_of_the_allowed_lengths_close_the_way() -> None:
    language = string(Language.regex("^a*$"), 1, 2, "a")
    assert ways_on(after(language, '"')) == b"a"
    assert ways_on(after(language, '"a')) == b"a"
    two = string(Language.regex("^[ab]*$"), 0, 2, "", "a", "aa", "ab", "b", "ba")
    assert ways_on(after(two, '"')) == b"b"
    assert ways_on(after(two, '"b')) == b"b"


@pytest.mark.parametrize("scalar", ['a"b', "é\n", "\x01", "", None, True, False, 0, -12, 1.5, 1e30])
def test_literals_are_accepted_in_their_canonical_form(scalar: object) -> None:
    text = json.dumps(scalar, ensure_ascii=False)
    literals = value(TypeNode(literals=tuple(sorted({text, '"ab"', "1", "12"}))))
    assert accepts_text(literals, text.encode())


def test_literals_are_accepted_in_no_other_form() -> None:
    literals = value(TypeNode(literals=('"é"', '"ab"', "12", "1", "null")))
    for bad in [rb'"\u00e9"', b'"a"', b'"abc"', b"123", b"1.0", b"2", b"nul", b"true"]:
        assert not accepts_text(literals, bad), bad
    assert ways_on(after(literals, "1")) == b"2"
    assert after(literals, "1").is_final
    assert not after(literals, "nul").is_final


def test_literal_and_language_alternatives_are_read_side_by_side() -> None:
    union = value(
        TypeNode(literals=('"abc"', "true"), strings=(StringTerm(0), StringTerm(1, 4)), numbers=(2,)),
        Language.regex("^x"),
        Language.regex("^a*$"),
        INTEGER,
    )
    for good in ['"abc"', '"xyz"', '"aaaa"', "true", "-7"]:
        assert accepts_text(union, good.encode()), good
    assert ways_on(after(union, '"a')) == b"ab"
    assert ways_on(after(union, "")) == b'"-0123456789t'


def test_numbers_end_where_something_else_begins() -> None:
    numbers = machine(
        Program(
            RootKind.JSON,
            0,
            [TypeNode(arrays=(0,)), TypeNode(numbers=(0,))],
            [ArrayShape(rest=1)],
            languages=[INTEGER.to_bytes()],
        )
    )
    for good in ["[0,-1, 20]", "[1\n]", "[1]"]:
        assert accepts_text(numbers, good.encode()), good
    for bad in ["[01]", "[-]", "[-,1]", "[1 ,2]", "[12345]", "[1", "[1.]"]:
        assert not accepts_text(numbers, bad.encode()), bad
    assert ways_on(after(numbers, "[-")) == b"0123456789"


NESTED = Program(
    RootKind.JSON,
    0,
    [TypeNode(objects=(0,)), TypeNode(arrays=(0,)), TypeNode(literals=("1",))],
    [ArrayShape(rest=2, maximum=2)],
    [ObjectShape((Property("a", 1, True),))],
    whitespace=3,
)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":[1,1]}',
        '{   "a":[1]}',
        '{ \r\n  "a": \n \t[\n1,\n 1\n ]\n}',
        '{"a":[]}',
        '{"a":[ \n ]}',
    ],
)
def test_gaps_may_stand_between_the_tokens_of_json(text: str) -> None:
    assert accepts_text(machine(NESTED), text.encode())


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ('{    "a"', 4),  # one blank too many
        ('{\n\n"a"', 2),  # two line breaks
        ('{\r"a"', 2),  # half of one
        ('{"a" :', 4),
        ('{"a":[1 ,1]}', 8),
        (' {"a":[1]}', 0),
        ('{"a":[1]}\n', 9),
        ("{ }", 2),
    ],
)
def test_gaps_are_bounded_and_nowhere_else(text: str, prefix: int) -> None:
    assert viable_prefix(machine(NESTED), text.encode()) == prefix


def test_no_gap_opens_before_a_bracket_that_may_not_close() -> None:
    two = machine(
        Program(RootKind.JSON, 0, [TypeNode(arrays=(0,)), TypeNode(literals=("1",))], [ArrayShape((), 1, 2, 2)])
    )
    assert ways_on(after(two, "[1")) == b","
    assert ways_on(after(two, "[1,1")) == b"\t\n\r ]"
    assert ways_on(after(two, "[1,1 ")) == b"\t\n\r ]"


def test_without_white_space_there_is_none() -> None:
    tight = machine(
        Program(
            RootKind.JSON, 0, [TypeNode(arrays=(0,)), TypeNode(literals=("1",))], [ArrayShape(rest=1)], whitespace=0
        )
    )
    assert accepts_text(tight, b"[1,1]")
    for bad in [b"[ 1]", b"[\n1]", b"[1,\n1]", b"[1 ]"]:
        assert not accepts_text(tight, bad)


def test_raw_text_follows_its_language_without_json() -> None:
    text = machine(Program(RootKind.TEXT, 0, languages=[Language.regex('(é"|b\n)+', whole=True).to_bytes()]))
    assert accepts_text(text, 'é"b\né"'.encode())
    assert not accepts_text(text, b"")
    assert ways_on(after(text, "")) == b"b\xc3"
    assert ways_on(after(text, b"\xc3")) == b"\xa9"
    assert ways_on(after(text, "é")) == b'"'
    assert not after(text, b'\xc3\xa9"\xc3').is_final


TRIGGERS = Program(
    RootKind.TRIGGERS,
    types=[TypeNode(literals=('"x"', "12")), TypeNode(objects=(0,))],
    objects=[ObjectShape()],
    triggers=[Trigger("<a>", 0, "</a>"), Trigger("<<b>", 1, "")],
)


@pytest.mark.parametrize(
    "text", ["", "free < text", '<a>"x"</a>', 'so <a>"x"</a> and <<a>12</a><<b>{} end', "<<b>{}<<b>{}", "\xff"]
)
def test_triggers_begin_values_in_free_text(text: str) -> None:
    assert accepts_text(machine(TRIGGERS), text.encode("latin-1"))


@pytest.mark.parametrize(
    ("text", "prefix"), [('<a>"y"', 4), ("<a> ", 3), ('<a>"x" ', 6), ("<a>12</b>", 7), ("x<<b>[", 5)]
)
def test_values_after_triggers_follow_their_types(text: str, prefix: int) -> None:
    assert viable_prefix(machine(TRIGGERS), text.encode()) == prefix
    assert not accepts_text(machine(TRIGGERS), text[:prefix].encode())
