"""What building one automaton may cost: as much as the options of a server say, wherever languages are combined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

from attrs import frozen

P = ParamSpec("P")
T = TypeVar("T")


@frozen(cache_hash=True)
class Limits:
    """states: of an automaton before it is made minimal; work: steps of making it."""

    states: int = 64_000
    work: int = 30_000_000


_DEFAULT = Limits()
_current: ContextVar[Limits] = ContextVar("limits of automata", default=_DEFAULT)


def current_limits() -> Limits:
    """Those that hold here."""
    return _current.get()


def remembered(size: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`lru_cache` of functions that make languages: what other limits let pass isn't found under these."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @lru_cache(maxsize=size)
        def under(limits: Limits, *args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **kwargs)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return under(_current.get(), *args, **kwargs)  # type: ignore[arg-type]  # languages and numbers: hashable

        return call

    return decorate


@contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """These limits hold inside, in this thread or task."""
    token = _current.set(limits)
    try:
        yield
    finally:
        _current.reset(token)
