"""Languages of numbers against exact arithmetic."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from forge_grammar.numbers import number_language
from forge_grammar.regular import LimitExceeded
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = st.decimals(min_value=-200, max_value=200, places=2)
VALUES = st.one_of(SMALL, st.integers(-300, 300).map(Decimal), st.decimals(min_value=-2, max_value=2, places=4))
STEPS = st.sampled_from([Decimal(text) for text in ("1", "2", "3", "7", "10", "0.5", "0.01", "0.3", "2.5", "12")])


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.none() | VALUES,
    st.none() | VALUES,
    st.none() | VALUES,
    st.none() | VALUES,
    st.lists(STEPS, max_size=2),
    st.lists(VALUES, max_size=3),
    st.lists(VALUES, min_size=5, max_size=20),
)
def test_texts_are_the_numbers_that_satisfy_all(
    integer: bool,
    minimum: Decimal | None,
    above: Decimal | None,
    maximum: Decimal | None,
    below: Decimal | None,
    steps: list[Decimal],
    excluded: list[Decimal],
    values: list[Decimal],
) -> None:
    language = number_language(
        integer=integer,
        minimum=minimum,
        exclusive_minimum=above,
        maximum=maximum,
        exclusive_maximum=below,
        multiple_of=tuple(steps),
        excluded=tuple(excluded),
    )
    bounds = [bound for bound in (minimum, above, maximum, below) if bound is not None]
    near = [bound + delta for bound in [*bounds, *excluded] for delta in (0, Decimal("0.01"), -1)]
    for value in [*values, *near, *(step * n for step in steps for n in (-3, 0, 5))]:
        exact = Fraction(value)
        satisfied = (
            (minimum is None or exact >= minimum)
            and (above is None or exact > above)
            and (maximum is None or exact <= maximum)
            and (below is None or exact < below)
            and all((exact / Fraction(step)).denominator == 1 for step in steps)
            and exact not in [Fraction(each) for each in excluded]
        )
        plain = format(value, "f")
        for text in (plain, plain + "0" if "." in plain else plain + ".0", plain.rstrip("0").rstrip(".") or "0"):
            if Fraction(text) != exact:
                continue
            written = not (text.startswith("-") and not exact) and not (integer and "." in text)
            assert language.accepts(text) == (satisfied and written), text


@pytest.mark.parametrize("integer", [True, False])
def test_free_numbers(integer: bool) -> None:
    language = number_language(integer=integer)
    for text in ("0", "7", "-1", "1" * 20):
        assert language.accepts(text)
    for text in ("", "-", "01", "-0", "+1", "1.", ".5", "-0.0", "1e", "1e+", "1" * 21, "1e100", "٣", "0x1", " 1"):
        assert not language.accepts(text)
    for text in ("0.5", "-0.5", "1e5", "1E-05", "1.50e+10", "0." + "1" * 20):
        assert language.accepts(text) != integer


def test_restricted_numbers_have_no_exponent() -> None:
    assert not number_language(integer=False, minimum=0).accepts("1e5")
    assert not number_language(integer=False, excluded=(3,)).accepts("3e0")


def test_bounds_beyond_twenty_digits_widen_the_texts() -> None:
    large = number_language(integer=True, minimum=10**25)
    assert large.accepts("1" + "0" * 25)
    assert not large.accepts("9" * 25)
    tiny = number_language(integer=False, exclusive_minimum=0, maximum=Decimal("1e-25"))
    assert tiny.accepts("0." + "0" * 24 + "1")
    assert not tiny.accepts("0." + "0" * 23 + "1")
    assert number_language(integer=False, minimum=1e300).accepts("1" + "0" * 300)


def test_floats_mean_what_they_are_written_as() -> None:
    cents = number_language(integer=False, multiple_of=(0.01,))
    assert cents.accepts("0.29")
    assert cents.accepts("19.990")
    assert not cents.accepts("0.295")


def test_few_integers_are_listed_and_empty_ranges_empty() -> None:
    assert number_language(integer=True, minimum=-1, exclusive_maximum=2.5).words(9) == ["-1", "0", "1", "2"]
    assert number_language(integer=True, minimum=0, maximum=10**6, multiple_of=(99_991,)).count == 11
    assert number_language(integer=True, exclusive_minimum=0, exclusive_maximum=1).is_empty
    assert number_language(integer=False, minimum=2, maximum=1).is_empty
    assert number_language(integer=False, minimum=0, maximum=0, excluded=(0,)).is_empty


def test_large_multiples_need_few_states_where_the_last_digits_decide() -> None:
    language = number_language(integer=True, multiple_of=(2**10 * 1000,))
    assert language.accepts(str(2**10 * 1000 * 12345))
    assert not language.accepts(str(2**10 * 1000 * 12345 + 500))


def test_what_would_explode_is_refused() -> None:
    with pytest.raises(LimitExceeded, match=r"constraint\.options\.max_states"):
        number_language(integer=True, multiple_of=(99_991,))
    with pytest.raises(LimitExceeded, match="digits of a number"):
        number_language(integer=False, minimum=Decimal("1e500"))
    with pytest.raises(LimitExceeded, match="digits of a number"):
        number_language(integer=False, multiple_of=(Decimal("1e-1000000000"),))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), Decimal("-Infinity")])
def test_numbers_that_are_none_are_errors(bad: float | Decimal) -> None:
    with pytest.raises(ValueError, match="is no number"):
        number_language(integer=False, minimum=bad)


@pytest.mark.parametrize("bad", [0, -1, Decimal("-0.5")])
def test_multiples_must_be_positive(bad: int | Decimal) -> None:
    with pytest.raises(ValueError, match="isn't positive"):
        number_language(integer=False, multiple_of=(bad,))
