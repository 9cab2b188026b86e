"""Strings, keys and bare values while they're being read: which of the things awaited the text can still become.

A lexeme is a vector of entries, each with a tag that says for whom it is read. Literals go by bytes, languages by code
points, so that lengths count code points and patterns see through escapes. An entry that no text can complete any more
is dropped at once; a lexeme without entries doesn't exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from attrs import evolve, frozen

from forge_grammar.machine.canonical import canonical
from forge_grammar.machine.characters import Partial, read_json
from forge_grammar.machine.grammar import StringTerm
from forge_grammar.machine.words import after, number_is_fresh, some_word, some_word_in
from forge_grammar.program import NONE
from forge_grammar.regular.dfa import DEAD, Dfa

T = TypeVar("T")
QUOTE = ord('"')


@frozen
class Words(Generic[T]):
    """Literals that begin with the text so far."""

    tag: T
    words: tuple[bytes, ...]

    def step(self, depth: int, byte: int) -> Words[T] | None:
        """Those that go on with a byte. depth: of the text so far."""
        words = tuple(word for word in self.words if len(word) > depth and word[depth] == byte)
        return Words(self.tag, words) if words else None

    def complete(self, depth: int) -> bool:
        """Whether one of them is the text so far."""
        return any(len(word) == depth for word in self.words)


@frozen
class Formed(Generic[T]):
    """A string term while it's being read.

    state: the automaton's after the characters so far. length: how many they were, not counted on where nothing depends
    on it. excluded: what's left of the excluded strings that begin with them.
    """

    tag: T
    term: StringTerm
    state: int
    length: int
    excluded: tuple[str, ...]

    @staticmethod
    def start(tag: T, term: StringTerm, taken: tuple[str, ...]) -> Formed[T] | None:
        """The term at its start, with more strings excluded; None if none is left."""
        formed = Formed(tag, term, term.dfa.start, 0, (*term.excluded, *taken))
        return formed if formed._viable() else None

    def _bounds(self) -> tuple[int, int]:
        least, most = self.term.minimum - self.length, self.term.maximum
        return max(least, 0), most if most == NONE else most - self.length

    def _viable(self) -> bool:
        least, most = self._bounds()
        if most == NONE and not least and not self.excluded:
            return self.state != DEAD
        return some_word(self.term.dfa, self.state, least, most, self.excluded)

    def step(self, code_point: int) -> Formed[T] | None:
        """After a character."""
        bounded = self.term.maximum != NONE
        length = self.length + 1 if bounded else min(self.length + 1, self.term.minimum)
        if bounded and length > self.term.maximum:
            return None
        rest = after(self.excluded, chr(code_point)) if self.excluded else ()
        formed = Formed(self.tag, self.term, self.term.dfa.step(self.state, code_point), length, rest)
        return formed if formed._viable() else None

    def can_begin(self, partial: Partial) -> bool:
        """Whether the character that has begun can become one that is allowed here."""
        return some_word_in(self.term.dfa, self.state, *self._bounds(), self.excluded, partial.ranges)

    def settled(self, horizon: int) -> Formed[T]:
        """One entry for all that allow the same for the next `horizon` characters, whatever their length.

        With the minimum reached, the maximum matters only where the shortest way to a word, shorter than the automaton
        has states, may not fit below it.
        """
        room = self.term.maximum - self.length
        if self.term.maximum == NONE or self.excluded or self.length <= self.term.minimum:
            return self
        return evolve(self, length=self.term.minimum) if room >= horizon + self.term.dfa.states else self

    def complete(self) -> bool:
        """Whether the string may end here."""
        return (
            bool(self.term.dfa.accepting[self.state]) and self.length >= self.term.minimum and "" not in self.excluded
        )


@frozen
class StringLexeme(Generic[T]):
    """A string or key from its opening quote on. depth: bytes so far, the quote included."""

    literals: tuple[Words[T], ...]
    terms: tuple[Formed[T], ...]
    depth: int = 1
    partial: Partial | None = None

    @staticmethod
    def start(literals: Iterable[Words[T]], terms: Iterable[Formed[T] | None]) -> StringLexeme[T] | None:
        """After the opening quote."""
        lexeme = StringLexeme(
            tuple(entry for entry in literals if entry.words), tuple(entry for entry in terms if entry)
        )
        return lexeme if lexeme.literals or lexeme.terms else None

    def ends_with(self, byte: int) -> bool:
        """Whether the byte is the closing quote."""
        return byte == QUOTE and self.partial is None

    def step(self, byte: int) -> StringLexeme[T] | None:
        """After a byte that isn't the closing quote."""
        character = read_json(self.partial, byte)
        if character is None:
            return None
        literals = tuple(filter(None, (entry.step(self.depth, byte) for entry in self.literals)))
        if isinstance(character, Partial):
            terms = tuple(entry for entry in self.terms if entry.can_begin(character))
            partial = character
        else:
            terms = tuple(filter(None, (entry.step(character) for entry in self.terms)))
            partial = None
        # Nothing depends on the depth once the literals are gone.
        depth = self.depth + 1 if literals else 0
        return StringLexeme(literals, terms, depth, partial) if literals or terms else None

    def settled(self, horizon: int) -> StringLexeme[T]:
        """One lexeme for all that allow the same for the next `horizon` bytes inside the string."""
        return evolve(self, terms=tuple(entry.settled(horizon) for entry in self.terms))

    def accepted(self) -> frozenset[T]:
        """The tags of what the string is, if the closing quote comes now."""
        closed = (entry.step(self.depth, QUOTE) for entry in self.literals)
        literals = {entry.tag for entry in closed if entry and entry.complete(self.depth + 1)}
        return frozenset(literals | {entry.tag for entry in self.terms if entry.complete()})


@frozen
class Number(Generic[T]):
    """A number's automaton; used: canonical texts of values that it mustn't have."""

    tag: T
    dfa: Dfa
    state: int
    used: frozenset[str]


@frozen
class BareLexeme(Generic[T]):
    """A number, true, false or null. It ends where something else begins."""

    literals: tuple[Words[T], ...]
    numbers: tuple[Number[T], ...]
    text: str = ""

    def step(self, byte: int) -> BareLexeme[T] | None:
        """After a byte of the value."""
        if byte >= 0x80:
            return None
        text = self.text + chr(byte)
        literals = tuple(filter(None, (entry.step(len(self.text), byte) for entry in self.literals)))
        stepped = (evolve(entry, state=entry.dfa.step(entry.state, byte)) for entry in self.numbers)
        numbers = tuple(
            entry
            for entry in stepped
            if entry.state != DEAD and number_is_fresh(entry.dfa, entry.state, text, entry.used)
        )
        return BareLexeme(literals, numbers, text) if literals or numbers else None

    def accepted(self) -> frozenset[T]:
        """The tags of what the value is, if it ends here."""
        literals = {entry.tag for entry in self.literals if entry.complete(len(self.text))}
        complete = (entry for entry in self.numbers if entry.dfa.accepting[entry.state])
        return frozenset(literals | {e.tag for e in complete if not e.used or canonical(self.text) not in e.used})
