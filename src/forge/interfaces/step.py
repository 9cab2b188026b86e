"""A step's inputs: a batch as flat arrays, as NumPy lays them out and as tensors."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import numpy.typing as npt
from attrs import frozen

from forge.interfaces.deferred import Deferred

if TYPE_CHECKING:
    import torch

    from forge.interfaces.backend import Pages
    from forge.interfaces.kv_cache import KVCache
    from forge.interfaces.scheduler import Batch
else:
    torch = Deferred("torch")

Ids = npt.NDArray[np.int64]


@frozen
class StepInputs:
    """A batch as flat arrays: n rows, s spans, m output rows. Made by `Backend.stage`.

    token_ids, positions, slots: int64 [n] on the device. span_starts: int64 [s + 1] on the host, the row where each
    span begins. lengths: int64 [s] on the host, positions in the cache after this step. block_table: int64
    [s, most blocks] on the device, padded with 0. output_rows: int64 [m] on the device. pages: one a layer.

    All are tensors, unless a backend's own `stage` leaves them NumPy arrays for its own `forward`; `Model.forward` and
    the other operations only ever get tensors.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    span_starts: torch.Tensor
    lengths: torch.Tensor
    block_table: torch.Tensor
    output_rows: torch.Tensor
    pages: tuple[Pages, ...]

    @property
    def on_host(self) -> bool:
        """Whether these are NumPy arrays."""
        return isinstance(self.token_ids, np.ndarray)

    def tensors(self, device: torch.device) -> StepInputs:
        """The same with tensors; itself, if it has them."""
        if not self.on_host:
            return self
        arrays = {field.name: getattr(self, field.name) for field in attrs.fields(StepInputs) if field.name != "pages"}
        moved: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name in moved.keys() - {"span_starts", "lengths"}:
            moved[name] = moved[name].to(device)
        return StepInputs(**moved, pages=self.pages)


def lay_out(batch: Batch, kv: KVCache, pages: tuple[Pages, ...]) -> StepInputs:
    """A batch's inputs as NumPy arrays."""
    spans, block = batch.spans, kv.shape.block_size
    tables = [kv.table(span.seq) for span in spans]
    most = max(map(len, tables))
    block_table: Ids = np.array([[*table, *[0] * (most - len(table))] for table in tables], dtype=np.int64)
    lengths = np.array([span.length for span in spans], dtype=np.int64)
    span_starts: Ids = np.zeros(len(spans) + 1, dtype=np.int64)
    np.cumsum(lengths, out=span_starts[1:])
    span_of_row = np.repeat(np.arange(len(spans)), lengths)
    first = np.array([span.start for span in spans], dtype=np.int64) - span_starts[:-1]
    positions = np.arange(len(span_of_row)) + first[span_of_row]
    outputs = [start + row for start, span in zip(span_starts.tolist(), spans) for row in span.output_rows]
    inputs: dict[str, Any] = {
        "token_ids": np.array(list(chain.from_iterable(span.token_ids for span in spans)), dtype=np.int64),
        "positions": positions,
        "slots": block_table[span_of_row, positions // block] * block + positions % block,
        "span_starts": span_starts,
        "lengths": np.array([span.stop for span in spans], dtype=np.int64),
        "block_table": block_table,
        "output_rows": np.array(outputs, dtype=np.int64),
    }
    return StepInputs(**inputs, pages=pages)
