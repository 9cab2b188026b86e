"""Paged attention of ragged spans. Query heads that share a KV head are rows of one tile, positions next to positions.

Spans of few rows (decodes, drafts) are split over their keys into partial results that a second kernel merges, so that
few sequences fill the device; long spans (prompt chunks) take larger tiles and no split. As in FlashAttention (Dao,
2023, https://arxiv.org/abs/2307.08691) and Flash-Decoding; keys and values are read only as they are stored.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from forge.interfaces.layers import AttentionSpec
from forge_cuda.launching import Launch, power_of_two
from forge_cuda.pages import CudaPages
from forge_cuda.spans import SpanLists

MOST_SPLITS = 32

PARTIAL_TILE = 16
"""Rows of a tile for short spans: the least that tensor cores take."""


@triton.jit
def attention_kernel(
    Q, K, V, K_SCALES, V_SCALES, TABLE, STARTS, LENGTHS, ORDER, OUT, PARTIALS, LSE, scale, table_stride, window,
    tiles, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr,
    K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    SPLITS: tl.constexpr, INT8: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One program: `ROWS` (position, query head) pairs of one span and one KV head, against one split of its keys.

    scale: of the scores, times log2(e). tiles: how many each span of `ORDER` has, at most.
    """
    SHARED: tl.constexpr = HEADS // KV_HEADS
    POSITIONS: tl.constexpr = ROWS // SHARED
    program, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    span = tl.load(ORDER + program // tiles)
    start = tl.load(STARTS + span)
    count = tl.load(STARTS + span + 1) - start
    first = program % tiles * POSITIONS
    if first < count:
        length = tl.load(LENGTHS + span)
        r = tl.arange(0, ROWS)
        kd, vd = tl.arange(0, K_BLOCK), tl.arange(0, V_BLOCK)
        row = first + r // SHARED
        head = kv_head * SHARED + r % SHARED
        live = (row < count) & (r < POSITIONS * SHARED)
        at = ((start + row) * HEADS + head).to(tl.int64)
        q = tl.load(Q + at[:, None] * K_DIM + kd[None, :], mask=live[:, None] & (kd < K_DIM)[None, :], other=0.0)
        position = length - count + row
        high = tl.minimum(length, length - count + first + POSITIONS)
        low = tl.maximum(0, length - count + first - window + 1) if WINDOW else 0
        each = tl.cdiv(tl.cdiv(high - low, SPLITS), KEYS) * KEYS
        begin = low + part * each
        end = tl.minimum(begin + each, high)

        most = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, V_BLOCK], tl.float32)
        for key in tl.range(begin, end, KEYS):
            token = key + tl.arange(0, KEYS)
            there = token < end
            block = tl.load(TABLE + span * table_stride + token // PAGE, mask=there, other=0)
            slot = (block * PAGE + token % PAGE) * KV_HEADS + kv_head
            k = tl.load(K + slot[None, :] * K_DIM + kd[:, None], mask=there[None, :] & (kd < K_DIM)[:, None], other=0.0)
            scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale
            if INT8:
                scores *= tl.load(K_SCALES + slot, mask=there, other=0.0)[None, :]
            visible = there[None, :] & (token[None, :] <= position[:, None])
            if WINDOW:
                visible &= token[None, :] > position[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))
            new = tl.maximum(most, tl.max(scores, 1))
            anchor = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen no key yet
            weights = tl.exp2(scores - anchor[:, None])
            fade = tl.exp2(most - anchor)
            total = total * fade + tl.sum(weights, 1)
            v = tl.load(V + slot[:, None] * V_DIM + vd[None, :], mask=there[:, None] & (vd < V_DIM)[None, :], other=0.0)
            if INT8:
                weights *= tl.load(V_SCALES + slot, mask=there, other=0.0)[None, :]
            sums = tl.dot(weights.to(q.dtype), v.to(q.dtype), sums * fade[:, None], input_precision="ieee")
            most = new

        seen = total > 0
        result = sums / tl.where(seen, total, 1.0)[:, None]
        if SPLITS == 1:
            tl.store(
                OUT + at[:, None] * V_DIM + vd[None, :], result.to(OUT.dtype.element_ty),
                mask=live[:, None] & (vd < V_DIM)[None, :],
            )  # fmt: skip
        else:
            slab = ((program * KV_HEADS + kv_head) * ROWS + r).to(tl.int64) * SPLITS + part
            tl.store(PARTIALS + slab[:, None] * V_BLOCK + vd[None, :], result)
            tl.store(LSE + slab, tl.where(seen, most + tl.log2(tl.where(seen, total, 1.0)), float("-inf")))


@triton.jit
def merge_kernel(
    PARTIALS, LSE, STARTS, ORDER, OUT, tiles, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, V_DIM: tl.constexpr,
    V_BLOCK: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One program: the splits of one (position, query head) pair."""
    SHARED: tl.constexpr = HEADS // KV_HEADS
    program, kv_head, r = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    span = tl.load(ORDER + program // tiles)
    start = tl.load(STARTS + span)
    row = program % tiles * (ROWS // SHARED) + r // SHARED
    if row < tl.load(STARTS + span + 1) - start:
        part, vd = tl.arange(0, SPLITS), tl.arange(0, V_BLOCK)
        slab = ((program * KV_HEADS + kv_head) * ROWS + r).to(tl.int64) * SPLITS + part
        lse = tl.load(LSE + slab)
        weight = tl.exp2(lse - tl.max(lse, 0))
        values = tl.load(PARTIALS + slab[:, None] * V_BLOCK + vd[None, :])
        result = tl.sum(values * weight[:, None], 0) / tl.sum(weight, 0)
        at = ((start + row) * HEADS + kv_head * SHARED + r % SHARED).to(tl.int64)
        tl.store(OUT + at * V_DIM + vd, result.to(OUT.dtype.element_ty), mask=vd < V_DIM)


def attend(
    launch: Launch,
    q: torch.Tensor,
    pages: CudaPages,
    table: torch.Tensor,
    spans: SpanLists,
    spec: AttentionSpec,
    multiprocessors: int,
) -> torch.Tensor:
    """Causal attention: q ``[n, heads, k_dim]`` → ``[n, heads, v_dim]`` in q's dtype.

    table: int64 ``[spans, most blocks]``. multiprocessors: of the device, to choose the number of splits.
    """
    # Rows that only pad a decode step belong to no span and stay zero.
    make = torch.empty if len(spans.long) else torch.zeros
    out = make(len(q), spec.heads, spec.v_dim, dtype=q.dtype, device=q.device)
    shared = spec.heads // spec.kv_heads
    window = spec.window or 0
    v_block = power_of_two(spec.v_dim, 16)
    common = {
        "HEADS": spec.heads, "KV_HEADS": spec.kv_heads, "V_DIM": spec.v_dim, "V_BLOCK": v_block,
    }  # fmt: skip

    def run(order: torch.Tensor, longest: int, rows: int, keys: int, splits: int, partials: torch.Tensor,
            lse: torch.Tensor, **options: int) -> None:  # fmt: skip
        tiles = triton.cdiv(longest, rows // shared)
        launch(
            attention_kernel, (len(order) * tiles, spec.kv_heads, splits), q, pages.k, pages.v, pages.k_scales,
            pages.v_scales, table, spans.starts, spans.lengths, order, out, partials, lse,
            spec.scale * math.log2(math.e), table.stride(0), window, tiles, **common, K_DIM=spec.k_dim,
            K_BLOCK=power_of_two(spec.k_dim, 16), PAGE=pages.block_size, ROWS=rows, KEYS=keys, SPLITS=splits,
            INT8=pages.int8, WINDOW=spec.window is not None, **options,
        )  # fmt: skip

    wide = spec.k_dim > 128 or q.dtype == torch.float32
    if len(spans.short):
        rows = power_of_two(shared, PARTIAL_TILE)
        tiles = triton.cdiv(spans.longest_short, rows // shared)
        programs = len(spans.short) * tiles * spec.kv_heads
        splits = min(MOST_SPLITS, power_of_two(triton.cdiv(2 * multiprocessors, programs)))
        partials = torch.empty(programs * rows * splits, v_block, dtype=torch.float32, device=q.device)
        lse = torch.empty(programs * rows * splits, dtype=torch.float32, device=q.device)
        keys = 64 if pages.int8 and not wide else 32
        run(spans.short, spans.longest_short, rows, keys, splits, partials, lse, num_warps=4, num_stages=2)
        if splits > 1:
            grid = (len(spans.short) * tiles, spec.kv_heads, rows // shared * shared)
            launch(
                merge_kernel, grid, partials, lse, spans.starts, spans.short, out, tiles, **common, ROWS=rows,
                SPLITS=splits, num_warps=min(4, max(1, splits * v_block // 1024)),
            )  # fmt: skip
    if len(spans.long):
        # As large as registers allow: masks, and division by what isn't a power of two, take some.
        plain = spec.k_dim == power_of_two(spec.k_dim) and shared == power_of_two(shared)
        rows = power_of_two(shared, 32 if wide else 128 if plain else 64)
        run(spans.long, spans.longest_long, rows, 32, 1, out, out, num_warps=8, num_stages=2, maxnreg=255)
    return out
