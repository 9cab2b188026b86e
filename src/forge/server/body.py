"""From a request's bytes to a JSON object, for all routes. Whatever a client sends, the worst answer is a clear 400.

Python's own parser does the work, since it lets us refuse what silently loses or bends data: duplicate keys, numbers
that aren't finite, halves of surrogate pairs.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from forge.errors import InvalidRequest

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
"""What a JSON text needs to hold for a lone surrogate to come out of it."""


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object (RFC 8259, UTF-8). `InvalidRequest` says what is wrong and where."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise InvalidRequest("the body is empty: a JSON object is expected")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
        )
        if _SURROGATE_ESCAPE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise InvalidRequest("the body is not acceptable JSON: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise InvalidRequest(f"the body is not acceptable JSON: a text has half of a surrogate pair, {half}") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidRequest(f"the body is not acceptable JSON: the key {json.dumps(key[:64])} occurs twice")
            seen.add(key)
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body is not valid JSON: {name} is not a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise InvalidRequest(f"the body is not acceptable JSON: the number {text[:32]} is too large")
    return number


def _integer(text: str) -> int:
    if len(text) > 40:  # long ones take quadratic time, and no field has use for them
        raise InvalidRequest(f"the body is not acceptable JSON: the number {text[:32]}… is too large")
    return int(text)
