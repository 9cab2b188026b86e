"""KV cache pages on the device: 16 or 32-bit floats, or int8 with a scale for each position and head."""

from __future__ import annotations

import torch

from forge.interfaces.backend import Pages
from forge.interfaces.model import LayerKV

FORMATS = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "int8": torch.int8}
"""Number formats by the name that options give them."""


def bytes_per_position(layer: LayerKV, dtype: torch.dtype) -> int:
    """What one position of a layer takes."""
    scales = 2 * 4 * layer.kv_heads if dtype == torch.int8 else 0
    return int(layer.kv_heads * (layer.k_dim + layer.v_dim) * dtype.itemsize + scales)


class CudaPages(Pages):
    """Keys and values ``[num_blocks, block_size, kv_heads, dim]``; scales, for int8, float32 without the last."""

    def __init__(
        self, layer: LayerKV, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (num_blocks, block_size, layer.kv_heads)
        self.int8 = dtype == torch.int8
        self.k = torch.zeros(*shape, layer.k_dim, dtype=dtype, device=device)
        self.v = torch.zeros(*shape, layer.v_dim, dtype=dtype, device=device)
        scales = shape if self.int8 else (0,)
        self.k_scales = torch.zeros(scales, dtype=torch.float32, device=device)
        self.v_scales = torch.zeros(scales, dtype=torch.float32, device=device)
        self.num_blocks, self.block_size = num_blocks, block_size
        self.nbytes = sum(x.nbytes for x in (self.k, self.v, self.k_scales, self.v_scales))

    def write(self, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        for stored, scales, values in ((self.k, self.k_scales, k), (self.v, self.v_scales, v)):
            if self.int8:
                scale = values.float().abs().amax(-1) / 127
                values = values / torch.where(scale == 0, 1.0, scale)[..., None]
                scales.view(-1, scales.shape[-1])[slots] = scale
                values = values.nan_to_num().round()  # what isn't a number is so by its scale
            stored.view(-1, *stored.shape[2:])[slots] = values.to(stored.dtype)

    def read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def floats(stored: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
            values = stored[blocks].float()
            return (values * scales[blocks][..., None] if self.int8 else values).flatten(0, 1)

        return floats(self.k, self.k_scales), floats(self.v, self.v_scales)
