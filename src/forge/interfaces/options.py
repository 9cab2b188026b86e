"""Options that components of the core take, apart from what they configure: reading them imports no torch."""

from __future__ import annotations

from typing import Literal

from attrs import frozen


@frozen
class DenseOptions:
    """Options of the plain backend. dtype: of the weights. kv_dtype: of the KV cache ("auto": as the weights)."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["cpu", "cuda"] = "cpu"
