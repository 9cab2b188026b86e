"""Subset construction with assertions, in pure Python.

A thread is a state of the NFA and the lookaheads that what follows must still satisfy, as (lookahead, state of its
automaton) pairs. A state of the result is a set of threads and, where assertions ask for it, what stands before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import frozen

from forge_grammar.regular.automaton import canonical, check_states, check_work
from forge_grammar.regular.dfa import DEAD, Dfa
from forge_grammar.regular.limits import Limits
from forge_grammar.regular.nfa import TEXT, WORD, Alphabet, Before, Nfa, Op, partition

Pending = tuple[tuple[int, int], ...]
Thread = tuple[int, Pending]
State = tuple[tuple[Thread, ...], int]

_ASSERTIONS = (Op.END, Op.BOUNDARY, Op.NO_BOUNDARY)
_NOTHING_FOLLOWS = 0


def class_sets(dfa: Dfa) -> list[tuple[tuple[int, int], ...]]:
    """The code points of each class, surrogates and all."""
    sets: list[list[tuple[int, int]]] = [[] for _ in range(dfa.classes)]
    for i, number in enumerate(dfa.range_class):
        end = dfa.bounds[i + 1] if i + 1 < len(dfa.bounds) else 0x110000
        sets[number].append((dfa.bounds[i], end - 1))
    return [tuple(each) for each in sets]


@frozen
class Prepared:
    """An NFA and what its sets, words and lookaheads tell apart.

    members: of each set, then of all texts, its classes; kind: of each class, WORD or OTHER; looks: three automata of
    each lookahead; look_class: of each of them, its class per class.
    """

    nfa: Nfa
    alphabet: Alphabet
    members: list[list[int]]
    kind: list[int]
    looks: list[Any]
    look_class: list[list[int]]


def prepare(nfa: Nfa) -> Prepared:
    """What both implementations of `determinize` need."""
    looks = [dfa for look in nfa.looks for dfa in look]
    alphabet = partition([*nfa.sets, TEXT, WORD, *(each for dfa in looks for each in class_sets(dfa))])
    members = alphabet.members
    words = set(members[len(nfa.sets) + 1])
    kind = [int(Before.WORD if c in words else Before.OTHER) for c in range(alphabet.classes)]
    at = len(nfa.sets) + 2
    look_class = []
    for dfa in looks:
        mapping = [0] * alphabet.classes
        for number in range(dfa.classes):
            for c in members[at + number]:
                mapping[c] = number
        at += dfa.classes
        look_class.append(mapping)
    return Prepared(nfa, alphabet, members[: len(nfa.sets) + 1], kind, looks, look_class)


def determinize(nfa: Nfa, before: int, limits: Limits) -> Dfa:
    """The canonical automaton of an NFA whose text follows `before`. Errors: `LimitExceeded`."""
    return _Construction(prepare(nfa), before, limits).build()


class _Construction:
    def __init__(self, prepared: Prepared, before: int, limits: Limits) -> None:
        self.limits = limits
        self.rows = prepared.nfa.rows
        self.start = prepared.nfa.start
        self.before = before
        self.alphabet = prepared.alphabet
        self.members = prepared.members
        self.kind = prepared.kind
        self.looks: list[Dfa] = prepared.looks
        self.look_class = prepared.look_class
        self.asks_word = any(row[0] in (Op.BOUNDARY, Op.NO_BOUNDARY, Op.LOOK) for row in self.rows)
        self.work = 0
        self.ids: dict[State, int] = {}
        self.order: list[State] = []

    def build(self) -> Dfa:
        start = self.number(self.enter([(self.start, ())], self.before), self.before)
        table: list[list[int]] = []
        accepting: list[int] = []
        for threads, before in self.order:
            accepting.append(self.accepts(threads, before))
            table.append(self.row(threads, before))
        return canonical(table, start, accepting, self.alphabet.bounds, self.alphabet.range_class)

    def spend(self, steps: int) -> None:
        self.work += steps
        check_work(self.work, self.limits)

    def number(self, threads: tuple[Thread, ...], before: int) -> int:
        if not threads:
            return -1
        if not any(self.rows[pc][0] in _ASSERTIONS for pc, _ in threads) or (
            before == Before.WORD and not self.asks_word
        ):
            before = Before.OTHER
        state = (threads, before)
        at = self.ids.setdefault(state, len(self.order))
        if at == len(self.order):
            check_states(at + 1, self.limits)
            self.order.append(state)
        return at

    def row(self, threads: tuple[Thread, ...], before: int) -> list[int]:
        """The next state per class."""
        self.spend(self.alphabet.classes)
        if any(self.rows[pc][0] in _ASSERTIONS for pc, _ in threads):
            after = {kind: self.enter(threads, before, kind) for kind in (Before.WORD, Before.OTHER)}
        else:
            after = {Before.WORD: threads, Before.OTHER: threads}
        targets: list[set[Thread]] = [set() for _ in range(self.alphabet.classes)]
        for kind in (Before.WORD, Before.OTHER):
            for pc, pending in after[kind]:
                op, argument, follow, _ = self.rows[pc]
                if op == Op.ALL:
                    classes: Iterable[int] = self.members[-1]
                    follow = pc
                elif op == Op.CHAR:
                    classes = self.members[argument]
                else:
                    continue
                for c in classes:
                    if self.kind[c] != kind:
                        continue
                    self.spend(1)
                    advanced = self.advance(pending, c) if pending else pending
                    if advanced is not None:
                        targets[c].add((follow, advanced))
        known: dict[tuple[frozenset[Thread], int], int] = {}
        result: list[int] = []
        for c, each in enumerate(targets):
            key = (frozenset(each), self.kind[c] if self.asks_word else 0)
            if key not in known:
                known[key] = self.number(self.enter(each, self.kind[c]), self.kind[c]) if each else -1
            result.append(known[key])
        return result

    def advance(self, pending: Pending, c: int) -> Pending | None:
        """What lookaheads ask after one more character; None where one has failed."""
        result = set()
        for look, state in pending:
            dfa = self.looks[look]
            target = dfa.delta[state * dfa.classes + self.look_class[look][c]]
            if target == DEAD:
                return None
            if not dfa.universal(target):
                result.add((look, target))
        return tuple(sorted(result))

    def enter(self, threads: Iterable[Thread], before: int, following: int | None = None) -> tuple[Thread, ...]:
        """Follow all that needs no character. following: what comes next, where that is known (0: the end)."""
        seen: set[Thread] = set()
        stack = list(threads)
        kept: list[Thread] = []
        while stack:
            thread = stack.pop()
            if thread in seen:
                continue
            seen.add(thread)
            pc, pending = thread
            op, argument, follow, other = self.rows[pc]
            if op in (Op.CHAR, Op.MATCH, Op.ALL):
                kept.append(thread)
            elif op == Op.SPLIT:
                stack += ((follow, pending), (other, pending))
            elif op == Op.BEGIN:
                if before == Before.NOTHING:
                    stack.append((follow, pending))
            elif op == Op.LOOK:
                asked = self.ask(pending, 3 * argument + before)
                if asked is not None:
                    stack.append((follow, asked))
            elif following is None:
                kept.append(thread)
            elif self.holds(op, before, following):
                stack.append((follow, pending))
        self.spend(len(seen))
        return self.reduce(kept)

    def ask(self, pending: Pending, look: int) -> Pending | None:
        dfa = self.looks[look]
        if dfa.start == DEAD:
            return None
        return pending if dfa.universal(dfa.start) else tuple(sorted({*pending, (look, dfa.start)}))

    @staticmethod
    def holds(op: int, before: int, following: int) -> bool:
        if op == Op.END:
            return following == _NOTHING_FOLLOWS
        boundary = (before == Before.WORD) != (following == Before.WORD)
        return boundary == (op == Op.BOUNDARY)

    def reduce(self, threads: list[Thread]) -> tuple[Thread, ...]:
        """Threads that accept no more than another are left out: those beside one that accepts all, and those that are
        another with more to satisfy.
        """
        for thread in threads:
            if self.rows[thread[0]][0] == Op.ALL and not thread[1]:
                return (thread,)
        if not any(pending for _, pending in threads):
            return tuple(sorted(threads))
        by_pc: dict[int, list[Pending]] = {}
        for pc, pending in threads:
            by_pc.setdefault(pc, []).append(pending)
        kept = []
        for pc, pending in threads:
            self.spend(len(by_pc[pc]))
            if not any(set(other) < set(pending) for other in by_pc[pc]):
                kept.append((pc, pending))
        return tuple(sorted(kept))

    def accepts(self, threads: tuple[Thread, ...], before: int) -> int:
        if any(self.rows[pc][0] in _ASSERTIONS for pc, _ in threads):
            threads = self.enter(threads, before, _NOTHING_FOLLOWS)
        return int(
            any(
                self.rows[pc][0] in (Op.MATCH, Op.ALL)
                and all(self.looks[look].accepting[state] for look, state in pending)
                for pc, pending in threads
            )
        )
