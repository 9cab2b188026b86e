"""Typed access to the ``tokenizer.ggml.*`` keys of a GGUF file that nobody has checked yet.

For `forge.text.gguf_vocabulary`. Every getter either returns what it promises or raises `ModelFileError` with the key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from forge.errors import ModelFileError

KEY = "tokenizer.ggml."


@frozen
class MetadataReader:
    """Arrays may be Python's or numpy's, numbers too. Names are given without the ``tokenizer.ggml.`` before them."""

    metadata: Mapping[str, Any]

    def text(self, name: str, default: str | None = None) -> str:
        """A string; an error if it's absent and there's no default."""
        value = self.metadata.get(KEY + name, default)
        if value is None:
            raise ModelFileError(f"the file has no {KEY}{name}")
        if not isinstance(value, str):
            raise ModelFileError(f"{KEY}{name} is {type(value).__name__}, not a string")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """A truth value."""
        value = self.metadata.get(KEY + name, default)
        if not isinstance(value, (bool, np.bool_)):
            raise ModelFileError(f"{KEY}{name} is {type(value).__name__}, not a truth value")
        return bool(value)

    def token(self, name: str, size: int, default: int | None = None) -> int | None:
        """A token id below `size`; `default` if it's absent."""
        value = self.metadata.get(KEY + name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ModelFileError(f"{KEY}{name} is {type(value).__name__}, not a token id")
        if not 0 <= value < size:
            raise ModelFileError(f"{KEY}{name} is {value}, but the vocabulary has {size} tokens")
        return int(value)

    def array(self, name: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
        """A list of Python values of any kind; an error if it's absent and there's no default."""
        value = self.metadata.get(KEY + name, default)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if value is None:
            raise ModelFileError(f"the file has no {KEY}{name}")
        if not isinstance(value, (list, tuple)):
            raise ModelFileError(f"{KEY}{name} is {type(value).__name__}, not an array")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings, all of them valid Unicode."""
        values = self.array(name)
        for place, value in enumerate(values):
            if type(value) is not str:
                raise ModelFileError(f"{KEY}{name}[{place}] is {type(value).__name__}, not a string")
            if value.isascii():  # nearly all of them, and known at once
                continue
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ModelFileError(f"{KEY}{name}[{place}] isn't valid Unicode: {error.reason}") from error
        return tuple(values)

    def numbers(self, name: str, size: int, default: float | None = None) -> list[float]:
        """An array of `size` finite numbers, one for each token; all `default` if it's absent and there is one."""
        if default is not None and KEY + name not in self.metadata:
            return [default] * size
        values = self.array(name)
        if len(values) != size:
            raise ModelFileError(f"{KEY}{name} has {len(values)} entries for {size} tokens")
        stored = self.metadata[KEY + name]
        if isinstance(stored, np.ndarray) and stored.dtype.kind in "iuf" and np.isfinite(stored).all():
            return list(values)  # the loops below are for what isn't right
        for place, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise ModelFileError(f"{KEY}{name}[{place}] is {type(value).__name__}, not a number")
            if not math.isfinite(value):
                raise ModelFileError(f"{KEY}{name}[{place}] is {value}")
        return list(values)
