"""Shapes of arrays from terms. Several `contains` of one array become a union of shapes, in each of which every one of
them counts items of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from forge_grammar.program import NONE, ArrayShape, Contains
from forge_grammar.schema.errors import SchemaError
from forge_grammar.schema.terms import FALSE, TRUE, UNBOUNDED, Arrays, Conjunction, Counted, both, lower_of
from forge_grammar.schema.unions import item_of

if TYPE_CHECKING:
    from forge_grammar.schema.build import Builder

_MAX_PREFIX = 4096
_MAX_CONTAINS = 4
_FEW = 64


@frozen
class _Items:
    """What items must match, of the first ones and the rest, with their types; low..high: how many there are."""

    conjunctions: Sequence[Conjunction]
    prefix: Sequence[int]
    rest: int
    low: int
    high: int


class ArrayShapes:
    """Shapes of arrays, for a builder. Errors of all methods: `SchemaError`."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    def of(self, term: Arrays) -> Iterator[int]:
        """The shapes of a term: none if no array has it."""
        counted = _same_merged(c for c in term.contains if c.low or c.high != UNBOUNDED)
        if any(c.high != UNBOUNDED and c.low > c.high for c in counted) or (items := self._items(term)) is None:
            return
        left: list[tuple[Counted, Contains]] = []
        for c in counted:
            contains = self._contains(c, items)
            if _all_count(contains, c.start, items):
                high = UNBOUNDED if c.high == UNBOUNDED else c.start + c.high
                items = evolve(items, low=max(items.low, c.start + c.low), high=lower_of(items.high, high))
            else:
                left.append((c, contains))
        if items.high != UNBOUNDED and items.low > items.high:
            return
        if term.unique and self._repeats([*items.prefix, items.rest], items.low):
            return
        unique = term.unique and items.high not in (0, 1)
        ways: Iterable[list[Contains]] = [[contains for _, contains in left]]
        if len(left) > 1:
            if not _separable(left, items, unique=unique):
                raise self._refusal(term)
            ways = self._ways([c for c, _ in left], items)
        for way in ways:
            if len(way) > 1 and any(contains.both[-1] == NONE for contains in way):
                raise self._refusal(term)
            shape = ArrayShape(tuple(items.prefix), items.rest, items.low, items.high, unique, tuple(way))
            yield self._builder.array_shape(shape)

    def _items(self, term: Arrays) -> _Items | None:
        length = max([*(len(group.prefix) for group in term.groups), *(c.start for c in term.contains)], default=0)
        if term.high != UNBOUNDED:
            length = min(length, term.high)
        if length > _MAX_PREFIX:
            reason = f"more than {_MAX_PREFIX} items with schemas of their own"
            raise self._builder.algebra.document.error(None, "", reason)
        children = [item_of(term, index) for index in range(length)]
        after = item_of(term, max([length, *(len(group.prefix) for group in term.groups)]))
        high = term.high
        prefix: list[int] = []
        for child in children:
            if (type_id := self._builder.type_of(child)) == NONE:
                break
            prefix.append(type_id)
        rest = NONE
        if len(prefix) < length:
            high = lower_of(high, len(prefix))
        elif high == UNBOUNDED or high > length:
            rest = self._builder.type_of(after)
        if rest == NONE:
            high = lower_of(high, len(prefix))
        if high != UNBOUNDED and term.low > high:
            return None
        return _Items([*children[: len(prefix)], after], prefix, rest, term.low, high)

    def _contains(self, c: Counted, items: _Items) -> Contains:
        """The types of items that count and, where there's a maximum, of those that don't: of the first items, and the
        last for the rest.
        """
        type_of = self._builder.type_of
        counting, other = [], []
        for i, item in enumerate(items.conjunctions):
            counting.append(NONE if i < c.start else type_of(both(item, c.child)))
            other.append(NONE if c.high == UNBOUNDED else type_of(item if i < c.start else both(item, c.other)))
        return Contains(c.low, c.high, tuple(counting), tuple(other))

    def _ways(self, counted: list[Counted], items: _Items) -> Iterator[list[Contains]]:
        """Each way to share items out: some may be what several ask for, the others are asked for by one."""
        for groups in _partitions(counted):
            way = []
            for group in groups:
                child = TRUE
                for c in group:
                    child = both(child, c.child)
                start = max(c.start for c in group)
                way.append(self._contains(Counted(child, FALSE, 1, UNBOUNDED, start), items))
            if all(any(type_id != NONE for type_id in contains.both) for contains in way):
                yield way

    def _repeats(self, items: list[int], low: int) -> bool:
        """Whether among the first `low` items two scalars must be equal, as there are too few to choose from."""
        drawn: Counter[frozenset[str]] = Counter()
        for index in range(min(low, len(items) + _FEW)):
            node = self._builder.types[items[min(index, len(items) - 1)]]
            if node.literals and not (node.strings or node.numbers or node.arrays or node.objects):
                drawn[frozenset(node.literals)] += 1
        return any(count > len(literals) for literals, count in drawn.items())

    def _refusal(self, term: Arrays) -> SchemaError:
        algebra = self._builder.algebra
        key = next((abs(key) for c in term.contains for key in c.child), 0)
        return algebra.document.error(algebra.schemas[key], "contains", SEVERAL)


SEVERAL = "several of them in one array, that don't just ask for one item each among any number"


def check_several(arrays: Sequence[ArrayShape]) -> None:
    """Refuse shapes whose several `contains` may compete for items, now that it's known which types have values.

    The machine knows of each alone whether there are items enough for it: so there must be any number for all.
    """
    for shape in arrays:
        if len(shape.contains) > 1 and (shape.maximum != NONE or any(c.both[-1] == NONE for c in shape.contains)):
            raise SchemaError("", "contains", SEVERAL)


def _separable(left: list[tuple[Counted, Contains]], items: _Items, *, unique: bool) -> bool:
    one_each = all(c.low == 1 and c.high == UNBOUNDED for c, _ in left)
    return one_each and len(left) <= _MAX_CONTAINS and items.high == UNBOUNDED and items.rest != NONE and not unique


def _all_count(contains: Contains, start: int, items: _Items) -> bool:
    """Whether every item from `start` on counts."""
    plain = [*items.prefix, items.rest]
    return all(contains.both[i] == plain[i] or plain[i] == NONE for i in range(start, len(plain)))


def _same_merged(contains: Iterable[Counted]) -> list[Counted]:
    """Those that count the same items as one."""
    merged: dict[tuple[Conjunction, int], Counted] = {}
    for c in contains:
        if (same := merged.get((c.child, c.start))) is not None:
            c = evolve(c, low=max(c.low, same.low), high=lower_of(c.high, same.high))
        merged[c.child, c.start] = c
    return list(merged.values())


def _partitions(counted: list[Counted]) -> Iterator[list[list[Counted]]]:
    """All ways to put things into groups."""
    if not counted:
        yield []
        return
    first, *others = counted
    for groups in _partitions(others):
        yield [[first], *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], [first, *group], *groups[i + 1 :]]
