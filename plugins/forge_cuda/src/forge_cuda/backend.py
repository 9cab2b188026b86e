"""The CUDA backend: fused layers in Triton kernels, quantised weights as they're stored, decode steps as CUDA graphs.

All work runs on torch's current stream of the backend's own device; torch owns the memory. Nothing here keeps state
about a device but the backend itself, so that several of them could work side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from attrs import frozen

from forge.errors import ConfigError
from forge.interfaces.backend import Backend, Pages, Prepared, StepInputs, Use
from forge.interfaces.layers import AttentionSpec, DecoderLayer, LayerSpec, RopeSpec, serves
from forge.interfaces.loader import Weight
from forge.interfaces.model import LayerKV, Model
from forge.interfaces.options import DenseOptions
from forge.interfaces.sampler import RowSampling, Sampled
from forge_cuda import CudaOptions, machine
from forge_cuda.pages import FORMATS as KV_FORMATS
from forge_cuda.pages import CudaPages, bytes_per_position
from forge_cuda.spans import SpanLists, make_lists
from forge_cuda.staging import CudaInputs, Stager
from forge_cuda.transfer import Courier
from forge_cuda.weights import CudaWeights, upload

if TYPE_CHECKING:
    from forge.interfaces.kv_cache import KVCache
    from forge.interfaces.scheduler import Batch
    from forge_cuda.dp4a import Products
    from forge_cuda.launching import Launch

ATTENTION = frozenset({"heads", "kv_heads", "k_dim", "v_dim", "scale", "window"})
"""The fields of `AttentionSpec` that the kernels know."""

LAYER = frozenset({"attention", "rope", "norm_eps", "qkv_bias", "output_bias", "mlp_bias", "qk_norm"})
"""The fields of `LayerSpec` that the fused layer knows."""

WIDEST_HEAD = 256
"""Numbers of a head that the attention kernel holds at most."""


class DeviceLost(BaseException):
    """The GPU reported a fault, after which this process can't use it any more. Not an `Exception`: no other request
    could be served either, so that the engine process ends and its supervisor starts another.
    """


@frozen
class Place:
    """Where a backend computes. multiprocessors: of the device, by which work is cut up. launch: starts kernels.

    products: dp4a kernels for few rows, or None. record: makes graphs of steps (see `forge_cuda.graphs`), or None.
    """

    device: torch.device
    multiprocessors: int
    launch: Launch
    products: Products | None = None
    record: Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]] | None = None


def make_backend(device_index: int = 0, threads: int | None = None, options: CudaOptions | None = None) -> Backend:
    """The backend on a GPU, or in the interpreter. Errors: `ConfigError` that names what is missing."""
    options = options or CudaOptions()
    if options.interpret:
        return CudaBackend(interpreted(options), options)
    found = machine.choose(device_index)
    flaw = machine.cupy_flaw(found)
    if options.decode_products == "int8" and flaw is not None:
        raise ConfigError(
            f"backend.options.decode_products: int8 products need CuPy ({flaw}):"
            f" pip install 'forge-cuda[cu{found.driver[0]}]'",
            param="decode_products",
        )
    from forge_cuda.graphs import record
    from forge_cuda.launching import launch

    device = torch.device("cuda", device_index)
    products = None
    if options.decode_products != "float" and flaw is None:
        from forge_cuda.dp4a import CupyProducts

        products = CupyProducts(device)
    recorder = partial(record, pool=torch.cuda.graph_pool_handle()) if options.graphs else None
    place = Place(device, found.multiprocessors, launch, products, recorder)
    return CudaBackend(place, options)


def interpreted(options: CudaOptions) -> Place:
    """The CPU, with Triton's interpreter."""
    if options.decode_products == "int8":
        raise ConfigError(
            "backend.options.decode_products: int8 products are CUDA C++, which isn't interpreted",
            param="decode_products",
        )
    from forge_cuda.interpreter import prepare

    try:
        prepare()
    except RuntimeError as error:
        raise ConfigError(f"backend.options.interpret: {error}", param="interpret") from error
    from forge_cuda.launching import launch

    return Place(torch.device("cpu"), multiprocessors=2, launch=launch)


class CudaBackend(Backend):
    """Overrides everything that takes time, and declines what its kernels don't know. One thread at a time calls it."""

    invariance: ClassVar[Literal["bitwise", "approximate"]] = "approximate"

    def __init__(self, place: Place, options: CudaOptions | None = None) -> None:
        super().__init__(0, 1 if place.device.type == "cpu" else None, DenseOptions())
        from forge_cuda.operations import Operations

        options = options or CudaOptions()
        self.place, self.options, self.device = place, options, place.device
        self.dtype = getattr(torch, options.dtype)
        self.kv_dtype = self.dtype if options.kv_format == "auto" else KV_FORMATS[options.kv_format]
        self._headroom = options.headroom_mib << 20
        self.operations = Operations(place, self.dtype)
        self._courier = Courier(self.device)
        self._stager = Stager(self.device, padded=place.record is not None)
        self._lost = False
        self._angles: tuple[tuple[torch.Tensor, RopeSpec], tuple[torch.Tensor, torch.Tensor]] | None = None
        from forge_cuda.graphs import Graphs

        self._graphs = Graphs(place.record)

    @contextmanager
    def _here(self, what: str) -> Iterator[None]:
        """Work on this backend's device, without gradients.

        Errors: `ConfigError` for want of memory, with figures; `DeviceLost` for a fault of the device.
        """
        with torch.no_grad():  # not inference mode: pages may be written to outside
            if self.device.type != "cuda":
                yield
                return
            with torch.cuda.device(self.device):
                try:
                    yield
                except torch.cuda.OutOfMemoryError as error:
                    free, total = torch.cuda.mem_get_info(self.device)
                    raise ConfigError(
                        f"{torch.cuda.get_device_name(self.device)} has too little memory for {what}:"
                        f" {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
                        " (see kv_cache.options.memory_fraction and"
                        " backend.options.headroom_mib)"
                    ) from error
                except torch.AcceleratorError as error:
                    self._lost = True
                    reason = str(error).partition("\n")[0]
                    raise DeviceLost(
                        f"GPU {self.device.index} failed at {what}: {reason} (to find out more:"
                        " compute-sanitizer python -m forge_cuda.selftest)"
                    ) from error

    # -- memory, weights, pages

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes; free without the head-room that activations, graphs and libraries need."""
        if self.device.type != "cuda":
            return super().memory()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        return max(0, int(free) - self._headroom), int(total)

    def prepare(self, parts: Sequence[Weight], uses: Collection[Use]) -> Prepared:
        with self._here(f"the weights {', '.join(part.name for part in parts)}"):
            return upload(parts, self.device, self.dtype)

    def kv_bytes(self, layer: LayerKV) -> int:
        return bytes_per_position(layer, self.kv_dtype)

    def kv_pages(self, layer: LayerKV, num_blocks: int, block_size: int) -> Pages:
        with self._here("the pages of the KV cache"):
            return CudaPages(layer, num_blocks, block_size, self.kv_dtype, self.device)

    def stage(self, batch: Batch, kv: KVCache, pages: tuple[Pages, ...]) -> StepInputs:
        with self._here("a step's inputs"):
            return self._stager.stage(batch, kv, pages)

    # -- fine operations

    def embedding(self, table: Prepared, token_ids: torch.Tensor) -> torch.Tensor:
        if not isinstance(table, CudaWeights) or len(table.segments) != 1:
            return super().embedding(table, token_ids)
        with self._here("embeddings"):
            return self.operations.embed(token_ids, table.segments[0])

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        with self._here("a norm"):
            flat = x.reshape(-1, x.shape[-1]).contiguous()
            return self.operations.rms_norm(flat, weight, eps, torch.float32)[1].view(x.shape)

    def linear(self, x: torch.Tensor, weights: Prepared, bias: torch.Tensor | None = None) -> torch.Tensor:
        if not isinstance(weights, CudaWeights):
            return super().linear(x, weights, bias)
        with self._here("a product"):
            return self.operations.project(x, weights, bias, torch.float32)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        with self._here("a product"):
            return self.operations.silu_mul(gate_up.contiguous(), torch.float32)

    def attention(self, q: torch.Tensor, pages: Pages, inputs: StepInputs, spec: AttentionSpec) -> torch.Tensor:
        if not isinstance(pages, CudaPages) or not _serves_attention(spec):
            return super().attention(q, pages, inputs, spec)
        with self._here("attention"):
            q = q.contiguous().to(self.dtype)
            return self.operations.attend(q, pages, inputs.block_table, self._spans(inputs), spec).float()

    # -- coarse operations

    def attention_block(
        self, x: torch.Tensor, layer: DecoderLayer, spec: LayerSpec, inputs: StepInputs
    ) -> torch.Tensor:
        if not self._serves_layer(layer, spec, inputs):
            return super().attention_block(x, layer, spec, inputs)
        with self._here("attention"):
            _, delta = self._attend(x.contiguous(), None, layer, spec, inputs)
            return x + delta

    def mlp_block(self, x: torch.Tensor, layer: DecoderLayer, spec: LayerSpec) -> torch.Tensor:
        if not serves(spec, LAYER) or not _ours(layer.gate_up, layer.down):
            return super().mlp_block(x, layer, spec)
        with self._here("an MLP"):
            _, delta = self.operations.mlp(x.contiguous(), None, layer, spec)
            return x + delta

    def decoder_layer(self, x: torch.Tensor, layer: DecoderLayer, spec: LayerSpec, inputs: StepInputs) -> torch.Tensor:
        if not self._serves_layer(layer, spec, inputs):
            return super().decoder_layer(x, layer, spec, inputs)
        with self._here("a layer"):
            x, delta = self._attend(x.contiguous(), None, layer, spec, inputs)
            x, delta = self.operations.mlp(x, delta, layer, spec)
            return x + delta

    def forward(self, model: Model, inputs: StepInputs) -> torch.Tensor:
        if isinstance(inputs, CudaInputs):
            self._stager.check(inputs)
        if not self._serves_model(model, inputs):
            return super().forward(model, inputs)
        with self._here("a step"):
            padded = inputs.padded if isinstance(inputs, CudaInputs) else None
            if padded is None:
                return self._run(model, inputs)
            hidden = self._graphs.run((id(model), padded.key), lambda: self._run(model, padded))
            return hidden[: len(inputs.output_rows)]

    def sample(self, logits: torch.Tensor, rows: RowSampling) -> Sampled:
        from forge_cuda.sampling import sample

        with self._here("sampling"):
            return sample(self.place.launch, self._courier, logits, rows)

    def close(self) -> None:
        if self._lost:  # nothing there answers any more
            return
        self._graphs.clear()
        super().close()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # -- whole models

    def _run(self, model: Model, inputs: StepInputs) -> torch.Tensor:
        """The model's stack; each residual sum is left to the norm that follows."""
        stack = model.stack()
        assert stack is not None
        self._angles = None  # so that a recorded step computes them itself
        x, delta = self.embedding(stack.embedding, inputs.token_ids), None
        for layer, spec in zip(stack.layers, stack.specs, strict=True):
            x, delta = self._attend(x, delta, layer, spec, inputs)
            x, delta = self.operations.mlp(x, delta, layer, spec)
        return self.operations.rms_norm(x, stack.final_norm, stack.norm_eps, torch.float32, delta, inputs.output_rows)[
            1
        ]

    def _attend(
        self, x: torch.Tensor, delta: torch.Tensor | None, layer: DecoderLayer, spec: LayerSpec, inputs: StepInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pages = inputs.pages[layer.index]
        assert isinstance(pages, CudaPages)
        angles = self._rotation(inputs, spec.rope)
        return self.operations.attention_block(
            x, delta, layer, spec, angles, inputs.slots, pages, inputs.block_table, self._spans(inputs)
        )

    def _spans(self, inputs: StepInputs) -> SpanLists:
        """The step's lists on the device; made anew if the inputs were changed since they were staged."""
        lists = inputs.lists if isinstance(inputs, CudaInputs) else None
        if lists is not None and lists.source[0] is inputs.span_starts and lists.source[1] is inputs.lengths:
            return lists
        return make_lists(inputs.span_starts, inputs.lengths, self.device)

    def _rotation(self, inputs: StepInputs, spec: RopeSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of a step's angles, made once for all layers that share a rotation."""
        known = self._angles
        if known is None or known[0][0] is not inputs.positions or known[0][1] is not spec:
            self._angles = known = ((inputs.positions, spec), self.operations.angles(inputs.positions, spec))
        return known[1]

    def _serves_layer(self, layer: DecoderLayer, spec: LayerSpec, inputs: StepInputs) -> bool:
        return (
            serves(spec, LAYER)
            and _serves_attention(spec.attention)
            and isinstance(inputs.pages[layer.index], CudaPages)
            and _ours(layer.qkv, layer.output, layer.gate_up, layer.down)
        )

    def _serves_model(self, model: Model, inputs: StepInputs) -> bool:
        stack = model.stack()
        if stack is None or not isinstance(stack.embedding, CudaWeights) or len(stack.embedding.segments) != 1:
            return False
        return all(self._serves_layer(layer, spec, inputs) for layer, spec in zip(stack.layers, stack.specs))


def _ours(*handles: Prepared) -> bool:
    return all(isinstance(handle, CudaWeights) for handle in handles)


def _serves_attention(spec: AttentionSpec) -> bool:
    return serves(spec, ATTENTION) and max(spec.k_dim, spec.v_dim) <= WIDEST_HEAD
