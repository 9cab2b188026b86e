"""The CUDA C++ products on a CPU: the same source, compiled by g++ through a shim. For tests; slow."""

from __future__ import annotations

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from forge_cuda.dp4a import ROW_COUNTS, SOURCE, Products, Rounded, compile_options, empty_rounded, launch_shape
from forge_cuda.formats import GROUP
from forge_cuda.weights import Segment

HARNESS = """
#include "{shim}"
#include "{source}"
extern "C" void run_round(unsigned blocks, unsigned threads, const float* x, signed char* quants, float* scales,
                          float* sums, int groups) {{
    shim::launch(blocks, threads, [=] {{ round_activations(x, quants, scales, sums, groups); }});
}}
extern "C" void run_multiply(unsigned blocks, unsigned threads, const unsigned char* quants, const unsigned char* high,
                             const unsigned char* scales, const unsigned short* deltas, const signed char* x,
                             const float* x_scales, const float* x_sums, const float* bias, float* out, int rows,
                             int outputs, int groups) {{
    shim::launch(blocks, threads, [=] {{
        multiply(quants, high, scales, deltas, x, x_scales, x_sums, bias, out, rows, outputs, groups);
    }});
}}
"""


class ShimProducts(Products):
    """What `CupyProducts` is on a GPU. folder: for what is compiled."""

    most_rows = ROW_COUNTS[-1]

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = cache(self._compile)

    def round(self, x: torch.Tensor) -> Rounded:
        values = x.float().contiguous()
        rounded = empty_rounded(len(x), x.shape[1], x.device)
        groups = x.numel() // GROUP
        self._library("Q8_0", 1).run_round(
            -(-groups // 4), 128, _pointer(values), _pointer(rounded.quants), _pointer(rounded.scales),
            _pointer(rounded.sums), groups,
        )  # fmt: skip
        return rounded

    def multiply(self, x: Rounded, weights: Segment, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        assert weights.planes is not None
        assert weights.format is not None
        rows = len(x.quants)
        result = torch.full((rows, weights.rows), torch.nan)
        compiled = next(count for count in ROW_COUNTS if count >= rows)
        (blocks,), (threads,) = launch_shape(weights)
        self._library(weights.format.name, compiled).run_multiply(
            blocks, threads, *map(_pointer, weights.planes), _pointer(x.quants), _pointer(x.scales), _pointer(x.sums),
            None if bias is None else _pointer(bias), _pointer(result), rows, weights.rows, weights.columns // GROUP,
        )  # fmt: skip
        out.copy_(result)

    def _compile(self, weight_format: str, rows: int) -> Any:
        shim = Path(__file__).with_name("shim.hpp")
        harness = self._folder / f"{weight_format}_{rows}.cpp"
        harness.write_text(HARNESS.format(shim=shim, source=SOURCE), encoding="utf-8")
        library = harness.with_suffix(".so")
        defines = [option for option in compile_options(weight_format, rows) if option.startswith("-D")]
        warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unknown-pragmas"]
        sanitizers = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
        subprocess.run(
            ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *warnings, *sanitizers, *defines, harness, "-o", library],
            check=True,
        )
        return ctypes.CDLL(str(library))


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
