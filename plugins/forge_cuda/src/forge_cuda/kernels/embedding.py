"""Token embedding: rows of a table, dense or quantised, by id."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forge_cuda.formats import GROUP
from forge_cuda.kernels.unpack import group_quants, group_scales
from forge_cuda.launching import Launch
from forge_cuda.weights import Segment


@triton.jit
def dense_kernel(IDS, TABLE, OUT, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    token = tl.load(IDS + row)
    values = tl.load(TABLE + token * columns + column, mask=inside, other=0.0)
    tl.store(OUT + row * columns + column, values.to(tl.float32), mask=inside)


@triton.jit
def quantised_kernel(IDS, QUANTS, HIGH, SCALES, DELTAS, OUT, groups, FORMAT: tl.constexpr, GROUPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = group < groups
    at = tl.load(IDS + row) * groups + tl.minimum(group, groups - 1)
    first, second, minimum = group_scales(SCALES, DELTAS, at, FORMAT)
    out = OUT + (row * groups + group[:, None]) * 32
    if FORMAT == "Q8_0":
        j = tl.arange(0, 32)[None, :]
        quants = tl.load(QUANTS.to(tl.pointer_type(tl.int8)) + at[:, None] * 32 + j).to(tl.float32)
        tl.store(out + j, quants * first[:, None], mask=inside[:, None])
    else:
        j = tl.arange(0, 16)[None, :]
        low, high = group_quants(QUANTS, HIGH, at[:, None], j, FORMAT)
        tl.store(out + j, low.to(tl.float32) * first[:, None] - minimum[:, None], mask=inside[:, None])
        tl.store(out + 16 + j, high.to(tl.float32) * second[:, None] - minimum[:, None], mask=inside[:, None])


def embed(launch: Launch, ids: torch.Tensor, table: Segment) -> torch.Tensor:
    """Rows of a table ``[vocabulary, columns]`` for ids, int64 ``[n]`` → float32 ``[n, columns]``."""
    out = torch.empty(len(ids), table.columns, dtype=torch.float32, device=ids.device)
    if table.planes is None or table.format is None:
        block = 1024
        grid = (len(ids), triton.cdiv(table.columns, block))
        launch(dense_kernel, grid, ids, table.dense, out, table.columns, BLOCK=block)
    else:
        groups, each = table.columns // GROUP, 32
        grid = (len(ids), triton.cdiv(groups, each))
        launch(quantised_kernel, grid, ids, *table.planes, out, groups, FORMAT=table.format.name, GROUPS=each)
    return out
