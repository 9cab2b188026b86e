"""`Backend.stage` for the GPU: one copy to the device a step; decode steps in padded buffers that never move.

A decode step has one row for each sequence. It's padded to one of a few sizes, so that a graph serves it: rows beyond
the batch have no length and no slot, and kernels pass them by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from attrs import evolve, field, frozen

from forge.interfaces.backend import Pages, StepInputs
from forge_cuda.launching import power_of_two
from forge_cuda.spans import SpanLists, sort_spans
from forge_cuda.transfer import ALIGNMENT, Courier

if TYPE_CHECKING:
    from forge.interfaces.kv_cache import KVCache
    from forge.interfaces.scheduler import Batch

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Sequences of a decode step, padded."""

LEAST_WIDTH = 16
"""Blocks of a padded block table at least; then powers of two."""

Arrays = dict[str, npt.NDArray[Any]]


@frozen(eq=False)
class CudaInputs(StepInputs):
    """A step with its span lists. padded: the same step at the size of a graph, if it's a decode step; key: that size.

    number: of the step; a later one may have taken its memory over.
    """

    lists: SpanLists | None = None
    padded: CudaInputs | None = None
    key: tuple[int, int] = (0, 0)
    number: int = field(default=0)


class Stager:
    """Lays steps out. padded: whether decode steps are padded for graphs."""

    def __init__(self, device: torch.device, *, padded: bool) -> None:
        self.device, self._padded = device, padded
        self._courier = Courier(device)
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}
        self._number = 0

    def stage(self, batch: Batch, kv: KVCache, pages: tuple[Pages, ...]) -> CudaInputs:
        """The batch as flat arrays on the device."""
        self._number += 1
        arrays = flat(batch, kv)
        spans, width = arrays["block_table"].shape
        decode = all(span.length == 1 and len(span.output_rows) == 1 for span in batch.spans)
        if not self._padded or not decode or spans > SIZES[-1]:
            return self._inputs(arrays, self._courier.send(arrays), pages)
        size, wide = next(size for size in SIZES if size >= spans), power_of_two(width, LEAST_WIDTH)
        larger = pad(arrays, size, wide)
        sent = self._courier.send(larger, self._buffer((size, wide), larger))
        padded = evolve(self._inputs(larger, sent, pages), key=(size, wide))
        cut = {name: sent[name][tuple(slice(0, extent) for extent in array.shape)] for name, array in arrays.items()}
        return evolve(self._inputs(arrays, cut, pages), padded=padded)

    def check(self, inputs: CudaInputs) -> None:
        """Errors: `ValueError` for padded inputs whose memory a later step has taken over."""
        if inputs.padded is not None and inputs.number != self._number:
            raise ValueError("these inputs were staged before others: their memory holds another step")

    def _buffer(self, key: tuple[int, int], arrays: Mapping[str, npt.NDArray[Any]]) -> torch.Tensor:
        if key not in self._buffers:
            size = sum(-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays.values())
            self._buffers[key] = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._buffers[key]

    def _inputs(self, arrays: Arrays, sent: Mapping[str, torch.Tensor], pages: tuple[Pages, ...]) -> CudaInputs:
        starts, lengths = torch.from_numpy(arrays["starts"]), torch.from_numpy(arrays["lengths"])
        counts = np.diff(arrays["starts"])
        lists = SpanLists(
            starts=sent["starts"],
            lengths=sent["lengths"],
            short=sent["short"],
            long=sent["long"],
            longest_short=int(counts[arrays["short"]].max(initial=0)),
            longest_long=int(counts[arrays["long"]].max(initial=0)),
            source=(starts, lengths),
        )
        return CudaInputs(
            token_ids=sent["token_ids"],
            positions=sent["positions"],
            slots=sent["slots"],
            span_starts=starts,
            lengths=lengths,
            block_table=sent["block_table"],
            output_rows=sent["output_rows"],
            pages=pages,
            lists=lists,
            number=self._number,
        )


def flat(batch: Batch, kv: KVCache) -> Arrays:
    """A batch's arrays, all int64, in the shapes of `StepInputs`."""
    spans, block = batch.spans, kv.shape.block_size
    tables = [np.asarray(kv.table(span.seq), dtype=np.int64) for span in spans]
    counts = np.array([span.length for span in spans], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(counts)))
    positions = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    block_table = np.zeros((len(spans), max(len(table) for table in tables)), dtype=np.int64)
    for row, table in zip(block_table, tables):
        row[: len(table)] = table
    span_of_row = np.repeat(np.arange(len(spans)), counts)
    short, long = sort_spans(counts)
    outputs = [start + row for start, span in zip(starts.tolist(), spans) for row in span.output_rows]
    return {
        "token_ids": np.array([token for span in spans for token in span.token_ids], dtype=np.int64),
        "positions": positions.astype(np.int64),
        "slots": block_table[span_of_row, positions // block] * block + positions % block,
        "starts": starts,
        "lengths": np.array([span.stop for span in spans], dtype=np.int64),
        "output_rows": np.array(outputs, dtype=np.int64),
        "short": short,
        "long": long,
        "block_table": block_table,
    }


def pad(arrays: Arrays, size: int, width: int) -> Arrays:
    """A decode step's arrays for `size` sequences with `width` blocks each."""
    count, blocks = arrays["block_table"].shape

    def longer(name: str, fill: int) -> npt.NDArray[Any]:
        return np.concatenate((arrays[name], np.full(size - count, fill, dtype=np.int64)))

    every = np.arange(size, dtype=np.int64)
    return {
        "token_ids": longer("token_ids", 0),
        "positions": longer("positions", 0),
        "slots": longer("slots", -1),
        "starts": np.minimum(np.arange(size + 1, dtype=np.int64), count),
        "lengths": longer("lengths", 0),
        "output_rows": every,
        "short": every,
        "long": every[:0],
        "block_table": np.pad(arrays["block_table"], ((0, size - count), (0, width - blocks))),
    }
