"""Regular expressions to automata: the tree of `syntax` to a nondeterministic automaton, that to a canonical one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forge_grammar.regular import syntax
from forge_grammar.regular.errors import MAX_LOOKAHEADS, MAX_NFA_STATES, LimitExceeded
from forge_grammar.regular.nfa import TEXT, Before, CharSet, Nfa, Op

Determinize = Callable[[Nfa, int], Any]
Complement = Callable[[Any], Any]


def compile_regex(pattern: str, whole: bool, determinize: Determinize, complement: Complement) -> Any:
    """The automaton of the texts that contain a match, or (whole) are one. Errors: `RegexError`, `LimitExceeded`."""
    emitter = _Emitter(determinize, complement)
    return determinize(emitter.nfa(syntax.parse(pattern), search=not whole, tail=not whole), Before.NOTHING)


class _Emitter:
    """Emits states from the end to the start: each node knows the state that follows it."""

    def __init__(
        self, determinize: Determinize, complement: Complement, seen: dict[int, tuple[Any, Any, Any]] | None = None
    ) -> None:
        self.determinize = determinize
        self.complement = complement
        self.seen = {} if seen is None else seen
        self.numbers: dict[int, int] = {}
        self.rows: list[tuple[int, int, int, int]] = []
        self.sets: dict[CharSet, int] = {}
        self.looks: list[tuple[Any, Any, Any]] = []

    def nfa(self, node: syntax.Node, search: bool, tail: bool) -> Nfa:
        """search: a match may begin anywhere; tail: anything may follow it."""
        start = self.emit(node, self.add(Op.ALL if tail else Op.MATCH))
        if search and not _anchored(node):
            loop = self.add(Op.SPLIT)
            self.rows[loop] = (Op.SPLIT, 0, start, self.chars(TEXT, loop))
            start = loop
        return Nfa(self.rows, start, list(self.sets), self.looks)

    def add(self, op: Op, argument: int = 0, follow: int = 0, other: int = 0) -> int:
        if len(self.rows) >= MAX_NFA_STATES:
            raise LimitExceeded("NFA states", MAX_NFA_STATES)
        self.rows.append((op, argument, follow, other))
        return len(self.rows) - 1

    def chars(self, chars: CharSet, follow: int) -> int:
        return self.add(Op.CHAR, self.sets.setdefault(chars, len(self.sets)), follow)

    def emit(self, node: syntax.Node, follow: int) -> int:
        """The first state of a node that `follow` follows."""
        match node:
            case syntax.Chars(chars):
                return self.chars(chars, follow)
            case syntax.Sequence(parts):
                for part in reversed(parts):
                    follow = self.emit(part, follow)
                return follow
            case syntax.Choice(parts):
                start = self.emit(parts[-1], follow)
                for part in reversed(parts[:-1]):
                    start = self.add(Op.SPLIT, 0, self.emit(part, follow), start)
                return start
            case syntax.Repeat():
                return self.repeat(node, follow)
            case syntax.Assertion(kind):
                return self.add(kind, 0, follow)
            case syntax.Look():
                return self.look(node, follow)

    def repeat(self, repeat: syntax.Repeat, follow: int) -> int:
        node, minimum, maximum = repeat.node, repeat.minimum, repeat.maximum
        if minimum > MAX_NFA_STATES or (maximum or 0) > MAX_NFA_STATES:
            raise LimitExceeded("NFA states", MAX_NFA_STATES)
        start = follow
        if maximum is None:
            start = self.add(Op.SPLIT)
            self.rows[start] = (Op.SPLIT, 0, self.emit(node, start), follow)
        else:
            for _ in range(maximum - minimum):
                start = self.add(Op.SPLIT, 0, self.emit(node, start), follow)
        for _ in range(minimum):
            first = self.emit(node, start)
            if first == start:
                break  # the empty text, however often
            start = first
        return start

    def look(self, look: syntax.Look, follow: int) -> int:
        """Go on where what follows is in a language. A lookahead in a repetition is built once."""
        if id(look) not in self.numbers:
            self.numbers[id(look)] = len(self.looks)
            self.looks.append(self.automata(look))
        return self.add(Op.LOOK, self.numbers[id(look)], follow)

    def automata(self, look: syntax.Look) -> tuple[Any, Any, Any]:
        """Of what may follow, for each thing that may stand before."""
        if id(look) in self.seen:
            return self.seen[id(look)]
        if len(self.seen) >= MAX_LOOKAHEADS:
            raise LimitExceeded("lookaheads of a regex", MAX_LOOKAHEADS)
        emitter = _Emitter(self.determinize, self.complement, self.seen)
        nfa = emitter.nfa(look.node, search=False, tail=True)
        same = not any(row[0] in (Op.BEGIN, Op.BOUNDARY, Op.NO_BOUNDARY, Op.LOOK) for row in nfa.rows)
        found = [self.determinize(nfa, before) for before in (list(Before)[:1] if same else Before)]
        if look.negative:
            found = [self.complement(each) for each in found]
        nothing, word, other = found * 3 if same else found
        self.seen[id(look)] = (nothing, word, other)
        return nothing, word, other


def _anchored(node: syntax.Node) -> bool:
    """Whether a match can only begin at the start of the text."""
    match node:
        case syntax.Assertion(kind):
            return kind == Op.BEGIN
        case syntax.Sequence(parts):
            return bool(parts) and _anchored(parts[0])
        case syntax.Choice(parts):
            return all(_anchored(part) for part in parts)
    return False
