"""Root-mean-square norm, fused with the residual sum before it and, for a last norm, with the choice of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forge_cuda.launching import Launch, power_of_two


@triton.jit
def rms_norm_kernel(
    X, DELTA, ROWS, WEIGHT, SUM, OUT, columns, eps,
    HAS_DELTA: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    out_row = tl.program_id(0).to(tl.int64)
    row = tl.load(ROWS + out_row) if HAS_ROWS else out_row
    column = tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(X + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(DELTA + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_SUM:
        tl.store(SUM + row * columns + column, x, mask=inside)
    factor = 1.0 / tl.sqrt(tl.sum(x * x, 0) / columns + eps)
    weight = tl.load(WEIGHT + column, mask=inside, other=0.0)
    tl.store(OUT + out_row * columns + column, (x * factor * weight).to(OUT.dtype.element_ty), mask=inside)


def rms_norm(
    launch: Launch,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    delta: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(x + delta, norm(x + delta) * weight)`` of x float32 ``[n, d]``; the sum in float32, the norm in `dtype`.

    rows: int64 [m], the rows of which a norm is wanted; the sum is then not kept and `x` returned instead.
    """
    count, columns = (len(x) if rows is None else len(rows)), x.shape[1]
    out = torch.empty(count, columns, dtype=dtype, device=x.device)
    keep = delta is not None and rows is None
    total = torch.empty_like(x) if keep else x
    block = power_of_two(columns, 32)
    launch(
        rms_norm_kernel, (count,), x, x if delta is None else delta, x if rows is None else rows, weight, total, out,
        columns, eps, HAS_DELTA=delta is not None, HAS_ROWS=rows is not None, HAS_SUM=keep, BLOCK=block,
        num_warps=8 if block > 2048 else 4,
    )  # fmt: skip
    return total, out
