"""Nondeterministic automata with assertions, as the regex front end emits them and both determinisations read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

from attrs import field, frozen

Range = tuple[int, int]
CharSet = tuple[Range, ...]

MAX_CODE_POINT = 0x10FFFF
TEXT: CharSet = ((0, 0xD7FF), (0xE000, MAX_CODE_POINT))
WORD: CharSet = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))


class Op(IntEnum):
    """What a state does: take a character of a set; go two ways; be the end (ALL: whatever follows); go on where an
    assertion holds; go on where what follows is in a language (LOOK).
    """

    CHAR = 0
    SPLIT = 1
    MATCH = 2
    ALL = 3
    BEGIN = 4
    END = 5
    BOUNDARY = 6
    NO_BOUNDARY = 7
    LOOK = 8


class Before(IntEnum):
    """What stands before a position: nothing, a character of a word, or another."""

    NOTHING = 0
    WORD = 1
    OTHER = 2


@frozen
class Nfa:
    """States as rows (op, argument, next, other next): argument is an index of `sets` for CHAR, of `looks` for LOOK.

    looks: per lookahead, an automaton for each value of `Before`.
    """

    rows: Sequence[tuple[int, int, int, int]]
    start: int
    sets: Sequence[CharSet]
    looks: Sequence[tuple[Any, Any, Any]] = ()


@frozen
class Alphabet:
    """A partition of the code points. members: of each set, its classes."""

    bounds: list[int]
    range_class: list[int]
    classes: int
    members: list[list[int]] = field(factory=list)


def partition(sets: Iterable[CharSet]) -> Alphabet:
    """The coarsest partition of which every set is a union. Surrogates are in no set."""
    events: dict[int, int] = {0: 0}
    count = 0
    for i, each in enumerate(sets):
        count += 1
        for low, high in each:
            events[low] = events.get(low, 0) ^ 1 << i
            events[high + 1] = events.get(high + 1, 0) ^ 1 << i
    bounds: list[int] = []
    range_class: list[int] = []
    numbers: dict[int, int] = {}
    signature, previous = 0, -1
    for at in sorted(events):
        signature ^= events[at]
        if at > MAX_CODE_POINT:
            break
        number = numbers.setdefault(signature, len(numbers))
        if number != previous:
            bounds.append(at)
            range_class.append(number)
            previous = number
    members: list[list[int]] = [[] for _ in range(count)]
    for signature, number in numbers.items():
        rest = signature
        while rest:
            lowest = rest & -rest
            members[lowest.bit_length() - 1].append(number)
            rest ^= lowest
    return Alphabet(bounds, range_class, len(numbers), members)


def normal(ranges: Iterable[Range]) -> CharSet:
    """The ranges sorted, merged, and without surrogates."""
    merged: list[list[int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1][1] = max(high, merged[-1][1])
        else:
            merged.append([low, high])
    result: list[Range] = []
    for low, high in merged:
        if low < 0xD800:
            result.append((low, min(high, 0xD7FF)))
        if high > 0xDFFF:
            result.append((max(low, 0xE000), high))
    return tuple(result)


def complement(chars: CharSet) -> CharSet:
    """All other characters."""
    result: list[Range] = []
    at = 0
    for low, high in chars:
        if low > at:
            result.append((at, low - 1))
        at = high + 1
    if at <= MAX_CODE_POINT:
        result.append((at, MAX_CODE_POINT))
    return normal(result)
