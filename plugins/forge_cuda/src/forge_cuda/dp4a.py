"""Products of quantised weights with few rows, in integers: CUDA C++, compiled by CuPy and run on torch's stream."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from attrs import frozen

from forge_cuda.formats import GROUP
from forge_cuda.weights import Segment

SOURCE = Path(__file__).parent / "native" / "products.cu"
ROW_COUNTS = (1, 2, 4, 8)
"""Rows that kernels are compiled for."""

WARPS, ROWS_A_WARP = 4, 2
"""Of a block, and outputs of each; the same in the source."""


@frozen
class Rounded:
    """Activations rounded: quants int8 ``[n, in]``; scales, and sums of groups, float32 ``[n, in / 32]``."""

    quants: torch.Tensor
    scales: torch.Tensor
    sums: torch.Tensor


class Products(Protocol):
    """What `Operations.project` asks for."""

    most_rows: int

    def round(self, x: torch.Tensor) -> Rounded:
        """Activations of any float dtype ``[n, in]`` in eight bits, a scale for each 32."""

    def multiply(self, x: Rounded, weights: Segment, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """``out = x @ weights.T + bias``; out: any float dtype ``[n, out]``, by rows."""


def empty_rounded(rows: int, columns: int, device: torch.device) -> Rounded:
    """Room for so many activations."""
    return Rounded(
        torch.empty(rows, columns, dtype=torch.int8, device=device),
        torch.empty(rows, columns // GROUP, dtype=torch.float32, device=device),
        torch.empty(rows, columns // GROUP, dtype=torch.float32, device=device),
    )


def compile_options(weight_format: str, rows: int) -> tuple[str, ...]:
    """What makes the source into the kernels for one format and number of rows."""
    return ("--std=c++17", f"-DFORMAT_{weight_format}=1", f"-DROWS={rows}")


def launch_shape(weights: Segment) -> tuple[tuple[int], tuple[int]]:
    """Grid and block of a product."""
    return (-(-weights.rows // (WARPS * ROWS_A_WARP)),), (32 * WARPS,)


class CupyProducts(Products):
    """The kernels on a GPU. Compiled when they're first needed, then kept by CuPy on disk."""

    most_rows = ROW_COUNTS[-1]

    def __init__(self, device: torch.device) -> None:
        import cupy

        self._cupy, self._device = cupy, device
        self._source = SOURCE.read_text(encoding="utf-8")
        self._kernel = cache(self._compile)

    def round(self, x: torch.Tensor) -> Rounded:
        values = x.float()
        rounded = empty_rounded(len(x), x.shape[1], x.device)
        count = x.numel() // GROUP
        arguments = (values.data_ptr(), *_pointers(rounded), np.int32(count))
        self._start("round_activations", "Q8_0", 1, (-(-count // WARPS),), (32 * WARPS,), arguments)
        return rounded

    def multiply(self, x: Rounded, weights: Segment, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        assert weights.planes is not None
        assert weights.format is not None
        rows = len(x.quants)
        result = torch.empty(rows, weights.rows, dtype=torch.float32, device=out.device)
        arguments = (
            *(plane.data_ptr() for plane in weights.planes), *_pointers(x),
            0 if bias is None else bias.data_ptr(), result.data_ptr(),
            np.int32(rows), np.int32(weights.rows), np.int32(weights.columns // GROUP),
        )  # fmt: skip
        compiled = next(count for count in ROW_COUNTS if count >= rows)
        self._start("multiply", weights.format.name, compiled, *launch_shape(weights), arguments)
        out.copy_(result)

    def _start(
        self, name: str, weight_format: str, rows: int, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]
    ) -> None:
        cupy, stream = self._cupy, torch.cuda.current_stream(self._device).cuda_stream
        with cupy.cuda.Device(self._device.index), cupy.cuda.ExternalStream(stream, self._device.index):
            self._kernel(name, weight_format, rows)(grid, block, arguments)

    def _compile(self, name: str, weight_format: str, rows: int) -> Any:
        module = self._cupy.RawModule(code=self._source, options=compile_options(weight_format, rows))
        return module.get_function(name)


def _pointers(x: Rounded) -> tuple[int, int, int]:
    return x.quants.data_ptr(), x.scales.data_ptr(), x.sums.data_ptr()
