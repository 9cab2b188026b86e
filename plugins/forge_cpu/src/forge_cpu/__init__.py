"""Registers the `cpu` backend; imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from attrs import frozen

from forge import Component, Probe, hookimpl
from forge_cpu.machine import has_native_bf16, usable_cores


@frozen
class CpuOptions:
    """Options of the CPU backend.

    dtype: of the weights; "auto": bfloat16 where the processor multiplies it natively, else float32. kv_dtype: of the
    KV cache; "auto": as the weights.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    kv_dtype: Literal["auto", "float32", "bfloat16"] = "auto"


def probe() -> Probe:
    """A CPU is always there; torch might not be."""
    if find_spec("torch") is None:
        return Probe(ok=False, detail="torch isn't installed")
    weights = "bfloat16" if has_native_bf16() else "float32"
    return Probe(ok=True, score=50, detail=f"{usable_cores()} cores, weights in {weights}")


@hookimpl
def forge_backends() -> list[Component]:
    """The CPU backend."""
    return [
        Component(
            name="cpu",
            factory="forge_cpu.backend:CpuBackend",
            options=CpuOptions,
            probe=probe,
            summary="weights in bfloat16 or float32, batched decode attention",
        )
    ]
