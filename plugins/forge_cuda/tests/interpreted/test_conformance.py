"""The CUDA backend against the conformance kit, its kernels in Triton's interpreter."""

from __future__ import annotations

import pytest
from forge_cuda import CudaOptions
from forge_cuda.backend import CudaBackend, make_backend

from forge.interfaces.backend import Backend
from forge.testing.backend import BackendConformance

ENCODINGS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")


class Interpreted(BackendConformance):
    """The whole kit. A row of sampling takes milliseconds here, so that fewer of them show the distribution."""

    encodings = ENCODINGS
    distribution_rows = 2000


class TestFloat32(Interpreted):
    tolerance = 1e-5

    @pytest.fixture
    def backend(self) -> Backend:
        return make_backend(0, None, CudaOptions(dtype="float32", interpret=True))


class TestBfloat16(Interpreted):
    tolerance = 2e-2

    @pytest.fixture
    def backend(self) -> Backend:
        return make_backend(0, None, CudaOptions(interpret=True))


class TestInt8Cache(Interpreted):
    tolerance = 2e-2

    @pytest.fixture
    def backend(self) -> Backend:
        return make_backend(0, None, CudaOptions(dtype="float16", kv_format="int8", interpret=True))


def test_the_fixture_is_the_backend_itself() -> None:
    assert isinstance(make_backend(0, None, CudaOptions(interpret=True)), CudaBackend)
