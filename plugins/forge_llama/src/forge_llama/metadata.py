"""A checkpoint's metadata, read key by key with a type and a range, so that what nobody has read can be refused.

Knows nothing of models: `config_gguf` and `config_huggingface` say which keys there are.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from forge.errors import ModelFileError, UnsupportedModel

MAX_NAME = 120
"""Longer names of keys are cut in messages."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Metadata:
    """Keys and values, and which of them have been read. A value of None (JSON's null) counts as absent.

    place: the file, for messages. prefix: what stands before these keys in the file (``"llama."``). Every reading
    method raises `ModelFileError` for a wrong type, a value out of range, and an absent key without a default.
    """

    def __init__(self, values: Mapping[str, Any], place: str, prefix: str = "") -> None:
        self.place = place
        self._prefix = prefix
        self._values = {key: value for key, value in values.items() if value is not None}
        self._named = frozenset(values)
        self._read: set[str] = set()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def names(self, key: str) -> bool:
        """Whether the key is there at all, if only as null."""
        return key in self._named

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int) -> int:
        """A whole number between `least` and `most`."""
        value = self._take(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return value

    def common_integer(self, key: str, default: int | None = None, *, most: int) -> int:
        """A positive whole number, or a list that repeats it for each layer; different ones are `UnsupportedModel`."""
        value = self._values.get(key)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, list) and value:
            if any(entry != value[0] for entry in value):
                raise self.refusal(key, "differs between layers, which isn't supported")
            self._values[key] = value[0]
        return self.integer(key, default, most=most)

    def number(self, key: str, default: float | None = None, *, least: float, most: float) -> float:
        """A number between `least` and `most`."""
        value = self._take(key, default)
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._wrong(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def texts(self, key: str, length: int) -> list[str] | None:
        """A list of `length` strings; None if the key is absent."""
        if key not in self:
            return None
        value = self._take(key, None)
        if not isinstance(value, list) or len(value) != length or not all(isinstance(entry, str) for entry in value):
            raise self._wrong(key, f"a list of {length} strings")
        return value

    def table(self, key: str) -> Metadata:
        """A table of its own; an empty one if the key is absent."""
        value = self._take(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, "a table")
        return Metadata(value, self.place, f"{self._prefix}{key}.")

    def require(self, key: str, *served: object) -> None:
        """Refuse every value but those that are served; an absent key is fine."""
        self._read.add(key)
        if key in self and not any(_same(self._values[key], value) for value in served):
            raise self.refusal(key)

    def refusal(self, key: str, why: str = "isn't supported") -> UnsupportedModel:
        """The error for a key whose value isn't implemented."""
        return UnsupportedModel(f"{self._name(key)} = {shown(self._values.get(key))} {why}")

    def refuse_rest(self, harmless: Callable[[str], bool]) -> None:
        """Refuse the first key that has a value, has not been read, and isn't harmless."""
        for key in self._values:
            if key not in self._read and not harmless(key):
                raise self.refusal(key, "is unknown: it may change what the model computes")

    def _take(self, key: str, default: object) -> Any:
        self._read.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise ModelFileError(f"{self._name(key)} is missing")
        return value

    def _name(self, key: str) -> str:
        name = f"{self._prefix}{key}"
        return f"{self.place}: {name if name.isprintable() and len(name) <= MAX_NAME else shown(name)}"

    def _wrong(self, key: str, wanted: str) -> ModelFileError:
        return ModelFileError(f"{self._name(key)} is {shown(self._values.get(key))}, but must be {wanted}")


def shown(value: object) -> str:
    """A value for a message, cut where it is long: a file may hold anything."""
    return _SHORT.repr(value)


def _same(value: object, served: object) -> bool:
    """Equality in which 1 isn't True, and an array, which compares element by element, is nothing else."""
    return not isinstance(value, np.ndarray) and value == served and isinstance(value, bool) == isinstance(served, bool)
