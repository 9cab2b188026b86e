"""JSON from a model's directory: strict, bounded, with errors that name file and place. For the SafeTensors loader."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from forge.builtin.mapped import open_regular, shown
from forge.errors import ModelFileError

MAX_JSON_BYTES = 100_000_000
"""What the reference implementation of SafeTensors allows a header; configuration files are far smaller."""


def read_text(path: Path) -> str:
    """A whole text file. Errors: `ModelFileError` for unreadable files, for more than `MAX_JSON_BYTES` and for other
    text than UTF-8.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path}: the file is larger than {MAX_JSON_BYTES} bytes")
        try:
            content = file.read()
        except OSError as error:
            raise ModelFileError(f"{path}: can't be read: {error.strerror}") from error
    return decode(content, str(path))


def decode(content: bytes, where: str) -> str:
    """UTF-8 bytes as text. `where` begins the error's message."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{where}: not UTF-8 at byte {error.start}: {error.reason}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Errors as `read_text`, and `ModelFileError` for what isn't an object."""
    return parse_object(read_text(path), str(path))


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object whose keys are all different. `where` begins the error's message.

    NaN and Infinity are let through, as Python's own writer makes them and real files have them.
    """
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
        if r"\ud" in text.lower():  # half a surrogate pair would fail wherever it is written or tokenized
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ModelFileError(f"{where}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a repeated key, thousands of digits, half a pair; deep nesting
        raise ModelFileError(f"{where}: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{where}: a JSON object is wanted, not {type(value).__name__}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {shown(key)} is repeated")
        made[key] = value
    return made
