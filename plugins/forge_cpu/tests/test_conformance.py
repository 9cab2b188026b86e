"""The CPU backend against the conformance kit: each instruction set, each cache format, and without its kernels."""

from __future__ import annotations

from typing import Literal

import pytest
from forge_cpu import CpuOptions
from forge_cpu.backend import CpuBackend
from forge_cpu.fallback import FallbackBackend
from forge_cpu.native import extension

from forge.testing.backend import BackendConformance

NATIVE = extension()
assert NATIVE is not None, "the tests need the compiled kernels"


@pytest.mark.parametrize("isa", NATIVE.isas())
class TestNative(BackendConformance):
    tolerance = 2e-3  # keys and values are rounded to 16 bits
    encodings = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")  # others are converted: test_weights.py

    @pytest.fixture
    def backend(self, isa: str) -> CpuBackend:
        return CpuBackend(NATIVE, threads=2, options=CpuOptions(isa=isa, activation_bits=16))


@pytest.mark.parametrize("kv_format", ["f32", "bf16", "int8"])
class TestFormats(BackendConformance):
    tolerance = 2e-2  # activations are rounded to 8 bits, keys and values to 8 or more

    @pytest.fixture
    def backend(self, kv_format: Literal["f32", "bf16", "int8"]) -> CpuBackend:
        return CpuBackend(NATIVE, threads=2, options=CpuOptions(activation_bits=8, kv_format=kv_format))


class TestFallback(BackendConformance):
    tolerance = 2e-2

    @pytest.fixture
    def backend(self) -> FallbackBackend:
        return FallbackBackend(threads=1)
