"""Weights on their way into the kernels' layout: what is kept exactly, what is converted and at what loss."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from forge_cpu import CpuOptions
from forge_cpu.backend import CpuBackend
from forge_cpu.native import extension
from forge_cpu.weights import packed_encoding

from forge.interfaces.loader import Weight

NATIVE = extension()
assert NATIVE is not None, "the tests need the compiled kernels"
OWN = ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32"]
HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "TQ2_0": (64,),
}
"""Where a block has its f16 scales and minima; elsewhere at its beginning."""

CONVERTED = ["Q5_0", "Q5_1", "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "IQ2_S", "IQ3_S", "TQ2_0"]


class StoredWeight(Weight):
    """A tensor of random bytes in any encoding, with scales of ordinary size."""

    def __init__(self, encoding: str, rows: int, columns: int) -> None:
        kind = gguf.GGMLQuantizationType[encoding]
        self.name, self.shape, self.encoding, self.kind = "w", (rows, columns), encoding, kind
        rng = np.random.default_rng(7)
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        if encoding in ("F32", "F16", "BF16"):
            values = rng.standard_normal((rows, columns), dtype=np.float32)
            self._data = gguf.quants.quantize(values, kind).view(np.uint8).reshape(rows, -1)
        else:
            self._data = rng.integers(0, 256, (rows, columns // block * nbytes), dtype=np.uint8)
            for at in HALVES.get(encoding, (0,)):
                scales = (rng.random((rows, columns // block)) * 0.02 + 0.001).astype(np.float16)
                blocks = self._data.reshape(rows, -1, nbytes)
                blocks[:, :, at : at + 2] = scales.view(np.uint8).reshape(rows, -1, 2)
        self.released = False

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return self._data

    def dequantize(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = gguf.quants.dequantize(self._data[start:stop], self.kind)
        return values

    def release(self) -> None:
        self.released = True


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend(NATIVE, threads=2, options=CpuOptions())


@pytest.mark.parametrize("encoding", OWN)
def test_the_kernels_own_encodings_are_kept_exactly_and_as_small(backend: CpuBackend, encoding: str) -> None:
    weight = StoredWeight(encoding, 80, 512)
    handle = backend.prepare([weight], {"linear"})
    np.testing.assert_array_equal(handle.rows(0, 80).numpy(), weight.dequantize())
    assert handle.nbytes <= 1.15 * weight.nbytes
    assert weight.released


@pytest.mark.parametrize("encoding", CONVERTED)
def test_other_encodings_lose_no_more_than_eight_bits_do(backend: CpuBackend, encoding: str) -> None:
    weight = StoredWeight(encoding, 48, 512)
    handle = backend.prepare([weight], {"linear"})
    wanted = weight.dequantize().reshape(48, -1, 32)
    error = np.abs(handle.rows(0, 48).numpy().reshape(48, -1, 32) - wanted)
    # Half a step of 1/127 of the block's largest, and the scale's own rounding to 16 bits.
    assert (error <= np.abs(wanted).max(-1, keepdims=True) * (0.5 / 127 + 2**-10) + 1e-7).all()
    assert handle.nbytes == 48 * 512 * 34 // 32


def test_rows_that_have_no_whole_blocks_are_kept_as_16_bit_floats() -> None:
    class Narrow(StoredWeight):
        def __init__(self) -> None:
            self.name, self.shape, self.encoding = "w", (16, 40), "F64"

    assert packed_encoding(NATIVE, Narrow()) == "F16"
