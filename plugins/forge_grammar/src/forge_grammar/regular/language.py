"""Regular languages of texts (code points without surrogates), as values: set operations, equality, questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from forge_grammar.regular.backend import Backend, chosen
from forge_grammar.regular.limits import current_limits, remembered
from forge_grammar.regular.nfa import Nfa
from forge_grammar.regular.regex import compile_regex

INFINITE = 2**31 - 1

backend: Backend = chosen()


class Language:
    """A regular language. Immutable; equal languages are equal, hash alike, and have the same bytes.

    Operations may raise `LimitExceeded`.
    """

    __slots__ = ("_dfa", "_key")

    def __init__(self, dfa: Any) -> None:
        self._dfa = dfa
        self._key: bytes | None = None

    @staticmethod
    def regex(pattern: str, whole: bool = False) -> Language:
        """The texts that contain a match of a pattern (ECMA-262), or with `whole` are one.

        Errors: `RegexError` with message and position, `LimitExceeded`.
        """
        return _regex(pattern, whole)

    @staticmethod
    def literals(texts: Iterable[str]) -> Language:
        """These texts. Errors: `LimitExceeded`."""
        return Language(backend.literals(sorted(set(texts)), current_limits()))

    @staticmethod
    def any() -> Language:
        """All texts."""
        return _ANY

    @staticmethod
    def none() -> Language:
        """No text."""
        return _NONE

    @staticmethod
    def from_table(
        start: int,
        bounds: Sequence[int],
        range_class: Sequence[int],
        delta: Sequence[Sequence[int]],
        accepting: Sequence[int],
    ) -> Language:
        """A deterministic automaton's language: the class of each range of code points from bounds[i], per state and
        class the next state or -1, per state whether it accepts; start -1: none. Errors: `ValueError`.
        """
        return Language(backend.from_table(start, bounds, range_class, delta, accepting))

    @staticmethod
    def from_bytes(data: bytes) -> Language:
        """What `to_bytes` gave. Errors: `ValueError`."""
        return Language(backend.dfa.from_bytes(data))

    def to_bytes(self) -> bytes:
        """The serialised automaton (`forge_grammar.regular.dfa.Dfa`)."""
        if self._key is None:
            self._key = self._dfa.to_bytes()
        return self._key

    def __and__(self, other: Language) -> Language:
        if self is other or other.is_any:
            return self
        return other if self.is_any else Language(_product(self, other, "&"))

    def __or__(self, other: Language) -> Language:
        if self is other or other.is_empty:
            return self
        return other if self.is_empty else Language(_product(self, other, "|"))

    def __sub__(self, other: Language) -> Language:
        return self if other.is_empty else Language(_product(self, other, "-"))

    def __invert__(self) -> Language:
        return _ANY - self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Language) and (self is other or self.to_bytes() == other.to_bytes())

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return f"<Language of {self._dfa.states} states>"

    @property
    def is_empty(self) -> bool:
        """Whether no text is in it."""
        return bool(self._dfa.states == 0)

    @property
    def is_any(self) -> bool:
        """Whether every text is in it."""
        return bool(self._dfa.states == 1 and self._dfa.universal(0))

    @property
    def states(self) -> int:
        """How many states the automaton has."""
        return int(self._dfa.states)

    @property
    def count(self) -> int:
        """How many texts; INFINITE (2**31 - 1) also for as many or more."""
        return int(self._dfa.words_from(self._dfa.start))

    def accepts(self, text: str) -> bool:
        """Whether a text is in it."""
        return bool(self._dfa.accepts(text))

    def words(self, limit: int) -> list[str] | None:
        """All texts, sorted; None where there are more than `limit`."""
        found: list[str] | None = self._dfa.words(limit)
        return found

    def reaches(self, low: int, high: int = -1) -> bool:
        """Whether it has a text of low..high code points; high -1: unbounded. Errors: `LimitExceeded`."""
        return bool(self._dfa.reaches(self._dfa.start, low, high))


def _product(a: Language, b: Language, operation: str) -> Any:
    return backend.product(a._dfa, b._dfa, operation, current_limits())


@remembered(1024)
def _regex(pattern: str, whole: bool) -> Language:
    limits = current_limits()

    def determinize(nfa: Nfa, before: int) -> Any:
        return backend.determinize(nfa, before, limits)

    def complement(dfa: Any) -> Any:
        return backend.product(_ANY._dfa, dfa, "-", limits)

    return Language(compile_regex(pattern, whole, determinize, complement))


_ANY = Language(backend.everything())
_NONE = Language(backend.empty())
