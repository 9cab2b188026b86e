"""Products with quantised weights on tensor cores: each group is dequantised in registers, just before it's multiplied.

The weights are the left operand, so that few activations make a narrow product rather than a padded one, and Hopper's
instructions can take the dequantised numbers from registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forge_cuda.formats import GROUP
from forge_cuda.kernels.unpack import group_quants, group_scales
from forge_cuda.launching import Launch
from forge_cuda.weights import Segment


@triton.jit
def gemm_kernel(
    QUANTS, HIGH, SCALES, DELTAS, X, BIAS, OUT, rows, columns, groups, x_stride, out_stride, FORMAT: tl.constexpr,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One program: ``OUT[ROWS, COLUMNS]``; rows are those of the activations, columns those of the weights' output.

    GROUPS of weights are multiplied at a time; EVEN: their number divides `groups`.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    base = tl.minimum(column, columns - 1).to(tl.int64) * groups
    x = X + tl.minimum(row, rows - 1).to(tl.int64)[None, :] * x_stride
    EACH: tl.constexpr = 32 if FORMAT == "Q8_0" else 16  # numbers of a group that lie next to each other
    DEPTH: tl.constexpr = GROUPS * EACH
    j = tl.arange(0, EACH)[None, None, :]
    k = tl.arange(0, DEPTH)
    sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in tl.range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        x_group = start + k // EACH
        if not EVEN:
            group = tl.minimum(group, groups - 1)
        at = base[:, None] + group[None, :]
        first, second, minimum = group_scales(SCALES, DELTAS, at, FORMAT)
        here = x + (x_group * 32 + k % EACH)[:, None]
        if FORMAT == "Q8_0":
            quants = tl.load(QUANTS.to(tl.pointer_type(tl.int8)) + at[:, :, None] * 32 + j)
            weights = quants.to(tl.float32) * first[:, :, None]
            sums = _accumulate(weights, here, x_group, groups, sums, COLUMNS, DEPTH, EVEN)
        else:
            low, high = group_quants(QUANTS, HIGH, at[:, :, None], j, FORMAT)
            weights = low.to(tl.float32) * first[:, :, None] - minimum[:, :, None]
            sums = _accumulate(weights, here, x_group, groups, sums, COLUMNS, DEPTH, EVEN)
            weights = high.to(tl.float32) * second[:, :, None] - minimum[:, :, None]
            sums = _accumulate(weights, here + 16, x_group, groups, sums, COLUMNS, DEPTH, EVEN)
    if HAS_BIAS:
        sums += tl.load(BIAS + column, mask=column < columns, other=0.0)[:, None]
    out = OUT + row[None, :].to(tl.int64) * out_stride + column[:, None]
    tl.store(out, sums.to(OUT.dtype.element_ty), mask=(row < rows)[None, :] & (column < columns)[:, None])


@triton.jit
def _accumulate(weights, x, group, groups, sums, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EVEN: tl.constexpr):
    """Weights ``[COLUMNS, groups, …]`` times activations ``[DEPTH, ROWS]``; those of groups that aren't there are 0."""
    values = tl.load(x) if EVEN else tl.load(x, mask=(group < groups)[:, None], other=0.0)
    weights = tl.reshape(weights.to(values.dtype), [COLUMNS, DEPTH])
    return tl.dot(weights, values, sums, input_precision="ieee")


def multiply(launch: Launch, x: torch.Tensor, weights: Segment, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """``out = x @ weights.T + bias``: x ``[n, in]`` of 16 or 32-bit floats, out ``[n, out]`` of any, by rows.

    bias: float32 [out].
    """
    assert weights.planes is not None
    assert weights.format is not None
    rows = len(x)
    tile, columns, warps = (16, 32, 4) if rows <= 16 else (32, 64, 4) if rows <= 32 else (64, 64, 4)
    if rows > 64 and x.dtype != torch.float32:
        tile, columns, warps = 128, 128, 8
    # Told that it may use them, the compiler doesn't spill registers of the larger tiles to fit more blocks.
    most_registers = None if tile < 64 else 255
    # As many groups at a time as give each thread 16 bytes of quants, so that it reads them in one instruction.
    groups, each = weights.columns // GROUP, max(1, 32 * warps // columns)
    launch(
        gemm_kernel, (triton.cdiv(rows, tile), triton.cdiv(weights.rows, columns)), *weights.planes, x,
        x if bias is None else bias, out, rows, weights.rows, groups, x.stride(0), out.stride(0),
        FORMAT=weights.format.name, HAS_BIAS=bias is not None, ROWS=tile, COLUMNS=columns, GROUPS=each,
        EVEN=groups % each == 0, num_warps=warps, num_stages=3, maxnreg=most_registers,
    )  # fmt: skip
