"""Errors of regular languages, and what one regex may cost at most (of automata: `limits`)."""

from __future__ import annotations

MAX_REGEX_NODES = 100_000
MAX_REGEX_DEPTH = 100
MAX_LOOKAHEADS = 64
MAX_NFA_STATES = 100_000
MAX_CLASSES = 65_535
MAX_LENGTH_TABLE = 64 << 20


class RegexError(ValueError):
    """A regular expression that is malformed, or asks for what no automaton can do.

    position: in code points from the start of the pattern.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} (at position {position})")
        self.message = message
        self.position = position


class LimitExceeded(ValueError):
    """A language that would cost more than is allowed. name: what of; limit: how much is allowed."""

    def __init__(self, name: str, limit: int) -> None:
        option = _OPTIONS.get(name)
        super().__init__(f"more than {limit} {name}" + (f" (constraint.options.{option})" if option else ""))
        self.name = name
        self.limit = limit


_OPTIONS = {"DFA states": "max_states", "steps of building an automaton": "max_work"}
"""Limits that an option sets."""
