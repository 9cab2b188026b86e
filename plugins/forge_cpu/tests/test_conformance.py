"""The CPU backend in both of its weight formats against the conformance kit."""

from __future__ import annotations

import pytest
from forge_cpu import CpuOptions
from forge_cpu.backend import CpuBackend

from forge.testing.backend import BackendConformance


class TestFloat32(BackendConformance):
    @pytest.fixture
    def backend(self) -> CpuBackend:
        return CpuBackend(threads=1, options=CpuOptions(dtype="float32"))


class TestBfloat16(BackendConformance):
    tolerance = 2e-2

    @pytest.fixture
    def backend(self) -> CpuBackend:
        return CpuBackend(threads=1, options=CpuOptions(dtype="bfloat16"))
