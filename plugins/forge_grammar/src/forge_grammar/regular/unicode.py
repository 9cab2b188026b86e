"""Sets of characters that regular expressions name: ECMA-262's classes and Unicode's properties, as Python's Unicode
database has them (`unicodedata.unidata_version`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import groupby

from forge_grammar.regular.nfa import TEXT, WORD, CharSet, normal

DIGIT: CharSet = ((0x30, 0x39),)
SPACE: CharSet = normal(
    (cp, cp)
    for cp in (
        *range(0x09, 0x0E),
        0x20,
        0xA0,
        0x1680,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
        0xFEFF,
    )
)
LINE_ENDS: CharSet = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
ESCAPES: dict[str, CharSet] = {"d": DIGIT, "w": WORD, "s": SPACE}

_CATEGORIES = {
    "L": "Letter", "LC": "Cased_Letter", "Lu": "Uppercase_Letter", "Ll": "Lowercase_Letter", "Lt": "Titlecase_Letter",
    "Lm": "Modifier_Letter", "Lo": "Other_Letter", "M": "Mark", "Mn": "Nonspacing_Mark", "Mc": "Spacing_Mark",
    "Me": "Enclosing_Mark", "N": "Number", "Nd": "Decimal_Number", "Nl": "Letter_Number", "No": "Other_Number",
    "P": "Punctuation", "Pc": "Connector_Punctuation", "Pd": "Dash_Punctuation", "Ps": "Open_Punctuation",
    "Pe": "Close_Punctuation", "Pi": "Initial_Punctuation", "Pf": "Final_Punctuation", "Po": "Other_Punctuation",
    "S": "Symbol", "Sm": "Math_Symbol", "Sc": "Currency_Symbol", "Sk": "Modifier_Symbol", "So": "Other_Symbol",
    "Z": "Separator", "Zs": "Space_Separator", "Zl": "Line_Separator", "Zp": "Paragraph_Separator", "C": "Other",
    "Cc": "Control", "Cf": "Format", "Cs": "Surrogate", "Co": "Private_Use", "Cn": "Unassigned",
}  # fmt: skip
_ALIASES = {"Combining_Mark": "M", "digit": "Nd", "punct": "P", "cntrl": "Cc"}
_SHORT = {name: name for name in _CATEGORIES} | {long: name for name, long in _CATEGORIES.items()} | _ALIASES
_BINARY: dict[str, Callable[[str], bool]] = {
    "Lowercase": str.islower,
    "Lower": str.islower,
    "Uppercase": str.isupper,
    "Upper": str.isupper,
    "XID_Start": lambda char: char.isidentifier() and char != "_",
    "XIDS": lambda char: char.isidentifier() and char != "_",
    "XID_Continue": lambda char: ("a" + char).isidentifier(),
    "XIDC": lambda char: ("a" + char).isidentifier(),
}
_WHITE_SPACE = normal([*((low, high) for low, high in SPACE if low != 0xFEFF), (0x85, 0x85)])
_FIXED: dict[str, CharSet] = {
    "Any": TEXT,
    "ASCII": ((0, 0x7F),),
    "ASCII_Hex_Digit": ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
    "AHex": ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
    "White_Space": _WHITE_SPACE,
    "space": _WHITE_SPACE,
}


@cache
def unicode_property(text: str) -> CharSet | None:
    """The characters of `\\p{text}`: general categories, and the binary properties that Python's database has; None for
    others.
    """
    name, equals, value = text.partition("=")
    if equals:
        return category(_SHORT[value]) if name in ("General_Category", "gc") and value in _SHORT else None
    if text in _SHORT:
        return category(_SHORT[text])
    if text in _FIXED:
        return _FIXED[text]
    if text == "Assigned":
        return normal((low, high) for low, high, each in _by_category() if each != "Cn")
    holds = _BINARY.get(text)
    return None if holds is None else _where(holds)


@cache
def category(name: str) -> CharSet:
    """The characters of a general category, by its short name."""
    wanted = ("Lu", "Ll", "Lt") if name == "LC" else (name,)
    return normal((low, high) for low, high, each in _by_category() if each.startswith(wanted))


@cache
def _by_category() -> list[tuple[int, int, str]]:
    ranges = []
    for name, group in groupby(range(0x110000), key=lambda cp: unicodedata.category(chr(cp))):
        members = list(group)
        ranges.append((members[0], members[-1], name))
    return ranges


def _where(holds: Callable[[str], bool]) -> CharSet:
    assigned = (range(low, high + 1) for low, high, name in _by_category() if name not in ("Cn", "Co", "Cs"))
    return normal((cp, cp) for each in assigned for cp in each if holds(chr(cp)))
