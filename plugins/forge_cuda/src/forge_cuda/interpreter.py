"""Triton's interpreter, made fit to check kernels on a CPU: bfloat16 that is right, masked loads that are poisoned.

The interpreter keeps bfloat16 as bit patterns and computes on those; and a masked load without `other` gives it zeros,
where a GPU gives garbage. Needs ``TRITON_INTERPRET=1`` before Triton is imported; written for Triton 3.7.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt


def widen(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bit patterns as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Floats as bfloat16 bit patterns, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16).reshape(np.shape(values))


def prepare(*, poison: bool = True) -> None:
    """Mend this process's interpreter; call it before kernels are imported. Errors: `RuntimeError` if it's too late."""
    import sys

    if os.environ.get("TRITON_INTERPRET") != "1":
        if "triton" in sys.modules:
            raise RuntimeError("triton was imported as a compiler already: set TRITON_INTERPRET=1 beforehand")
        os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if not getattr(builder, "mended", False):
        _mend_bfloat16(interpreter, builder)
        if poison:
            _poison(interpreter, builder)
        builder.mended = True


def _mend_bfloat16(interpreter: Any, builder: Any) -> None:
    import triton.language as tl

    handle = interpreter.TensorHandle
    plain = {name: getattr(builder, name) for name in ("binary_op", "unary_op", "ternary_op", "cast_impl")}
    plain_fp_to_fp = builder.create_fp_to_fp

    def is_bfloat(x: Any) -> bool:
        return bool(x.dtype.scalar == tl.bfloat16)

    def values(x: Any) -> npt.NDArray[Any]:
        return widen(x.data) if is_bfloat(x) else x.data

    def dot(self: Any, a: Any, b: Any, c: Any, *rest: Any) -> Any:
        # As tensor cores do: exact products of the operands, summed in float32.
        product = np.matmul(values(a).astype(np.float32), values(b).astype(np.float32))
        result = product + values(c)
        return (
            handle(narrow(result), tl.bfloat16) if is_bfloat(c) else handle(result.astype(c.data.dtype), c.dtype.scalar)
        )

    def binary(self: Any, a: Any, b: Any, op: Any) -> Any:
        if not (is_bfloat(a) or is_bfloat(b)):
            return plain["binary_op"](self, a, b, op)
        result = op(values(a), values(b))
        return handle(result, tl.int1) if result.dtype == np.bool_ else handle(narrow(result), tl.bfloat16)

    def unary(self: Any, a: Any, op: Any) -> Any:
        return handle(narrow(op(values(a))), tl.bfloat16) if is_bfloat(a) else plain["unary_op"](self, a, op)

    def ternary(self: Any, a: Any, b: Any, c: Any, op: Any) -> Any:
        if op is np.where or not is_bfloat(c):
            return plain["ternary_op"](self, a, b, c, op)
        return handle(narrow(op(values(a), values(b), values(c))), tl.bfloat16)

    def cast(self: Any, x: Any, to: Any) -> Any:
        if is_bfloat(x) and to.scalar == tl.bfloat16:
            return x
        if is_bfloat(x):
            return handle(values(x).astype(interpreter._get_np_dtype(to)), to.scalar)
        if to.scalar == tl.bfloat16:
            return handle(narrow(x.data.astype(np.float32)), tl.bfloat16)
        return plain["cast_impl"](self, x, to)

    def fp_to_fp(self: Any, x: Any, to: Any, rounding: Any) -> Any:
        if is_bfloat(x) or to.scalar == tl.bfloat16:
            return cast(self, x, to)
        return plain_fp_to_fp(self, x, to, rounding)

    builder.create_dot, builder.binary_op, builder.unary_op = dot, binary, unary
    builder.ternary_op, builder.cast_impl, builder.create_fp_to_fp = ternary, cast, fp_to_fp


def _poison(interpreter: Any, builder: Any) -> None:
    masked_load = builder.create_masked_load

    def poisoned(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **more: Any) -> Any:
        if other is None:
            kind = pointers.get_element_ty()
            dtype = np.dtype(interpreter._get_np_dtype(kind))
            garbage = np.full(pointers.data.size * dtype.itemsize, 0xFF, np.uint8).view(dtype)
            other = interpreter.TensorHandle(garbage.reshape(pointers.data.shape).copy(), kind.scalar)
        return masked_load(self, pointers, mask, other, *rest, **more)

    builder.create_masked_load = poisoned
