"""The canonical text of a JSON value: equal values have equal texts, whatever their spelling.

Numbers by value (1, 1.0 and 10e-1 are one), strings by code points, keys of objects sorted.
"""

from __future__ import annotations

import json
from functools import lru_cache


class _Number(str):
    """A number's canonical text, told apart from a string."""


def canonical(text: bytes | str) -> str:
    """The canonical text of a JSON text. Errors: `json.JSONDecodeError` if it isn't one."""
    return _render(json.loads(text, parse_int=number, parse_float=number))


@lru_cache(maxsize=4096)
def number(text: str) -> _Number:
    """A number by its value: an integer, followed by e and a power of ten unless that's 0; 0 for every zero."""
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.removeprefix("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return _Number("0")
    power = int(exponent or 0) - len(fraction) + len(digits) - len(significant)
    sign = "-" if mantissa.startswith("-") else ""
    return _Number(f"{sign}{significant}" + (f"e{power}" if power else ""))


def _render(value: object) -> str:
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, dict):
        items = ",".join(f"{_ENCODE(key)}:{_render(value[key])}" for key in sorted(value))
        return "{" + items + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_render, value)) + "]"
    return _ENCODE(value)


_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
