"""Languages as values: the laws of sets, canonical bytes, and the extension against pure Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
from forge_grammar import formats
from forge_grammar.native import extension
from forge_grammar.regular import INFINITE, Language, LimitExceeded, Limits, limited
from forge_grammar.regular.backend import Backend, native_backend, python_backend
from forge_grammar.regular.dfa import DEAD, Dfa
from forge_grammar.regular.nfa import Nfa
from forge_grammar.regular.regex import compile_regex
from hypothesis import given, settings
from hypothesis import strategies as st

LIMITS = Limits()
PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "[^a]", "[a-c]", "é", ".", "", "^", "$", r"\b", "(?=a)", "(?!b)"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2,3}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=7,
)
WORDS = ["".join(chars) for n in range(5) for chars in product("abé", repeat=n)]


def native() -> Backend:
    module = extension()
    assert module is not None, "forge-grammar was installed without its extension"
    return native_backend(module)


def compiled(backend: Backend, pattern: str, whole: bool) -> bytes:
    data: bytes = automaton(backend, pattern, whole).to_bytes()
    return data


def automaton(backend: Backend, pattern: str, whole: bool, limits: Limits = LIMITS) -> Any:
    def determinize(nfa: Nfa, before: int) -> Any:
        return backend.determinize(nfa, before, limits)

    return compile_regex(pattern, whole, determinize, partial(complement, backend))


def complement(backend: Backend, dfa: Any) -> Any:
    return backend.product(backend.everything(), dfa, "-", LIMITS)


@settings(max_examples=200, deadline=None)
@given(PATTERNS, PATTERNS, PATTERNS)
def test_boolean_laws(one: str, two: str, three: str) -> None:
    a, b, c = (Language.regex(pattern, whole=True) for pattern in (one, two, three))
    assert ~~a == a
    assert ~(a | b) == ~a & ~b
    assert a & (b | c) == (a & b) | (a & c)
    assert a - b == a & ~b
    assert (a - b) | (a & b) == a
    assert (a & ~a).is_empty
    assert (a | ~a).is_any
    assert hash(~(a & b)) == hash(~a | ~b)
    for word in WORDS[:40]:
        assert (a | b).accepts(word) == (a.accepts(word) or b.accepts(word))
        assert (a - b).accepts(word) == (a.accepts(word) and not b.accepts(word))


@settings(max_examples=200, deadline=None)
@given(PATTERNS, PATTERNS, st.booleans())
def test_extension_and_python_agree_bit_for_bit(one: str, two: str, whole: bool) -> None:
    fast, slow = native(), python_backend()
    results = []
    for backend in (fast, slow):
        a, b = (automaton(backend, pattern, whole) for pattern in (one, two))
        results.append([a.to_bytes(), complement(backend, a).to_bytes()])
        results[-1] += [backend.product(a, b, operation, LIMITS).to_bytes() for operation in "&|-"]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "pattern",
    [
        *formats._PATTERNS.values(),
        r"^\p{Lu}\P{L}{0,40}$",
        r"(?!x\B)(\w+\b )*$^|[ab]*a[ab]{6}",
        "^.{0,2000}$",
    ],
)
def test_extension_and_python_agree_on_large_patterns(pattern: str) -> None:
    assert compiled(native(), pattern, True) == compiled(python_backend(), pattern, True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet="abcé😀\x00\U0010ffff", max_size=5), max_size=12))
def test_literals_are_exactly_the_texts(texts: list[str]) -> None:
    language = Language.literals(texts)
    assert language.words(100) == sorted(set(texts))
    assert language.count == len(set(texts))
    assert language.to_bytes() == python_backend().literals(sorted(set(texts)), LIMITS).to_bytes()
    union = Language.none()
    for text in texts:
        union |= Language.literals([text])
    assert union == language


@pytest.fixture(params=[native, python_backend], ids=["native", "python"])
def backend(request: pytest.FixtureRequest) -> Backend:
    make: Callable[[], Backend] = request.param
    return make()


@settings(max_examples=60, deadline=None)
@given(PATTERNS)
def test_questions_match_brute_force(pattern: str) -> None:
    data = (Language.regex(pattern, whole=True) & Language.regex("[ab]*", whole=True)).to_bytes()
    module = extension()
    assert module is not None
    words = ["".join(chars) for n in range(9) for chars in product("ab", repeat=n)]
    for dfa in (Dfa.from_bytes(data), module.Dfa.from_bytes(data)):
        assert dfa.to_bytes() == data
        lengths = {len(word) for word in words if dfa.accepts(word)}
        for low in range(6):
            for high in range(9):
                expected = any(low <= length <= high for length in lengths)
                assert dfa.reaches(dfa.start, low, high) == expected, (pattern, low, high)
        if dfa.words_from(dfa.start) < 500:
            found = dfa.words(500)
            assert found == sorted(found)
            assert [word for word in found if len(word) < 9] == sorted(word for word in words if dfa.accepts(word))


def test_lengths_far_away_follow_the_period(backend: Backend) -> None:
    dfa = automaton(backend, "(aaa)*b(cccccc)*", True)
    assert dfa.reaches(0, 3_000_001, 3_000_001)
    assert not dfa.reaches(0, 3_000_002, 3_000_003)
    assert dfa.reaches(0, 3_000_002, 3_000_004)
    assert dfa.reaches(0, 10**9, -1)
    assert not dfa.reaches(DEAD, 0, -1)


def test_counts_saturate(backend: Backend) -> None:
    def count(pattern: str) -> int:
        dfa = automaton(backend, pattern, True)
        return int(dfa.words_from(dfa.start))

    assert count("[a-j]{0,8}") == sum(10**n for n in range(9))
    assert count("[a-j]{40}") == INFINITE
    assert count("a*") == INFINITE
    assert count("[^]") == 0x110000 - 0x800
    assert count("[]") == 0


def test_live_in_and_universal(backend: Backend) -> None:
    dfa = automaton(backend, "a[\u00e9\U0001f600][^]*", True)
    after = dfa.step(dfa.start, ord("a"))
    assert dfa.live_in(after, 0x80, 0x10FFFF)
    assert dfa.live_in(after, 0xE0, 0xE9)
    assert not dfa.live_in(after, 0xEA, 0x1F5FF)
    assert not dfa.live_in(DEAD, 0, 0x10FFFF)
    end = dfa.step(after, 0xE9)
    assert dfa.universal(end)
    assert not dfa.universal(after)
    assert dfa.step(end, 0xD800) == DEAD
    assert not dfa.live_in(end, 0xD800, 0xDFFF)


def test_any_and_none() -> None:
    assert Language.any().is_any
    assert Language.none().is_empty
    assert ~Language.any() == Language.none() == Language.literals([]) == Language.regex("[]")
    assert Language.regex("") == Language.any() == Language.regex("[^]*", whole=True)
    assert Language.none().words(0) == []
    assert Language.any().words(10) is None
    assert not Language.none().reaches(0)


def test_from_table_makes_the_canonical_automaton(backend: Backend) -> None:
    # States 1 and 3 are equal, 2 is dead, the surrogates lie inside a range.
    rows = [[1, 3, 2], [1, 1, -1], [2, 2, 2], [3, 3, -1]]
    dfa = backend.from_table(0, [0, 0x61, 0x62], [2, 0, 1], rows, [0, 1, 0, 1])
    assert dfa.to_bytes() == compiled(python_backend(), r"[a-\u{10FFFF}]+", True)
    for bad in (
        (0, [1], [0], [[0]], [1]),
        (0, [0, 0], [0, 0], [[0]], [1]),
        (1, [0], [0], [[0]], [1]),
        (0, [0], [0], [[1]], [1]),
        (0, [0], [0], [[-2]], [1]),
        (0, [0], [0], [[]], [1]),
        (0, [0], [0], [[0]], []),
    ):
        with pytest.raises(ValueError, match=r"don't|without"):
            backend.from_table(*bad)


def test_corrupt_bytes_are_refused(backend: Backend) -> None:
    good = Language.regex("^a[bc]{2}$").to_bytes()
    assert backend.dfa.from_bytes(good).to_bytes() == good
    for bad in (b"", good[:-1], good + b"\0" * 4, b"FDA2" + good[4:], good[:4] + b"\xff" * 12 + good[16:]):
        with pytest.raises(ValueError, match="automaton"):
            backend.dfa.from_bytes(bad)
    for at in range(4, len(good) - 8, 4):
        with pytest.raises(ValueError, match="automaton"):
            backend.dfa.from_bytes(good[:at] + b"\xf0\xff\xff\xf0" + good[at + 4 :])


def test_products_that_explode_are_refused(backend: Backend) -> None:
    chain = [automaton(backend, f"(a{{{n}}})*", True) for n in (31, 37, 41, 43)]
    pair = backend.product(chain[0], chain[1], "&", LIMITS)
    with pytest.raises(LimitExceeded) as caught:
        backend.product(pair, backend.product(chain[2], chain[3], "&", LIMITS), "&", LIMITS)
    assert (caught.value.name, caught.value.limit) == ("DFA states", 64_000)


@pytest.mark.parametrize(
    ("limits", "name", "option"),
    [
        (Limits(states=20), "DFA states", "constraint.options.max_states"),
        (Limits(work=50), "steps of building an automaton", "constraint.options.max_work"),
    ],
)
def test_each_way_to_make_an_automaton_keeps_to_the_limits_that_hold(limits: Limits, name: str, option: str) -> None:
    ways: list[Callable[[], Language]] = [
        lambda: Language.regex("^(ab|cd){40}$"),
        lambda: Language.regex("^(?:x|y)*$") - Language.literals(["xy" * 20]),
        lambda: Language.literals(["q" * 30, "rs" * 20]),
    ]
    for way in ways:
        free = way()
        with limited(limits), pytest.raises(LimitExceeded) as caught:
            way()
        assert caught.value.name == name
        assert option in str(caught.value)
        assert way() == free


def test_both_implementations_reach_a_limit_at_the_same_step() -> None:
    def least(backend: Backend, limited_to: Callable[[int], Limits]) -> int:
        low, high = 1, 100_000
        while low < high:
            middle = (low + high) // 2
            try:
                automaton(backend, "(?!a{3})(a|b|aa){2,9}c$", True, limited_to(middle))
                high = middle
            except LimitExceeded:
                low = middle + 1
        return low

    for limited_to in (lambda n: Limits(states=n), lambda n: Limits(work=n)):
        assert 10 < least(native(), limited_to) == least(python_backend(), limited_to) < 100_000
