"""Values that mustn't equal earlier ones, while they're being written.

An array of unique items, or something inside of an item, has ties: the values it mustn't become and still could, by
what has been written of it. It goes on only in ways after which some value is left that is none of its ties. Of the
ways that a shape has, so many are looked at that the answer is found by counting: to end now, to have all members that
there's room for, or to have members without end. A way that only other ways would have left open isn't taken.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from attrs import field, frozen

from forge_grammar.machine.canonical import canonical
from forge_grammar.machine.grammar import ArrayShape, ObjectShape, Program
from forge_grammar.program import NONE
from forge_grammar.regular.dfa import INFINITE


@frozen
class Value:
    """A JSON value by its canonical text, with the values in it: of an object by key, of an array in order."""

    text: str
    members: Mapping[str, Value] | None = field(default=None, eq=False)
    items: tuple[Value, ...] | None = field(default=None, eq=False)

    @staticmethod
    def read(text: bytes | str) -> Value:
        """The value of a JSON text."""
        return _value(json.loads(text, parse_int=_Number, parse_float=_Number))


Values = frozenset[Value]
NOTHING: Values = frozenset()


class _Number(str):
    """A number's text, told apart from a string."""


def _value(decoded: object) -> Value:
    if isinstance(decoded, dict):
        members = {key: _value(decoded[key]) for key in sorted(decoded)}
        return Value("{" + ",".join(f"{json.dumps(k)}:{v.text}" for k, v in members.items()) + "}", members=members)
    if isinstance(decoded, list):
        items = tuple(map(_value, decoded))
        return Value("[" + ",".join(item.text for item in items) + "]", items=items)
    return Value(canonical(decoded if isinstance(decoded, _Number) else json.dumps(decoded)))


def texts(values: Iterable[Value]) -> frozenset[str]:
    """Their canonical texts."""
    return frozenset(value.text for value in values)


def is_fresh(program: Program, type_id: int, avoid: Values) -> bool:
    """Whether a type has a value that is none of `avoid`, as far as the ways that are looked at tell."""
    if not avoid:
        return True
    node = program.types[type_id]
    if node.has_fresh_scalar(texts(avoid)):
        return True
    arrays, objects = arrays_of(avoid), objects_of(avoid)
    shapes = (program.arrays[at] for at in node.arrays)
    return any(array_differs(program, shape, 0, (0,) * len(shape.contains), 0, arrays) for shape in shapes) or any(
        object_differs(program, program.objects[at], 0, 0, 0, objects) for at in node.objects
    )


def objects_of(values: Values) -> Values:
    """Those that are objects."""
    return frozenset(value for value in values if value.members is not None)


def arrays_of(values: Values) -> Values:
    """Those that are arrays."""
    return frozenset(value for value in values if value.items is not None)


# ------------------------------------------------------------------------------------------------------------- objects


def object_closes(shape: ObjectShape, at: int, count: int, written: int, ties: Values) -> bool:
    """Whether an object of so many written members may end. at, count: its state, see `ObjectShape`."""
    return shape.can_close(at, count) and not any(len(tie.members or ()) == written for tie in ties)


def object_differs(program: Program, shape: ObjectShape, at: int, count: int, written: int, ties: Values) -> bool:
    """Whether an object can be completed to none of its ties."""
    if not ties or object_closes(shape, at, count, written, ties) or shape.always_extensible(at, count):
        return True
    rest = shape.fullest(at, count)
    if rest is None:
        return False
    full = sum(
        len(tie.members or ()) == written + len(rest) and all(shape.names[i] in (tie.members or ()) for i in rest)
        for tie in ties
    )
    return _product((program.types[shape.properties[i].type].values for i in rest), full)


def member_avoids(
    program: Program, shape: ObjectShape, at: int, count: int, written: int, key: str, index: int, ties: Values
) -> Values:
    """The values that the member of a key mustn't have. index: of the declared property, or NONE; others: before it."""
    by_value: dict[Value, set[Value]] = defaultdict(set)
    for tie in ties:
        if tie.members is not None and key in tie.members:
            by_value[tie.members[key]].add(tie)
    then = shape.after(at, index), shape.counted(count), written + 1
    return _hopeless(by_value, lambda left: object_differs(program, shape, *then, left))


# -------------------------------------------------------------------------------------------------------------- arrays


def array_closes(shape: ArrayShape, index: int, counts: tuple[int, ...], written: int, ties: Values) -> bool:
    """Whether an array of so many written items may end. index, counts: its state, see `ArrayShape`."""
    return shape.can_close(index, counts) and not any(len(tie.items or ()) == written for tie in ties)


def array_differs(
    program: Program, shape: ArrayShape, index: int, counts: tuple[int, ...], written: int, ties: Values
) -> bool:
    """Whether an array can be completed to none of its ties. Shapes with `contains` are only looked at for an end."""
    if not ties or array_closes(shape, index, counts, written, ties):
        return True
    longest = fullest(program, shape)
    if shape.contains or longest <= written:
        return False
    if longest >= INFINITE:
        return True
    full = sum(len(tie.items or ()) == longest for tie in ties)
    return _product(_item_values(program, shape, written, longest), full)


def item_avoids(
    program: Program, shape: ArrayShape, index: int, counts: tuple[int, ...], written: int, ties: Values
) -> Values:
    """The values that the next item mustn't have. index, counts: after it; written: the items before it."""
    by_value: dict[Value, set[Value]] = defaultdict(set)
    for tie in ties:
        if tie.items is not None and len(tie.items) > written:
            by_value[tie.items[written]].add(tie)
    return _hopeless(by_value, lambda left: array_differs(program, shape, index, counts, written + 1, left))


def fullest(program: Program, shape: ArrayShape) -> int:
    """How many items an array can have whatever the items before are; INFINITE: no end of them; 0: too few."""
    ceiling = INFINITE if shape.ceiling == NONE else shape.ceiling
    if not shape.unique:
        return ceiling
    length = next((i for i, t in enumerate(shape.prefix[:ceiling]) if program.types[t].values <= i), len(shape.prefix))
    if length == len(shape.prefix) and length < ceiling:
        length = max(length, min(ceiling, program.types[shape.rest].values))
    length = min(length, ceiling)
    return length if length >= shape.minimum else 0


def _item_values(program: Program, shape: ArrayShape, first: int, end: int) -> Iterator[int]:
    """How many values the items from first to end have at least, whatever the items before are."""
    for index in range(first, end):
        values = program.types[shape.type_at(index)].values
        if index >= len(shape.prefix) and values == 1:
            break  # and so have all others, if they may be equal
        yield values if values >= INFINITE or not shape.unique else values - index


def _hopeless(by_value: Mapping[Value, set[Value]], differs: Callable[[Values], bool]) -> Values:
    """The values after which nothing but the values in their sets would be left."""
    return frozenset(value for value, left in by_value.items() if not differs(frozenset(left)))


def _product(values: Iterable[int], least: int) -> bool:
    """Whether the product is more than `least`."""
    product = 1
    for each in values:
        if each >= INFINITE or (product := product * each) >= INFINITE:
            return True
    return product > least
