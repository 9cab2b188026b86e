"""The self-test's cases in Triton's interpreter: every kernel and format against float64; and its own mends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from attrs import evolve
from forge_cuda import CudaOptions
from forge_cuda.backend import CudaBackend, interpreted
from forge_cuda.interpreter import narrow, widen
from forge_cuda.testing.cases import Case, cases
from forge_cuda.testing.draws import sampling_cases
from forge_cuda.testing.shim import ShimProducts
from forge_cuda.testing.steps import step_cases

CASES = {case.name: case for case in cases()}
SAMPLING = {case.name: case for case in sampling_cases()}
QUICK = ("product Q4_K, 5 rows", "product Q6_K, 20 rows", "embedding Q5_K", "qkv, interleaved, QK norm",
         "attention int8, spans of (3, 40, 1), window 50")  # fmt: skip


def backend(dtype: Any, **changes: Any) -> CudaBackend:
    options = CudaOptions(dtype=dtype, interpret=True)
    return CudaBackend(evolve(interpreted(options), **changes), options)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.quick if c.name in QUICK else []) for c in CASES.values()], ids=CASES
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_agree_with_float64(case: Case, dtype: str) -> None:
    error, tolerance = case.error(backend(dtype))
    assert error <= tolerance


@pytest.mark.parametrize("case", SAMPLING.values(), ids=SAMPLING)
def test_draws_are_those_of_the_reference(case: Case) -> None:
    error, tolerance = case.error(backend("bfloat16"))
    assert error <= tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_recorded_as_graphs_equal_the_layers_operations(dtype: str) -> None:
    """A stand-in for CUDA graphs that reads the memory of its first step again, as they do."""

    def record(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        result = step().clone()
        return lambda: result.copy_(step())

    (case,) = step_cases()
    error, tolerance = case.error(backend(dtype, record=record))
    assert error <= tolerance


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("product Q") and "5 rows" in name])
def test_products_in_eight_bits_serve_few_rows_of_quantised_weights(name: str, tmp_path: Path) -> None:
    class Counted(ShimProducts):
        used = 0

        def multiply(self, *arguments: Any) -> None:
            self.used += 1
            super().multiply(*arguments)

    products = Counted(tmp_path)
    error, tolerance = CASES[name].error(backend("bfloat16", products=products))
    assert error <= tolerance
    assert products.used == 1, "the quantised segment, and only that"


@pytest.mark.quick
def test_a_masked_load_without_a_value_gives_garbage_here_as_on_a_gpu() -> None:
    @triton.jit
    def careless(X, Y):  # noqa: N803
        i = tl.arange(0, 16)
        tl.store(Y, tl.sum(tl.load(X + i, mask=i < 8), 0))

    x, y = torch.ones(16), torch.zeros(1)
    careless[(1,)](x, y)
    assert not torch.isfinite(y).all()


@pytest.mark.quick
def test_bfloat16_is_rounded_as_hardware_does() -> None:
    values = np.random.default_rng(0).standard_normal(10000, dtype=np.float32) * 100
    values[:4] = [np.inf, -np.inf, 0.0, 1.00390625]  # the last lies between two: to the even one
    wanted = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(widen(narrow(values)), wanted)
    assert np.isnan(widen(narrow(np.array([np.nan], np.float32)))).all()
