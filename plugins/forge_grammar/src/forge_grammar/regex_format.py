"""The format `regex`: regular expressions that ECMA-262 (u flag) and Python's `re` both take.

Regular expressions aren't a regular language, so this is a subset that is one: alternatives, groups nested up to
`DEPTH`, lookaheads outside of groups, quantifiers, classes, escapes. It has no backreferences, names, lookbehinds and
Unicode properties. Bounds of quantifiers have at most three digits; of two bounds, the second has more digits than the
first or (up to two) a higher first digit. Ranges of classes begin with `a`, `A`, `0` or `1`, and are of letters of one
case or of digits. So few states suffice.
"""

from __future__ import annotations

DEPTH = 3

_SYNTAX = r"\^$\\.*+?()\[\]{}|"
_COMMON = rf"\\(?:[dDwWsStnvfr/{_SYNTAX}]|x[0-9A-Fa-f]{{2}}|u[0-9A-Fa-f]{{4}})"
"""Escapes that mean the same in and out of classes."""

_RANGES = "a-[a-z]|A-[A-Z]|0-[0-9]|1-[1-9]"
_CLASS = rf"\[\^?(?:{_RANGES}|[^\]\[\\^\-]|{_COMMON}|\\[b\-])+-?\]"


def _braces() -> str:
    """`{n}`, `{n,}`, and `{n,m}` where a look at few digits tells that n is no more than m."""
    pairs = ["[1-9]?[0-9],[1-9][0-9]{2}", "[0-9],[1-9][0-9]"]
    pairs += [f"{n},[{n}-9]" for n in range(10)]
    pairs += [f"{tens}[0-9],[{tens + 1}-9][0-9]" for tens in range(1, 9)]
    return rf"\{{(?:(?:0|[1-9][0-9]{{0,2}}),?|{'|'.join(pairs)})\}}"


_QUANTIFIER = rf"(?:[*+?]|{_braces()})\??"
_ATOM = rf"[^{_SYNTAX}]|\.|{_COMMON}|{_CLASS}"
_ASSERTION = r"[\^$]|\\[bB]"


def _body(depth: int, *, looks: bool) -> str:
    """Alternatives with groups of so many levels inside."""
    atom, alone = _ATOM, _ASSERTION
    if depth:
        atom += rf"|\((?:\?:)?{_body(depth - 1, looks=False)}\)"
        if looks:
            alone += rf"|\(\?[=!]{_body(depth - 1, looks=False)}\)"
    return rf"(?:(?:{atom})(?:{_QUANTIFIER})?|{alone}|\|)*"


PATTERN = _body(DEPTH, looks=True)
