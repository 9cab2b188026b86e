"""The drafts of JSON Schema: which keywords each has, and what an unknown keyword means.

JSON Schema takes an unknown keyword for an annotation, and so do we; but not where an author will have meant a
constraint: a keyword of another draft, or one written in other case, is refused. Names that begin with `x-` or `_` are
always annotations.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache


class Draft(IntEnum):
    """Drafts, oldest first."""

    D4 = 4
    D6 = 6
    D7 = 7
    D2019 = 2019
    D2020 = 2020

    @property
    def title(self) -> str:
        """As people write it."""
        return {2019: "draft 2019-09", 2020: "draft 2020-12"}.get(self.value, f"draft {self.value}")


URIS = {
    "http://json-schema.org/draft-04/schema": Draft.D4,
    "http://json-schema.org/draft-06/schema": Draft.D6,
    "http://json-schema.org/draft-07/schema": Draft.D7,
    "http://json-schema.org/schema": Draft.D2020,
    "https://json-schema.org/draft/2019-09/schema": Draft.D2019,
    "https://json-schema.org/draft/2020-12/schema": Draft.D2020,
}

_D4 = frozenset(
    [
        "type",
        "enum",
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "dependencies",
        "items",
        "additionalItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "$ref",
    ]
)
_D6 = _D4 | {"const", "contains", "propertyNames"}
_D7 = _D6 | {"if", "then", "else"}
_D2019 = (_D7 - {"dependencies"}) | frozenset(
    [
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedProperties",
        "unevaluatedItems",
        "minContains",
        "maxContains",
        "$recursiveRef",
        "$recursiveAnchor",
    ]
)
_D2020 = (_D2019 - {"additionalItems", "$recursiveRef", "$recursiveAnchor"}) | {"prefixItems", "$dynamicRef"}

CONSTRAINTS = {Draft.D4: _D4, Draft.D6: _D6, Draft.D7: _D7, Draft.D2019: _D2019, Draft.D2020: _D2020}
"""The keywords that constrain values, by draft."""

ALL_CONSTRAINTS = frozenset().union(*CONSTRAINTS.values())

ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "example",
        "$comment",
        "readOnly",
        "writeOnly",
        "deprecated",
        "contentMediaType",
        "contentEncoding",
        "contentSchema",
        "$vocabulary",
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$dynamicAnchor",
        "$defs",
        "definitions",
    ]
)
"""What never constrains a value by itself."""

ONE = frozenset(
    [
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
"""Keywords whose value is a schema (`items` may be a list of them)."""
LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
"""Keywords whose value is a list of schemas."""
SPELT = 6
"""Unknown keywords of so many letters aren't taken for annotations if they are one letter off a keyword."""
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
"""Keywords whose value is an object of schemas."""


@lru_cache(maxsize=4096)
def objection(keyword: str, draft: Draft) -> str | None:
    """Why a keyword that `draft` doesn't have can't be taken for an annotation; None if it can."""
    if keyword in ALL_CONSTRAINTS:
        having = ", ".join(d.title for d in Draft if keyword in CONSTRAINTS[d])
        return f"a keyword of {having}; the schema is of {draft.title} (`$schema`)"
    if keyword in ANNOTATIONS or keyword.startswith(("x-", "_")):
        return None
    for known in ALL_CONSTRAINTS:
        if keyword.lower() == known.lower() or (len(keyword) >= SPELT and _one_letter_off(keyword, known)):
            return f"unknown keyword; is `{known}` meant?"
    return None


def _one_letter_off(a: str, b: str) -> bool:
    """Whether one letter put in, left out or exchanged makes one of the other."""
    short, long = sorted((a, b), key=len)
    if len(long) - len(short) > 1:
        return False
    same = next((i for i, (x, y) in enumerate(zip(short, long)) if x != y), len(short))
    return short[same + (len(short) == len(long)) :] == long[same + 1 :]
