"""Regular expressions: Python's `re` is the reference where both mean the same, ECMA-262 where they don't."""

from __future__ import annotations

import re

import pytest
from forge_grammar.regular import Language, LimitExceeded, RegexError
from hypothesis import given, settings
from hypothesis import strategies as st

ATOMS = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\w", r"\W", r"\s", "é", r"\b", r"\B", "^", "$"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,3}?", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda pattern: f"(?={pattern})"),
        inner.map(lambda pattern: f"(?!{pattern})"),
    ),
    max_leaves=8,
)
TEXTS = st.text(alphabet="abc1 -é", max_size=6)


def equivalent(pattern: str) -> re.Pattern[str]:
    """Python's `\\Z` is what ECMA-262 calls `$`, its `\\B` doesn't hold in the empty text, its words aren't ASCII."""
    return re.compile(pattern.replace("$", r"\Z").replace(r"\B", r"(?!\b)"), re.ASCII)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=12))
def test_search_finds_what_re_finds(pattern: str, texts: list[str]) -> None:
    language = Language.regex(pattern)
    reference = equivalent(pattern)
    for text in texts:
        assert language.accepts(text) == (reference.search(text) is not None), (pattern, text)


@settings(max_examples=300, deadline=None)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=12))
def test_whole_matches_what_fullmatch_matches(pattern: str, texts: list[str]) -> None:
    language = Language.regex(pattern, whole=True)
    reference = equivalent(pattern)
    for text in texts:
        assert language.accepts(text) == (reference.fullmatch(text) is not None), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        ("^a+$", ["a", "aaa"], ["", "ab", "a\n"]),
        ("a", ["a", "bab"], ["", "b"]),
        ("^$", [""], ["x"]),
        ("$^", [""], ["x"]),
        ("^[^]$", ["\n", "😀"], ["", "ab"]),
        ("[]", [], ["", "a"]),
        ("^.$", ["a", "\x85", "😀"], ["\n", "\r", "\u2028", "\u2029"]),
        (r"^\s$", ["\ufeff", "\xa0", "\v", "\u2003"], ["\x1c", "\x85", "\u200b"]),
        (r"^\d$", ["7"], ["٣"]),
        (r"^\w$", ["_", "Z"], ["é", "-"]),
        (r"^[\w-.]+\-\/\_\@{$", ["a.-/_@{"], ["a"]),
        (r"^x{,3}]}$", ["x{,3}]}"], ["xx"]),
        (r"^\u{1F600}|\uD83D\uDE01\x41\cJ\0$", ["😀", "😁A\n\0"], ["😁"]),
        (r"^[\b\t\]^-]$", ["\b", "\t", "]", "^", "-"], ["b"]),
        (r"^\p{Lu}\p{L}*\P{L}$", ["Äß1"], ["äß1", "Äßx"]),
        (r"^\p{General_Category=Decimal_Number}$", ["٣", "3"], ["½"]),
        (r"^(?<year>\d{4})-(?:0[1-9]|1[0-2])$", ["2024-12"], ["2024-13"]),
        (r"^(?=.*\d)(?=.*[a-z])(?!.*\s).{4,}$", ["abc1"], ["abcd", "ab1", "ab 1"]),
        (r"^(?:a(?=b)|b(?=a))*.$", ["abab"], ["aab"]),
        (r"\bfoo\b", ["foo", "a foo-b"], ["afoo", "foo1"]),
    ],
)
def test_ecma_semantics(pattern: str, accepted: list[str], refused: list[str]) -> None:
    language = Language.regex(pattern)
    assert [text for text in accepted if not language.accepts(text)] == []
    assert [text for text in refused if language.accepts(text)] == []


@pytest.mark.parametrize(
    ("pattern", "message", "position"),
    [
        ("ab(", "a group without )", 2),
        ("a)", "unmatched )", 1),
        ("[a", "a character class without ]", 0),
        ("x[b-a]", "out of order", 2),
        ("*a", "nothing to repeat", 0),
        ("a**", "nothing to repeat", 2),
        ("^*", "nothing to repeat: an assertion", 1),
        ("a{2,1}", "bounds are out of order", 1),
        (r"(a)\1", "backreferences", 3),
        (r"(?<n>a)\k<n>", "backreferences", 7),
        ("(?<=a)b", "lookbehind", 0),
        ("(?i)a", "unknown kind of group", 0),
        (r"\A", "use ^", 0),
        (r"a\q", r"unknown escape \q", 1),
        (r"\p{Script=Greek}", "'Script=Greek'", 0),
        (r"\u{110000}", "without a code point", 0),
        (r"\x1", "2 hexadecimal digits", 0),
        ("a\\", "unknown escape", 1),
        ("(?<n>a)(?<n>b)", "a second group named n", 7),
    ],
)
def test_errors_name_what_is_wrong_and_where(pattern: str, message: str, position: int) -> None:
    with pytest.raises(RegexError, match=re.escape(message)) as caught:
        Language.regex(pattern)
    assert caught.value.position == position


def test_exponential_but_affordable_is_built() -> None:
    language = Language.regex("[ab]*a[ab]{13}", whole=True)
    assert language.states == 2**14
    assert language.accepts("a" + "b" * 13)
    assert not language.accepts("b" * 14)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("(a|b)*a(a|b){30}", "DFA states"),
        ("(?=(a|b)*a(a|b){30}$)[ab]*", "DFA states"),
        ("(a{0,300}){0,400}", "NFA states"),
        ("a{100001}", "NFA states"),
        ("((((a{1,99}){1,99}){1,99}){1,99}){1,99}", "NFA states"),
        ("(" * 5000 + ")" * 5000, "nested groups of a regex"),
        ("a" * 100_001, "nodes of a regex"),
        ("(?=a)" * 65, "lookaheads of a regex"),
        ("a{1000000000000}", "repetitions in a regex"),
    ],
)
def test_explosions_are_refused_by_name(pattern: str, name: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        Language.regex(pattern, whole=True)
    assert caught.value.name == name


def test_empty_repetitions_cost_nothing() -> None:
    assert Language.regex("((((){9999}){9999}){9999}){9999}a", whole=True).words(1) == ["a"]
    assert Language.regex("(((?=a){300}){300})a", whole=True).words(1) == ["a"]
    assert Language.regex("(" * 100 + "a" + ")" * 100, whole=True).words(1) == ["a"]


def test_lone_surrogates_match_nothing() -> None:
    assert Language.regex(r"\uD800", whole=True).is_empty
    assert Language.regex(r"[\uD7FF-\uE000]", whole=True).count == 2
