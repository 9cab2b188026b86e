"""Pure-Python automata: subset construction, products, minimisation. The native part computes the same, bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from forge_grammar.regular.dfa import DEAD, SURROGATES, Dfa
from forge_grammar.regular.errors import MAX_CLASSES, LimitExceeded
from forge_grammar.regular.limits import Limits
from forge_grammar.regular.minimize import minimal_blocks

Rows = list[list[int]]
"""Of each state, per class, the next state or -1."""


def canonical(
    rows: Rows, start: int, accepting: Sequence[int], bounds: Sequence[int], range_class: Sequence[int]
) -> Dfa:
    """The canonical automaton of a partial one: trimmed, minimal, states and classes numbered by first use."""
    live = _coreachable(rows, accepting)
    if start < 0 or not live[start]:
        return empty()
    order = _reachable(rows, start, live)
    index = {state: i for i, state in enumerate(order)}
    tails, labels, heads = [], [], []
    for i, state in enumerate(order):
        for label, target in enumerate(rows[state]):
            if target >= 0 and live[target]:
                tails.append(i)
                labels.append(label)
                heads.append(index[target])
    block = minimal_blocks(len(order), tails, labels, heads, [i for i, s in enumerate(order) if accepting[s]])
    representative: dict[int, int] = {}
    for i, state in enumerate(order):
        representative.setdefault(block[i], state)
    quotient = {
        b: [block[index[t]] if t >= 0 and live[t] else -1 for t in rows[state]] for b, state in representative.items()
    }
    return _number(
        quotient, block[index[start]], {b: accepting[s] for b, s in representative.items()}, bounds, range_class
    )


def _number(
    rows: dict[int, list[int]], start: int, accepting: dict[int, int], bounds: Sequence[int], range_class: Sequence[int]
) -> Dfa:
    """Merge classes of equal columns, number classes by first code point, states breadth-first."""
    names = list(rows)
    columns = list(zip(*(rows[name] for name in names)))
    numbers: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    new_bounds: list[int] = []
    new_classes: list[int] = []
    for bound, old in zip(bounds, range_class):
        number = numbers.setdefault(columns[old], len(numbers))
        if number == len(first):
            first.append(old)
        if not new_classes or new_classes[-1] != number:
            new_bounds.append(bound)
            new_classes.append(number)
    if len(first) > MAX_CLASSES:
        raise LimitExceeded("classes of code points", MAX_CLASSES)
    ids = {start: 0}
    order = [start]
    delta: list[int] = []
    for name in order:
        for old in first:
            target = rows[name][old]
            if target >= 0 and target not in ids:
                ids[target] = len(order)
                order.append(target)
            delta.append(DEAD if target < 0 else ids[target])
    return Dfa(0, len(order), len(first), new_bounds, new_classes, delta, [int(accepting[name]) for name in order])


def _coreachable(rows: Rows, accepting: Sequence[int]) -> list[bool]:
    sources: list[list[int]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for target in set(row):
            if target >= 0:
                sources[target].append(state)
    live = [bool(each) for each in accepting]
    pending = [state for state, each in enumerate(live) if each]
    while pending:
        for source in sources[pending.pop()]:
            if not live[source]:
                live[source] = True
                pending.append(source)
    return live


def _reachable(rows: Rows, start: int, live: list[bool]) -> list[int]:
    order = [start]
    seen = {start}
    for state in order:
        for target in rows[state]:
            if target >= 0 and live[target] and target not in seen:
                seen.add(target)
                order.append(target)
    return order


def empty() -> Dfa:
    """No text."""
    return Dfa(DEAD, 0, 1, [0], [0], [], [])


def everything() -> Dfa:
    """All texts."""
    return Dfa(0, 1, 2, [0, SURROGATES[0], SURROGATES[1] + 1], [0, 1, 0], [0, DEAD], [1])


def product(a: Dfa, b: Dfa, operation: str, limits: Limits) -> Dfa:
    """Intersection `&`, union `|` or difference `-`. Errors: `LimitExceeded`."""
    accepts, needs = _OPERATIONS[operation]
    bounds, range_class, pairs = refine(a, b)
    ids: dict[tuple[int, int], int] = {}
    order: list[tuple[int, int]] = []

    def number(p: int, q: int) -> int:
        if not needs(p != DEAD, q != DEAD):
            return -1
        at = ids.setdefault((p, q), len(order))
        if at == len(order):
            check_states(at + 1, limits)
            order.append((p, q))
        return at

    start = number(a.start, b.start)
    rows: Rows = []
    work = 0
    for p, q in order:
        work += len(pairs)
        check_work(work, limits)
        row_a = None if p == DEAD else p * a.classes
        row_b = None if q == DEAD else q * b.classes
        rows.append(
            [
                number(
                    DEAD if row_a is None else a.delta[row_a + class_a],
                    DEAD if row_b is None else b.delta[row_b + class_b],
                )
                for class_a, class_b in pairs
            ]
        )
    accepting = [int(accepts(p != DEAD and bool(a.accepting[p]), q != DEAD and bool(b.accepting[q]))) for p, q in order]
    return canonical(rows, start, accepting, bounds, range_class)


_OPERATIONS: dict[str, tuple[Callable[[bool, bool], bool], Callable[[bool, bool], bool]]] = {
    "&": (lambda p, q: p and q, lambda p, q: p and q),
    "|": (lambda p, q: p or q, lambda p, q: p or q),
    "-": (lambda p, q: p and not q, lambda p, q: p),
}
"""Per operation: what accepts; and which pairs of (live, live) can still accept."""


def refine(a: Dfa, b: Dfa) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The common refinement of two alphabets: bounds, class per range, and the pair of classes of each class."""
    bounds: list[int] = []
    range_class: list[int] = []
    pairs: dict[tuple[int, int], int] = {}
    i = j = 0
    at = 0
    while True:
        number = pairs.setdefault((a.range_class[i], b.range_class[j]), len(pairs))
        if not range_class or range_class[-1] != number:
            bounds.append(at)
            range_class.append(number)
        next_a = a.bounds[i + 1] if i + 1 < len(a.bounds) else None
        next_b = b.bounds[j + 1] if j + 1 < len(b.bounds) else None
        if next_a is None and next_b is None:
            return bounds, range_class, list(pairs)
        at = min(bound for bound in (next_a, next_b) if bound is not None)
        i += next_a == at
        j += next_b == at


def check_states(count: int, limits: Limits) -> None:
    """Errors: `LimitExceeded` for more states than are allowed."""
    if count > limits.states:
        raise LimitExceeded("DFA states", limits.states)


def check_work(steps: int, limits: Limits) -> None:
    """Errors: `LimitExceeded` for more steps than are allowed."""
    if steps > limits.work:
        raise LimitExceeded("steps of building an automaton", limits.work)


def literals(texts: Iterable[str], limits: Limits) -> Dfa:
    """A finite language (Daciuk et al., Incremental construction of minimal acyclic finite-state automata, 2000).

    Errors: `LimitExceeded`.
    """
    words = sorted(set(texts))
    if any(SURROGATES[0] <= ord(char) <= SURROGATES[1] for word in words for char in word):
        words = [word for word in words if not any(SURROGATES[0] <= ord(c) <= SURROGATES[1] for c in word)]
    if not words:
        return empty()
    register: dict[tuple[bool, tuple[tuple[str, int], ...]], int] = {}
    nodes: list[tuple[bool, tuple[tuple[str, int], ...]]] = []
    path: list[tuple[bool, list[tuple[str, int]]]] = [(False, [])]
    previous = ""

    def close(depth: int) -> None:
        while len(path) > depth + 1:
            final, edges = path.pop()
            node = (final, tuple(edges))
            at = register.setdefault(node, len(nodes))
            if at == len(nodes):
                check_states(at + 1, limits)
                nodes.append(node)
            path[-1][1].append((previous[len(path) - 1], at))

    for word in words:
        common = 0
        while common < len(previous) and common < len(word) and previous[common] == word[common]:
            common += 1
        close(common)
        path += ((False, []) for _ in word[common:])
        path[-1] = (True, path[-1][1])
        previous = word
    close(0)
    nodes.append((path[0][0], tuple(path[0][1])))
    return _from_nodes(nodes, sorted({ord(char) for word in words for char in word}), limits)


def _from_nodes(nodes: list[tuple[bool, tuple[tuple[str, int], ...]]], chars: list[int], limits: Limits) -> Dfa:
    """Class 0: no word has it; then one class for each character."""
    bounds, range_class = [0], [0]
    for number, cp in enumerate(chars):
        if cp == bounds[-1]:
            range_class[-1] = number + 1
        else:
            bounds.append(cp)
            range_class.append(number + 1)
        if cp < 0x10FFFF:
            bounds.append(cp + 1)
            range_class.append(0)
    check_work(len(nodes) * (len(chars) + 1), limits)
    column = {chr(cp): number + 1 for number, cp in enumerate(chars)}
    rows: Rows = []
    for _, edges in nodes:
        row = [-1] * (len(chars) + 1)
        for char, target in edges:
            row[column[char]] = target
        rows.append(row)
    return canonical(rows, len(nodes) - 1, [int(final) for final, _ in nodes], bounds, range_class)


def from_table(
    start: int,
    bounds: Sequence[int],
    range_class: Sequence[int],
    rows: Sequence[Sequence[int]],
    accepting: Sequence[int],
) -> Dfa:
    """The canonical automaton of a table: per range of code points its class, per state and class the next state or -1.

    Errors: `ValueError` where the parts don't fit each other.
    """
    classes = max(range_class, default=-1) + 1
    if not bounds or bounds[0] or len(bounds) != len(range_class) or any(a >= b for a, b in pairwise(bounds)):
        raise ValueError("ranges that don't ascend from 0, or without a class each")
    if len(rows) != len(accepting) or start >= len(rows):
        raise ValueError("states, start and accepting states that don't fit each other")
    if any(len(row) != classes or max(row, default=-1) >= len(rows) or min(row, default=-1) < -1 for row in rows):
        raise ValueError("a row without a state for each class, or with one out of range")
    dfa = canonical([list(row) for row in rows], start, accepting, bounds, range_class)
    enough = Limits(sys.maxsize, sys.maxsize)  # no more states than the table has
    return product(dfa, everything(), "&", enough)
