"""From checkpoint tensors to packed matrices: what is packed as it is, what is converted, and how much at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt

from forge.interfaces.backend import Prepared
from forge.interfaces.deferred import Deferred
from forge.interfaces.loader import Weight

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")

log = logging.getLogger(__name__)

PIECE_BYTES = 16 << 20
"""Rows are packed in pieces of about this size, so that file pages and packed form overlap by no more."""

PANEL = 16
"""The kernels' panels have so many rows; pieces are multiples of it."""


class PackedWeights(Prepared):
    """Rows of one or more tensors in the layout that the kernels stream."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.out_features, self.in_features = matrix.out_features, matrix.in_features
        self.nbytes = matrix.nbytes

    def rows(self, start: int, stop: int) -> torch.Tensor:
        out = torch.empty(stop - start, self.in_features)
        self.matrix.rows(start, stop, out)
        return out


def pack(native: ModuleType, pool: Any, parts: Sequence[Weight]) -> PackedWeights:
    """Pack tensors ``[out_i, in]``, stacked along the output; their mapped pages are released one by one."""
    kinds = [packed_encoding(native, part) for part in parts]
    matrix = native.Matrix([(kind, part.shape[0]) for kind, part in zip(kinds, parts)], parts[0].shape[1])
    for segment, (kind, part) in enumerate(zip(kinds, parts)):
        for row, data in _pieces(part, kind):
            matrix.pack(pool, segment, row, data)
        part.release()
    return PackedWeights(matrix)


def packed_encoding(native: ModuleType, part: Weight) -> str:
    """The encoding that a tensor is packed in: its own, where the kernels have it.

    Others become Q8_0: values of 2 to 6 bits lose at most 1/254 of the largest of their 32 neighbours to it, some 0.2%
    of a typical weight. Where rows aren't multiples of 32 they become F16.
    """
    if part.encoding in _encodings(native):
        return part.encoding
    kind = "Q8_0" if part.shape[1] % 32 == 0 else "F16"
    _say_converted(part.encoding, kind)
    return kind


@cache
def _encodings(native: ModuleType) -> frozenset[str]:
    return frozenset(native.encodings())


@cache
def _say_converted(encoding: str, kind: str) -> None:
    log.info("there are no kernels for %s: such tensors are held as %s", encoding, kind)


def _pieces(part: Weight, kind: str) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """(first row, stored bytes ``[rows, bytes a row]``) of a tensor in the encoding `kind`."""
    converted = kind != part.encoding
    row_bytes = 4 * part.shape[1] if converted else part.data.shape[1]
    step = max(PANEL, PIECE_BYTES // row_bytes // PANEL * PANEL)
    for row in range(0, part.shape[0], step):
        stop = min(row + step, part.shape[0])
        if converted:
            stored = gguf.quants.quantize(part.dequantize(row, stop), gguf.GGMLQuantizationType[kind])
            yield row, np.ascontiguousarray(stored).view(np.uint8).reshape(stop - row, -1)
        else:
            yield row, part.data[row:stop]
