"""A step's inputs: a batch as flat arrays, as NumPy lays them out and as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from struct import pack_into
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
    """A batch's inputs as NumPy arrays: views of one buffer, which is filled at once.

    Most steps have a row or a few a sequence: for so few numbers plain lists take less than small operations on arrays.
    """
    spans, block = batch.spans, kv.shape.block_size
    tables = [kv.table(span.seq) for span in spans]
    most = max(map(len, tables))
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    span_starts = [0]
    output_rows: list[int] = []
    block_table: list[int] = []
    for span, table in zip(spans, tables):
        first, start = len(token_ids), span.start
        if span.length == 1:  # by far the most
            token_ids.append(span.seq.tokens[start])
            positions.append(start)
            slots.append(table[start // block] * block + start % block)
        else:
            token_ids += span.token_ids
            positions += range(start, span.stop)
            slots += _slots(table, start, span.stop, block)
        span_starts.append(first + span.length)
        output_rows += [first + row for row in span.output_rows]
        block_table += table
        block_table += [0] * (most - len(table))
    columns = {
        "token_ids": token_ids,
        "positions": positions,
        "slots": slots,
        "span_starts": span_starts,
        "lengths": [span.stop for span in spans],
        "output_rows": output_rows,
        "block_table": block_table,
    }
    inputs: dict[str, Any] = _arrays(columns)
    inputs["block_table"] = inputs["block_table"].reshape(len(spans), most)
    return StepInputs(**inputs, pages=pages)


def _slots(table: Sequence[int], start: int, stop: int, block: int) -> Iterator[int]:
    """Where the positions from `start` to `stop` lie, a block at a time."""
    for at in range(start // block, -(-stop // block)):
        shift = (table[at] - at) * block
        yield from range(shift + max(start, at * block), shift + min(stop, at * block + block))


def _arrays(columns: Mapping[str, list[int]]) -> dict[str, Ids]:
    """Each column as an array; all in one buffer."""
    numbers = [number for column in columns.values() for number in column]
    flat: Ids = np.empty(len(numbers), dtype=np.int64)
    pack_into(f"{len(numbers)}q", flat.data, 0, *numbers)
    arrays, at = {}, 0
    for name, column in columns.items():
        arrays[name] = flat[at : at + len(column)]
        at += len(column)
    return arrays
