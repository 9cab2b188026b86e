"""Terms: what a union of values is made of, kind by kind. Each is a conjunction; `meet` of two is None where nothing is
in both. Child schemas appear as conjunctions: sets of keys, +n a subschema and -n its negation, `NEVER` nothing at all.

Knows no keywords and no types; `algebra` makes terms from schemas, `build` makes types from terms.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import TypeAlias

from attrs import frozen

from forge_grammar.regular import Language
from forge_grammar.regular.limits import remembered

Conjunction: TypeAlias = frozenset[int]
"""Subschemas that a value must match (key > 0), or must not (its negative)."""

TRUE: Conjunction = frozenset()
FALSE: Conjunction = frozenset({0})
UNBOUNDED = -1
ANY_TEXT = Language.any()

FEW = 64


def both(a: Conjunction, b: Conjunction) -> Conjunction:
    """The conjunction of two; FALSE where they contradict each other."""
    if a == b or not b:
        return a
    if not a:
        return b
    union = a | b
    return FALSE if 0 in union or any(-key in union for key in union) else union


def lower_of(a: int, b: int) -> int:
    """The lower of two upper bounds."""
    return max(a, b) if UNBOUNDED in (a, b) else min(a, b)


@remembered(1024)
def meet_languages(a: Language, b: Language) -> Language:
    """The words of both."""
    return a & b


@frozen(slots=True)
class Strings:
    """Strings: the finite set `words`; or those of a language with a length in low..high that aren't excluded."""

    words: frozenset[str] | None = None
    language: Language = ANY_TEXT
    low: int = 0
    high: int = UNBOUNDED
    excluded: frozenset[str] = frozenset()

    def has(self, text: str) -> bool:
        """Whether a string is among them."""
        if self.words is not None:
            return text in self.words
        if len(text) < self.low or (self.high != UNBOUNDED and len(text) > self.high) or text in self.excluded:
            return False
        return self.language.is_any or self.language.accepts(text)


ANY_STRING = Strings()


def meet_strings(a: Strings, b: Strings) -> Strings | None:
    """Strings in both."""
    if a == ANY_STRING:
        return b
    if b == ANY_STRING or a == b:
        return a
    if a.words is not None or b.words is not None:
        few, many = (a, b) if a.words is not None else (b, a)
        if few.words is not None and many.words is not None:
            kept = few.words & many.words
        else:
            kept = frozenset(word for word in few.words or () if many.has(word))
        return Strings(kept) if kept else None
    language = (
        a.language if b.language.is_any else b.language if a.language.is_any else meet_languages(a.language, b.language)
    )
    return tidy_strings(language, max(a.low, b.low), lower_of(a.high, b.high), a.excluded | b.excluded)


def tidy_strings(language: Language, low: int, high: int, excluded: frozenset[str]) -> Strings | None:
    """The term of these bounds; None if no string has them."""
    if language.is_empty or (high != UNBOUNDED and low > high):
        return None
    if not language.is_any:
        if (low or high != UNBOUNDED) and not language.reaches(low, high):
            return None
        if language.count <= FEW and (excluded or low or high != UNBOUNDED):
            words = language.words(FEW) or []
            inside = Strings(None, language, low, high, excluded)
            kept = frozenset(word for word in words if inside.has(word))
            return Strings(kept) if kept else None
        excluded = frozenset(word for word in excluded if language.accepts(word))
    elif high == 0:
        return None if "" in excluded else Strings(frozenset({""}))
    return Strings(None, language, low, high, excluded)


@frozen(slots=True)
class Numbers:
    """Numbers: the finite set `values` (with their JSON texts), or those within bounds. multiples: of each of these;
    others: of none of these, and none of `excluded`.
    """

    values: frozenset[tuple[Decimal, str]] | None = None
    integer: bool = False
    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False
    multiples: frozenset[Decimal] = frozenset()
    others: frozenset[Decimal] = frozenset()
    excluded: frozenset[Decimal] = frozenset()

    def has(self, value: Decimal) -> bool:
        """Whether a number is among them."""
        if self.values is not None:
            return any(value == own for own, _ in self.values)
        return not (
            (self.integer and not _divides(Decimal(1), value))
            or (self.low is not None and (value < self.low or (self.low_open and value == self.low)))
            or (self.high is not None and (value > self.high or (self.high_open and value == self.high)))
            or any(not _divides(divisor, value) for divisor in self.multiples)
            or any(_divides(divisor, value) for divisor in self.others)
            or value in self.excluded
        )


ANY_NUMBER = Numbers()


def _divides(divisor: Decimal, value: Decimal) -> bool:
    a, b = value.as_integer_ratio()
    c, d = divisor.as_integer_ratio()
    return a * d % (b * c) == 0


def meet_numbers(a: Numbers, b: Numbers) -> Numbers | None:
    """Numbers in both."""
    if a == ANY_NUMBER:
        return b
    if b == ANY_NUMBER or a == b:
        return a
    if a.values is not None or b.values is not None:
        few, many = (a, b) if a.values is not None else (b, a)
        kept = frozenset(pair for pair in few.values or () if many.has(pair[0]))
        return Numbers(kept) if kept else None
    low, low_open = max((a.low, a.low_open), (b.low, b.low_open), key=_lowness)
    high, high_open = min((a.high, a.high_open), (b.high, b.high_open), key=_highness)
    if low is not None and high is not None and (low > high or (low == high and (low_open or high_open))):
        return None
    met = Numbers(
        None, a.integer or b.integer, low, low_open, high, high_open,
        a.multiples | b.multiples, a.others | b.others, a.excluded | b.excluded,
    )  # fmt: skip
    if (met.integer and Decimal(1) in met.others) or met.multiples & met.others:
        return None
    return met


def _lowness(bound: tuple[Decimal | None, bool]) -> tuple[bool, Decimal, bool]:
    return bound[0] is not None, bound[0] or Decimal(0), bound[1]


def _highness(bound: tuple[Decimal | None, bool]) -> tuple[bool, Decimal, bool]:
    return bound[0] is None, bound[0] or Decimal(0), not bound[1]


@frozen(slots=True, eq=False)
class KeyGroup:
    """What one schema says of the values of keys: those it names, those that match a pattern, all the rest.

    evaluates: whether the keys it names count as evaluated; closed: the rest does too.
    """

    named: dict[str, Conjunction]
    patterns: tuple[tuple[Language, Conjunction], ...] = ()
    rest: Conjunction = TRUE
    evaluates: bool = True
    closed: bool = False

    def of(self, key: str) -> Conjunction:
        """What the value of a key must match."""
        found = self.named.get(key)
        if not self.patterns:
            return self.rest if found is None else found
        matched = found is not None
        met = found or TRUE
        for language, child in self.patterns:
            if language.accepts(key):
                matched = True
                met = both(met, child)
        return met if matched else self.rest


@frozen(slots=True)
class Objects:
    """Objects. names: what keys must match; forbidden: keys that must not be there; low..high: how many keys."""

    groups: tuple[KeyGroup, ...] = ()
    required: tuple[str, ...] = ()
    forbidden: frozenset[str] = frozenset()
    names: Conjunction = TRUE
    low: int = 0
    high: int = UNBOUNDED


ANY_OBJECT = Objects()


def meet_objects(a: Objects, b: Objects) -> Objects | None:
    """Objects in both, as far as a look at the keys tells."""
    if a is ANY_OBJECT or a == b:
        return b
    if b is ANY_OBJECT:
        return a
    required = a.required + tuple(name for name in b.required if name not in a.required) if b.required else a.required
    forbidden = a.forbidden | b.forbidden
    low, high = max(a.low, b.low), lower_of(a.high, b.high)
    if (high != UNBOUNDED and max(low, len(required)) > high) or not forbidden.isdisjoint(required):
        return None
    names = both(a.names, b.names)
    if 0 in names and (low or required):
        return None
    groups = a.groups + tuple(group for group in b.groups if group not in a.groups)
    return Objects(groups, required, forbidden, names, low, high)


@frozen(slots=True)
class ItemGroup:
    """What one schema says of items: of the first ones, of the rest. evaluates, closed: as in `KeyGroup`."""

    prefix: tuple[Conjunction, ...] = ()
    rest: Conjunction = TRUE
    evaluates: bool = True
    closed: bool = False

    def of(self, index: int) -> Conjunction:
        """What the item at an index must match."""
        return self.prefix[index] if index < len(self.prefix) else self.rest


@frozen(slots=True)
class Counted:
    """At least low and at most high items at or after `start` match `child`; the others match `other`."""

    child: Conjunction
    other: Conjunction
    low: int
    high: int
    start: int = 0
    evaluates: bool = True


@frozen(slots=True)
class Arrays:
    """Arrays. low..high: how many items."""

    groups: tuple[ItemGroup, ...] = ()
    low: int = 0
    high: int = UNBOUNDED
    unique: bool = False
    contains: tuple[Counted, ...] = ()


ANY_ARRAY = Arrays()


def meet_arrays(a: Arrays, b: Arrays) -> Arrays | None:
    """Arrays in both, as far as a look at the bounds tells."""
    if a is ANY_ARRAY or a == b:
        return b
    if b is ANY_ARRAY:
        return a
    low, high = max(a.low, b.low), lower_of(a.high, b.high)
    if high != UNBOUNDED and low > high:
        return None
    groups = a.groups + tuple(group for group in b.groups if group not in a.groups)
    contains = a.contains + tuple(c for c in b.contains if c not in a.contains)
    return Arrays(groups, low, high, a.unique or b.unique, contains)


def meet_booleans(a: frozenset[bool], b: frozenset[bool]) -> frozenset[bool] | None:
    """Booleans in both."""
    return a & b or None


def length_language(low: int, high: int) -> Language:
    """All texts with low..high code points."""
    return Language.regex(rf"[\s\S]{{{low},{'' if high == UNBOUNDED else high}}}", whole=True)


def language_of(terms: Iterable[Strings]) -> Language:
    """One language of all the strings of a union."""
    union = Language.none()
    for term in terms:
        if term.words is not None:
            language = Language.literals(term.words)
        else:
            language = term.language
            if term.low or term.high != UNBOUNDED:
                language &= length_language(term.low, term.high)
            if term.excluded:
                language -= Language.literals(term.excluded)
        union |= language
    return union
