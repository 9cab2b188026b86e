"""From the QKV product to what attention reads, in one pass: split, bias, QK norm, rotation, KV cache write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forge.interfaces.layers import LayerSpec
from forge_cuda.launching import Launch, power_of_two
from forge_cuda.pages import CudaPages


@triton.jit
def _store_page(VALUES, SCALES, slot_head, x, d, inside, DIM: tl.constexpr, INT8: tl.constexpr):
    if INT8:
        scale = tl.max(tl.abs(x), 0) / 127.0
        tl.store(SCALES + slot_head, scale)
        ratio = tl.where(scale > 0, x / tl.where(scale > 0, scale, 1.0), 0.0)
        x = (ratio + tl.where(ratio < 0, -0.5, 0.5)).to(tl.int32)  # to the nearest
    tl.store(VALUES + slot_head * DIM + d, x.to(VALUES.dtype.element_ty), mask=inside)


@triton.jit
def qkv_kernel(
    QKV, BIAS, Q_NORM, K_NORM, COS, SIN, SLOTS, Q, K, V, K_SCALES, V_SCALES, qkv_stride, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr, ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, INT8: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one head of one row. Heads are numbered as in the product: queries, keys, values."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK)
    if head < HEADS + KV_HEADS:
        inside = d < K_DIM
        base = head * K_DIM
        x = tl.load(QKV + row * qkv_stride + base + d, mask=inside, other=0.0).to(tl.float32)
        # The other number of each rotated pair is read once more rather than moved between threads.
        HALF: tl.constexpr = ROTATED // 2
        turns = d < ROTATED
        if INTERLEAVED:
            partner, pair, negative = d ^ 1, d // 2, d % 2 == 0
        else:
            partner, pair, negative = tl.where(d < HALF, d + HALF, d - HALF), d % HALF, d < HALF
        y = tl.load(QKV + row * qkv_stride + base + partner, mask=turns, other=0.0).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(BIAS + base + d, mask=inside, other=0.0)
            y += tl.load(BIAS + base + partner, mask=turns, other=0.0)
        if HAS_NORM:
            factor = 1.0 / tl.sqrt(tl.sum(x * x, 0) / K_DIM + eps)
            is_query = head < HEADS
            weight_x = tl.load(Q_NORM + d, mask=inside & is_query, other=0.0)
            weight_x += tl.load(K_NORM + d, mask=inside & (head >= HEADS), other=0.0)
            weight_y = tl.load(Q_NORM + partner, mask=turns & is_query, other=0.0)
            weight_y += tl.load(K_NORM + partner, mask=turns & (head >= HEADS), other=0.0)
            x *= factor * weight_x
            y *= factor * weight_y
        cos = tl.load(COS + row * HALF + pair, mask=turns, other=1.0)
        sin = tl.load(SIN + row * HALF + pair, mask=turns, other=0.0)
        x = x * cos + tl.where(negative, -y, y) * sin
        if head < HEADS:
            tl.store(Q + (row * HEADS + head) * K_DIM + d, x.to(Q.dtype.element_ty), mask=inside)
        else:
            slot = tl.load(SLOTS + row)
            if slot >= 0:
                _store_page(K, K_SCALES, slot * KV_HEADS + head - HEADS, x, d, inside, K_DIM, INT8)
    else:
        slot = tl.load(SLOTS + row)
        if slot >= 0:
            inside = d < V_DIM
            kv_head = head - HEADS - KV_HEADS
            base = (HEADS + KV_HEADS) * K_DIM + kv_head * V_DIM
            x = tl.load(QKV + row * qkv_stride + base + d, mask=inside, other=0.0).to(tl.float32)
            if HAS_BIAS:
                x += tl.load(BIAS + base + d, mask=inside, other=0.0)
            _store_page(V, V_SCALES, slot * KV_HEADS + kv_head, x, d, inside, V_DIM, INT8)


def split_rotate_write(
    launch: Launch,
    qkv: torch.Tensor,
    bias: torch.Tensor | None,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    angles: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    pages: CudaPages,
    spec: LayerSpec,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Queries ``[n, heads, k_dim]`` in `dtype` of a product ``[n, heads * k_dim + kv_heads * (k_dim + v_dim)]``.

    Keys and values go to slots, int64 [n]; a negative one drops them. angles: cosine and sine, float32
    ``[n, rotated / 2]``. bias: float32, of the whole product. norms: the weights for queries and keys.
    """
    a = spec.attention
    q = torch.empty(len(qkv), a.heads, a.k_dim, dtype=dtype, device=qkv.device)
    q_norm, k_norm = norms or (angles[0], angles[0])
    launch(
        qkv_kernel, (len(qkv), a.heads + 2 * a.kv_heads), qkv, angles[0] if bias is None else bias, q_norm, k_norm,
        *angles, slots, q, pages.k, pages.v, pages.k_scales, pages.v_scales, qkv.stride(0), spec.norm_eps,
        HEADS=a.heads, KV_HEADS=a.kv_heads, K_DIM=a.k_dim, V_DIM=a.v_dim, ROTATED=spec.rope.dim,
        INTERLEAVED=spec.rope.interleaved, HAS_BIAS=bias is not None, HAS_NORM=norms is not None, INT8=pages.int8,
        BLOCK=power_of_two(max(a.k_dim, a.v_dim), 32), num_warps=1,
    )  # fmt: skip
    return q
