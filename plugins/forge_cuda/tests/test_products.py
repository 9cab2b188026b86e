"""The CUDA C++ products, run on the CPU: against exact integers for activations and float64 for the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from forge_cuda.dp4a import ROW_COUNTS
from forge_cuda.formats import FORMATS
from forge_cuda.testing.samples import StoredWeight
from forge_cuda.testing.shim import ShimProducts
from forge_cuda.weights import upload


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> ShimProducts:
    return ShimProducts(tmp_path_factory.mktemp("shim"))


def activations(rows: int, columns: int) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    x[0, :32] = 0  # a group without a largest value
    return x


def test_activations_are_rounded_to_the_nearest_of_255_steps(products: ShimProducts) -> None:
    x = activations(3, 96)
    rounded = products.round(x)
    groups = x.double().numpy().reshape(3, 3, 32)
    scales = np.abs(groups).max(-1) / 127
    np.testing.assert_allclose(rounded.scales, scales, rtol=1e-6)
    restored = rounded.quants.double().numpy().reshape(3, 3, 32) * scales[..., None]
    assert (np.abs(restored - groups) <= 0.501 * scales[..., None]).all()
    np.testing.assert_allclose(rounded.sums, restored.sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("encoding", FORMATS)
def test_products_are_those_of_the_rounded_activations(products: ShimProducts, encoding: str, rows: int) -> None:
    outputs, columns = 13, 1280  # neither a whole block of outputs, nor as many groups for each lane
    handle = upload([StoredWeight(encoding, outputs, columns)], torch.device("cpu"), torch.bfloat16)
    x = activations(rows, columns)
    rounded = products.round(x)
    values = rounded.quants.double().view(rows, -1, 32) * rounded.scales.double()[..., None]
    wanted = values.flatten(1).numpy() @ handle.rows(0, outputs).double().numpy().T
    bias = torch.linspace(-1, 1, outputs)
    for added in (None, bias):
        out = torch.full((rows, outputs), torch.nan)
        products.multiply(rounded, handle.segments[0], added, out)
        expected = wanted if added is None else wanted + added.double().numpy()
        assert np.abs(out.numpy() - expected).max() <= 1e-5 * np.abs(wanted).max()


def test_every_number_of_rows_has_its_kernel() -> None:
    assert ROW_COUNTS == (1, 2, 4, 8)
    assert ShimProducts.most_rows == 8
