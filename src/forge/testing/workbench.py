"""What the backend kit works with: random weights in any encoding, decoder layers, and what counts as close."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from forge.interfaces.backend import Backend, Prepared, Vector
from forge.interfaces.layers import AttentionSpec, DecoderLayer, LayerSpec, RopeSpec
from forge.interfaces.loader import Weight

ATTENTION = AttentionSpec(heads=6, kv_heads=2, k_dim=32, v_dim=32, scale=32**-0.5)
ROPE = RopeSpec(tuple(10000.0 ** (-i / 16) for i in range(16)))
SPEC = LayerSpec(ATTENTION, ROPE, norm_eps=1e-5)
HIDDEN, FFN = 192, 256


class ArrayWeight(Weight):
    """A weight in memory, quantised to any encoding that `gguf` can write."""

    def __init__(self, name: str, values: npt.NDArray[np.float32], encoding: str = "F32") -> None:
        kind = gguf.GGMLQuantizationType[encoding]
        self.name, self.shape, self.encoding = name, values.shape, encoding
        rows = values.reshape(-1, values.shape[-1])
        stored = gguf.quants.quantize(rows, kind)
        self._values = gguf.quants.dequantize(stored, kind).reshape(values.shape)
        self._data = np.ascontiguousarray(stored).view(np.uint8).reshape(len(rows), -1)
        self._data.flags.writeable = False
        self.released = False

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return self._data

    def dequantize(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        return np.array(self._values[start:stop], dtype=np.float32)

    def release(self) -> None:
        self.released = True


class Workbench:
    """Base of the kits. `tolerance`: largest error, relative to the largest value, that the backend's arithmetic may
    have against float64; `encodings`: those that it must prepare (all that `gguf` can write, by default).
    """

    tolerance: float = 1e-5
    encodings: Seq[str] = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")

    def close(self, found: torch.Tensor, wanted: Any, factor: float = 1.0) -> None:
        """Assert equality up to the tolerance."""
        got = found.detach().cpu().double().numpy()
        want = np.asarray(wanted.detach().cpu() if isinstance(wanted, torch.Tensor) else wanted, dtype=np.float64)
        assert got.shape == want.shape
        assert np.isfinite(got).all(), "the result has values that aren't finite"
        error = np.abs(got - want).max() / max(1e-6, np.abs(want).max())
        assert error <= factor * self.tolerance, f"relative error {error:.2e}"

    def tensor(self, backend: Backend, *shape: int, seed: int = 0) -> torch.Tensor:
        """Seeded normal values on the backend's device."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(backend.device)

    def weights(self, rows: int, columns: int, encoding: str = "F32", seed: int = 1) -> ArrayWeight:
        """A random matrix of a linear layer."""
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5
        return ArrayWeight(f"w{seed}", values, encoding)

    def rows_of(self, weights: Prepared) -> npt.NDArray[np.float64]:
        """A handle's values as the backend itself gives them out."""
        return np.asarray(weights.rows(0, weights.out_features).cpu(), dtype=np.float64)

    def layer(self, backend: Backend, spec: LayerSpec, index: int = 0) -> DecoderLayer:
        """A random decoder layer with the parts that the spec has; another one for each index."""
        a = spec.attention
        q, kv = a.heads * a.k_dim, a.kv_heads * a.k_dim

        def vector(size: int, seed: int) -> Vector:
            values = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
            return backend.vector([ArrayWeight("v", values * 0.1 + 1)])

        def matrix(*rows: int, columns: int, seed: int) -> Prepared:
            parts = [self.weights(r, columns, seed=seed + i + 100 * index) for i, r in enumerate(rows)]
            return backend.prepare(parts, {"linear"})

        return DecoderLayer(
            index=index,
            attention_norm=vector(HIDDEN, 1),
            qkv=matrix(q, kv, kv, columns=HIDDEN, seed=10),
            output=matrix(HIDDEN, columns=q, seed=20),
            mlp_norm=vector(HIDDEN, 2),
            gate_up=matrix(FFN, FFN, columns=HIDDEN, seed=30),
            down=matrix(HIDDEN, columns=FFN, seed=40),
            qkv_bias=vector(q + 2 * kv, 3) if spec.qkv_bias else None,
            output_bias=vector(HIDDEN, 4) if spec.output_bias else None,
            gate_up_bias=vector(2 * FFN, 5) if spec.mlp_bias else None,
            down_bias=vector(HIDDEN, 6) if spec.mlp_bias else None,
            q_norm=vector(a.k_dim, 7) if spec.qk_norm else None,
            k_norm=vector(a.k_dim, 8) if spec.qk_norm else None,
        )
