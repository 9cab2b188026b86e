"""The Python machine on arrays: prefixes, lengths, contains, unique items."""

from __future__ import annotations

import pytest
from forge_grammar.machine.grammar import Program as Machine
from forge_grammar.machine.machine import Configuration, accepts_text
from forge_grammar.program import (
    NONE,
    ArrayShape,
    Contains,
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

ONE, TRUE, ANY, NUMBER, ROOT, SHORT, BOTH, TENTHS = range(8)
TYPES = [
    TypeNode(literals=("1",)),
    TypeNode(literals=("true",)),
    TypeNode(literals=("true", "false", "null"), strings=(StringTerm(0),), numbers=(1,), arrays=(1,), objects=(0,)),
    TypeNode(numbers=(1,)),
    TypeNode(arrays=(0,)),
    TypeNode(strings=(StringTerm(2),), literals=('"b"',)),
    TypeNode(literals=("1", "true")),
    TypeNode(numbers=(3,)),
]
LANGUAGES = [
    Language.any(),
    Language.regex(r"-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,2})?", whole=True),
    Language.regex("^(a|ab)$"),
    Language.regex(r"[01](\.[0-9]{1,2})?", whole=True),
]


def arrays(*shapes: ArrayShape) -> Machine:
    """A machine for an array of the first shape; the second is that of all arrays in `ANY`."""
    shapes = shapes if len(shapes) > 1 else (*shapes, ArrayShape(rest=ANY))
    objects = [ObjectShape((Property("é", ANY),), (KeyClass(0, ANY),))]
    languages = [language.to_bytes() for language in LANGUAGES]
    return Machine.of(flatten(Program(RootKind.JSON, ROOT, TYPES, shapes, objects, languages, any_key_order=True)))


def ways_on(machine: Machine, text: str) -> str:
    configuration = Configuration.start(machine).run(text.encode())
    assert configuration is not None, text
    return "".join(chr(byte) for byte in range(256) if byte not in b" \t\r\n" and configuration.step(byte))


def accepts(shape: ArrayShape, text: str) -> bool:
    return accepts_text(arrays(shape), text.encode())


def test_a_prefix_is_followed_by_the_rest() -> None:
    shape = ArrayShape((ONE, TRUE), NUMBER)
    assert [t for t in ["[]", "[1]", "[1,true]", "[1,true,7,8]"] if accepts(shape, t)] == [
        "[]",
        "[1]",
        "[1,true]",
        "[1,true,7,8]",
    ]
    assert not [t for t in ["[true]", "[1,1]", "[1,true,true]", "[,]", "[1,]"] if accepts(shape, t)]
    closed = arrays(ArrayShape((ONE, TRUE)))
    assert ways_on(closed, "[1,true") == "]"
    assert ways_on(arrays(ArrayShape()), "[") == "]"


def test_lengths_are_exact() -> None:
    shape = ArrayShape(rest=ONE, minimum=2, maximum=3)
    assert [n for n in range(6) if accepts(shape, "[" + ",".join("1" * n) + "]")] == [2, 3]
    assert ways_on(arrays(shape), "[1") == ","
    assert ways_on(arrays(shape), "[1,1,1") == "]"
    assert ways_on(arrays(ArrayShape(rest=ONE, minimum=1)), "[") == "1"
    assert ways_on(arrays(ArrayShape(rest=ONE, maximum=0)), "[") == "]"


@pytest.mark.parametrize(("minimum", "maximum"), [(0, NONE), (1, NONE), (2, NONE), (0, 0), (1, 1), (0, 2), (2, 3)])
@pytest.mark.parametrize(("least", "most"), [(0, NONE), (2, 4), (3, 3), (0, 1)])
def test_contains_counts_items(minimum: int, maximum: int, least: int, most: int) -> None:
    """Items are 1 or true; those that are 1 count."""
    counting = Contains(minimum, maximum, (ONE,), (TRUE,))
    machine = arrays(ArrayShape((), BOTH, least, most, False, (counting,)))
    for length in range(5):
        for bits in range(1 << length):
            items = ["1" if bits >> i & 1 else "true" for i in range(length)]
            count = items.count("1")
            wanted = least <= length and (most == NONE or length <= most)
            wanted &= minimum <= count and (maximum == NONE or count <= maximum)
            if minimum <= (least if most == NONE else most) or most == NONE:
                assert accepts_text(machine, f"[{','.join(items)}]".encode()) is wanted, items


def test_contains_keeps_room_for_the_items_that_must_count() -> None:
    machine = arrays(ArrayShape((), BOTH, 0, 2, False, (Contains(2, NONE, (ONE,), (NONE,)),)))
    assert ways_on(machine, "[") == "1"
    prefix = ArrayShape((BOTH, TRUE), BOTH, 0, 3, False, (Contains(2, NONE, (ONE, NONE, ONE), (NONE,) * 3),))
    assert ways_on(arrays(prefix), "[") == "1"
    assert ways_on(arrays(prefix), "[1,true,") == "1"
    few = arrays(ArrayShape((ONE, BOTH), BOTH, 3, NONE, False, (Contains(0, 1, (ONE, ONE, ONE), (NONE, TRUE, TRUE)),)))
    assert ways_on(few, "[1,") == "t"


def test_an_item_that_may_count_in_one_reading_need_not_in_another() -> None:
    """`ANY` items of which one is a number: a number may be taken for either."""
    machine = arrays(ArrayShape((), ANY, 0, NONE, False, (Contains(1, NONE, (NUMBER,), (NONE,)),)))
    for good in ["[7]", '["a",7]', "[7,8,null]", "[[7],7]"]:
        assert accepts_text(machine, good.encode()), good
    for bad in ["[]", '["a"]', "[[7]]"]:
        assert not accepts_text(machine, bad.encode()), bad


@pytest.mark.parametrize(
    "text",
    [
        "[1,1]",
        "[1,1.0]",
        "[10,1e1]",
        "[0.5,50e-2]",
        "[0,-0.0]",
        '["a","a"]',
        '["é","\\u00e9"]',
        '["/","\\/"]',
        "[true,1,true]",
        "[null,null]",
        "[[],[ ]]",
        "[[1],[1.0]]",
        '[["é"],["\\u00E9"]]',
        '[{"a":1,"b":2},{"b":2,"a":1}]',
        '[{"a":[{}]},{"a":[{ }]}]',
        '[{"\\u00fc":1},{"ü":1.00}]',
    ],
)
def test_equal_items_are_refused_whatever_their_spelling(text: str) -> None:
    assert accepts(ArrayShape(rest=ANY), text)
    assert not accepts(ArrayShape(rest=ANY, unique=True), text)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[1,11,111]",
        '[1,true,"1","true"]',
        '[0,false,null,[],{},""]',
        '["a","A","ab"]',
        "[[1,2],[2,1],[1],[[1]]]",
        '[{"a":1},{"a":2},{"b":1},{"a":1,"b":1}]',
        "[[1,1],2]",
        "[1e0,10e0,1e-1,0.01]",
    ],
)
def test_different_items_are_unique(text: str) -> None:
    assert accepts(ArrayShape(rest=ANY, unique=True), text)


def test_unique_literals_run_out() -> None:
    machine = arrays(ArrayShape(rest=BOTH, unique=True))
    assert ways_on(machine, "[1,") == "t"
    assert ways_on(machine, "[true,1") == "]"


def test_unique_strings_of_a_finite_language_run_out() -> None:
    machine = arrays(ArrayShape(rest=SHORT, unique=True))
    assert ways_on(machine, '["a","a') == "b"
    assert ways_on(machine, '["ab","a') == '"'
    assert ways_on(machine, '["ab","a","') == "b"
    assert ways_on(machine, '["ab","a","b"') == "]"


def test_unique_numbers_are_told_apart_by_value() -> None:
    machine = arrays(ArrayShape(rest=TENTHS, unique=True))
    assert ways_on(machine, "[1,1") == "."
    assert ways_on(machine, "[1,1.0") == "123456789"
    assert ways_on(machine, "[1.1,1.1") == "123456789"
    assert ways_on(machine, "[1.10,1.11,1.1") == "23456789"


def test_items_are_unique_in_their_own_array_only() -> None:
    inner_unique = arrays(ArrayShape(rest=ANY), ArrayShape(rest=ANY, unique=True))
    assert accepts_text(inner_unique, b"[[1,2],[1,2],1,1]")
    assert not accepts_text(inner_unique, b"[[1,[2,2]]]")
    assert accepts_text(inner_unique, b"[[1,[1,[1]]]]")
