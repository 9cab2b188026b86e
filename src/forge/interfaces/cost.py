"""What a step costs: seconds by rows, learned from the steps that ran. Answers never depend on it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence as Seq

from attrs import define, frozen

EXACT = 8
"""Up to so many rows each number has a bucket of its own; beyond, an octave has four: 10, 12, 14, 16, 20, …"""

WARM_UP = 2
"""The first steps of a process touch memory and caches for the first time: they aren't counted."""

FEW = 4
"""Until a bucket has so many observations, the least of them counts: what disturbs a step makes it longer."""

RATE = 0.15
"""Weight of a new observation after that."""

OUTLIER = 2.0
"""An observation counts at most as so many times the mean: a neighbour that took the core isn't the model's cost."""

REACH = 2.0
"""Up to so many times the rows that are known well, more of them are worth a try."""

PATIENCE, LONGEST_PATIENCE = 512, 4096
"""A bucket that no step has fallen into for so many steps is tried again, for the machine may have changed; each time
that it hasn't, the wait is twice as long. After the longest one it is forgotten."""

CHANGED = 0.9
"""What takes at most this part of the time it used to take has changed."""

DRIFT = 0.03
"""The curve is fitted again once a mean is off by so much from what it was fitted to: every step asks for it."""


@define
class _Bucket:
    rows: float
    seconds: float
    count: int
    last: int
    patience: int = PATIENCE
    fitted: tuple[float, float] = (0.0, 0.0)
    """Rows and seconds that the curve was fitted to."""

    @property
    def drifted(self) -> bool:
        """Whether those are no longer right."""
        rows, seconds = self.fitted
        return abs(self.rows - rows) > DRIFT * rows or abs(self.seconds - seconds) > DRIFT * seconds


@frozen
class _Curve:
    """Seconds by rows. known: keys and rows of the buckets that have been measured well and lately. until: the last
    step of which that's true, whatever is observed till then.
    """

    rows: list[float]
    seconds: list[float]
    known: list[tuple[int, float]]
    until: float


class StepCost:
    """Seconds of a step as a function of its rows, as measured on this machine with this model.

    Rows fall into buckets of a quarter octave, each with a moving average of its steps' times. Between the buckets that
    have been seen it is linear; it never falls as rows grow (isotonic regression by pooling adjacent violators, Ayer et
    al., 1955). Beyond the largest seen it grows in proportion. A backend that knows better returns a subclass from
    `Backend.cost`.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._steps = 0
        self._curve: _Curve | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows, scheduling and commit included, took `seconds`."""
        self._steps += 1
        if self._steps <= WARM_UP:
            return
        bucket = self._buckets.get(_key(rows))
        if bucket is None:
            self._buckets[_key(rows)] = _Bucket(rows, seconds, 1, self._steps)
            self._curve = None
            return
        if self._steps - bucket.last > bucket.patience:
            self._curve = None
            if seconds < CHANGED * bucket.seconds:
                bucket.count, bucket.patience = 0, PATIENCE
            else:
                bucket.patience = min(2 * bucket.patience, LONGEST_PATIENCE)
        if bucket.count < FEW:
            bucket.seconds = min(bucket.seconds, seconds)
        else:
            bucket.seconds += RATE * (min(seconds, OUTLIER * bucket.seconds) - bucket.seconds)
        bucket.rows += RATE * (rows - bucket.rows)
        bucket.count += 1
        bucket.last = self._steps
        if bucket.count <= FEW or bucket.drifted or (self._curve is not None and self._steps > self._curve.until):
            self._curve = None

    def seconds(self, rows: int) -> float | None:
        """The time that a step of so many rows would take; None if nothing is known yet."""
        curve = self._curve or self._fit()
        xs, ys = curve.rows, curve.seconds
        if not xs:
            return None
        at = bisect_left(xs, rows)
        if at == len(xs):
            return ys[-1] * rows / xs[-1]
        if at == 0:
            return ys[0]
        share = (rows - xs[at - 1]) / (xs[at] - xs[at - 1])
        return ys[at - 1] + share * (ys[at] - ys[at - 1])

    def at_best(self, rows: int) -> float | None:
        """The time that it might take as far as anybody can know: what hasn't been measured lately is worth a try.

        Where only fewer rows are known, up to `REACH` times as many might take no longer than they do; where only more
        are, fewer might take less in proportion. So whoever goes by this finds out, step by step, and is never misled
        for long by what was measured in a bad moment.
        """
        seconds = self.seconds(rows)
        if seconds is None:
            return None
        curve = self._curve or self._fit()
        key, known = _key(rows), curve.known
        at = bisect_left(known, (key, 0.0))
        if at < len(known) and known[at][0] == key:
            return seconds
        if at == 0:
            return seconds * min(1.0, rows / curve.rows[0]) if curve.rows else seconds
        below, above = known[at - 1][1], known[at][1] if at < len(known) else math.inf
        if rows > REACH * below or above <= REACH * below:
            return seconds
        return min(seconds, self.seconds(int(below)) or seconds)

    def rows_within(self, seconds: float, most: int) -> int:
        """The most rows, up to `most`, that a step of at most so many seconds takes; `most` if nothing is known."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            cost = self.seconds(middle)
            if cost is None or cost <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _fit(self) -> _Curve:
        """The buckets that aren't forgotten, as increasing rows and never falling seconds.

        More rows take at most in proportion more time. So a bucket that isn't known well counts at most for that.
        """
        kept: list[tuple[float, float, int]] = []
        known: list[tuple[int, float]] = []
        most = until = math.inf
        for key, bucket in sorted(self._buckets.items()):
            age = self._steps - bucket.last
            if age > LONGEST_PATIENCE:
                continue
            bucket.fitted = bucket.rows, bucket.seconds
            until = min(until, bucket.last + LONGEST_PATIENCE)
            if bucket.count >= FEW and age <= bucket.patience:
                until = min(until, bucket.last + bucket.patience)
                known.append((key, bucket.rows))
                most = bucket.seconds / bucket.rows
            kept.append((bucket.rows, min(bucket.seconds, most * bucket.rows), bucket.count))
        self._curve = _Curve([rows for rows, _, _ in kept], _isotonic(kept), known, until)
        return self._curve


def _key(rows: int) -> int:
    """The bucket of so many rows; increases with them."""
    if rows <= EXACT:
        return rows
    octave = math.frexp(rows)[1]
    return octave * 8 + (rows >> (octave - 3))  # the three highest bits, the first of which is set


def _isotonic(points: Seq[tuple[float, float, int]]) -> list[float]:
    """The never falling values nearest to the points' (rows, seconds, count), by least squares weighted with counts."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many buckets
    for _, seconds, count in points:
        mean, weight, size = seconds, float(min(count, 64)), 1
        while pools and pools[-1][0] >= mean:
            before, its_weight, its_size = pools.pop()
            mean = (mean * weight + before * its_weight) / (weight + its_weight)
            weight, size = weight + its_weight, size + its_size
        pools.append((mean, weight, size))
    return [mean for mean, _, size in pools for _ in range(size)]
