"""SwiGLU's product: silu(gate) * up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forge_cuda.launching import Launch


@triton.jit
def silu_mul_kernel(GATE_UP, OUT, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    gate = tl.load(GATE_UP + row * 2 * columns + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(GATE_UP + (row * 2 + 1) * columns + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + row * columns + column, (gate / (1.0 + tl.exp(-gate)) * up).to(OUT.dtype.element_ty), mask=inside)


def silu_mul(launch: Launch, gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``[n, 2 * f]``, any float → ``[n, f]`` in `dtype`."""
    rows, columns = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty(rows, columns, dtype=dtype, device=gate_up.device)
    block = 1024
    launch(silu_mul_kernel, (rows, triton.cdiv(columns, block)), gate_up, out, columns, BLOCK=block)
    return out
