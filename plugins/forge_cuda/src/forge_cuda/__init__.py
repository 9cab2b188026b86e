"""Registers the `cuda` backend; imports nothing heavy: no torch, triton or cupy before the backend is chosen."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen
from attrs.validators import ge

from forge import Component, Probe, hookimpl


@frozen
class CudaOptions:
    """Options of the CUDA backend.

    dtype: of activations inside a layer, and of weights that the model file has in float32; weights of 16 bits are kept
    as they are. kv_format: of the KV cache ("auto": as dtype); int8 keeps a scale for each position and head.
    decode_products: how quantised weights meet few rows: "int8" rounds activations to 8 bits and needs CuPy, "float" is
    the tensor cores' product, "auto": int8 where CuPy is installed. graphs: record decode steps as CUDA graphs.
    headroom_mib: GPU memory left to activations, graphs and libraries when the KV cache is sized. interpret: run the
    kernels on the CPU in Triton's interpreter, thousands of times slower, to check results.
    """

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    kv_format: Literal["auto", "bf16", "f16", "f32", "int8"] = "auto"
    decode_products: Literal["auto", "int8", "float"] = "auto"
    graphs: bool = True
    headroom_mib: int = field(default=1024, validator=ge(0))
    interpret: bool = False


def probe() -> Probe:
    """Whether a GPU, its driver, torch's CUDA build and Triton are all here, and if not, which isn't."""
    from forge_cuda.machine import examine

    return examine()


@hookimpl
def forge_backends() -> list[Component]:
    """The CUDA backend."""
    return [
        Component(
            name="cuda",
            factory="forge_cuda.backend:make_backend",
            options=CudaOptions,
            probe=probe,
            summary="Triton and CUDA kernels for NVIDIA GPUs on weights in their quantised form",
        )
    ]
