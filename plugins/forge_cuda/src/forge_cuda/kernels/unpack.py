"""Quantised weights inside kernels: from the planes of `forge_cuda.formats` to numbers, for groups in any shape.

Rows and groups are clamped by the callers rather than masked, so that all loads are whole and aligned.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def group_quants(QUANTS, HIGH, at, j, FORMAT: tl.constexpr):
    """The weights j and j + 16 of groups `at` of a format with 4 to 6 bits, as int32 centred on its zero."""
    pairs = tl.load(QUANTS + at * 16 + j).to(tl.int32)
    low = pairs & 15
    high = pairs >> 4
    if FORMAT == "Q4_0":
        low -= 8
        high -= 8
    if FORMAT == "Q5_K":
        bits = tl.load(HIGH.to(tl.pointer_type(tl.int32)) + at)
        low |= (bits >> j & 1) << 4
        high |= (bits >> (j + 16) & 1) << 4
    if FORMAT == "Q6_K":
        first = tl.load(HIGH.to(tl.pointer_type(tl.int32)) + at * 2)
        second = tl.load(HIGH.to(tl.pointer_type(tl.int32)) + at * 2 + 1)
        low = (low | (first >> 2 * j & 3) << 4) - 32
        high = (high | (second >> 2 * j & 3) << 4) - 32
    return low, high


@triton.jit
def group_scales(SCALES, DELTAS, at, FORMAT: tl.constexpr):
    """Of groups `at`: the scales of their first and second halves, and what is subtracted; float32."""
    if FORMAT == "Q8_0" or FORMAT == "Q4_0":
        first = tl.load(DELTAS + at).to(tl.float32)
        second = first
        minimum = tl.zeros_like(first)
    elif FORMAT == "Q4_1":
        first = tl.load(DELTAS + at * 2).to(tl.float32)
        second = first
        minimum = -tl.load(DELTAS + at * 2 + 1).to(tl.float32)
    elif FORMAT == "Q6_K":
        d = tl.load(DELTAS + at // 8).to(tl.float32)
        factors = SCALES.to(tl.pointer_type(tl.int8))
        first = d * tl.load(factors + at * 2).to(tl.float32)
        second = d * tl.load(factors + at * 2 + 1).to(tl.float32)
        minimum = tl.zeros_like(first)
    else:
        d = tl.load(DELTAS + at // 8 * 2).to(tl.float32)
        dmin = tl.load(DELTAS + at // 8 * 2 + 1).to(tl.float32)
        first = d * tl.load(SCALES + at * 2).to(tl.float32)
        second = first
        minimum = dmin * tl.load(SCALES + at * 2 + 1).to(tl.float32)
    return first, second, minimum
