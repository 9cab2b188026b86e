"""Weights whose every bit is random but for scales of ordinary size, in any encoding that `gguf` can read."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt

from forge.interfaces.loader import Weight

SCALES_AT = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "TQ2_0": (64,),
}
"""Where a block has its float16 numbers; elsewhere at its beginning."""


class StoredWeight(Weight):
    """A tensor of random bytes ``[rows, columns]``, with some scales negative, zero or subnormal."""

    def __init__(self, encoding: str, rows: int, columns: int, seed: int = 7) -> None:
        kind = gguf.GGMLQuantizationType[encoding]
        self.name, self.shape, self.encoding, self.kind = "w", (rows, columns), encoding, kind
        rng = np.random.default_rng([seed, rows, columns])
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        if encoding in ("F32", "F16", "BF16"):
            values = rng.standard_normal((rows, columns), dtype=np.float32)
            self._data = np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8).reshape(rows, -1)
        else:
            blocks = rng.integers(0, 256, (rows, columns // block, nbytes), dtype=np.uint8)
            for at in SCALES_AT.get(encoding, (0,)):
                scales = rng.uniform(1e-3, 1e-2, blocks.shape[:2]).astype(np.float16)
                scales[rng.random(scales.shape) < 0.2] *= -1
                scales[rng.random(scales.shape) < 0.05] = 0
                scales[rng.random(scales.shape) < 0.05] = 3e-6
                blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
            self._data = blocks.reshape(rows, -1)
        self.released = False

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return self._data

    def dequantize(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        values = np.asarray(gguf.quants.dequantize(self._data[start:stop], self.kind), dtype=np.float32)
        return values.reshape(-1, self.shape[1])

    def release(self) -> None:
        self.released = True
