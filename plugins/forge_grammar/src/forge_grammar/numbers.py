"""Languages of JSON number texts: bounds, multiples and exclusions, exact in decimal.

Integers have no fraction and no exponent; a negative text is never zero. At most 20 digits on either side of the point
unless a bound, multiple or exclusion has more; an exponent only where nothing else is asked.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, lcm
from typing import Any, NamedTuple

from attrs import frozen

from forge_grammar.regular import Language, LimitExceeded
from forge_grammar.regular.limits import current_limits, remembered

DIGITS = 20
MAX_DIGITS = 400
MAX_LISTED = 1_000

Number = int | float | Decimal


@remembered(1024)
def number_language(
    *,
    integer: bool,
    minimum: Number | None = None,
    exclusive_minimum: Number | None = None,
    maximum: Number | None = None,
    exclusive_maximum: Number | None = None,
    multiple_of: tuple[Number, ...] = (),
    excluded: tuple[Number, ...] = (),
) -> Language:
    """The texts of numbers within bounds that are multiples of each of `multiple_of` and equal none of `excluded`.

    A float stands for its shortest text. Errors: `ValueError` for a multiple that isn't positive or a number that isn't
    finite; `LimitExceeded`.
    """
    lows = [_Bound(exact(each), strict) for each, strict in ((minimum, 0), (exclusive_minimum, 1)) if each is not None]
    highs = [_Bound(exact(each), strict) for each, strict in ((maximum, 0), (exclusive_maximum, 1)) if each is not None]
    low = max(lows, key=lambda bound: (bound.value, bound.strict), default=None)
    high = min(highs, key=lambda bound: (bound.value, -bound.strict), default=None)
    apart = frozenset(exact(each) for each in excluded)
    divisor = _common_multiple([exact(each) for each in multiple_of])
    if low is None and high is None and divisor is None and not apart:
        return _unrestricted(integer)
    if integer:
        divisor = _common_multiple([Fraction(1), *([] if divisor is None else [divisor])]) or Fraction(1)
        listed = _listed(low, high, int(divisor), apart)
        if listed is not None:
            return Language.literals(listed)
        divisor = None if divisor == 1 else divisor
    scale = 0 if divisor is None else len(_digits(divisor)[1])
    language = _written(integer, *_most_digits([*(b.value for b in (low, high) if b), *apart], max(DIGITS, scale)))
    if low or high or apart:
        language &= _Numbers(integer, low, high, None, apart).language()
    return language if divisor is None else language & _multiples(integer, divisor)


def exact(value: Number) -> Fraction:
    """The value; a float's is that of its shortest text. Errors: `ValueError` if it isn't finite, `LimitExceeded`."""
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise ValueError(f"{value} is no number")
    exponent = number.as_tuple().exponent
    if number and (abs(number.adjusted()) > MAX_DIGITS or (isinstance(exponent, int) and exponent < -MAX_DIGITS)):
        raise LimitExceeded("digits of a number", MAX_DIGITS)
    return Fraction(number)


@frozen
class _Bound:
    value: Fraction
    strict: int


def _common_multiple(values: list[Fraction]) -> Fraction | None:
    if any(value <= 0 for value in values):
        raise ValueError("a multiple that isn't positive")
    if not values:
        return None
    scale = lcm(*(value.denominator for value in values))
    return Fraction(lcm(*(int(value * scale) for value in values)), scale)


@remembered(2)
def _unrestricted(integer: bool) -> Language:
    digits = rf"-?(0|[1-9][0-9]{{0,{DIGITS - 1}}})"
    if integer:
        return Language.regex(digits, whole=True) - Language.literals(["-0"])
    rest = rf"(\.[0-9]{{1,{DIGITS}}})?([eE][-+]?[0-9]{{1,2}})?"
    return Language.regex(digits + rest, whole=True) - Language.regex(r"-0(\.0+)?([eE].*)?", whole=True)


@remembered(128)
def _written(integer: bool, whole: int, fraction: int) -> Language:
    """The texts of numbers without exponent, of at most so many digits. Digits are counted here alone: automata that
    compare and count at once have many more states.
    """
    digits = rf"-?(0|[1-9][0-9]{{0,{whole - 1}}})"
    if integer:
        return Language.regex(digits, whole=True) - Language.literals(["-0"])
    return Language.regex(rf"{digits}(\.[0-9]{{1,{fraction}}})?", whole=True) - Language.regex(r"-0(\.0+)?", whole=True)


def _most_digits(given: list[Fraction], fraction: int) -> tuple[int, int]:
    """How many digits a text may have before the point and after it: one more than the numbers given, where they have
    many.
    """
    sizes = [tuple(map(len, _digits(abs(value)))) for value in given]
    wholes, fractions = zip(*sizes) if sizes else ((), ())
    return (
        max([DIGITS, *(n + 1 for n in wholes if n >= DIGITS)]),
        max([fraction, *(n + 1 for n in fractions if n >= DIGITS)]),
    )


@remembered(128)
def _multiples(integer: bool, divisor: Fraction) -> Language:
    """The texts of multiples, of any length."""
    return _Numbers(integer, None, None, divisor, frozenset()).language()


def _listed(low: _Bound | None, high: _Bound | None, step: int, apart: frozenset[Fraction]) -> list[str] | None:
    """The texts of the integers, where they are few."""
    if low is None or high is None:
        return None
    first, last = ceil(low.value / step), floor(high.value / step)
    first += bool(low.strict and first * step == low.value)
    last -= bool(high.strict and last * step == high.value)
    if last - first >= MAX_LISTED:
        return None
    return [str(i * step) for i in range(first, last + 1) if i * step not in apart]


LESS, SAME, MORE = -1, 0, 1


class _Compare:
    """How the digits read compare with a magnitude's."""

    def __init__(self, magnitude: Fraction, wanted: frozenset[int]) -> None:
        self.whole, self.fraction = _digits(magnitude)
        self.wanted = wanted
        self.start = SAME

    def whole_digit(self, state: int, index: int, digit: int) -> int | None:
        if index >= len(self.whole):
            return None if MORE not in self.wanted else MORE
        return self._compare(state, digit, self.whole[index])

    def point(self, state: int, count: int) -> int | None:
        state = LESS if count < len(self.whole) else state
        return state if state == SAME or state in self.wanted else None

    def fraction_digit(self, state: int, index: int, digit: int) -> int | None:
        state = self._compare(state, digit, self.fraction[index] if index < len(self.fraction) else 0)
        return state if state == SAME or state in self.wanted else None

    def accepts(self, state: int, count: int) -> bool:
        """After the point and `count` digits."""
        return (LESS if state == SAME and count < len(self.fraction) else state) in self.wanted

    @staticmethod
    def _compare(state: int, digit: int, other: int) -> int:
        return state or (digit > other) - (digit < other)


Left = tuple[int, ...]


class _Differ:
    """Which magnitudes the digits read may still turn out to be: at the end, none."""

    def __init__(self, magnitudes: list[Fraction]) -> None:
        self.digits = [_digits(magnitude) for magnitude in magnitudes]
        self.start: Left = tuple(range(len(magnitudes)))

    def whole_digit(self, left: Left, index: int, digit: int) -> Left:
        return tuple(i for i in left if self.digits[i][0][index : index + 1] == [digit])

    def point(self, left: Left, count: int) -> Left:
        return tuple(i for i in left if len(self.digits[i][0]) == count)

    def fraction_digit(self, left: Left, index: int, digit: int) -> Left:
        return tuple(i for i in left if (self.digits[i][1][index : index + 1] or [0]) == [digit])

    def accepts(self, left: Left, count: int) -> bool:
        """After the point and `count` digits."""
        return all(len(self.digits[i][1]) > count for i in left)


class _Multiple:
    """The digits' remainder. Remainders that no further digits tell apart are one state."""

    def __init__(self, divisor: Fraction) -> None:
        self.scale = len(_digits(divisor)[1])
        self.modulus = int(divisor * 10**self.scale)
        self.representatives: dict[tuple[int, ...], int] = {}
        self.known: dict[int, int] = {}
        self.start = self._class(0)

    def whole_digit(self, state: int, index: int, digit: int) -> int:
        return self._class(state * 10 + digit)

    def point(self, state: int, count: int) -> int:
        return state

    def fraction_digit(self, state: int, index: int, digit: int) -> int | None:
        if index >= self.scale:
            return None if digit else state
        return self._class(state * 10 + digit)

    def accepts(self, state: int, count: int) -> bool:
        zeros = max(0, self.scale - count)
        return state * int(10**zeros) % self.modulus == 0

    def _class(self, value: int) -> int:
        value %= self.modulus
        found = self.known.get(value)
        if found is None:
            found = self.known[value] = self.representatives.setdefault(self._key(value), value)
        return found

    def _key(self, value: int) -> tuple[int, ...]:
        """Of each number of further digits below the modulus', the ones that make a multiple; then what remains."""
        key = []
        power = 1
        while power < self.modulus:
            needed = -value * power % self.modulus
            key.append(needed if needed < power else -1)
            power *= 10
        key.append(value * power % self.modulus)
        return tuple(key)


_Part = Any
"""A `_Compare`, `_Differ` or `_Multiple`: they move by digits and the point, to None where no number goes on so."""

SIGN, ZERO, WHOLE, POINT, FRACTION = range(5)


class _State(NamedTuple):
    """read: digits before the point, or after it, no more than matter to some part."""

    side: int
    phase: int
    read: int
    parts: tuple[Any, ...]


class _Numbers:
    """Builds the automaton: of either sign, parts that each follow the digits, which may be any number."""

    def __init__(
        self,
        integer: bool,
        low: _Bound | None,
        high: _Bound | None,
        divisor: Fraction | None,
        apart: frozenset[Fraction],
    ) -> None:
        self.integer = integer
        self.sides = [self._side(low, high, divisor, apart), None]
        mirrored = [None if b is None else _Bound(-b.value, b.strict) for b in (high, low)]
        negative = self._side(mirrored[0], mirrored[1], divisor, frozenset(-each for each in apart if each < 0))
        if negative is not None:
            self.sides[1] = [*negative, _Compare(Fraction(0), frozenset((MORE,)))]
        given = [bound.value for bound in (low, high) if bound] + [*apart, *([] if divisor is None else [divisor])]
        sizes = [tuple(map(len, _digits(abs(value)))) for value in given]
        self.enough_whole, self.enough_fraction = (max(1, *each) for each in zip((1, 1), *sizes))
        self.max_states = current_limits().states
        self.ids: dict[_State, int] = {}
        self.order: list[_State] = []

    @staticmethod
    def _side(
        low: _Bound | None, high: _Bound | None, divisor: Fraction | None, apart: frozenset[Fraction]
    ) -> list[_Part] | None:
        """What magnitudes must satisfy; None: there is none."""
        parts: list[_Part] = []
        if high is not None:
            if high.value < 0:
                return None
            parts.append(_Compare(high.value, frozenset((LESS,) if high.strict else (LESS, SAME))))
        if low is not None and low.value >= 0:
            parts.append(_Compare(low.value, frozenset((MORE,) if low.strict else (MORE, SAME))))
        if divisor is not None:
            parts.append(_Multiple(divisor))
        others = sorted(each for each in apart if each >= 0)
        return [*parts, _Differ(others)] if others else parts

    def language(self) -> Language:
        rows: list[list[int]] = [[-1] * 13]
        accepting = [0]
        for side, parts in enumerate(self.sides):
            if parts is None:
                continue
            start = _State(side, SIGN, 0, tuple(part.start for part in parts))
            if side:
                rows[0][11] = self._number(start)
            else:
                for digit in range(10):
                    rows[0][1 + digit] = self._number(self._after_digit(start, digit))
        for state in self.order:
            rows.append(self._row(state))
            accepting.append(int(self._accepts(state)))
        bounds = [0, 0x2D, 0x2E, 0x2F, *range(0x30, 0x3B)]
        return Language.from_table(0, bounds, [0, 11, 12, 0, *range(1, 11), 0], rows, accepting)

    def _number(self, state: _State | None) -> int:
        if state is None:
            return -1
        at = self.ids.setdefault(state, len(self.order))
        if at == len(self.order):
            if at >= self.max_states:
                raise LimitExceeded("DFA states", self.max_states)
            self.order.append(state)
        return at + 1

    def _row(self, state: _State) -> list[int]:
        row = [self._number(self._after_digit(state, digit)) for digit in range(10)]
        return [-1, *row, -1, self._number(self._after_point(state))]

    def _after_digit(self, state: _State, digit: int) -> _State | None:
        parts = self.sides[state.side] or []
        if state.phase in (POINT, FRACTION):
            moved = [part.fraction_digit(s, state.read, digit) for part, s in zip(parts, state.parts)]
            return self._state(state, FRACTION, min(state.read + 1, self.enough_fraction), moved)
        if state.phase == ZERO:
            return None
        moved = [part.whole_digit(s, state.read, digit) for part, s in zip(parts, state.parts)]
        phase = ZERO if not digit and state.phase == SIGN else WHOLE
        return self._state(state, phase, min(state.read + 1, self.enough_whole), moved)

    def _after_point(self, state: _State) -> _State | None:
        if self.integer or state.phase not in (ZERO, WHOLE):
            return None
        parts = self.sides[state.side] or []
        return self._state(state, POINT, 0, [part.point(s, state.read) for part, s in zip(parts, state.parts)])

    @staticmethod
    def _state(state: _State, phase: int, count: int, parts: list[Any]) -> _State | None:
        moved = tuple(each for each in parts if each is not None)
        return _State(state.side, phase, count, moved) if len(moved) == len(parts) else None

    def _accepts(self, state: _State) -> bool:
        if state.phase in (SIGN, POINT):
            return False
        parts = self.sides[state.side] or []
        if state.phase == FRACTION:
            return all(part.accepts(s, state.read) for part, s in zip(parts, state.parts))
        ended = [part.point(s, state.read) for part, s in zip(parts, state.parts)]
        return all(s is not None and part.accepts(s, 0) for part, s in zip(parts, ended))


def _digits(magnitude: Fraction) -> tuple[list[int], list[int]]:
    """The decimal digits before and after the point, without zeros that say nothing."""
    scale = 0
    rest = magnitude.denominator
    while rest % 10 == 0:
        rest //= 10
        scale += 1
    while rest % 2 == 0 or rest % 5 == 0:
        rest //= 2 if rest % 2 == 0 else 5
        scale += 1
    value = int(magnitude * 10**scale)
    whole, fraction = divmod(value, 10**scale)
    digits = str(fraction).rjust(scale, "0").rstrip("0") if scale else ""
    return [int(d) for d in str(whole)], [int(d) for d in digits]
