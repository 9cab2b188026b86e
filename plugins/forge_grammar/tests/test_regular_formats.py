"""Formats against texts that their specifications call valid or invalid, and dates against the calendar."""

from __future__ import annotations

import re
import warnings
from calendar import monthrange
from ipaddress import AddressValueError, IPv6Address
from random import Random

import pytest
from forge_grammar.formats import FORMATS, MAX_LENGTHS, format_language
from forge_grammar.regular import Language
from forge_grammar.regular.dfa import DEAD, Dfa
from hypothesis import given, settings
from hypothesis import strategies as st

CASES: dict[str, tuple[list[str], list[str]]] = {
    "date": (
        ["2024-02-29", "2000-02-29", "0001-01-31", "9999-12-31"],
        ["2023-02-29", "1900-02-29", "0000-01-01", "2024-04-31", "2024-13-01", "2024-1-1"],
    ),
    "time": (
        ["08:30:06Z", "23:59:59.999+23:59", "08:30:06z"],
        ["24:00:00Z", "08:30:06", "23:59:60Z", "08:30:06+24:00", "08:30:06.Z"],
    ),
    "date-time": (
        ["1963-06-19T08:30:06.283185Z", "1963-06-19t08:30:06z"],
        ["1963-06-19", "08:30:06Z", "1990-02-31T15:59:59.123-08:00"],
    ),
    "duration": (
        ["P4DT12H30M5S", "P1Y", "PT0S", "P1W", "P1M", "PT1M"],
        ["P", "P1Y2W", "PT", "P1D2H", "4DT", "P1S", "PT1D", "P1YT"],
    ),
    "email": (
        ["joe@x.com", "a@b", '"a@b"@c.de', "joe@[127.0.0.1]", "a@[IPv6:::1]", "te~st@example.com"],
        [
            "a",
            ".a@b",
            "a.@b",
            "a..b@c",
            "a@",
            "@b",
            "a@-b",
            "a@[300.1.1.1]",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@b",
        ],
    ),
    "ipv6": (
        [
            "::1",
            "::",
            "1:2:3:4:5:6:7:8",
            "::ffff:1.2.3.4",
            "1::",
            "1:2:3:4:5:6:7::",
            "::2:3:4:5:6:7:8",
            "1:2:3:4:5:6:1.2.3.4",
            "1::8",
        ],
        ["1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "12345::", "1:::2", "::1%eth", "1::2::3", ":1", "1:2:3:4:5:6:7:8::"],
    ),
    "uri": (
        [
            "http://foo.bar/?baz=qux#quux",
            "http://foo.bar?q=Test%20U-r-l",
            "urn:oasis:names",
            "mailto:a@b",
            "http://[::1]:80/",
            "ldap://[2001:db8::7]/c=GB?objectClass?one",
            "file:///etc",
            "http://-.~_!$&'()*+,;=:%40:80%2f::::::@example.com",
        ],
        [
            "//foo",
            "/abc",
            "bar",
            "<a>",
            "http://a%zz",
            "://",
            "1a:b",
            "http://[::1",
            "http://ü",
            "bar,baz",
            "http://a\\b",
        ],
    ),
    "uri-reference": (
        ["/abc", "//foo.bar", "abc", "#frag", "?q", "a:b", "./a:b", "http://x"],
        ["\\\\WIN\\x", "#fr\\ag", "1a:b", "%"],
    ),
    "iri": (
        ["http://ƒøø.ßår/?∂éœ=πîx#πîüx", "http://x"],
        ["/abc", "âππ"],
    ),
    "iri-reference": (
        ["http://ƒøø.ßår/?∂éœ=πîx#πîüx", "//ƒøø.ßår/x", "âππ", "#ƒrägmênt", ""],
        ["\\\\WINDOWS\\filëßåré", "#ƒräg\\mênt", "1ä:b", "a b"],
    ),
    "uri-template": (
        ["http://example.com/dictionary/{term:1}/{term}", "a{?x,y*}", "{+a}"],
        ["{", "{a", "{a}}", "{=a}", "{a:0}", "{a:10000}"],
    ),
    "uuid": (
        ["2EB8AA08-aa98-11ea-b4aa-73b441d16380"],
        [],
    ),
    "regex": (
        [
            "",
            "^$",
            "a|b",
            r"^[a-zA-Z0-9._%+\-]+@[a-zA-Z0-9.\-]+\.[a-zA-Z]{2,}$",
            r"^(?=.*\d)(?!.*\s).{8,64}$",
            r"^#?([a-f0-9]{6}|[a-f0-9]{3})$",
            r"^\+?[1-9]\d{1,14}$",
            r"[\w.-]+?",
            r"^\/[^\/?#]*\u00e9\x7f$",
            "((a)(b))*",
            "é+",
        ],
        [
            "(",
            ")",
            "[",
            "]",
            "[]",
            "[^]",
            "[b-a]",
            "{",
            "}",
            "a{2,1}",
            "a{10,9}",
            "*",
            "a**",
            "a*+",
            "^*",
            r"\b+",
            "(?=a)*",
            "a{,3}",
            "\\",
            r"\y",
            r"\x1",
            r"\-",
            r"[\d-z]",
            "(?<=a)",
            "(?<n>a)",
            "(?P<n>a)",
            r"\p{L}",
            r"(a)\1",
            "(((((a)))))",
            "[[a]]",
        ],
    ),
    "json-pointer": (
        ["/foo/bar~0/baz~1/%a", "/a//", "/"],
        ["a", "~", "/~2", "/~"],
    ),
    "relative-json-pointer": (
        ["1", "0/foo/bar", "2/0", "0#"],
        ["01", "-1", "#", "/a", "0##"],
    ),
    "hostname": (
        ["a", "www.example.com", "a-b.c1", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
        ["-a", "a-", "a..b", ".a", "a.", "a_b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
    ),
    "ipv4": (
        ["0.0.0.0", "255.255.255.255"],
        ["256.0.0.1", "1.2.3", "01.2.3.4", "1.2.3.4.5"],
    ),
    "idn-email": (
        ["实例@实例.测试", "a@b"],
        ["2962"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_known_texts(name: str) -> None:
    valid, invalid = CASES[name]
    language = FORMATS[name]()
    assert [text for text in valid if not language.accepts(text)] == []
    assert [text for text in invalid if language.accepts(text)] == []


def test_every_format_has_texts_and_cases() -> None:
    assert {*FORMATS} == {*CASES}
    assert {*MAX_LENGTHS} <= {*FORMATS}
    for name in FORMATS:
        language = format_language(name)
        assert not language.is_any
        assert language.reaches(1, MAX_LENGTHS.get(name, -1))


def test_dates_are_those_of_the_calendar() -> None:
    language = format_language("date")
    for year in (1, 4, 99, 100, 400, 1900, 1999, 2000, 2023, 2024, 2100, 2400, 9999):
        for month in range(14):
            for day in range(33):
                exists = 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]
                assert language.accepts(f"{year:04}-{month:02}-{day:02}") == exists
    assert not language.accepts("0000-01-01")


PIECES = [
    *"ab-]^$\\.*+?()[{}|,0129é\n", "[a-", "{1,", "(?:", "(?=", "(?!", r"\d", r"\b", "[^", r"\x4", r"\u00e", "a-z", "}?",
]  # fmt: skip


def compiles(text: str) -> None:
    """Python and the grammar's own parser take the regular expression."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # `[[` and `||` in classes, which Python may read as sets one day
        re.compile(text)
    Language.regex(text)


@settings(max_examples=2000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_a_regex_of_the_format_is_one_for_python_and_for_us(parts: list[str]) -> None:
    text = "".join(parts)
    if format_language("regex").accepts(text):
        compiles(text)


@settings(max_examples=500, deadline=None)
@given(st.randoms(use_true_random=False))
def test_whatever_is_written_as_a_regex_is_one_for_python_and_for_us(random: Random) -> None:
    dfa = Dfa.from_bytes(format_language("regex").to_bytes())
    text, state = "", dfa.start
    while len(text) < 60 and not (dfa.accepts(text) and random.random() < 0.05):
        steps = [char for char in "ab-]^$\\.*+?()[{}|,:=!dbux0129é\n" if dfa.step(state, ord(char)) != DEAD]
        text += random.choice(steps)
        state = dfa.step(state, ord(text[-1]))
    if dfa.accepts(text):
        compiles(text)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(["1", "ffff", "0", ":", "::", "1.2.3.4", "12345", "a:b"]), max_size=14))
def test_ipv6_as_the_standard_library_reads_it(parts: list[str]) -> None:
    for text in ("".join(parts), ":".join(parts)):
        try:
            IPv6Address(text)
            expected = True
        except AddressValueError:
            expected = False
        assert format_language("ipv6").accepts(text) == expected, text
