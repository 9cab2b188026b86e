"""The CUDA C++ products in the emulator: the PTX that NVRTC makes of them for compute capability 8.0. For tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from cuda.bindings import nvrtc

from forge_cuda.dp4a import ROW_COUNTS, SOURCE, WARPS, Products, Rounded, compile_options, empty_rounded, launch_shape
from forge_cuda.formats import GROUP
from forge_cuda.testing.emulator import Block
from forge_cuda.testing.memory import Global
from forge_cuda.testing.ptx import parse
from forge_cuda.weights import Segment


class EmulatedProducts(Products):
    """What `CupyProducts` is on a GPU. edit: changes the PTX beforehand."""

    most_rows = ROW_COUNTS[-1]

    def __init__(self, edit: Callable[[str], str] = str) -> None:
        self._edit = edit
        self._ptx = cache(_compile)

    def round(self, x: torch.Tensor) -> Rounded:
        values = x.float().contiguous()
        rounded = empty_rounded(len(x), x.shape[1], x.device)
        groups = x.numel() // GROUP
        tensors = (values, rounded.quants, rounded.scales, rounded.sums)
        self._run("round_activations", "Q8_0", 1, -(-groups // WARPS), tensors, groups)
        return rounded

    def multiply(self, x: Rounded, weights: Segment, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        assert weights.planes is not None
        assert weights.format is not None
        rows = len(x.quants)
        result = torch.full((rows, weights.rows), torch.nan)
        compiled = next(count for count in ROW_COUNTS if count >= rows)
        (blocks,), _ = launch_shape(weights)
        tensors = (*weights.planes, x.quants, x.scales, x.sums, bias, result)
        self._run(
            "multiply", weights.format.name, compiled, blocks, tensors, rows, weights.rows, weights.columns // GROUP
        )
        out.copy_(result)

    def _run(
        self,
        name: str,
        weight_format: str,
        rows: int,
        blocks: int,
        tensors: tuple[torch.Tensor | None, ...],
        *numbers: int,
    ) -> None:
        program = parse(self._edit(self._ptx(weight_format, rows)), name)
        memory = Global([x for x in tensors if x is not None])
        arguments = [*(0 if x is None else x.data_ptr() for x in tensors), *numbers]
        for block in range(blocks):
            Block(program, (block, 0, 0), (blocks, 1, 1), memory, arguments, 0).run()


def _compile(weight_format: str, rows: int) -> str:
    options = [b"--gpu-architecture=compute_80", *(option.encode() for option in compile_options(weight_format, rows))]
    program = _checked(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), b"products.cu", 0, [], []))
    _checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
    text = b" " * _checked(nvrtc.nvrtcGetPTXSize(program))
    _checked(nvrtc.nvrtcGetPTX(program, text))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return text.rstrip(b"\0").decode()


def _checked(answer: tuple[Any, ...]) -> Any:
    error, *values = answer
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {error.name}")
    return values[0] if values else None
