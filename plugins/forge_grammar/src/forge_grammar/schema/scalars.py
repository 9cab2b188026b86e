"""Keywords of strings and numbers as terms."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from forge_grammar.formats import FORMATS, MAX_LENGTHS, format_language
from forge_grammar.regular import Language, LimitExceeded, RegexError
from forge_grammar.schema.drafts import Draft
from forge_grammar.schema.errors import SchemaError
from forge_grammar.schema.terms import FEW, UNBOUNDED, Numbers, Strings, meet_numbers, meet_strings, tidy_strings
from forge_grammar.schema.values import Reader

STRING_KEYWORDS = ("minLength", "maxLength", "pattern", "format")
NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")

_UNCHECKED_FORMATS = frozenset({"int32", "int64", "float", "double", "byte", "binary", "password"})
"""OpenAPI's hints on how a value is stored or shown: they constrain nothing in JSON Schema."""

_UNENFORCED = frozenset({"idn-hostname", "regex"})
"""Formats of JSON Schema whose values are no regular language, or need tables that we don't have."""

_COUNTED = re.compile(r"\^(\[(?:[^\]\\\[]|\\.)+\]|\.|\\[dDwWsS])(?:\{(\d{1,9})(,(\d{1,9})?)?\})\$")
_UNROLLED = 16
_PLAIN = r"(?:[A-Za-z0-9 @_/:;,'\"!%&=<>~#`-]|\\[.$^*+?()\[\]{}|/\\])*"
_LISTED = re.compile(rf"\^(?:({_PLAIN})|\((?:\?:)?({_PLAIN}(?:\|{_PLAIN})*)\))\$")
_PIECES = re.compile(r"\\(.)|(\|)|([^\\|]+)")


class Scalars:
    """Terms of strings and numbers, by subschema."""

    def __init__(self, reader: Reader, formats_are_annotations: bool) -> None:
        self._read = reader
        self._lenient = formats_are_annotations

    def strings(self, schema: dict[str, Any], *, positive: bool) -> list[Strings]:
        """What the string keywords of a schema say, or their negation."""
        terms = []
        low = self._read.count(schema, "minLength", 0)
        high = self._read.count(schema, "maxLength", UNBOUNDED)
        if low or high != UNBOUNDED:
            terms.append(Strings(None, low=low, high=high))
        terms += [
            term for keyword in ("pattern", "format") if keyword in schema and (term := self._language(schema, keyword))
        ]
        if positive:
            if high != UNBOUNDED and low > high:
                return []
            met: Strings | None = Strings()
            for term in terms:
                met = met and meet_strings(met, term)
            return [met] if met else []
        return [negative for term in terms for negative in _not_string(term)]

    def numbers(self, schema: dict[str, Any], draft: Draft, *, positive: bool) -> list[Numbers]:
        """What the number keywords of a schema say, or their negation."""
        low: list[tuple[Decimal, bool]] = []
        high: list[tuple[Decimal, bool]] = []
        if draft is Draft.D4:
            if "minimum" in schema:
                low.append((self._read.number(schema, "minimum"), self._read.flag(schema, "exclusiveMinimum")))
            if "maximum" in schema:
                high.append((self._read.number(schema, "maximum"), self._read.flag(schema, "exclusiveMaximum")))
        else:
            bounds = (
                (low, "minimum", False),
                (low, "exclusiveMinimum", True),
                (high, "maximum", False),
                (high, "exclusiveMaximum", True),
            )
            for side, keyword, is_open in bounds:
                if keyword in schema:
                    side.append((self._read.number(schema, keyword), is_open))
        divisor = self._read.number(schema, "multipleOf") if "multipleOf" in schema else None
        if divisor is not None and divisor <= 0:
            raise self._read.document.error(schema, "multipleOf", "must be greater than 0")
        if not positive:
            negative = [Numbers(high=bound, high_open=not is_open) for bound, is_open in low]
            negative += [Numbers(low=bound, low_open=not is_open) for bound, is_open in high]
            return negative + ([Numbers(others=frozenset({divisor}))] if divisor else [])
        terms = [Numbers(low=bound, low_open=is_open) for bound, is_open in low]
        terms += [Numbers(high=bound, high_open=is_open) for bound, is_open in high]
        if divisor:
            terms.append(Numbers(multiples=frozenset({divisor})))
        met: Numbers | None = Numbers()
        for term in terms:
            met = met and meet_numbers(met, term)
        return [met] if met else []

    def pattern(self, schema: dict[str, Any], keyword: str, pattern: str) -> Language:
        """The language of a pattern in `schema`."""
        try:
            return Language.regex(pattern)
        except RegexError as error:
            raise self._read.document.error(schema, keyword, f"{pattern!r:.200}: {error}") from None
        except LimitExceeded as error:
            raise self._read.document.error(schema, keyword, f"{pattern!r:.200}: {error}") from None

    def _language(self, schema: dict[str, Any], keyword: str) -> Strings | None:
        """The term of `pattern` or `format`; None if any string will do."""
        text = self._read.text(schema, keyword)
        if keyword == "format":
            return self._format(schema, text)
        if (listed := _listed_words(text)) is not None:
            return Strings(listed)
        if (counted := _COUNTED.fullmatch(text)) is not None:
            unit, least, upper, most = counted.groups()
            low = int(least)
            high = low if upper is None else int(most) if most else UNBOUNDED
            if max(low, high) > _UNROLLED and (high == UNBOUNDED or low <= high):
                return tidy_strings(self.pattern(schema, keyword, f"^{unit}*$"), low, high, frozenset())
        language = self.pattern(schema, keyword, text)
        words = language.words(FEW) if language.count <= FEW else None
        return Strings(None, language) if words is None else Strings(frozenset(words))

    def _format(self, schema: dict[str, Any], name: str) -> Strings | None:
        if name in FORMATS:
            return Strings(None, format_language(name), high=MAX_LENGTHS.get(name, UNBOUNDED))
        if name in _UNENFORCED:
            raise self._read.document.error(schema, "format", f"the format {name!r} can't be enforced")
        if self._lenient or name in _UNCHECKED_FORMATS:
            return None
        raise self._unknown(schema, name)

    def _unknown(self, schema: dict[str, Any], name: str) -> SchemaError:
        return self._read.document.error(
            schema, "format", f"unknown format {name!r} (the option unknown_formats can make it an annotation)"
        )


def _listed_words(pattern: str) -> frozenset[str] | None:
    """The words of a pattern that only lists a few, as `^a$` or `^(a|b)$`; None for others."""
    if (found := _LISTED.fullmatch(pattern)) is None:
        return None
    words = [""]
    for escaped, bar, plain in _PIECES.findall(found[1] if found[1] is not None else found[2]):
        if bar:
            words.append("")
        else:
            words[-1] += escaped or plain
    return frozenset(words) if len(words) <= FEW else None


def _not_string(term: Strings) -> list[Strings]:
    if term.words is not None:
        return [Strings(excluded=term.words)]
    found = [] if term.language.is_any else [Strings(None, ~term.language)]
    if term.low:
        found.append(Strings(None, high=term.low - 1))
    if term.high != UNBOUNDED:
        found.append(Strings(None, low=term.high + 1))
    return [t for t in found if not t.language.is_empty]
