"""The CPU backend without its compiled part: plain torch, with decodes attended to in one batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F

from forge.errors import ConfigError
from forge.interfaces.backend import Backend, Pages, StepInputs
from forge.interfaces.layers import AttentionSpec, serves
from forge.interfaces.options import DenseOptions
from forge_cpu import CpuOptions
from forge_cpu.machine import has_native_bf16, usable_cores

HANDLED = frozenset({"heads", "kv_heads", "k_dim", "v_dim", "scale", "window"})
"""The fields of `AttentionSpec` that the batched attention knows."""

KV_DTYPES: dict[str, Literal["float32", "float16", "bfloat16"]] = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16",
}  # fmt: skip

PADDING = 1.5
"""Decodes share a batch as long as padding to the longest makes at most so many times the work."""


class FallbackBackend(Backend):
    """Overrides the choice of formats and threads, and attention for steps with several decodes."""

    def __init__(self, device_index: int = 0, threads: int | None = None, options: CpuOptions | None = None) -> None:
        options = options or CpuOptions()
        if options.kv_format == "int8":
            raise ConfigError("backend.options.kv_format: int8 needs forge-cpu's native kernels", param="kv_format")
        kv_dtype: Literal["float32", "float16", "bfloat16"] = KV_DTYPES[options.kv_format]
        dense = DenseOptions(dtype="bfloat16" if has_native_bf16() else "float32", kv_dtype=kv_dtype)
        super().__init__(device_index, threads or usable_cores(), dense)

    def attention(self, q: torch.Tensor, pages: Pages, inputs: StepInputs, spec: AttentionSpec) -> torch.Tensor:
        starts, lengths = inputs.span_starts.tolist(), inputs.lengths.tolist()
        decodes = [span for span, (start, stop) in enumerate(pairwise(starts)) if stop == start + 1]
        if len(decodes) < 2 or not serves(spec, HANDLED):
            return super().attention(q, pages, inputs, spec)
        out = q.new_empty(len(q), spec.heads, spec.v_dim)
        batches = _batches(decodes, lengths, pages.block_size)
        for spans in batches:
            rows = torch.tensor([starts[span] for span in spans])
            out[rows] = self._decodes(q[rows], pages, inputs, spec, spans)
        batched = {span for spans in batches for span in spans}
        for span, (start, stop) in enumerate(pairwise(starts)):
            if span not in batched:
                blocks = inputs.block_table[span, : -(-lengths[span] // pages.block_size)]
                k, v = pages.read(blocks)
                out[start:stop] = self.span_attention(q[start:stop], k[: lengths[span]], v[: lengths[span]], spec)
        return out

    def _decodes(
        self, q: torch.Tensor, pages: Pages, inputs: StepInputs, spec: AttentionSpec, spans: list[int]
    ) -> torch.Tensor:
        """One query each of several sequences, their keys padded to the longest: ``[b, heads, k_dim]`` → alike.

        The queries that share a KV head are taken as rows of one product, so that keys aren't copied for each of them.
        """
        lengths = inputs.lengths[spans]
        blocks = inputs.block_table[spans, : -(-int(lengths.max()) // pages.block_size)]
        k, v = pages.read(blocks.flatten())
        k, v = (x.unflatten(0, (len(spans), -1)).transpose(1, 2) for x in (k, v))
        key = torch.arange(k.shape[2])
        visible = key < lengths[:, None]
        if spec.window is not None:
            visible &= key >= lengths[:, None] - spec.window
        # What lies beyond a sequence's end isn't its own, and even with weight 0 a NaN there would spread.
        k, v = (x.masked_fill(~visible[:, None, :, None], 0.0) for x in (k, v))
        packed = q.unflatten(1, (spec.kv_heads, -1))
        return F.scaled_dot_product_attention(packed, k, v, attn_mask=visible[:, None, None], scale=spec.scale).flatten(
            1, 2
        )


def _batches(spans: list[int], lengths: list[int], block_size: int) -> list[list[int]]:
    """Group decodes of similar length; those that would be mostly padding (one huge block each, say) stay out."""
    groups: list[list[int]] = []
    work = 0
    for span in sorted(spans, key=lambda s: -lengths[s]):
        padded = -(-lengths[groups[-1][0] if groups else span] // block_size) * block_size
        if groups and padded * (len(groups[-1]) + 1) <= PADDING * (work + lengths[span]) + block_size:
            groups[-1].append(span)
            work += lengths[span]
        else:
            groups.append([span])
            work = lengths[span]
    return [group for group in groups if len(group) > 1]
