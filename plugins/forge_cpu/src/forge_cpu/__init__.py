"""Registers the `cpu` backend; imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from attrs import frozen

from forge import Component, Probe, hookimpl
from forge_cpu.machine import has_native_bf16, usable_cores
from forge_cpu.native import instruction_sets


@frozen
class CpuOptions:
    """Options of the CPU backend.

    isa: the instruction set that its kernels use; "auto": the best that runs here. activation_bits: what values are
    rounded to before they meet quantised weights. "auto": 16 where 32 neighbours stand out from their row and 8
    elsewhere, which keeps log-probabilities within 0.02 of float32 arithmetic on average; 16 keeps them within 0.01 at
    most, at up to half the speed for long prompts and large batches; 8 is the fastest and least exact. kv_format: of
    the KV cache; int8 keeps a scale for each position and head.
    """

    isa: Literal["auto", "avx512", "avxvnni", "avx2", "neon", "portable"] = "auto"
    activation_bits: Literal["auto", 8, 16] = "auto"
    kv_format: Literal["f16", "bf16", "f32", "int8"] = "f16"


def probe() -> Probe:
    """A CPU is always there; torch might not be, nor the compiled kernels."""
    if find_spec("torch") is None:
        return Probe(ok=False, detail="torch isn't installed")
    sets = instruction_sets()
    if not sets:
        weights = "bfloat16" if has_native_bf16() else "float32"
        return Probe(ok=True, score=20, detail=f"{usable_cores()} cores, without native kernels: {weights} in torch")
    others = f" (also {', '.join(sets[1:])})" if sets[1:] else ""
    return Probe(ok=True, score=50, detail=f"{usable_cores()} cores, kernels for {sets[0]}{others}")


@hookimpl
def forge_backends() -> list[Component]:
    """The CPU backend."""
    return [
        Component(
            name="cpu",
            factory="forge_cpu.backend:make_backend",
            options=CpuOptions,
            probe=probe,
            summary="native kernels on weights in their quantised form, bit for bit the same in every batch",
        )
    ]
