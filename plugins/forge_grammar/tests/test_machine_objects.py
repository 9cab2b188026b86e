"""The Python machine on objects: order and number of keys, forbidden names, classes of keys, alternatives."""

from __future__ import annotations

import pytest
from forge_grammar.machine.grammar import Program as Machine
from forge_grammar.machine.machine import Configuration, accepts_text, viable_prefix
from forge_grammar.program import (
    NONE,
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

ONE, TRUE, OBJECTS, ANY_STRING = 0, 1, 2, 3
LANGUAGES = (Language.any(), Language.regex("^x"), Language.regex("^(p|q|r)$"))
ANY, X, PQR = range(3)


def objects(*shapes: ObjectShape, any_order: bool = False) -> Machine:
    """A machine for one object of any of the shapes."""
    types = [
        TypeNode(literals=("1",)),
        TypeNode(literals=("true",)),
        TypeNode(objects=tuple(range(len(shapes)))),
        TypeNode(strings=(StringTerm(ANY),)),
    ]
    languages = [language.to_bytes() for language in LANGUAGES]
    program = Program(RootKind.JSON, OBJECTS, types, (), shapes, languages, any_key_order=any_order, whitespace=1)
    return Machine.of(flatten(program))


def ways_on(machine: Machine, text: str) -> str:
    configuration = Configuration.start(machine).run(text.encode())
    assert configuration is not None
    return "".join(chr(byte) for byte in range(256) if byte not in b" \t\r\n" and configuration.step(byte))


ABC = (Property("a", ONE), Property("b", ONE, True), Property("c", ONE))


@pytest.mark.parametrize(
    ("text", "in_order", "in_any"),
    [
        ('{"a":1,"b":1,"c":1}', True, True),
        ('{"b":1}', True, True),
        ('{"b":1,"c":1}', True, True),
        ('{"c":1,"b":1}', False, True),
        ('{"b":1,"a":1}', False, True),
        ('{"a":1,"c":1}', False, False),
        ("{}", False, False),
        ('{"b":1,"b":1}', False, False),
        ('{"b":1,}', False, False),
        ('{"b":1,"d":1}', False, False),
        ('{"b":true}', False, False),
    ],
)
def test_declared_keys_come_in_the_order_asked_for(text: str, in_order: bool, in_any: bool) -> None:
    assert accepts_text(objects(ObjectShape(ABC)), text.encode()) is in_order
    assert accepts_text(objects(ObjectShape(ABC), any_order=True), text.encode()) is in_any


def test_a_required_key_isnt_skipped() -> None:
    assert ways_on(objects(ObjectShape(ABC)), '{"') == "ab"
    assert ways_on(objects(ObjectShape(ABC)), '{"a":1') == ","
    assert ways_on(objects(ObjectShape(ABC)), '{"b":1') == ",}"
    assert ways_on(objects(ObjectShape(ABC)), '{"b":1,"c":1') == "}"
    assert ways_on(objects(ObjectShape(ABC), any_order=True), '{"') == "abc"
    assert ways_on(objects(ObjectShape(ABC), any_order=True), '{"c":1') == ","


def test_too_many_keys_are_never_begun() -> None:
    two = ObjectShape(ABC, maximum=2)
    assert ways_on(objects(two), '{"a":1,"b":1') == "}"
    assert ways_on(objects(two, any_order=True), '{"a":1,"') == "b"
    one = ObjectShape(ABC, (KeyClass(ANY, ONE),), maximum=1)
    assert ways_on(objects(one), '{"') == "b"
    assert ways_on(objects(one), '{"b":1') == "}"


def test_too_few_keys_are_never_reached() -> None:
    three = ObjectShape(ABC, minimum=3)
    assert ways_on(objects(three), '{"') == "a"
    assert ways_on(objects(three), '{"a":1,"b":1') == ","
    assert ways_on(objects(ObjectShape(ABC, minimum=2), any_order=True), '{"b":1') == ","
    # Two of a, b, c and two of p, q, r: b may be the first only if all three others come.
    four = ObjectShape(ABC, (KeyClass(PQR, ONE),), minimum=5)
    assert ways_on(objects(four), '{"') == "ab"
    assert ways_on(objects(four), '{"b":1,"') == "c"
    assert ways_on(objects(four), '{"b":1,"c":1,"p":1,"') == "qr"


def test_finitely_many_other_keys_run_out() -> None:
    others = objects(ObjectShape((), (KeyClass(PQR, ONE),)))
    assert ways_on(others, '{"p":1,"r":1,"') == "q"
    assert ways_on(others, '{"p":1,"r":1,"q":1') == "}"
    declared = objects(ObjectShape((Property("p", NONE), Property("q", ONE)), (KeyClass(PQR, ONE),)))
    assert ways_on(declared, '{"') == "qr"
    assert ways_on(declared, '{"r":1') == "}"


def test_forbidden_names_are_refused_though_a_class_has_them() -> None:
    shape = ObjectShape((Property("xa", NONE), Property("y", NONE)), (KeyClass(X, ONE),))
    assert accepts_text(objects(shape), b'{"x":1,"xab":1}')
    for bad in [b'{"xa":1}', b'{"x\\u0061":1}', b'{"y":1}', b'{"ax":1}']:
        assert not accepts_text(objects(shape), bad), bad
    onward = ways_on(objects(shape), '{"xa')
    assert "b" in onward
    assert '"' not in onward


def test_classes_of_keys_have_types_of_their_own() -> None:
    shape = ObjectShape((Property("é", TRUE),), (KeyClass(X, ONE), KeyClass(PQR, TRUE)))
    machine = objects(shape)
    for good in ['{"é":true,"x1":1,"p":true,"x":1}', '{"q":true,"x\\u00e9":1}']:
        assert accepts_text(machine, good.encode()), good
    for bad in ['{"x":true}', '{"p":1}', '{"p":true,"é":true}', '{"\\u00e9":true}']:
        assert not accepts_text(machine, bad.encode()), bad


@pytest.mark.parametrize("any_order", [False, True])
@pytest.mark.parametrize(
    "text", ['{"a":1,"a":1}', '{"k":1,"k":1}', '{"é":1,"\\u00e9":1}', '{"k":1,"":1,"k":1}', '{"k":1,"a":1,"a":1}']
)
def test_no_key_comes_twice(text: str, any_order: bool) -> None:
    machine = objects(ObjectShape((Property("a", ONE),), (KeyClass(ANY, ONE),)), any_order=any_order)
    assert not accepts_text(machine, text.encode())
    assert text.encode()[viable_prefix(machine, text.encode()) :].startswith(
        b'"'
    )  # it could have become a longer key until the quote that closes it


def test_declared_keys_come_before_others_in_schema_order() -> None:
    shape = ObjectShape((Property("a", ONE),), (KeyClass(ANY, ONE),))
    assert not accepts_text(objects(shape), b'{"k":1,"a":1}')
    assert accepts_text(objects(shape, any_order=True), b'{"k":1,"a":1}')
    assert accepts_text(objects(shape), b'{"a":1,"k":1}')


def test_nested_objects_may_use_the_keys_again() -> None:
    shape = ObjectShape((), (KeyClass(ANY, OBJECTS),))
    assert accepts_text(objects(shape), b'{"a":{"a":{},"b":{}},"b":{}}')
    assert not accepts_text(objects(shape), b'{"a":{"a":{},"b":{}},"a":{}}')


def test_recursion_is_bounded_by_nothing() -> None:
    machine = objects(ObjectShape((Property("a", OBJECTS),)))
    depth = 3000
    assert accepts_text(machine, b'{"a":' * depth + b"{}" + b"}" * depth)
    assert not accepts_text(machine, b'{"a":' * depth + b"{}" + b"}" * (depth - 1))


def test_alternatives_are_read_side_by_side_until_a_key_or_value_tells() -> None:
    machine = objects(
        ObjectShape((Property("k", ONE, True), Property("a", ONE, True))),
        ObjectShape((Property("k", TRUE, True), Property("b", TRUE, True))),
        ObjectShape((Property("k", TRUE, True),), (KeyClass(X, ANY_STRING),)),
    )
    for good in ['{"k":1,"a":1}', '{"k":true,"b":true}', '{"k":true}', '{"k":true,"x":"1"}']:
        assert accepts_text(machine, good.encode()), good
    for bad in ['{"k":1}', '{"k":1,"b":true}', '{"k":true,"b":true,"x":"1"}', '{"k":true,"a":1}']:
        assert not accepts_text(machine, bad.encode()), bad
    assert ways_on(machine, '{"k":') == "1t"
    assert ways_on(machine, '{"k":1') == ","
    assert ways_on(machine, '{"k":true,"') == "bx"


def test_a_key_that_is_declared_in_one_alternative_may_be_of_a_class_in_another() -> None:
    machine = objects(ObjectShape((Property("xa", ONE, True),)), ObjectShape((), (KeyClass(X, TRUE),)))
    for good in ['{"xa":1}', '{"xa":true}', "{}", '{"x\\u00e9":true,"xa":true}']:
        assert accepts_text(machine, good.encode()), good
    for bad in ['{"xa":1,"x":true}', '{"xa":true,"xa":true}']:
        assert not accepts_text(machine, bad.encode()), bad
