"""The native KV cache pages as the core knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge.interfaces.backend import Pages
from forge_cpu.arrays import contiguous, empty_like

if TYPE_CHECKING:
    import torch


class NativePages(Pages):
    """Keys and values in the layout that the attention kernels stream; zeroed, resident where they're written."""

    def __init__(self, pool: Any, pages: Any) -> None:
        self.pool, self.pages = pool, pages
        self.num_blocks, self.block_size, self.nbytes = pages.num_blocks, pages.block_size, pages.nbytes

    def write(self, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        self.pages.write(self.pool, slots, contiguous(k), contiguous(v))

    def read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = len(blocks) * self.block_size
        k = empty_like(blocks, rows, self.pages.kv_heads, self.pages.k_dim)
        v = empty_like(blocks, rows, self.pages.kv_heads, self.pages.v_dim)
        self.pages.read(contiguous(blocks), k, v)
        return k, v
