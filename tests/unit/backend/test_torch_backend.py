"""The plain torch backend against its own conformance kit: the kit's formulas are the reference."""

from __future__ import annotations

import pytest

from forge.interfaces.backend import Backend
from forge.interfaces.options import DenseOptions
from forge.testing.backend import BackendConformance


class TestFloat32(BackendConformance):
    @pytest.fixture
    def backend(self) -> Backend:
        return Backend(threads=1)


class TestBfloat16(BackendConformance):
    tolerance = 2e-2

    @pytest.fixture
    def backend(self) -> Backend:
        return Backend(threads=1, options=DenseOptions(dtype="bfloat16"))
