"""The CPU backend: native kernels on packed weights, whole models in one call where they're plain decoder stacks.

Results are the same to the bit whatever else is in a batch, however prompts are chunked and whatever the number of
threads: see the kernels' headers for how. The kernels take NumPy arrays and tensors alike, and operations return what
they are given; where whole models are computed in one call torch isn't even imported.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import attrs
import numpy as np

from forge.errors import ConfigError
from forge.interfaces.backend import Backend, Pages, Prepared, StepInputs, Use, Vector, host_memory
from forge.interfaces.layers import AttentionSpec, DecoderStack, RopeSpec, serves
from forge.interfaces.loader import Weight
from forge.interfaces.model import LayerKV, Model
from forge.interfaces.options import DenseOptions
from forge.interfaces.sampler import RowSampling, Sampled
from forge.interfaces.step import lay_out
from forge_cpu import CpuOptions
from forge_cpu.arrays import Recycled, contiguous, empty_like
from forge_cpu.machine import usable_cores
from forge_cpu.native import extension
from forge_cpu.pages import NativePages
from forge_cpu.weights import PackedWeights, pack

if TYPE_CHECKING:
    import torch

    from forge.interfaces.kv_cache import KVCache
    from forge.interfaces.scheduler import Batch

ATTENTION = frozenset({"heads", "kv_heads", "k_dim", "v_dim", "scale", "window"})
"""The fields of `AttentionSpec` that the kernels know."""

LAYER = frozenset({"attention", "rope", "norm_eps", "qkv_bias", "output_bias", "mlp_bias", "qk_norm"})
"""The fields of `LayerSpec` that the whole-model call knows."""

LOUD = 0.06
"""With `activation_bits = "auto"`, blocks of activations keep 16 bits whose rounding step at 8 bits exceeds this share
of their row's mean magnitude: few of a typical row, but those that most of the rounding error comes from."""


def make_backend(device_index: int = 0, threads: int | None = None, options: CpuOptions | None = None) -> Backend:
    """The native backend, or the plain one where the kernels weren't built. Errors: `ConfigError`."""
    native = extension()
    if native is None:
        from forge_cpu.fallback import FallbackBackend

        return FallbackBackend(device_index, threads, options)
    return CpuBackend(native, device_index, threads, options)


class CpuBackend(Backend):
    """Overrides weights, pages, and everything that takes time. One thread at a time calls it."""

    invariance: ClassVar[Literal["bitwise", "approximate"]] = "bitwise"

    def __init__(
        self, native: ModuleType, device_index: int = 0, threads: int | None = None, options: CpuOptions | None = None
    ) -> None:
        super().__init__(device_index, 1, DenseOptions())  # torch's own threads would only disturb
        self.options = options = options or CpuOptions()
        sets = native.isas()
        isa = sets[0] if options.isa == "auto" else options.isa
        if isa not in sets:
            raise ConfigError(f"backend.options.isa: {isa} can't run here; there are {', '.join(sets)}", param="isa")
        self._native = native
        bits, loud = (16, LOUD) if options.activation_bits == "auto" else (options.activation_bits, 0.0)
        self._pool = native.Pool(threads or usable_cores(), isa, bits, loud)
        self._kv_format = options.kv_format
        self._models: WeakKeyDictionary[Model, Any] = WeakKeyDictionary()
        self._logits = Recycled()
        """For the products of whole models' rows: some megabytes, the same in every step."""
        self._pages: tuple[tuple[Pages, ...], list[Any] | None] = (), []
        """The pages of the last step, and what `_native_pages` said of them."""

    # -- weights and pages

    def memory(self) -> tuple[int, int]:
        return host_memory()

    def prepare(self, parts: Sequence[Weight], uses: Collection[Use]) -> Prepared:
        return pack(self._native, self._pool, parts)

    def vector(self, parts: Sequence[Weight]) -> Vector:
        return np.concatenate([part.dequantize() for part in parts])

    def kv_bytes(self, layer: LayerKV) -> int:
        group = 16
        nbytes = self._native.Pages(1, group, layer.kv_heads, layer.k_dim, layer.v_dim, self._kv_format).nbytes
        return -(-int(nbytes) // group)

    def kv_pages(self, layer: LayerKV, num_blocks: int, block_size: int) -> Pages:
        pages = self._native.Pages(num_blocks, block_size, layer.kv_heads, layer.k_dim, layer.v_dim, self._kv_format)
        return NativePages(self._pool, pages)

    def stage(self, batch: Batch, kv: KVCache, pages: tuple[Pages, ...]) -> StepInputs:
        return lay_out(batch, kv, pages)

    # -- operations

    def linear(self, x: torch.Tensor, weights: Prepared, bias: Vector | None = None) -> torch.Tensor:
        if not isinstance(weights, PackedWeights):
            return super().linear(x, weights, bias)
        shape = len(x), weights.out_features
        out = self._logits.empty(*shape) if isinstance(x, np.ndarray) else empty_like(x, *shape)
        self._native.linear(self._pool, contiguous(x), weights.matrix, bias, out)
        return out

    def rms_norm(self, x: torch.Tensor, weight: Vector, eps: float) -> torch.Tensor:
        rows = contiguous(x.reshape(-1, x.shape[-1]))
        out = empty_like(x, *rows.shape)
        self._native.rms_norm(self._pool, rows, weight, eps, out)
        return out.reshape(x.shape)

    def rope(self, x: torch.Tensor, positions: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
        out = empty_like(x, *x.shape)
        frequencies = np.array(spec.inverse_frequencies, dtype=np.float64)
        self._native.rope(self._pool, contiguous(x), positions, frequencies, spec.interleaved, spec.magnitude, out)
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        out = empty_like(gate_up, len(gate_up), gate_up.shape[1] // 2)
        self._native.silu_mul(self._pool, contiguous(gate_up), out)
        return out

    def attention(self, q: torch.Tensor, pages: Pages, inputs: StepInputs, spec: AttentionSpec) -> torch.Tensor:
        if not isinstance(pages, NativePages) or not serves(spec, ATTENTION):
            return super().attention(q, pages, inputs, spec)
        out = empty_like(q, len(q), spec.heads, spec.v_dim)
        self._native.attention(
            self._pool, contiguous(q), pages.pages, inputs.span_starts, inputs.lengths, inputs.block_table,
            spec.scale, spec.window or 0, out,
        )  # fmt: skip
        return out

    def forward(self, model: Model, inputs: StepInputs) -> torch.Tensor:
        native_model, pages = self._model(model), self._native_pages(inputs.pages)
        if native_model is None or pages is None:
            return super().forward(model, inputs.tensors(self.device))
        stack = model.stack()
        assert stack is not None
        if stack.head is None:  # what follows isn't ours alone: it gets the tensors that it expects
            inputs = inputs.tensors(self.device)
        out = empty_like(inputs.token_ids, len(inputs.output_rows), stack.embedding.in_features)
        native_model.forward(
            self._pool, pages, inputs.token_ids, inputs.positions, inputs.slots, inputs.span_starts, inputs.lengths,
            inputs.block_table, inputs.output_rows, out,
        )  # fmt: skip
        return out

    def sample(self, logits: torch.Tensor, rows: RowSampling) -> Sampled:
        logits = contiguous(logits)
        if rows.logprobs is not None:
            logits = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
        return Sampled(*self._native.sample(self._pool, logits, *_COLUMNS(rows)))

    # -- whole models

    def _model(self, model: Model) -> Any | None:
        """The native form of a model, made when it's first seen; None for one that isn't a plain decoder stack."""
        try:
            return self._models[model]
        except KeyError:
            stack = model.stack()
            served = stack is not None and _serves_stack(stack)
            native_model = self._models[model] = self._build(stack) if stack is not None and served else None
            return native_model

    def _native_pages(self, pages: tuple[Pages, ...]) -> list[Any] | None:
        """Each layer's native pages, the same for all steps; None if some are another backend's."""
        if self._pages[0] is not pages:
            native = [page.pages for page in pages if isinstance(page, NativePages)]
            self._pages = pages, native if len(native) == len(pages) else None
        return self._pages[1]

    def _build(self, stack: DecoderStack) -> Any:
        rope = stack.specs[0].rope
        native_model = self._native.Model(
            _matrix(stack.embedding), stack.final_norm, stack.norm_eps, list(rope.inverse_frequencies),
            rope.interleaved, rope.magnitude,
        )  # fmt: skip
        for layer, spec in zip(stack.layers, stack.specs, strict=True):
            a = spec.attention
            native_model.add_layer(
                heads=a.heads, kv_heads=a.kv_heads, k_dim=a.k_dim, v_dim=a.v_dim, scale=a.scale, window=a.window or 0,
                attention_norm=layer.attention_norm, qkv=_matrix(layer.qkv), output=_matrix(layer.output),
                mlp_norm=layer.mlp_norm, gate_up=_matrix(layer.gate_up), down=_matrix(layer.down),
                qkv_bias=layer.qkv_bias, output_bias=layer.output_bias, gate_up_bias=layer.gate_up_bias,
                down_bias=layer.down_bias, q_norm=layer.q_norm, k_norm=layer.k_norm,
            )  # fmt: skip
        return native_model


_COLUMNS = attrgetter(*(field.name for field in attrs.fields(RowSampling)))
"""A slab's arrays in the order of the fields, which is also that of the native call."""


def _serves_stack(stack: DecoderStack) -> bool:
    """Whether every layer is one that the whole-model call computes, all with one rotation and one epsilon."""
    first = stack.specs[0]
    weights = [stack.embedding]
    for layer in stack.layers:
        weights += [layer.qkv, layer.output, layer.gate_up, layer.down]
    return all(isinstance(handle, PackedWeights) for handle in weights) and all(
        serves(spec, LAYER)
        and serves(spec.attention, ATTENTION)
        and (spec.rope, spec.norm_eps) == (first.rope, stack.norm_eps)
        for spec in stack.specs
    )


def _matrix(handle: Prepared) -> Any:
    assert isinstance(handle, PackedWeights)
    return handle.matrix
