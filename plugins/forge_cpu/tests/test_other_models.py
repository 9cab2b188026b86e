"""Models that are no plain stacks, or whose logits are more than a product, get the tensors that they expect."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from attrs import evolve
from forge_cpu.backend import CpuBackend
from forge_cpu.native import extension

from forge.interfaces.backend import StepInputs
from forge.interfaces.layers import DecoderStack
from forge.testing.backend import BackendConformance
from forge.testing.stack import Run, StackModel
from forge.testing.workbench import SPEC

NATIVE = extension()
assert NATIVE is not None, "the tests need the compiled kernels"


class NoStack(StackModel):
    """Its forward pass is its own."""

    def stack(self) -> DecoderStack | None:  # type: ignore[override]
        return None

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        assert isinstance(inputs.token_ids, torch.Tensor)
        return super().forward(inputs) * torch.ones(())


class SoftCapped(StackModel):
    """Its logits go through torch."""

    def stack(self) -> DecoderStack:
        return evolve(self._stack, head=None)

    def logits(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        for rows in super().logits(hidden):
            yield 30 * torch.tanh(rows / 30)


@pytest.mark.parametrize("family", [NoStack, SoftCapped])
def test_the_way_from_batch_to_tokens_is_in_tensors(family: type[StackModel]) -> None:
    kit = BackendConformance()
    kit.tolerance = 2e-2
    backend = CpuBackend(NATIVE, threads=2)
    plain = kit.model(backend, SPEC)
    other = family(plain._stack, backend)
    sequences = kit.sequences(9, 23)
    wanted = torch.as_tensor(Run(backend, plain, sequences).step((0, 0, 9), (1, 0, 23)))
    hidden = backend.forward(other, Run(backend, other, sequences).stage((0, 0, 9), (1, 0, 23)))
    assert isinstance(hidden, torch.Tensor)
    kit.close(hidden, wanted)
    (logits,) = other.logits(hidden)
    assert isinstance(logits, torch.Tensor)
    assert np.isfinite(logits.numpy()).all()
