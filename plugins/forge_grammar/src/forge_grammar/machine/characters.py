"""Code points from bytes: UTF-8, and the escapes of JSON strings on top of it, one byte at a time.

A character that has only begun is a `Partial`: it knows the code points it can still become, so that a lexeme can tell
at every byte whether going on makes sense. Raw control characters, lone surrogates, overlong UTF-8 and printable ASCII
written as \\u00XX are never read.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache

from attrs import frozen

from forge_grammar.machine.words import Ranges

_SHORT = {ord(c): ord(x) for c, x in zip('"\\/bfnrt', '"\\/\b\f\n\r\t')}
_SHORT_RANGES = tuple((cp, cp) for cp in _SHORT.values())
# What \uXXXX may stand for: control characters, and whatever isn't ASCII.
_UNICODE: Ranges = ((0, 0x1F), (0x7F, 0xD7FF), (0xE000, 0x10FFFF))


class Stage(Enum):
    """Which part of a character has been read."""

    UTF8 = auto()
    BACKSLASH = auto()
    HEX = auto()
    HIGH_SURROGATE = auto()
    SECOND_BACKSLASH = auto()
    LOW_HEX = auto()


@frozen
class Partial:
    """A character that has begun.

    value: the bits or hexadecimal digits so far; missing: how many bytes or digits are to come; high: the surrogate
    before; ranges: the code points (first, last) that it can still become.
    """

    stage: Stage
    value: int
    missing: int
    high: int
    ranges: Ranges


@lru_cache(maxsize=1 << 16)
def read_utf8(partial: Partial | None, byte: int) -> Partial | int | None:
    """The next byte of raw UTF-8: a code point that is whole, one that isn't yet, or None if the byte is illegal."""
    if partial is None:
        if byte < 0x80:
            return byte
        for missing, lead, mask in ((1, 0xC0, 0x1F), (2, 0xE0, 0x0F), (3, 0xF0, 0x07)):
            if byte & ~mask & 0xFF == lead:
                least = (0x80, 0x800, 0x10000)[missing - 1]
                return _partial(Stage.UTF8, byte & mask, missing, 0, 6, ((least, 0x10FFFF),))
        return None
    if byte & 0xC0 != 0x80:
        return None
    value, missing = partial.value << 6 | byte & 0x3F, partial.missing - 1
    return _partial(Stage.UTF8, value, missing, 0, 6, partial.ranges) if missing else value


@lru_cache(maxsize=1 << 16)
def read_json(partial: Partial | None, byte: int) -> Partial | int | None:
    """The next byte inside a JSON string, as `read_utf8`. The closing quote is the caller's."""
    if partial is None:
        if byte == ord("\\"):
            return Partial(Stage.BACKSLASH, 0, 0, 0, (*_SHORT_RANGES, *_UNICODE))
        return None if byte < 0x20 or byte == ord('"') else read_utf8(None, byte)
    match partial.stage:
        case Stage.UTF8:
            return read_utf8(partial, byte)
        case Stage.BACKSLASH:
            return Partial(Stage.HEX, 0, 4, 0, _UNICODE) if byte == ord("u") else _SHORT.get(byte)
        case Stage.HIGH_SURROGATE:
            return Partial(Stage.SECOND_BACKSLASH, 0, 0, partial.high, partial.ranges) if byte == ord("\\") else None
        case Stage.SECOND_BACKSLASH:
            return Partial(Stage.LOW_HEX, 0, 4, partial.high, partial.ranges) if byte == ord("u") else None
        case _:
            return _read_hex(partial, byte)


def _read_hex(partial: Partial, byte: int) -> Partial | int | None:
    try:
        digit = int(chr(byte), 16) if byte < 0x80 else -1
    except ValueError:
        digit = -1
    if digit < 0:
        return None
    value, missing, high = partial.value << 4 | digit, partial.missing - 1, partial.high
    if high:
        least, most = max(value << 4 * missing, 0xDC00), min((value + 1 << 4 * missing) - 1, 0xDFFF)
        if least > most:
            return None
        first, last = _astral(high, least), _astral(high, most)
        return Partial(Stage.LOW_HEX, value, missing, high, ((first, last),)) if missing else first
    if missing:
        return _partial(Stage.HEX, value, missing, 0, 4, _UNICODE)
    if 0xD800 <= value <= 0xDBFF:
        span = (_astral(value, 0xDC00), _astral(value, 0xDFFF))
        return Partial(Stage.HIGH_SURROGATE, 0, 0, value, (span,))
    return value if any(first <= value <= last for first, last in _UNICODE) else None


def _astral(high: int, low: int) -> int:
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)


def _partial(stage: Stage, value: int, missing: int, high: int, bits: int, within: Ranges) -> Partial | None:
    """A character of which `missing` groups of bits are to come; None if it can't become one of `within`."""
    first, last = value << bits * missing, (value + 1 << bits * missing) - 1
    spans = [(max(first, low), min(last, top)) for low, top in within]
    spans = [part for low, top in spans for part in _without_surrogates(low, top)]
    if stage is Stage.HEX:
        # Four digits: what begins like a high surrogate becomes an astral character.
        highs = max(first, 0xD800), min(last, 0xDBFF)
        if highs[0] <= highs[1]:
            spans.append((_astral(highs[0], 0xDC00), _astral(highs[1], 0xDFFF)))
    ranges = tuple(span for span in spans if span[0] <= span[1])
    return Partial(stage, value, missing, high, ranges) if ranges else None


def _without_surrogates(first: int, last: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (first, min(last, 0xD7FF)), (max(first, 0xE000), last)
