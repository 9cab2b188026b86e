"""The compiled matcher: rules one by one, malformed programs, wrong arguments."""

from __future__ import annotations

import random
import threading
from array import array

import numpy as np
import pytest
from forge_grammar import _native
from forge_grammar.program import (
    ArrayShape,
    KeyClass,
    ObjectShape,
    Program,
    Property,
    RootKind,
    StringTerm,
    TypeNode,
    flatten,
)
from forge_grammar.regular import Language

BYTES = [bytes([byte]) for byte in range(256)]
EOS = 256
ANY = Language.any().to_bytes()
INTEGER = Language.regex("-?(0|[1-9][0-9]{0,19})", whole=True).to_bytes()


def vocabulary(tokens: list[bytes] = BYTES) -> _native.Vocabulary:
    return _native.Vocabulary([*tokens, b""], [], [len(tokens)], len(tokens) + 64, 1 << 20)


def matcher(program: Program) -> _native.Matcher:
    flat = flatten(program)
    return _native.Grammar(vocabulary(), flat.languages, flat.texts, flat.words).matcher()


def typed(node: TypeNode, **parts: object) -> Program:
    return Program(
        RootKind.JSON, 0, [node, TypeNode(numbers=(1,)), TypeNode(("true",))], languages=[ANY, INTEGER], **parts
    )


def accepts(program: Program, text: str) -> bool:
    """Whether the text, byte by byte, then end of sequence is accepted."""
    at = matcher(program)
    tokens = [*text.encode(), EOS]
    return at.validate(tokens) == len(tokens)


OBJECT = ObjectShape((Property("a", 1, True), Property("é", 2), Property("no", -1)), (KeyClass(0, 2),), maximum=3)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ('{"a":1}', True),
        ('{"a":1,"é":true,"x":true}', True),
        ('{ \n "a": 1\r\n}', True),
        ('{"é":true}', False),  # a required one was skipped
        ('{"a":1,"a":1}', False),
        ('{"a":1,"no":true}', False),
        ('{"a":1,"\\u006eo":true}', False),
        ('{"a":1,"n\\u00F6":true}', True),
        ('{"a":1,"x":true,"x":true}', False),
        ('{"a":1,"\\u00e9":true}', False),  # a declared name has one form only
        ('{"a":1,"x":true,"y":true}', True),
        ('{"a":1,"x":true,"y":true,"z":true}', False),
        ('{"a":01}', False),
        ('{"a" :1}', False),
        ('{"a":1 ,"x":true}', False),
        ('{"a":1}\n', False),
        ('{"a":1\r}', False),
        ('{"a":1\n\n}', False),
        ("{" + 16 * " " + '"a":1}', True),
        ("{" + 17 * " " + '"a":1}', False),
        ('{"a":1,"\\ud83d\\ude00":true}', True),
        ('{"a":1,"\\ud83d":true}', False),
        ('{"a":1,"\t":true}', False),
    ],
)
def test_objects(text: str, accepted: bool) -> None:
    assert accepts(typed(TypeNode(objects=(0,)), objects=[OBJECT]), text) is accepted


def test_any_order_of_keys() -> None:
    program = typed(TypeNode(objects=(0,)), objects=[OBJECT], any_key_order=True)
    assert accepts(program, '{"é":true,"x":true,"a":1}')
    assert not accepts(program, '{"é":true,"é":true,"a":1}')
    assert not accepts(program, '{"é":true,"x":true,"y":true')


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("[1,2]", True),
        ("[1]", False),
        ("[1,1]", False),
        ("[1,[1],[1 ]]", False),
        ("[[],[1]]", True),
        ('[{"a":1,"x":true},{"a":1,"\\u0078":true}]', False),
        ('[{"a":1},{"a":2}]', True),
        ("[1,2,3,4]", False),
    ],
)
def test_unique_items(text: str, accepted: bool) -> None:
    arrays = [ArrayShape((), 3, 2, 3, True), ArrayShape((), 1)]
    types = [TypeNode(arrays=(0,)), TypeNode(numbers=(1,)), TypeNode(("true",)), TypeNode((), (), (1,), (1,), (0,))]
    program = Program(RootKind.JSON, 0, types, arrays, [OBJECT], [ANY, INTEGER])
    assert accepts(program, text) is accepted


@pytest.mark.parametrize(
    ("text", "accepted"), [("é", False), ("éé", True), ("a😀b", True), ("abcd", False), ("x\\n", True)]
)
def test_lengths_count_code_points(text: str, accepted: bool) -> None:
    program = typed(TypeNode((), (StringTerm(0, 2, 3, ("no",)),)))
    assert accepts(program, f'"{text}"') is accepted
    assert not accepts(program, '"no"')


def test_forced_text_stops_at_a_choice() -> None:
    at = matcher(typed(TypeNode(('"alpha"', '"alpine"'))))
    assert at.forced() == b'"alp'
    for byte in b'"alph':
        assert at.accept(byte)
    assert at.forced() == b'a"'


def test_nothing_follows_the_end() -> None:
    at = matcher(typed(TypeNode(("true",))))
    assert not at.accept(EOS)
    assert at.validate([*b"true", EOS, EOS]) == 5
    for token in (*b"true", EOS):
        assert at.accept(token)
    assert at.is_final
    row = np.full(10, -1, np.int32)
    at.fill(row)
    assert not row.any()
    assert not at.accept(EOS)
    at.rollback(1)
    at.fill(row)
    assert np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist() == [EOS]


def test_deep_nesting_is_let_go_of() -> None:
    program = Program(RootKind.JSON, 0, [TypeNode(arrays=(0,))], [ArrayShape((), 0)])
    at = matcher(program)
    assert at.validate([ord("[")] * 200_000) == 200_000


def test_wrong_arguments_are_refused() -> None:
    at = matcher(typed(TypeNode(("true",))))
    for row in (
        np.zeros(9, np.int32),
        np.zeros(10, np.int64),
        np.zeros((1, 10), np.int32),
        np.zeros(20, np.int32)[::2],
    ):
        with pytest.raises((TypeError, ValueError)):
            at.fill(row)
    with pytest.raises(ValueError, match="can't take back 1 of 0 tokens"):
        at.rollback(1)
    with pytest.raises(ValueError, match="can't take back -1"):
        at.rollback(-1)
    with pytest.raises(ValueError, match="1 matchers for 2 rows"):
        _native.fill_batch([at], np.zeros((2, 10), np.int32))
    with pytest.raises(ValueError, match="10 words, not 9"):
        _native.fill_batch([at], np.zeros((1, 9), np.int32))
    assert not at.accept(-1)
    assert not at.accept(1 << 40)
    for arguments in (
        ([b"a"], [], [], 0, 0),
        ([b"a"], [7], [], 1, 0),
        ([b"a"], [], [-1], 1, 0),
        ([b"a"], [], [], 1, -1),
    ):
        with pytest.raises(ValueError, match=r"\w+"):
            _native.Vocabulary(*arguments)


def sample() -> Program:
    arrays = [ArrayShape((1, 2), 3, 0, 5, True)]
    types = [TypeNode((), (StringTerm(0, 0, 4, ("x",)),), (), (0,), (0,)), TypeNode(numbers=(1,)), TypeNode(("true",))]
    types.append(TypeNode(('"b"', "1"), (), (1,), (0,), (0,)))
    return Program(RootKind.JSON, 0, types, arrays, [OBJECT], [ANY, INTEGER])


def test_malformed_programs_are_refused_or_harmless() -> None:
    flat = flatten(sample())
    words = array("i", flat.words)
    known, rng = vocabulary(), random.Random(0)
    refused = 0
    for at in range(len(words)):
        for value in (-2, -1, 0, 1, 3, 1000, 2**31 - 1, -(2**31), rng.randrange(len(words))):
            changed = array("i", words)
            changed[at] = value
            try:
                grammar = _native.Grammar(known, flat.languages, flat.texts, changed.tobytes())
            except ValueError:
                refused += 1
                continue
            matched, row = grammar.matcher(), np.zeros(10, np.int32)
            for _ in range(12):
                matched.fill(row)
                allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
                if not len(allowed) or not matched.accept(int(rng.choice(allowed))):
                    break
    assert refused > len(words)
    for cut in range(0, len(flat.words), 3):
        with pytest.raises(ValueError, match=r"\w+"):
            _native.Grammar(known, flat.languages, flat.texts, flat.words[:cut])
    with pytest.raises(ValueError, match=r"\w+"):
        _native.Grammar(known, [b"FDA1"], flat.texts, flat.words)
    with pytest.raises(ValueError, match=r"\w+"):
        _native.Grammar(known, flat.languages, flat.texts[:-1], flat.words)


def test_matchers_of_one_grammar_work_in_threads() -> None:
    flat = flatten(sample())
    grammar = _native.Grammar(vocabulary(), flat.languages, flat.texts, flat.words)
    text = b'{"a":12,"xyz":true}'
    rows: list[list[bytes]] = []

    def run() -> None:
        seen = []
        for _ in range(20):
            at, row = grammar.matcher(), np.zeros(10, np.int32)
            seen = []
            for byte in text:
                at.fill(row)
                seen.append(row.tobytes())
                at.accept(byte)
        rows.append(seen)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows == [rows[0]] * 4
    assert grammar.nbytes > 0


def test_unique_items_may_be_as_deep_as_they_like() -> None:
    """Values are kept, compared and let go of without recursion, and in space that grows with their texts."""
    types = [TypeNode(arrays=(0,)), TypeNode(arrays=(1,))]
    at = matcher(Program(RootKind.JSON, 0, types, [ArrayShape(rest=1, unique=True), ArrayShape(rest=1)]))
    deep = b"[" * 20_000 + b"]" * 20_000
    assert all(map(at.accept, b"[" + deep + b","))
    assert at.validate(list(deep)) == len(deep) - 1
    assert all(map(at.accept, b"[" + deep + b"]]"))
    assert at.is_final
