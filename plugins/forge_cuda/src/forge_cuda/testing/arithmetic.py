"""What PTX's scalar instructions compute, on vectors of numpy. For `forge_cuda.testing.emulator`."""

from __future__ import annotations

from typing import Any

import numpy as np

from forge_cuda.interpreter import narrow, widen
from forge_cuda.testing.memory import Vector
from forge_cuda.testing.ptx import WIDTHS

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
TYPED = {
    "s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip
COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "min": np.fmin, "max": np.fmax, "div": np.divide,
}  # fmt: skip
FLOATS = ("f16", "bf16", "f32", "f64")
ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
"""To whole numbers, by the names that conversions have for them."""
UNARY: dict[str, Any] = {
    "neg": np.negative, "not": np.invert, "abs": np.abs, "sqrt": np.sqrt, "ex2": np.exp2, "lg2": np.log2,
    "rsqrt": lambda x: 1 / np.sqrt(x), "rcp": lambda x: 1 / x,
}  # fmt: skip


def dtype(kind: str) -> Any:
    """The numpy type of a PTX type; bits and bfloat16 are unsigned."""
    return TYPED.get(kind, UNSIGNED[WIDTHS[kind]])


def compare(name: str, x: Vector, y: Vector) -> Vector:
    """A comparison by PTX's name for it; those that end in "u" hold if either number isn't one."""
    if x.dtype.kind != "f":
        return np.asarray(COMPARISONS[name](x, y))
    odd = np.isnan(x) | np.isnan(y)
    if name in ("nan", "num"):
        return np.asarray(odd if name == "nan" else ~odd)
    result = COMPARISONS[name[:2]](x, y)
    return np.asarray(result | odd if name[2:] == "u" else result & ~odd)


def convert(value: Vector, source: str, target: str, rounding: str = "") -> Vector:
    """A number of one PTX type as another; bfloat16 comes and goes as bits. rounding: to whole numbers, or ""."""
    value = widen(value) if source == "bf16" else value
    if source in FLOATS and rounding:
        value = ROUNDINGS[rounding](value)
    with np.errstate(all="ignore"):
        if source not in FLOATS or target in FLOATS:
            return np.asarray(narrow(value) if target == "bf16" else value.astype(dtype(target)))
        # Beyond the largest integer there is the largest, and what isn't a number is 0.
        limits = np.iinfo(dtype(target))
        exact = np.where(np.isnan(value), 0.0, value.astype(np.float64))
        low, high = exact <= limits.min, exact >= limits.max
        result = np.where(low | high, 0, exact).astype(dtype(target))
        return np.where(low, limits.min, np.where(high, limits.max, result)).astype(dtype(target))
