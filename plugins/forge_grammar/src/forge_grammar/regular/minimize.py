"""Minimisation of partial deterministic automata (Valmari and Lehtinen, Efficient minimization of DFAs with partial
transition functions, 2008): time m log m of m live transitions, however deep the automaton.
"""

from __future__ import annotations

from collections.abc import Sequence


class _Partition:
    """A partition of 0..n-1 into sets, refined by marking elements and splitting off the marked ones of each set."""

    def __init__(self, n: int) -> None:
        self.elements = list(range(n))
        self.location = list(range(n))
        self.set_of = [0] * n
        self.first = [0] if n else []
        self.past = [n] if n else []
        self.marked = [0] if n else []
        self._touched: list[int] = []

    def mark(self, element: int) -> None:
        block = self.set_of[element]
        at = self.location[element]
        to = self.first[block] + self.marked[block]
        if at < to:
            return
        other = self.elements[to]
        self.elements[at], self.location[other] = other, at
        self.elements[to], self.location[element] = element, to
        if not self.marked[block]:
            self._touched.append(block)
        self.marked[block] += 1

    def split(self) -> None:
        for block in self._touched:
            middle = self.first[block] + self.marked[block]
            if middle != self.past[block]:
                new = len(self.first)
                # The smaller part becomes the new set: that's what bounds the work.
                if 2 * self.marked[block] <= self.past[block] - self.first[block]:
                    self.first.append(self.first[block])
                    self.past.append(middle)
                    self.first[block] = middle
                else:
                    self.first.append(middle)
                    self.past.append(self.past[block])
                    self.past[block] = middle
                self.marked.append(0)
                for i in range(self.first[new], self.past[new]):
                    self.set_of[self.elements[i]] = new
            self.marked[block] = 0
        self._touched.clear()


def minimal_blocks(
    states: int, tails: Sequence[int], labels: Sequence[int], heads: Sequence[int], finals: Sequence[int]
) -> list[int]:
    """The block of equivalent states of each state. All states are reachable and reach a final one; transitions as
    (tail, label, head).
    """
    blocks = _Partition(states)
    for state in finals:
        blocks.mark(state)
    blocks.split()
    cords = _by_label(labels)
    into: list[list[int]] = [[] for _ in range(states)]
    for transition, head in enumerate(heads):
        into[head].append(transition)
    block, cord = 1, 0
    while cord < len(cords.first):
        for i in range(cords.first[cord], cords.past[cord]):
            blocks.mark(tails[cords.elements[i]])
        blocks.split()
        cord += 1
        while block < len(blocks.first):
            for i in range(blocks.first[block], blocks.past[block]):
                for transition in into[blocks.elements[i]]:
                    cords.mark(transition)
            cords.split()
            block += 1
    return blocks.set_of


def _by_label(labels: Sequence[int]) -> _Partition:
    """Transitions with one label in one set."""
    cords = _Partition(len(labels))
    cords.first.clear()
    cords.past.clear()
    cords.marked.clear()
    cords.elements.sort(key=labels.__getitem__)
    for at, transition in enumerate(cords.elements):
        cords.location[transition] = at
        if not at or labels[transition] != labels[cords.elements[at - 1]]:
            cords.first.append(at)
            cords.past.append(at)
            cords.marked.append(0)
        cords.set_of[transition] = len(cords.first) - 1
        cords.past[-1] = at + 1
    return cords
