"""The Python matcher over tokens: masks, end of sequence, special tokens, forced text, rollback."""

from __future__ import annotations

import json

import numpy as np
import pytest
from forge_grammar.machine.matcher import Grammar, Matcher, fill_batch
from forge_grammar.machine.vocabulary import Vocabulary
from forge_grammar.program import (
    ArrayShape,
    ObjectShape,
    Program,
    Property,
    RootKind,
    StringTerm,
    TypeNode,
    flatten,
)
from forge_grammar.regular import Language

TEXTS = [bytes([byte]) for byte in range(256)]
TEXTS += [
    b'{"name"',
    b'{"',
    b'":',
    b'": "',
    b'"}',
    b'a"',
    b"ab",
    b"abc",
    b"\xc3\xa9",
    b"\x9f\x98",
    b"1,",
    b"1]",
    b"[1",
    b"}}",
    b'\\"',
]
SPECIAL, EOS, OTHER_EOS = len(TEXTS), len(TEXTS) + 1, len(TEXTS) + 2
TOKENS = [*TEXTS, b"{", b"", b"}", b""]
EMPTY = len(TOKENS) - 1
WIDTH = len(TOKENS) + 40

OBJECT = Program(
    RootKind.JSON,
    0,
    [TypeNode(objects=(0,)), TypeNode(strings=(StringTerm(0, 1, 3),)), TypeNode(literals=("1", "12"))],
    objects=[ObjectShape((Property("name", 1, True), Property("n", 2)), maximum=2)],
    languages=[Language.any().to_bytes()],
    whitespace=1,
)


def vocabulary(cache_bytes: int = 1 << 20) -> Vocabulary:
    return Vocabulary(TOKENS, [SPECIAL], [EOS, OTHER_EOS], WIDTH, cache_bytes)


def matcher(program: Program = OBJECT, cache_bytes: int = 1 << 20) -> Matcher:
    flat = flatten(program)
    return Grammar(vocabulary(cache_bytes), flat.languages, flat.texts, flat.words).matcher()


def allowed(at: Matcher) -> set[int]:
    row = np.full(-(-WIDTH // 32), -1, np.int32)
    at.fill(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def token(text: bytes) -> int:
    return TOKENS.index(text)


def feed(at: Matcher, text: bytes) -> None:
    for byte in text:
        assert at.accept(byte), (text, chr(byte))


@pytest.mark.parametrize(
    "text", ["", "{", '{"name', '{"name":"', '{"name":"ab', '{"name":"abc"', '{"name":"a","n":1', '{"name":"\\']
)
def test_the_mask_has_what_accept_takes(text: str) -> None:
    at = matcher()
    feed(at, text.encode())
    expected = set()
    for candidate in range(WIDTH):
        if at.accept(candidate):
            expected.add(candidate)
            at.rollback(1)
    assert allowed(at) == expected
    assert expected


def test_masks_are_the_same_kept_or_not() -> None:
    kept, fresh = matcher(), matcher(cache_bytes=0)
    for byte in b'{"name":"ab\\u00e9","n":12}':
        assert allowed(kept) == allowed(kept) == allowed(fresh)
        assert kept.accept(byte)
        assert fresh.accept(byte)
    assert allowed(kept) == allowed(fresh) == {EOS, OTHER_EOS}


@pytest.mark.parametrize(("low", "high"), [(0, 40), (3, 30), (0, 12), (25, 30)])
@pytest.mark.parametrize("pattern", ["", "^[ab]*$", "^(ab|[ab]é)*$"])
def test_kept_masks_respect_lengths_to_the_last_character(pattern: str, low: int, high: int) -> None:
    strings = TypeNode(strings=(StringTerm(0, low, high),))
    program = Program(RootKind.JSON, 0, [strings], languages=[Language.regex(pattern).to_bytes()])
    kept, fresh = matcher(program), matcher(program, cache_bytes=0)
    for byte in ('"' + "abaé" * 10).encode():
        assert allowed(kept) == allowed(fresh)
        if not kept.accept(byte):
            break
        assert fresh.accept(byte)


def test_a_character_may_be_split_over_tokens() -> None:
    at = matcher()
    feed(at, b'{"name":"\xf0')
    assert token(b"\x9f\x98") in allowed(at)
    assert at.accept(token(b"\x9f\x98"))
    assert allowed(at) == set(range(0x80, 0xC0))
    assert at.accept(0x80)
    assert at.accept(token(b"\xc3\xa9"))
    assert token(b"ab") not in allowed(at)


def test_the_sequence_ends_where_the_value_is_complete() -> None:
    at = matcher()
    assert not at.is_final
    assert not at.accept(EOS)
    feed(at, b'{"name":"a"}')
    assert at.is_final
    assert allowed(at) == {EOS, OTHER_EOS}
    assert at.accept(OTHER_EOS)
    assert at.is_final
    assert allowed(at) == set()
    assert not at.accept(EOS)
    at.rollback(1)
    assert allowed(at) == {EOS, OTHER_EOS}


def test_a_number_at_the_root_may_end_or_go_on() -> None:
    at = matcher(Program(RootKind.JSON, 0, [TypeNode(literals=("1", "12"))]))
    feed(at, b"1")
    assert allowed(at) == {ord("2"), EOS, OTHER_EOS}
    assert at.forced() == b""


def test_special_and_empty_tokens_are_no_text() -> None:
    at = matcher()
    assert SPECIAL not in allowed(at)
    for bad in (SPECIAL, EMPTY, WIDTH - 1, WIDTH, 10**6, -1):
        assert not at.accept(bad), bad
    feed(at, b'{"name":"a"')
    assert OTHER_EOS not in allowed(at)  # its bytes would close the object


def test_tokens_are_validated_without_a_trace() -> None:
    at = matcher()
    draft = [token(b'{"name"'), ord(":"), ord('"'), token(b"ab"), token(b'"}'), EOS, EOS]
    before = allowed(at)
    assert at.validate(draft) == 6
    assert at.validate(draft[1:]) == 0
    assert at.validate([]) == 0
    assert at.validate([*draft[:3], token(b"abc"), ord("d")]) == 4
    assert allowed(at) == before
    assert at.accept(draft[0])
    assert at.validate(draft[1:]) == 5


def test_rollback_is_exact() -> None:
    at = matcher()
    masks = []
    text = b'{ "name":"\xf0\x9f\x98\x80\\n", "n":1\n}'
    for byte in text:
        masks.append(allowed(at))
        assert at.accept(byte)
    for count in (1, 3, 5, 0, 7):
        at.rollback(count)
        del masks[len(masks) - count :]
        expected = allowed(at)
        feed(at, text[len(masks) : len(masks) + 1])
        at.rollback(1)
        assert allowed(at) == expected
    at.rollback(len(masks))
    assert allowed(at) == masks[0]
    with pytest.raises(ValueError, match="can't take back 1 of 0 tokens"):
        at.rollback(1)
    with pytest.raises(ValueError, match="can't take back -1"):
        at.rollback(-1)


def test_forced_text_goes_on_to_the_next_choice() -> None:
    tight = Program(
        RootKind.JSON,
        0,
        [TypeNode(objects=(0,)), TypeNode(literals=('"on"', '"off"')), TypeNode(literals=("null",))],
        objects=[ObjectShape((Property("state", 1, True), Property("é", 2, True)))],
        whitespace=0,
    )
    at = matcher(tight)
    assert at.forced() == b'{"state":"o'
    feed(at, b'{"state":"on')
    assert at.forced() == '","é":null}'.encode()
    feed(at, '","é":null}'.encode())
    assert at.forced() == b""
    assert matcher().forced() == b"{"


def test_forced_text_is_bounded() -> None:
    long = json.dumps("x" * 1000)
    assert matcher(Program(RootKind.JSON, 0, [TypeNode(literals=(long,))])).forced() == long[:256].encode()


def test_a_batch_is_filled_row_by_row() -> None:
    flat = flatten(OBJECT)
    grammar = Grammar(vocabulary(), flat.languages, flat.texts, flat.words)
    matchers = [grammar.matcher() for _ in range(3)]
    feed(matchers[1], b'{"name":"')
    feed(matchers[2], b'{"name":"a"}')
    rows = np.full((3, -(-WIDTH // 32)), 12345, np.int32)
    fill_batch(matchers, rows)
    for row, at in zip(rows, matchers):
        expected = np.zeros_like(row)
        at.fill(expected)
        assert np.array_equal(row, expected)
    with pytest.raises(ValueError, match="2 matchers for rows"):
        fill_batch(matchers[:2], rows)
    with pytest.raises(ValueError, match="mask row is int32"):
        matchers[0].fill(rows[0, :-1])


def test_a_vocabulary_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="masks of 1 tokens for a vocabulary of 2"):
        Vocabulary([b"a", b"b"], [], [], 1, 0)
    with pytest.raises(ValueError, match="token 7 is none of the 2"):
        Vocabulary([b"a", b"b"], [], [7], 2, 0)


def test_a_grammar_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="a grammar of version 9"):
        Grammar(vocabulary(), [], [], np.array([9, *[0] * 8], "<i4").tobytes())


def test_deep_nesting_neither_fails_nor_slows_to_a_halt() -> None:
    nested = Program(RootKind.JSON, 0, [TypeNode(arrays=(0,))], [ArrayShape(rest=0)])
    at = matcher(nested)
    feed(at, b"[" * 2000)
    assert token(b"]") in allowed(at)
    feed(at, b"]" * 2000)
    assert at.is_final
