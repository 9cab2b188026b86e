"""Whole models of quantised weights: a sequence's rows are the same to the bit in every batch, chunk and thread count.

Some tokens have hidden states with outliers and others don't, so that with `activation_bits = "auto"` blocks with and
without a second term meet in one tile.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from forge_cpu import CpuOptions
from forge_cpu.backend import CpuBackend
from forge_cpu.native import extension

from forge.testing.backend import BackendConformance
from forge.testing.stack import Run
from forge.testing.workbench import SPEC, ArrayWeight

NATIVE = extension()
assert NATIVE is not None, "the tests need the compiled kernels"

LENGTHS = (1, 70, 23, 9, 41, 2)

EMBEDDING = 99
"""The seed by which the kit names the embedding."""


class QuantisedStack(BackendConformance):
    """The kit's random models with quantised weights. Every third token's hidden state has outliers."""

    def weights(self, rows: int, columns: int, encoding: str = "Q4_1", seed: int = 1) -> ArrayWeight:
        plain = super().weights(rows, columns, "F32", seed).dequantize()
        if seed == EMBEDDING:
            plain[::3, 5::64] *= 40
        return ArrayWeight(f"w{seed}", plain, encoding)


def backend(isa: str, bits: Literal["auto", 8, 16], threads: int = 2) -> CpuBackend:
    return CpuBackend(NATIVE, threads=threads, options=CpuOptions(isa=isa, activation_bits=bits))


@pytest.mark.parametrize("isa", NATIVE.isas())
class TestDefault(QuantisedStack):
    """The kit once more with what users get: `activation_bits = "auto"`, quantised weights."""

    tolerance = 2e-2  # activations are rounded to 8 bits where they don't stand out
    encodings = ("Q8_0", "Q4_0", "Q4_1")

    @pytest.fixture
    def backend(self, isa: str) -> CpuBackend:
        made = CpuBackend(NATIVE, threads=2, options=CpuOptions(isa=isa))
        assert made.options.activation_bits == "auto"
        return made


def random_schedule(rng: np.random.Generator) -> list[list[tuple[int, int, int]]]:
    """Steps of spans (sequence, start, length) in random order and sizes until all of LENGTHS is computed."""
    done, steps = [0] * len(LENGTHS), []
    while any(n < length for n, length in zip(done, LENGTHS, strict=True)):
        step = []
        for i in rng.permutation(len(LENGTHS))[: rng.integers(1, len(LENGTHS) + 1)].tolist():
            left = LENGTHS[i] - done[i]
            if left > 0:
                take = int(rng.choice([1, min(left, 5), min(left, 17), left]))
                step.append((i, done[i], take))
                done[i] += take
        if step:
            steps.append(step)
    return steps


@pytest.mark.parametrize("bits", ["auto", 16, 8])
@pytest.mark.parametrize("isa", NATIVE.isas())
def test_a_sequence_is_the_same_alone_and_in_random_batches(isa: str, bits: Literal["auto", 8, 16]) -> None:
    kit: Any = QuantisedStack()
    one = backend(isa, bits, threads=1)
    sequences = kit.sequences(*LENGTHS)
    alone = [Run(one, kit.model(one, SPEC, SPEC), sequences).step((i, 0, n)) for i, n in enumerate(LENGTHS)]
    several = backend(isa, bits, threads=3)
    model = kit.model(several, SPEC, SPEC)
    for seed in range(4):
        run = Run(several, model, sequences, seed=seed)
        for step in random_schedule(np.random.default_rng(seed)):
            rows, at = run.step(*step), 0
            for i, start, length in step:
                assert torch.equal(rows[at : at + length], alone[i][start : start + length])
                at += length


@pytest.mark.parametrize("isa", NATIVE.isas())
def test_the_default_lies_between_8_and_16_bits(isa: str) -> None:
    """The models of these tests do have blocks of both kinds: otherwise they would prove nothing about mixing them."""
    kit: Any = QuantisedStack()
    found = []
    for bits in ("auto", 16, 8):
        one = backend(isa, bits)
        found.append(Run(one, kit.model(one, SPEC), kit.sequences(70)).step((0, 0, 70)))
    auto, fine, coarse = found
    assert not torch.equal(auto, fine)
    assert not torch.equal(auto, coarse)
    assert (auto - fine).square().mean() < (coarse - fine).square().mean()
