"""The CUDA C++ products as NVRTC compiles them for compute capability 8.0, run in the emulator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from forge_cuda.formats import FORMATS
from forge_cuda.testing.emulated_products import EmulatedProducts
from forge_cuda.testing.samples import StoredWeight
from forge_cuda.weights import upload

OUTPUTS, COLUMNS = 13, 1280  # neither a whole block of outputs, nor as many groups for each lane


def activations(rows: int) -> torch.Tensor:
    x = torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(rows))
    x[0, :32] = 0  # a group without a largest value
    return x


def error(products: EmulatedProducts, encoding: str, rows: int) -> float:
    """Of products with the rounded activations, relative to the largest."""
    handle = upload([StoredWeight(encoding, OUTPUTS, COLUMNS)], torch.device("cpu"), torch.bfloat16)
    rounded = products.round(activations(rows))
    values = rounded.quants.double().view(rows, -1, 32) * rounded.scales.double()[..., None]
    wanted = values.flatten(1).numpy() @ handle.rows(0, OUTPUTS).double().numpy().T
    bias, out = torch.linspace(-1, 1, OUTPUTS), torch.full((rows, OUTPUTS), torch.nan)
    products.multiply(rounded, handle.segments[0], bias, out)
    found = np.abs(out.numpy() - wanted - bias.double().numpy()).max() / np.abs(wanted).max()
    return float(np.nan_to_num(found, nan=np.inf))


def test_activations_are_rounded_to_the_nearest_of_255_steps() -> None:
    x = activations(3)
    rounded = EmulatedProducts().round(x)
    groups = x.double().numpy().reshape(3, -1, 32)
    scales = np.abs(groups).max(-1) / 127
    np.testing.assert_allclose(rounded.scales, scales, rtol=1e-6)
    restored = rounded.quants.double().numpy().reshape(groups.shape) * scales[..., None]
    assert (np.abs(restored - groups) <= 0.501 * scales[..., None]).all()
    np.testing.assert_allclose(rounded.sums, restored.sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.quick), 3, 8])
@pytest.mark.parametrize("encoding", FORMATS)
def test_products_are_those_of_the_rounded_activations(encoding: str, rows: int) -> None:
    assert error(EmulatedProducts(), encoding, rows) <= 1e-5


@pytest.mark.parametrize(
    ("encoding", "instruction", "wrong"),
    [
        ("Q4_K", "dp4a.s32.s32", "dp4a.u32.u32"),
        ("Q6_K", "cvt.s32.s8", "cvt.u32.u8"),
        ("Q8_0", "shfl.sync.bfly.b32", "shfl.sync.idx.b32"),
        ("Q5_K", ", 252645135;", ", 252645127;"),
        ("Q4_0", "shr.u32", "shl.b32"),
    ],
)
def test_wrong_instructions_give_wrong_products(encoding: str, instruction: str, wrong: str) -> None:
    assert instruction in EmulatedProducts()._ptx(encoding, 1)
    try:
        found = error(EmulatedProducts(lambda ptx: ptx.replace(instruction, wrong)), encoding, 1)
    except MemoryError:
        return
    assert found > 1e-3
