"""Deterministic automata over code points: their serialised form and the questions a machine asks of them.

The twin of `native/dfa.hpp`. Knows nothing of how automata are made (`forge_grammar.regular.automaton`).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

from forge_grammar.regular.errors import MAX_LENGTH_TABLE, LimitExceeded

DEAD = 0xFFFFFFFF
INFINITE = 2**31 - 1
MAGIC = b"FDA1"
SURROGATES = (0xD800, 0xDFFF)
_HEADER = struct.Struct("<4s4I")


class Dfa:
    """A trimmed minimal automaton in canonical form: equal languages have equal bytes.

    start: 0, or DEAD where the language is empty. bounds: the first code point of each range; range_class: the class of
    each. delta: [states * classes], DEAD where no accepted word goes on. accepting: [states], 0 or 1.
    Serialised, little-endian: `FDA1`, u32 states, classes, ranges, start; u32 bounds; u16 range_class, padded to 4;
    u32 delta; u8 accepting, padded to 4 bytes.
    """

    def __init__(
        self,
        start: int,
        states: int,
        classes: int,
        bounds: Sequence[int],
        range_class: Sequence[int],
        delta: Sequence[int],
        accepting: Sequence[int],
    ) -> None:
        self.start = start
        self.states = states
        self.classes = classes
        self.bounds = bounds
        self.range_class = range_class
        self.delta = delta
        self.accepting = accepting
        self._length_tables: dict[int, _Lengths] = {}

    @staticmethod
    def from_bytes(data: bytes) -> Dfa:
        """Read the serialised form. Errors: `ValueError` where it isn't one."""
        if len(data) < _HEADER.size:
            raise ValueError("an automaton of too few bytes")
        magic, states, classes, ranges, start = _HEADER.unpack_from(data)
        at = _HEADER.size
        sizes = (4 * ranges, _padded(2 * ranges), 4 * states * classes, _padded(states))
        if magic != MAGIC or at + sum(sizes) != len(data) or not ranges or not classes:
            raise ValueError("bytes that aren't an automaton")
        if start != (0 if states else DEAD):
            raise ValueError("an automaton with a wrong start")
        bounds = _unpack("I", data, at, ranges)
        range_class = _unpack("H", data, at + sizes[0], ranges)
        delta = _unpack("I", data, at + sizes[0] + sizes[1], states * classes)
        accepting = _unpack("B", data, at + sizes[0] + sizes[1] + sizes[2], states)
        if bounds[0] or any(a >= b for a, b in pairwise(bounds)) or bounds[-1] > 0x10FFFF:
            raise ValueError("an automaton whose ranges aren't ascending")
        if max(range_class) >= classes or any(target != DEAD and target >= states for target in delta):
            raise ValueError("an automaton with a class or state out of range")
        return Dfa(start, states, classes, bounds, range_class, delta, accepting)

    def to_bytes(self) -> bytes:
        """The serialised form."""
        header = _HEADER.pack(MAGIC, self.states, self.classes, len(self.bounds), self.start)
        parts = [("I", self.bounds), ("H", self.range_class), ("I", self.delta), ("B", self.accepting)]
        return header + b"".join(_pack(code, values) for code, values in parts)

    @cached_property
    def _ascii(self) -> list[int]:
        return [self.range_class[bisect_right(self.bounds, cp) - 1] for cp in range(128)]

    def class_of(self, cp: int) -> int:
        """The class of a code point."""
        return self._ascii[cp] if cp < 128 else self.range_class[bisect_right(self.bounds, cp) - 1]

    def step(self, state: int, cp: int) -> int:
        """The state after a code point; DEAD if no accepted word goes on so."""
        return DEAD if state == DEAD else self.delta[state * self.classes + self.class_of(cp)]

    def run(self, text: str) -> int:
        """The state after a text from the start."""
        state = self.start
        for char in text:
            state = self.step(state, ord(char))
        return state

    def accepts(self, text: str) -> bool:
        """Whether the text is in the language."""
        state = self.run(text)
        return state != DEAD and bool(self.accepting[state])

    def live_in(self, state: int, first: int, last: int) -> bool:
        """Whether some code point of first..last leads to a live state."""
        if state == DEAD:
            return False
        row = state * self.classes
        low = bisect_right(self.bounds, first) - 1
        high = bisect_right(self.bounds, last)
        return any(self.delta[row + self.range_class[i]] != DEAD for i in range(low, high))

    def words_from(self, state: int) -> int:
        """How many words are accepted from a state; INFINITE also for as many or more."""
        return 0 if state == DEAD else self._word_counts[state]

    def universal(self, state: int) -> bool:
        """Whether every text is accepted from here."""
        return state != DEAD and state == self._universal

    def reaches(self, state: int, low: int, high: int = -1) -> bool:
        """Whether a word of low..high code points is accepted from a state; high -1: unbounded.

        Errors: `LimitExceeded` where no short period tells (never for a smaller `low` with the same high - low).
        """
        if state == DEAD or (high >= 0 and low > high):
            return False
        low = max(low, 0)
        if self._longest[state] < low:
            return False
        if high < 0 or high - low >= self.states - 1:
            # The shortest word of at least `low` repeats no state beyond that, so it's less than `states` longer.
            return True
        if self._shortest[state] >= low:
            return self._shortest[state] <= high
        width = high - low
        table = self._length_tables.get(width)
        if table is None:
            ends = sum(1 << s for s in range(self.states) if self._shortest[s] <= width)
            table = self._length_tables[width] = _Lengths(ends, self._sources)
        return table.has(state, low)

    def successors(self, state: int) -> set[int]:
        """The live states one code point away."""
        row = self.delta[state * self.classes : (state + 1) * self.classes]
        return set(row) - {DEAD}

    def words(self, limit: int) -> list[str] | None:
        """All words in order of code points; None where there are more than `limit`."""
        if self.start == DEAD:
            return []
        if self.words_from(self.start) > limit or self.words_from(self.start) == INFINITE:
            return None
        return list(self._words(self.start))

    def _words(self, start: int) -> Iterator[str]:
        stack = [("", start)]
        while stack:
            text, state = stack.pop()
            if self.accepting[state]:
                yield text
            for i in range(len(self.bounds) - 1, -1, -1):
                target = self.delta[state * self.classes + self.range_class[i]]
                if target != DEAD:
                    end = self.bounds[i + 1] if i + 1 < len(self.bounds) else 0x110000
                    stack += ((text + chr(cp), target) for cp in range(end - 1, self.bounds[i] - 1, -1))

    @cached_property
    def _universal(self) -> int:
        for state in range(self.states):
            if self.accepting[state] and all(
                self.delta[state * self.classes + c] == state or (first >= SURROGATES[0] and end <= SURROGATES[1] + 1)
                for first, end, c in zip(self.bounds, [*self.bounds[1:], 0x110000], self.range_class)
            ):
                return state
        return DEAD

    @cached_property
    def _sources(self) -> list[list[int]]:
        sources: list[list[int]] = [[] for _ in range(self.states)]
        for state in range(self.states):
            for target in self.successors(state):
                sources[target].append(state)
        return sources

    @cached_property
    def _finishing_order(self) -> tuple[list[int], list[int]]:
        """States from which no cycle is reached, each after all its successors; and how often each has been left."""
        pending = [len(self.successors(state)) for state in range(self.states)]
        order = [state for state in range(self.states) if not pending[state]]
        for state in order:
            for source in self._sources[state]:
                pending[source] -= 1
                if not pending[source]:
                    order.append(source)
        return order, pending

    @cached_property
    def _word_counts(self) -> list[int]:
        counts = [INFINITE] * self.states
        sizes = [0] * self.classes
        for i, c in enumerate(self.range_class):
            sizes[c] += (self.bounds[i + 1] if i + 1 < len(self.bounds) else 0x110000) - self.bounds[i]
        for state in self._finishing_order[0]:
            row = self.delta[state * self.classes : (state + 1) * self.classes]
            total = sum(size * counts[target] for size, target in zip(sizes, row) if target != DEAD)
            counts[state] = min(INFINITE, total + self.accepting[state])
        return counts

    @cached_property
    def _longest(self) -> list[float]:
        longest = [float("inf")] * self.states
        for state in self._finishing_order[0]:
            longest[state] = max((1 + longest[target] for target in self.successors(state)), default=0)
        return longest

    @cached_property
    def _shortest(self) -> list[int]:
        shortest = [-1] * self.states
        order = [state for state in range(self.states) if self.accepting[state]]
        for state in order:
            shortest[state] = 0
        for state in order:
            for source in self._sources[state]:
                if shortest[source] < 0:
                    shortest[source] = shortest[state] + 1
                    order.append(source)
        return shortest


class _Lengths:
    """The sets of states that are k steps before a set of ends, for ascending k until they repeat."""

    def __init__(self, ends: int, sources: list[list[int]]) -> None:
        self._sets = [ends]
        self._seen = {ends: 0}
        self._loop: int | None = None
        self._before = [sum(1 << source for source in each) for each in sources]
        self._bytes = len(sources) // 8 + 1

    def has(self, state: int, steps: int) -> bool:
        while self._loop is None and steps >= len(self._sets):
            self._extend()
        if self._loop is not None and steps >= len(self._sets):
            steps = self._loop + (steps - self._loop) % (len(self._sets) - self._loop)
        return bool(self._sets[steps] >> state & 1)

    def _extend(self) -> None:
        if len(self._sets) * self._bytes >= MAX_LENGTH_TABLE:
            raise LimitExceeded("bytes of the table of lengths of a language", MAX_LENGTH_TABLE)
        rest, before = self._sets[-1], 0
        while rest:
            lowest = rest & -rest
            before |= self._before[lowest.bit_length() - 1]
            rest ^= lowest
        self._loop = self._seen.setdefault(before, len(self._sets))
        if self._loop == len(self._sets):
            self._loop = None
            self._sets.append(before)


def _padded(size: int) -> int:
    return (size + 3) // 4 * 4


def _pack(code: str, values: Sequence[int]) -> bytes:
    data = struct.pack(f"<{len(values)}{code}", *values)
    return data + bytes(_padded(len(data)) - len(data))


def _unpack(code: str, data: bytes, at: int, count: int) -> array[int]:
    return array(code, struct.unpack_from(f"<{count}{code}", data, at))
