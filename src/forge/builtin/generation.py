"""What a checkpoint says about generating, checked; shared by the loaders. Knows neither file format."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from forge.builtin.mapped import shown
from forge.errors import ModelFileError
from forge.interfaces.loader import GenerationDefaults

log = logging.getLogger(__name__)

MAX_ID = 2**31 - 1
MAX_FLOAT = 3.0e38

RANGES = {
    "temperature": (0.0, MAX_FLOAT),
    "top_k": (-MAX_ID, MAX_ID),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1.0e-38, MAX_FLOAT),
}
"""Sampling values that have defaults, with the least and the greatest that fit a sampler's int32 and float32."""


def sampling_defaults(values: Mapping[str, Any], names: Mapping[str, str], path: Path) -> GenerationDefaults:
    """Take sampling values from a file's own keys.

    names: which key of `values` is for which field of `GenerationDefaults`. A missing key or None says nothing.
    Errors: `ModelFileError` for what isn't a number or is out of range.
    """
    found: dict[str, Any] = {}
    for field, name in names.items():
        value = values.get(name)
        if value is None:
            continue
        least, most = RANGES[field]
        wanted = int if field == "top_k" else int | float
        if isinstance(value, bool) or not isinstance(value, wanted) or not least <= value <= most:
            raise ModelFileError(f"{path}: {name} is {shown(str(value))}, which isn't a possible {field}")
        found[field] = max(0, value) if field == "top_k" else float(value)  # some write -1 for "off"
    return evolve(GenerationDefaults(), **found)


def eos_token_ids(candidates: Iterable[tuple[str, Any]], vocab_size: int | None, path: Path) -> tuple[int, ...]:
    """End-of-sequence ids, each once, in order, from (key, value) pairs; a value is an id, a list of ids, or None.

    An id outside the vocabulary can never be drawn: it's left out and logged, as test models and converters do write
    such. Errors: `ModelFileError` for what isn't an id.
    """
    ids: dict[int, None] = {}
    for name, value in candidates:
        for token in value if isinstance(value, list) else [value]:
            if token is None:
                continue
            if type(token) is not int or not 0 <= token <= MAX_ID:
                raise ModelFileError(f"{path}: {name} holds {shown(str(token))}, which isn't a token id")
            if vocab_size is not None and token >= vocab_size:
                log.warning("%s: %s holds %d, beyond the vocabulary of %d", path, name, token, vocab_size)
                continue
            ids[token] = None
    return tuple(ids)
