"""From checkpoint tensors to device memory: quantised ones as planes, 16-bit ones as they are, others converted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby

import gguf
import numpy as np
import torch

from forge.interfaces.backend import Prepared
from forge.interfaces.loader import Weight
from forge_cuda.formats import FORMATS, Format, Planes, merge, split

log = logging.getLogger(__name__)

PIECE_BYTES = 32 << 20
"""A tensor goes to the device in pieces of about this size, so that loading needs little memory beyond the result."""

STORED_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
"""16-bit encodings are kept as they are."""


class Segment:
    """Consecutive rows of one format: a dense tensor, or planes of a quantised `format`.

    row: the first one's number in the whole matrix. rows: how many.
    """

    def __init__(self, row: int, rows: int, columns: int, kind: Format | torch.dtype, device: torch.device) -> None:
        self.row, self.rows, self.columns = row, rows, columns
        self.format = kind if isinstance(kind, Format) else None
        self.dense: torch.Tensor | None = None
        self.planes: Planes | None = None
        if isinstance(kind, Format):
            dtypes = (torch.uint8, torch.uint8, torch.uint8, torch.float16)
            quants, high, scales, deltas = (
                torch.empty(rows, width, dtype=dtype, device=device)
                for width, dtype in zip(kind.widths(columns), dtypes)
            )
            self.planes = (quants, high, scales, deltas)
        else:
            self.dense = torch.empty(rows, columns, dtype=kind, device=device)

    @property
    def nbytes(self) -> int:
        """Device memory it holds."""
        return sum(plane.nbytes for plane in self.planes) if self.planes else self.dense.nbytes  # type: ignore[union-attr]

    def store(self, at: int, values: torch.Tensor) -> None:
        """Take over rows from `at` on: stored bytes for a quantised segment, floats for a dense one."""
        if self.planes is not None and self.format is not None:
            for plane, part in zip(self.planes, split(self.format, values)):
                plane[at : at + len(values)] = part
        elif self.dense is not None:
            self.dense[at : at + len(values)] = values.to(self.dense.dtype)

    def floats(self, start: int, stop: int) -> torch.Tensor:
        """Its own rows ``start:stop`` in float32."""
        if self.planes is not None and self.format is not None:
            quants, high, scales, deltas = (plane[start:stop] for plane in self.planes)
            return merge(self.format, (quants, high, scales, deltas))
        assert self.dense is not None
        return self.dense[start:stop].float()


class CudaWeights(Prepared):
    """Rows of one or more tensors, in segments of one format each."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.out_features = sum(segment.rows for segment in segments)
        self.in_features = segments[0].columns
        self.nbytes = sum(segment.nbytes for segment in segments)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        parts = [
            segment.floats(max(0, start - segment.row), min(segment.rows, stop - segment.row))
            for segment in self.segments
            if start < segment.row + segment.rows and segment.row < stop
        ]
        return torch.cat(parts) if len(parts) != 1 else parts[0]


def upload(parts: Sequence[Weight], device: torch.device, dtype: torch.dtype) -> CudaWeights:
    """Put tensors ``[out_i, in]`` on the device, one below the other; their mapped pages are released one by one.

    dtype: of tensors whose own encoding is F32.
    """
    segments = []
    row = 0
    for kind, group in groupby(parts, key=lambda part: _kind(part, dtype)):
        same = list(group)
        rows = sum(part.shape[0] for part in same)
        segment = Segment(row, rows, parts[0].shape[1], kind, device)
        at = 0
        for part in same:
            for values in _pieces(part, kind, device):
                segment.store(at, values)
                at += len(values)
            part.release()
        segments.append(segment)
        row += rows
    return CudaWeights(segments)


def _kind(part: Weight, dtype: torch.dtype) -> Format | torch.dtype:
    """What a tensor is held as.

    Encodings without kernels become Q8_0: values of 2 to 6 bits lose at most 1/254 of the largest of their 32
    neighbours to it. Where rows aren't multiples of 32 they become float16.
    """
    if part.encoding in FORMATS:
        return FORMATS[part.encoding]
    if part.encoding == "F32":
        return dtype
    if part.encoding in STORED_DTYPES:
        return torch.float32 if dtype == torch.float32 else STORED_DTYPES[part.encoding]
    whole = part.shape[1] % FORMATS["Q8_0"].block == 0
    _say_converted(part.encoding, "Q8_0" if whole else "F16")
    return FORMATS["Q8_0"] if whole else torch.float16


@cache
def _say_converted(encoding: str, kind: str) -> None:
    log.info("there are no kernels for %s: such tensors are held as %s", encoding, kind)


def _pieces(part: Weight, kind: Format | torch.dtype, device: torch.device) -> Iterator[torch.Tensor]:
    """A tensor's rows on the device: stored bytes for a quantised kind, float32 values for a dense one."""
    quantised = isinstance(kind, Format)
    as_stored = quantised and kind.name == part.encoding
    row_bytes = part.data.shape[1] if as_stored else 4 * part.shape[1]
    step = max(1, PIECE_BYTES // row_bytes)
    for row in range(0, part.shape[0], step):
        stop = min(row + step, part.shape[0])
        if as_stored:
            yield torch.from_numpy(np.array(part.data[row:stop])).to(device)  # a copy: the file is read-only
            continue
        values = part.dequantize(row, stop)
        if isinstance(kind, Format):
            stored = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.name])
            yield torch.from_numpy(np.ascontiguousarray(stored).view(np.uint8).reshape(stop - row, -1)).to(device)
        else:
            yield torch.from_numpy(values).to(device)
