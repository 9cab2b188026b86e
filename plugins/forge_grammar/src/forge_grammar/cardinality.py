"""How many values types have at least, and whether arrays of unique items can always be completed.

Counts are of distinct values, never too high, and exact where a type is simple. They bound from below what a machine
may rely on when an item has to differ from earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache

from forge_grammar.machine.canonical import canonical
from forge_grammar.program import NONE, ArrayShape, ObjectShape, Program, RootKind, StringTerm, TypeNode
from forge_grammar.regular.dfa import DEAD, INFINITE, SURROGATES, Dfa

_ROUNDS = 64
_FEW_NUMBERS = 4096
_SPELLINGS = 64
"""So many texts of a bounded number have the same value at most: zeros after the point, an exponent."""
_MAX_STEPS = 1 << 20


def count_values(program: Program) -> list[int]:
    """For each type that values of unique items are made of, how many values it has at least; 0 for other types.

    `INFINITE` stands for no end of them, and for very many.
    """
    needed = _reached(program, _item_types(shape for shape in program.arrays if shape.unique))[0]
    counts = [0] * len(program.types)
    if not needed:
        return counts
    scalars = {at: _scalars(program.types[at], program.languages) for at in needed}
    for at, count in scalars.items():
        counts[at] = max(1, count)
    composite = sorted(at for at in needed if program.types[at].arrays or program.types[at].objects)
    # From below, types that others are made of first in every other round: any round's counts may be relied on.
    for turn in range(_ROUNDS):
        grown = False
        for at in composite if turn % 2 else reversed(composite):
            node = program.types[at]
            arrays = max((count_array(program.arrays[s], counts) for s in node.arrays), default=0)
            objects = max(
                (_count_object(program.objects[s], counts, program.languages) for s in node.objects), default=0
            )
            count = min(scalars[at] + arrays + objects, INFINITE)
            grown = grown or count > counts[at]
            counts[at] = max(count, counts[at])
        if not grown:
            break
    return counts


def count_array(shape: ArrayShape, counts: Sequence[int]) -> int:
    """Of the arrays of a shape; see `machine.distinct.fullest`."""
    if shape.contains:
        return 1
    length, count = 0, 1
    while shape.maximum == NONE or length < shape.maximum:
        type_id = shape.prefix[length] if length < len(shape.prefix) else shape.rest
        if type_id == NONE:
            break
        values = counts[type_id]
        free = values if values >= INFINITE or not shape.unique else values - length
        if free <= 0:
            break
        length, count = length + 1, min(count * free, INFINITE)
        if length > len(shape.prefix) and (values >= INFINITE or (shape.maximum == NONE and not shape.unique)):
            return INFINITE
        if count >= INFINITE and length >= shape.minimum:
            return INFINITE
        if length > len(shape.prefix) and free == 1 and not shape.unique:
            break  # the rest has one value: it adds nothing
    return count if length >= shape.minimum or not shape.unique else 1


def _count_object(shape: ObjectShape, counts: Sequence[int], languages: Sequence[bytes]) -> int:
    """Of the objects of a shape; see `ObjectShape.fullest` of the machine."""
    open_ = [prop for prop in shape.properties if prop.type != NONE]
    required = sum(prop.required for prop in open_)
    room = shape.maximum == NONE or required < shape.maximum
    if room and any(c.type != NONE and _words(languages[c.language]) >= INFINITE for c in shape.classes):
        return INFINITE
    if shape.maximum != NONE and len(open_) > shape.maximum:
        optional = [prop for prop in open_ if not prop.required][: max(shape.maximum - required, 0)]
        open_ = [prop for prop in open_ if prop.required or prop in optional]
    return _product(counts[prop.type] for prop in open_) if len(open_) >= shape.minimum else 1


def _product(counts: Iterable[int]) -> int:
    product = 1
    for count in counts:
        product = min(product * count, INFINITE)
    return product


def _scalars(node: TypeNode, languages: Sequence[bytes]) -> int:
    """Of a type's values that are neither arrays nor objects."""
    texts = [text for text in node.literals if text.startswith('"')]
    bare = [text for text in node.literals if text in ("true", "false", "null")]
    numbers = {canonical(text) for text in node.literals} - set(texts) - set(bare)
    strings = max([len(texts), *(_strings(term, languages[term.language]) for term in node.strings)])
    most = max([len(numbers), *(_numbers(languages[at]) for at in node.numbers)])
    return min(len(bare) + strings + most, INFINITE)


def _strings(term: StringTerm, language: bytes) -> int:
    words = _words(language)
    if words >= INFINITE and term.max_length == NONE:
        return INFINITE
    if words and (term.min_length or term.max_length != NONE):
        words = _words_within(Dfa.from_bytes(language), term.min_length, term.max_length)
    return words if words >= INFINITE or not words else max(words - len(term.excluded), 1)


@lru_cache(maxsize=1024)
def _words(language: bytes) -> int:
    """How many words a language has, up to `INFINITE`."""
    dfa = Dfa.from_bytes(language)
    return 0 if dfa.start == DEAD else min(dfa.words_from(dfa.start), INFINITE)


def _words_within(dfa: Dfa, low: int, high: int) -> int:
    """At least so many words have low..high code points."""
    sizes = _class_sizes(dfa)
    edges = [
        [(target, sizes[c]) for c in range(dfa.classes) if (target := dfa.delta[s * dfa.classes + c]) != DEAD]
        for s in range(dfa.states)
    ]
    ways = {dfa.start: 1}
    total = length = 0
    budget = _MAX_STEPS
    while ways:
        if length >= low:
            total += sum(count for state, count in ways.items() if dfa.accepting[state])
        if total >= INFINITE or length == high:
            break
        then: dict[int, int] = {}
        for state, count in ways.items():
            for target, size in edges[state]:
                then[target] = min(then.get(target, 0) + count * size, INFINITE)
            budget -= len(edges[state])
        ways, length = then, length + 1
        if budget < 0:
            break
    return max(min(total, INFINITE), 1)


def _class_sizes(dfa: Dfa) -> list[int]:
    sizes = [0] * dfa.classes
    for at, first in enumerate(dfa.bounds):
        end = dfa.bounds[at + 1] if at + 1 < len(dfa.bounds) else 0x110000
        surrogates = max(0, min(end - 1, SURROGATES[1]) - max(first, SURROGATES[0]) + 1)
        sizes[dfa.range_class[at]] += end - first - surrogates
    return sizes


@lru_cache(maxsize=1024)
def _numbers(language: bytes) -> int:
    """At least so many values have the number texts of a language."""
    words = _words(language)
    if words == 0 or words >= INFINITE:
        return words
    if words > _FEW_NUMBERS:
        return words // _SPELLINGS
    dfa = Dfa.from_bytes(language)
    return len({canonical(text) for text in _texts(dfa, dfa.start, "")})


def _texts(dfa: Dfa, state: int, text: str) -> Iterable[str]:
    if dfa.accepting[state]:
        yield text
    for char in "0123456789-.eE+":
        target = dfa.step(state, ord(char))
        if target != DEAD:
            yield from _texts(dfa, target, text + char)


# ------------------------------------------------------------------------------------------- arrays of unique items


def uncertain(program: Program) -> ArrayShape | None:
    """A shape of unique items that demands more distinct ones than are sure to be left; None if there's none.

    Only of shapes that the root reaches.
    """
    if not any(shape.unique and shape.minimum > 1 for shape in program.arrays):
        return None
    arrays, _ = reached(program)
    unique = [program.arrays[at] for at in sorted(arrays) if program.arrays[at].unique]
    counts = count_values(program)
    return next((shape for shape in unique if not _is_certain(shape, program, counts)), None)


def _is_certain(shape: ArrayShape, program: Program, counts: Sequence[int]) -> bool:
    @cache
    def overlap(a: int, b: int) -> bool:
        return a == b or _overlap(program.types[a], program.types[b])

    def type_at(index: int) -> int:
        return shape.prefix[index] if index < len(shape.prefix) else shape.rest

    for contains in shape.contains:
        least = min((counts[type_id] for type_id in contains.both if type_id != NONE), default=0)
        if contains.minimum > 1 and least < sum(each.minimum for each in shape.contains):
            return False
    # Of the items after the prefix the last one has the fewest values left.
    prefix = len(shape.prefix)
    for index in [*range(1, min(prefix, shape.minimum)), *([shape.minimum - 1] if shape.minimum > prefix else [])]:
        type_id = type_at(index)
        if type_id == NONE:
            return False
        before = sum(overlap(type_id, other) for other in shape.prefix[:index]) + max(index - prefix, 0)
        if _available(shape, index, counts) <= before:
            return False
    return True


def _available(shape: ArrayShape, index: int, counts: Sequence[int]) -> int:
    """So many values an item at an index can have over all ways in which `contains` may count it."""
    plain = counts[shape.prefix[index] if index < len(shape.prefix) else shape.rest]
    at = min(index, len(shape.prefix))
    for contains in shape.contains:
        if contains.maximum != NONE:
            both, neither = (counts[t] if t != NONE else 0 for t in (contains.both[at], contains.neither[at]))
            plain = min(plain, neither + min(both, contains.maximum))
    return plain


def _overlap(a: TypeNode, b: TypeNode) -> bool:
    """Whether two types may have a value in common."""
    if (a.arrays and b.arrays) or (a.objects and b.objects) or (a.strings and b.strings) or (a.numbers and b.numbers):
        return True
    if {canonical(text) for text in a.literals} & {canonical(text) for text in b.literals}:
        return True
    return any(
        (node.strings and any(text.startswith('"') for text in other.literals))
        or (node.numbers and any(text[0] in "-0123456789" for text in other.literals))
        for node, other in ((a, b), (b, a))
    )


def reached(program: Program) -> tuple[set[int], set[int]]:
    """The array and object shapes that the root reaches."""
    roots = [program.root] if program.root_kind is RootKind.JSON else []
    return _reached(program, [*roots, *(trigger.type for trigger in program.triggers)])[1:]


def _item_types(shapes: Iterable[ArrayShape]) -> Iterator[int]:
    """The types of all items of arrays, `NONE` among them."""
    for shape in shapes:
        yield from (*shape.prefix, shape.rest)
        for contains in shape.contains:
            yield from (*contains.both, *contains.neither)


def _reached(program: Program, roots: Iterable[int]) -> tuple[set[int], set[int], set[int]]:
    """The types, array shapes and object shapes that some types are made of, themselves included."""
    types, arrays, objects = set[int](), set[int](), set[int]()
    pending: list[int] = []

    def need(ids: Iterable[int]) -> None:
        new = set(ids) - types - {NONE}
        types.update(new)
        pending.extend(new)

    need(roots)
    while pending:
        node = program.types[pending.pop()]
        for at in set(node.arrays) - arrays:
            arrays.add(at)
            need(_item_types([program.arrays[at]]))
        for at in set(node.objects) - objects:
            objects.add(at)
            need(prop.type for prop in program.objects[at].properties)
            need(key_class.type for key_class in program.objects[at].classes)
    return types, arrays, objects
