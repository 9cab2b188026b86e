"""Which types have values at all: a least fixpoint over the finished types, and the program without the others."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from forge_grammar.program import NONE, ArrayShape, Contains, ObjectShape, TypeNode


def without_empty(
    types: Sequence[TypeNode], arrays: Sequence[ArrayShape], objects: Sequence[ObjectShape]
) -> tuple[Sequence[TypeNode], Sequence[ArrayShape], Sequence[ObjectShape], list[bool]]:
    """Types and shapes that refer to inhabited types alone, and which types are inhabited (others stay, unused)."""
    full = [bool(node.literals or node.strings or node.numbers) for node in types]
    if not all(full):
        _grow(full, types, arrays, objects)
    if all(full) and not any(map(_bounded, objects)) and not any(shape.contains for shape in arrays):
        return types, arrays, objects, full
    live_arrays = [_array_lives(shape, full) for shape in arrays]
    live_objects = [_object_lives(shape, full) for shape in objects]
    kept = [
        evolve(
            node,
            arrays=tuple(at for at in node.arrays if live_arrays[at]),
            objects=tuple(at for at in node.objects if live_objects[at]),
        )
        for node in types
    ]
    # Shapes without values stay, for others have their numbers, but no type has them any more.
    kept_arrays = [_array_kept(s, full) if lives else ArrayShape() for s, lives in zip(arrays, live_arrays)]
    kept_objects = [_object_kept(s, full) if lives else ObjectShape() for s, lives in zip(objects, live_objects)]
    return kept, kept_arrays, kept_objects, full


def _bounded(shape: ObjectShape) -> bool:
    """Whether a shape may be empty though all its types have values."""
    return shape.minimum > 0 or shape.maximum != NONE


def _grow(
    full: list[bool], types: Sequence[TypeNode], arrays: Sequence[ArrayShape], objects: Sequence[ObjectShape]
) -> None:
    grown = True
    while grown:
        grown = False
        for at in range(len(types) - 1, -1, -1):
            if not full[at]:
                node = types[at]
                full[at] = any(_object_lives(objects[s], full) for s in node.objects) or any(
                    _array_lives(arrays[s], full) for s in node.arrays
                )
                grown = grown or full[at]


def _is(type_id: int, full: Sequence[bool]) -> bool:
    return type_id != NONE and full[type_id]


def _object_lives(shape: ObjectShape, full: Sequence[bool]) -> bool:
    possible = 0
    required = 0
    for prop in shape.properties:
        if _is(prop.type, full):
            possible += 1
            required += prop.required
        elif prop.required:
            return False
    if shape.maximum != NONE and max(required, shape.minimum) > shape.maximum:
        return False
    return possible >= shape.minimum or any(_is(c.type, full) for c in shape.classes)


def _object_kept(shape: ObjectShape, full: Sequence[bool]) -> ObjectShape:
    properties = tuple(p if _is(p.type, full) else evolve(p, type=NONE) for p in shape.properties)
    return evolve(shape, properties=properties, classes=tuple(c for c in shape.classes if full[c.type]))


def _array_lives(shape: ArrayShape, full: Sequence[bool]) -> bool:
    most = _longest(shape, full)
    if most != NONE and most < shape.minimum:
        return False
    return all(_counts(c, shape, most, full) for c in shape.contains)


def _longest(shape: ArrayShape, full: Sequence[bool]) -> int:
    """How many items there can be, by their types."""
    length = next((i for i, type_id in enumerate(shape.prefix) if not _is(type_id, full)), len(shape.prefix))
    if length == len(shape.prefix) and _is(shape.rest, full):
        return shape.maximum
    return length if shape.maximum == NONE else min(length, shape.maximum)


def _counts(contains: Contains, shape: ArrayShape, most: int, full: Sequence[bool]) -> bool:
    """Whether some length in minimum..most lets the right number of items count."""
    last = len(contains.both) - 1
    longest = (
        max(shape.minimum, last + contains.minimum)
        if most == NONE
        else min(most, max(shape.minimum, last + contains.minimum))
    )
    may = must = 0
    for length in range(longest + 1):
        if (
            length >= shape.minimum
            and may >= contains.minimum
            and (contains.maximum == NONE or must <= contains.maximum)
        ):
            return True
        at = min(length, last)
        counts, other = _is(contains.both[at], full), _is(contains.neither[at], full)
        may += counts
        must += counts and not other
        if contains.maximum != NONE and not counts and not other:
            return False
    return False


def _array_kept(shape: ArrayShape, full: Sequence[bool]) -> ArrayShape:
    def kept(ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(type_id if _is(type_id, full) else NONE for type_id in ids)

    contains = tuple(evolve(c, both=kept(c.both), neither=kept(c.neither)) for c in shape.contains)
    rest = shape.rest if _is(shape.rest, full) else NONE
    return evolve(shape, prefix=kept(shape.prefix), rest=rest, maximum=_longest(shape, full), contains=contains)
