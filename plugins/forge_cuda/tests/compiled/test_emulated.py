"""What was really compiled for compute capability 8.0, run in the project's emulator against float64."""

from __future__ import annotations

import pytest
import torch
from forge_cuda.formats import FORMATS
from forge_cuda.kernels.gemm import multiply
from forge_cuda.kernels.norm import rms_norm
from forge_cuda.kernels.silu import silu_mul
from forge_cuda.testing.emulator import Emulate
from forge_cuda.testing.samples import StoredWeight
from forge_cuda.weights import upload


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found.double() - wanted).abs().max() <= 1e-2 * wanted.abs().max())


def norm(launch: Emulate) -> bool:
    x, delta, weight = torch.randn(2, 512), torch.randn(2, 512).bfloat16(), torch.randn(512)
    total, found = rms_norm(launch, x, weight, 1e-5, torch.bfloat16, delta)
    wanted = x.double() + delta.double()
    assert close(total, wanted)
    return close(found, wanted / (wanted.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight)


def test_the_norm_is_its_formula() -> None:
    torch.manual_seed(0)
    assert norm(Emulate())


def test_silu_is_its_formula() -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(2, 600).bfloat16()
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert close(silu_mul(Emulate(), gate_up, torch.bfloat16), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("encoding", FORMATS)
def test_products_on_tensor_cores_are_those_of_the_weights(encoding: str) -> None:
    torch.manual_seed(0)
    handle = upload([StoredWeight(encoding, 40, 512)], torch.device("cpu"), torch.bfloat16)
    x, out = torch.randn(5, 512).bfloat16(), torch.full((5, 40), torch.nan)
    multiply(Emulate(), x, handle.segments[0], None, out)
    assert close(out, x.double() @ handle.rows(0, 40).double().T)


def test_an_access_outside_of_the_tensors_is_seen() -> None:
    x = torch.randn(2, 600).bfloat16()
    with pytest.raises(MemoryError, match="none of the tensors"):
        silu_mul(Emulate(lambda ptx: ptx.replace("setp.lt.s32", "setp.ne.s32")), x, torch.bfloat16)
