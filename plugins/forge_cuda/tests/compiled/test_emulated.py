"""What was really compiled for compute capability 8.0, run in the project's emulator: every kernel against float64."""

from __future__ import annotations

import pytest
import torch
from forge_cuda import CudaOptions
from forge_cuda.backend import CudaBackend, Place
from forge_cuda.formats import FORMATS
from forge_cuda.kernels.gemm import multiply
from forge_cuda.kernels.silu import silu_mul
from forge_cuda.testing.cases import Case, cases
from forge_cuda.testing.draws import sampling_cases
from forge_cuda.testing.emulator import Emulate
from forge_cuda.testing.samples import StoredWeight
from forge_cuda.weights import upload

CPU = torch.device("cpu")
KERNELS = {case.name: case for case in cases()}
SAMPLING = {case.name: case for case in sampling_cases()}
QUICK = ("product Q4_K, 20 rows", "qkv, QK norm", "attention int8, spans of (3, 40, 1), window 50",
         "draws of 200: top_p 0.7")  # fmt: skip


SHARPER = 4
"""Where nothing is rounded to eight bits, errors are that much below the self-test's tolerance."""


def check(case: Case, dtype: str) -> None:
    error, tolerance = case.error(CudaBackend(Place(CPU, 2, Emulate()), CudaOptions(dtype=dtype)))
    assert error <= tolerance / SHARPER


def marked(names: dict[str, Case]) -> list[object]:
    return [pytest.param(case, id=name, marks=[pytest.mark.quick] * (name in QUICK)) for name, case in names.items()]


@pytest.mark.parametrize("case", marked(KERNELS))
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernels_agree_with_float64(case: Case, dtype: str) -> None:
    check(case, dtype)


@pytest.mark.parametrize("case", marked(SAMPLING))
def test_draws_are_those_of_the_reference(case: Case) -> None:
    check(case, "bfloat16")


@pytest.mark.parametrize("name", FORMATS)
def test_products_leave_what_lies_beside_their_result_alone(name: str) -> None:
    torch.manual_seed(0)
    handle = upload([StoredWeight(name, 40, 512)], CPU, torch.bfloat16)
    x, out = torch.randn(5, 512).bfloat16(), torch.full((7, 50), 7.0)
    multiply(Emulate(), x, handle.segments[0], None, out[1:6, 5:45])
    wanted = x.double() @ handle.rows(0, 40).double().T
    assert (out[1:6, 5:45] - wanted).abs().max() <= 1e-2 * wanted.abs().max()
    out[1:6, 5:45] = 7
    assert (out == 7).all()


def test_an_access_outside_of_the_tensors_is_seen() -> None:
    x = torch.randn(2, 600).bfloat16()
    with pytest.raises(MemoryError, match="none of the tensors"):
        silu_mul(Emulate(lambda ptx: ptx.replace("setp.lt.s32", "setp.ne.s32")), x, torch.bfloat16)
