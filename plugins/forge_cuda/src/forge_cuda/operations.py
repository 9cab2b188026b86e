"""The kernels put together: products over segments, the two halves of a decoder layer, rotation angles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from forge.interfaces.layers import AttentionSpec, DecoderLayer, LayerSpec, RopeSpec
from forge_cuda.kernels.attention import attend
from forge_cuda.kernels.embedding import embed
from forge_cuda.kernels.gemm import multiply
from forge_cuda.kernels.norm import rms_norm
from forge_cuda.kernels.qkv import split_rotate_write
from forge_cuda.kernels.silu import silu_mul
from forge_cuda.pages import CudaPages
from forge_cuda.spans import SpanLists
from forge_cuda.weights import CudaWeights, Segment

if TYPE_CHECKING:
    from forge.interfaces.backend import Prepared
    from forge_cuda.backend import Place


class Operations:
    """What one backend computes, in one dtype inside layers; residuals are float32."""

    def __init__(self, place: Place, dtype: torch.dtype) -> None:
        self.place, self.dtype, self.launch = place, dtype, place.launch
        self._frequencies: dict[RopeSpec, torch.Tensor] = {}

    def embed(self, ids: torch.Tensor, table: Segment) -> torch.Tensor:
        """Rows of a table, float32."""
        return embed(self.launch, ids, table)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype,
        delta: torch.Tensor | None = None, rows: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """See `forge_cuda.kernels.norm`."""
        return rms_norm(self.launch, x, weight, eps, dtype, delta, rows)

    def silu_mul(self, gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `forge_cuda.kernels.silu`."""
        return silu_mul(self.launch, gate_up, dtype)

    def attend(
        self, q: torch.Tensor, pages: CudaPages, table: torch.Tensor, spans: SpanLists, spec: AttentionSpec
    ) -> torch.Tensor:
        """See `forge_cuda.kernels.attention`."""
        return attend(self.launch, q, pages, table, spans, spec, self.place.multiprocessors)

    def split_rotate_write(
        self, qkv: torch.Tensor, bias: torch.Tensor | None, norms: tuple[torch.Tensor, torch.Tensor] | None,
        angles: tuple[torch.Tensor, torch.Tensor], slots: torch.Tensor, pages: CudaPages, spec: LayerSpec,
    ) -> torch.Tensor:  # fmt: skip
        """See `forge_cuda.kernels.qkv`."""
        return split_rotate_write(self.launch, qkv, bias, norms, angles, slots, pages, spec, self.dtype)

    def angles(self, positions: torch.Tensor, spec: RopeSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, float32 ``[n, rotated / 2]``."""
        if spec not in self._frequencies:
            frequencies = torch.tensor(spec.inverse_frequencies, dtype=torch.float32)
            self._frequencies[spec] = frequencies.to(positions.device)
        angle = positions.to(torch.float32)[:, None] * self._frequencies[spec]
        return angle.cos() * spec.magnitude, angle.sin() * spec.magnitude

    def project(
        self, x: torch.Tensor, weights: Prepared, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """``x @ weights.T + bias``: ``[n, in]`` → ``[n, out]`` in `dtype`."""
        assert isinstance(weights, CudaWeights)
        out = torch.empty(len(x), weights.out_features, dtype=dtype, device=x.device)
        if not len(x):
            return out
        rounded = None
        products = self.place.products
        if products is not None and len(x) <= products.most_rows and any(s.planes for s in weights.segments):
            rounded = products.round(x.contiguous())
        for segment in weights.segments:
            columns = slice(segment.row, segment.row + segment.rows)
            part = out[:, columns]
            own_bias = None if bias is None else bias[columns]
            if segment.dense is not None:
                product = F.linear(x.to(segment.dense.dtype), segment.dense)
                part.copy_(product if own_bias is None else product.float() + own_bias)
            elif products is not None and rounded is not None:
                products.multiply(rounded, segment, own_bias, part)
            else:
                multiply(self.launch, x.contiguous().to(self.dtype), segment, own_bias, part)
        return out

    def attention_block(
        self, x: torch.Tensor, delta: torch.Tensor | None, layer: DecoderLayer, spec: LayerSpec,
        angles: tuple[torch.Tensor, torch.Tensor], slots: torch.Tensor, pages: CudaPages, table: torch.Tensor,
        spans: SpanLists,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """``(x + delta, what attention adds to it)``; this step's keys and values go into the pages."""
        x, normed = rms_norm(self.launch, x, layer.attention_norm, spec.norm_eps, self.dtype, delta)
        qkv = self.project(normed, layer.qkv, None, self.dtype)
        norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
        q = self.split_rotate_write(qkv, layer.qkv_bias, norms, angles, slots, pages, spec)
        attended = self.attend(q, pages, table, spans, spec.attention)
        return x, self.project(attended.flatten(1), layer.output, layer.output_bias, self.dtype)

    def mlp(
        self, x: torch.Tensor, delta: torch.Tensor | None, layer: DecoderLayer, spec: LayerSpec
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(x + delta, what the MLP adds to it)``."""
        x, normed = rms_norm(self.launch, x, layer.mlp_norm, spec.norm_eps, self.dtype, delta)
        gate_up = self.project(normed, layer.gate_up, layer.gate_up_bias, self.dtype)
        return x, self.project(silu_mul(self.launch, gate_up, self.dtype), layer.down, layer.down_bias, self.dtype)
