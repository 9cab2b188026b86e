"""Which types have values at all: a least fixpoint over the finished types, and the program without the others."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from forge_grammar.program import NONE, ArrayShape, Contains, KeyClass, ObjectShape, Property, TypeNode


def without_empty(
    types: Sequence[TypeNode], arrays: Sequence[ArrayShape], objects: Sequence[ObjectShape]
) -> tuple[Sequence[TypeNode], Sequence[ArrayShape], Sequence[ObjectShape], list[bool]]:
    """Types and shapes that refer to inhabited types alone, and which types are inhabited (others stay, unused)."""
    full = [bool(node.literals or node.strings or node.numbers) for node in types]
    full.append(False)  # the type NONE
    if not all(full[:-1]):
        _grow(full, types, arrays, objects)
    live_arrays = [_array_lives(shape, full) for shape in arrays]
    live_objects = [_object_lives(shape, full) for shape in objects]
    if all(full[:-1]) and all(live_arrays) and all(live_objects):
        return types, arrays, objects, full
    kept = [
        node
        if all(live_arrays[at] for at in node.arrays) and all(live_objects[at] for at in node.objects)
        else evolve(
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


def _grow(
    full: list[bool], types: Sequence[TypeNode], arrays: Sequence[ArrayShape], objects: Sequence[ObjectShape]
) -> None:
    """The least fixpoint."""
    empty = [at for at in range(len(types) - 1, -1, -1) if not full[at]]
    before = len(empty) + 1
    while empty and len(empty) < before:
        before = len(empty)
        left = []
        for at in empty:
            node = types[at]
            full[at] = any(_object_lives(objects[s], full) for s in node.objects) or any(
                _array_lives(arrays[s], full) for s in node.arrays
            )
            if not full[at]:
                left.append(at)
        empty = left


def _object_lives(shape: ObjectShape, full: Sequence[bool]) -> bool:
    for prop in shape.properties:
        if prop.required and not full[prop.type]:
            return False
    if not shape.minimum and shape.maximum == NONE:
        return True
    required = sum([prop.required for prop in shape.properties])
    if shape.maximum != NONE and max(required, shape.minimum) > shape.maximum:
        return False
    possible = sum([full[prop.type] for prop in shape.properties])
    return possible >= shape.minimum or any(full[each.type] for each in shape.classes)


def _object_kept(shape: ObjectShape, full: Sequence[bool]) -> ObjectShape:
    if all(full[prop.type] for prop in shape.properties) and all(full[each.type] for each in shape.classes):
        return shape
    properties = [p if full[p.type] else Property(p.name, NONE, p.required) for p in shape.properties]
    classes = [KeyClass(each.language, each.type) for each in shape.classes if full[each.type]]
    return ObjectShape(tuple(properties), tuple(classes), shape.minimum, shape.maximum)


def _array_lives(shape: ArrayShape, full: Sequence[bool]) -> bool:
    most = _longest(shape, full)
    if most != NONE and most < shape.minimum:
        return False
    return all(_counts(c, shape, most, full) for c in shape.contains)


def _longest(shape: ArrayShape, full: Sequence[bool]) -> int:
    """How many items there can be, by their types."""
    length = next((i for i, type_id in enumerate(shape.prefix) if not full[type_id]), len(shape.prefix))
    if length == len(shape.prefix) and full[shape.rest]:
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
        counts, other = full[contains.both[at]], full[contains.neither[at]]
        may += counts
        must += counts and not other
        if contains.maximum != NONE and not counts and not other:
            return False
    return False


def _array_kept(shape: ArrayShape, full: Sequence[bool]) -> ArrayShape:
    def kept(ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(type_id if full[type_id] else NONE for type_id in ids)

    contains = tuple(evolve(c, both=kept(c.both), neither=kept(c.neither)) for c in shape.contains)
    rest = shape.rest if full[shape.rest] else NONE
    return evolve(shape, prefix=kept(shape.prefix), rest=rest, maximum=_longest(shape, full), contains=contains)
