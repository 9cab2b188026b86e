"""What one rendering of a chat template may do, counted before it's done.

For `forge.text.sandbox`, which says what the limits are for. Knows of Jinja only the objects that templates can hold.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

from jinja2 import TemplateError
from jinja2.utils import Namespace

MAX_STEPS = 500_000
MAX_VOLUME = 64_000_000
MAX_INT_BITS = 4096
MAX_WIDTH = 10_000

ENTRY = 64
"""What looking at one entry costs in volume: about as long as so many characters take."""

_WIDE = re.compile(r"\d{5}|\*|\{[^{}]*\{")
"""What pads to five digits of width in a format, or to a width that comes from elsewhere."""


class BudgetExceeded(TemplateError):
    """The template does more than a chat template needs to."""


class Budget:
    """The rest of one rendering's steps and volume. static: characters of fixed text in the whole template."""

    def __init__(self, static: int) -> None:
        self.static = static
        self.steps = MAX_STEPS
        self.volume = MAX_VOLUME

    def step(self) -> None:
        """Account for one loop iteration, call or filter."""
        self.steps -= 1
        if self.steps < 0:
            raise BudgetExceeded(f"it takes more than {MAX_STEPS} steps")

    def handle(self, amount: int) -> None:
        """Account for so many characters or entries."""
        self.volume -= amount
        if self.volume < 0:
            raise BudgetExceeded(f"it handles more than {MAX_VOLUME} characters")

    def handle_deep(self, value: object) -> None:
        """Account for all that is in a value, as often as it's in there: what its text would be made of."""
        stack = [value]
        while stack:
            match stack.pop():
                case str() as text:
                    self.handle(len(text))
                case Mapping() as mapping:
                    self.handle(len(mapping) * ENTRY)
                    stack.extend(mapping.keys())
                    stack.extend(mapping.values())
                case Collection() as entries:
                    self.handle(len(entries) * ENTRY)
                    stack.extend(entries)
                case Namespace():
                    raise BudgetExceeded("it shows a namespace")
                case _:
                    self.handle(1)

    def count(self, items: Iterable[Any], static: int) -> Iterator[Any]:
        """Pass a loop's items on. static: characters of fixed text in its body."""
        for item in items:
            self.step()
            self.handle(static)
            yield item

    def before_operator(self, operator: str, left: Any, right: Any) -> None:
        """Account for ``left operator right``."""
        match operator:
            case "*" if isinstance(left, int) and isinstance(right, int):
                check_bits(left.bit_length() + right.bit_length())
            case "**" if isinstance(left, int) and isinstance(right, int):
                check_bits(left.bit_length() * abs(right))
            case "+":
                self.handle(size(left) + size(right))
            case "*":
                self.handle(times(left, right) + times(right, left))
            case "%" if isinstance(left, str):
                check_format(left)
                self.handle_deep(right)

    def before_method(
        self, text: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Account for a method of a string; returns the arguments to call it with."""
        if method not in ("startswith", "endswith"):
            self.handle(len(text))
        match method:
            case "center" | "ljust" | "rjust" | "zfill":
                check_width(*args)
            case "expandtabs":
                check_width(*args, *kwargs.values())
                self.handle(text.count("\t") * MAX_WIDTH if args or kwargs else 0)
            case "format" | "format_map":
                check_format(text)
                self.handle_deep((args, kwargs))
            case "replace" if len(args) >= 2:
                self.before_replace(text, args[0], args[1])
            case "join" if args:
                return (self.before_join(args[0], text), *args[1:])
        return args

    def before_replace(self, text: str, old: object, new: object) -> None:
        """Account for a replacement of every occurrence."""
        self.handle(len(text) + text.count(str(old)) * len(str(new)))

    def before_join(self, items: Iterable[Any], separator: str) -> Iterable[Any]:
        """Account for joining; returns what to join, since an iterator can be looked at only once."""
        items = items if isinstance(items, Sequence) else list(items)
        self.handle_deep(items)
        self.handle(len(separator) * len(items))
        return items


def check_bits(bits: int) -> None:
    """Numbers stay small."""
    if bits > MAX_INT_BITS:
        raise BudgetExceeded(f"it makes a number of more than {MAX_INT_BITS} bits")


def check_width(*values: object) -> None:
    """Paddings stay narrow."""
    if any(isinstance(value, int) and value > MAX_WIDTH for value in values):
        raise BudgetExceeded(f"it pads to more than {MAX_WIDTH} characters")


def check_format(text: str) -> None:
    """So do those of a format."""
    if _WIDE.search(text):
        raise BudgetExceeded("it formats to a width of five digits, or to a computed one")


def size(value: object) -> int:
    """Entries or characters; 1 for what has neither."""
    return len(value) if isinstance(value, Sized) else 1


def times(value: object, count: object) -> int:
    """The size of a sequence repeated; 0 if that isn't what's asked for."""
    return len(value) * max(0, count) if isinstance(value, Sequence) and isinstance(count, int) else 0
