"""The backend: where tensors live and who multiplies them. A concrete class in plain torch, and the reference.

Coarse operations (`forward`, `decoder_layer`, `attention_block`, `mlp_block`, `sample`) are a few lines each that call
finer ones (`linear`, `attention`, `rms_norm`, …). A plugin overrides the level that it can make faster and answers
``super().op(...)`` to what it doesn't serve. The base class reads weights and cache pages only through their own
methods (`Prepared.rows`, `Pages.read`), so that it works, slowly, on any plugin's handles.

Activations are float32 ``[rows, …]``: the rows of all spans of the step, one after the other. Torch is imported when
something here first computes: a backend that overrides all that its models need runs without it.
"""

from __future__ import annotations

import gc
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import psutil

from forge.errors import ConfigError
from forge.interfaces.cost import StepCost
from forge.interfaces.deferred import Deferred
from forge.interfaces.drawing import adjust, draw, most_probable
from forge.interfaces.layers import AttentionSpec, DecoderLayer, LayerSpec, RopeSpec
from forge.interfaces.options import DenseOptions
from forge.interfaces.sampler import RowSampling, Sampled
from forge.interfaces.step import StepInputs, lay_out

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F

    from forge.interfaces.kv_cache import KVCache
    from forge.interfaces.loader import Weight
    from forge.interfaces.model import LayerKV, Model
    from forge.interfaces.scheduler import Batch
else:
    torch, F = Deferred("torch"), Deferred("torch.nn.functional")

__all__ = ["Backend", "DensePages", "DenseWeights", "Pages", "Prepared", "StepInputs", "Use", "Vector", "slabs"]

Vector: TypeAlias = Any
"""A one-dimensional weight (norm, bias) as `Backend.vector` makes it: a float32 tensor, or, from a backend that
computes on the host without torch, a NumPy array. Every backend's operations take both; `Backend.tensor` makes one a
tensor.
"""

Use = Literal["linear", "embedding"]

DEQUANTIZE_BYTES = 8 << 20
"""Weights become floats in pieces of about this size, so that loading needs little memory beyond the result."""

QUERY_ROWS = 512
"""Attention takes so many queries at a time, so that its mask stays small."""


class Prepared(ABC):
    """A weight matrix in the backend's own form: one or more checkpoint tensors, stacked along the output.

    out_features: rows in all. in_features: columns. nbytes: memory it holds.
    """

    out_features: int
    in_features: int
    nbytes: int

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` as float32 ``[stop - start, in_features]``, dequantised from the packed form."""


class Pages(ABC):
    """Keys and values of one layer, in blocks. nbytes: memory it holds."""

    num_blocks: int
    block_size: int
    nbytes: int

    @abstractmethod
    def write(self, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k ``[n, kv_heads, k_dim]`` and v ``[n, kv_heads, v_dim]`` at slots, int64 ``[n]``."""

    @abstractmethod
    def read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The blocks, int64 ``[n]``, as stored, in float32: k ``[n * block_size, kv_heads, k_dim]`` and v alike."""


# ------------------------------------------------------------------------------------------------------- plain handles


class DenseWeights(Prepared):
    """The base class's own handle: one float tensor ``[out_features, in_features]`` on the device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.out_features, self.in_features = tensor.shape
        self.nbytes = tensor.nbytes

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.tensor[start:stop].float()


class DensePages(Pages):
    """The base class's own pages: two tensors ``[num_blocks, block_size, kv_heads, dim]``."""

    def __init__(
        self, layer: LayerKV, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (num_blocks, block_size, layer.kv_heads)
        self.k = _zeros((*shape, layer.k_dim), dtype, device)
        self.v = _zeros((*shape, layer.v_dim), dtype, device)
        self.num_blocks, self.block_size = num_blocks, block_size
        self.nbytes = self.k.nbytes + self.v.nbytes

    def write(self, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        self.k.view(-1, *self.k.shape[2:])[slots] = k.to(self.k.dtype)
        self.v.view(-1, *self.v.shape[2:])[slots] = v.to(self.v.dtype)

    def read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(blocks) == 1:  # the naive cache: a view, not a copy of a block as long as the context
            k, v = self.k[int(blocks[0])], self.v[int(blocks[0])]
        else:
            k, v = self.k[blocks].flatten(0, 1), self.v[blocks].flatten(0, 1)
        return k.float(), v.float()


# -------------------------------------------------------------------------------------------------------------- backend


class Backend:
    """The plain torch backend. The factory is called with ``(device_index, threads)``, plus ``options=`` where the
    component has some.

    invariance: ``"bitwise"`` if a row's result never depends on what else is in the batch, on chunking or on prefix
    reuse; ``"approximate"`` if only up to rounding, as here: torch's products depend on the number of rows.
    """

    invariance: ClassVar[Literal["bitwise", "approximate"]] = "approximate"

    def __init__(self, device_index: int = 0, threads: int | None = None, options: DenseOptions | None = None) -> None:
        options = options or DenseOptions()
        if options.device == "cpu" and device_index != 0:
            raise ConfigError(f"backend.device: {device_index} is asked for, and a CPU is device 0", param="device")
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("backend.options.device: torch can't use CUDA here (see `forge doctor`)", param="device")
        self._device_index, self._torch_threads, self._dense = device_index, threads, options

    @cached_property
    def device(self) -> torch.device:
        """Where tensors live. Like the other two, made when it's first asked for: a backend that never needs torch
        needn't import it.
        """
        if self._torch_threads is not None:
            torch.set_num_threads(self._torch_threads)
        name = self._dense.device
        return torch.device(name, self._device_index if name != "cpu" else None)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the plain weights."""
        return getattr(torch, self._dense.dtype)

    @cached_property
    def kv_dtype(self) -> torch.dtype:
        """Of the plain pages."""
        return self.dtype if self._dense.kv_dtype == "auto" else getattr(torch, self._dense.kv_dtype)

    # -- memory, weights, pages

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device's memory; on a CPU what the machine and this process's cgroup leave."""
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return int(free), int(total)
        return host_memory()

    def cost(self) -> StepCost:
        """What steps on this backend take, for policies; new for each engine. Here: learned from the steps that run."""
        return StepCost()

    def prepare(self, parts: Seq[Weight], uses: Collection[Use]) -> Prepared:
        """Take over the weights ``[out_i, in]``, stacked along the output, for the given uses.

        A tensor that serves both as embedding and as output layer is prepared once, with both uses. Pages of the
        mapped file are released tensor by tensor, so that the model is never in memory twice.
        """
        out_features, in_features = sum(part.shape[0] for part in parts), parts[0].shape[1]
        tensor = torch.empty(out_features, in_features, dtype=self.dtype, device=self.device)
        row = 0
        for part in parts:
            for values in _dequantized(part):
                tensor[row : row + len(values)] = values.to(self.device, self.dtype)
                row += len(values)
            part.release()
        return DenseWeights(tensor)

    def vector(self, parts: Seq[Weight]) -> Vector:
        """One-dimensional weights (norms, biases), one after the other, as float32, for this backend's operations."""
        return torch.cat([torch.from_numpy(part.dequantize()) for part in parts]).to(self.device)

    def tensor(self, vector: Vector) -> torch.Tensor:
        """A vector as a tensor on the device, for what isn't an operation of the backend."""
        return torch.from_numpy(vector).to(self.device) if isinstance(vector, np.ndarray) else vector

    def kv_bytes(self, layer: LayerKV) -> int:
        """Bytes that one position of this layer takes in the pages."""
        return int(layer.kv_heads * (layer.k_dim + layer.v_dim) * self.kv_dtype.itemsize)

    def kv_pages(self, layer: LayerKV, num_blocks: int, block_size: int) -> Pages:
        """Pages for one layer, zeroed (untouched memory isn't resident until it's written)."""
        return DensePages(layer, num_blocks, block_size, self.kv_dtype, self.device)

    def stage(self, batch: Batch, kv: KVCache, pages: tuple[Pages, ...]) -> StepInputs:
        """Lay the batch out as flat arrays on the device."""
        return lay_out(batch, kv, pages).tensors(self.device)

    # -- fine operations

    def embedding(self, table: Prepared, token_ids: torch.Tensor) -> torch.Tensor:
        """Rows of the table, ``[n, in_features]``, for ids ``[n]``."""
        if isinstance(table, DenseWeights):
            return F.embedding(token_ids, table.tensor).float()
        return torch.cat([table.rows(token, token + 1) for token in token_ids.tolist()])

    def rms_norm(self, x: torch.Tensor, weight: Vector, eps: float) -> torch.Tensor:
        """Root-mean-square norm over the last dimension (Zhang, Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self.tensor(weight)

    def linear(self, x: torch.Tensor, weights: Prepared, bias: Vector | None = None) -> torch.Tensor:
        """``x @ weights.T + bias``: ``[n, in]`` → ``[n, out]``, float32."""
        if isinstance(weights, DenseWeights):
            y = F.linear(x.to(weights.tensor.dtype), weights.tensor).float()
        else:
            step = max(1, DEQUANTIZE_BYTES // (4 * weights.in_features))
            starts = range(0, weights.out_features, step)
            y = torch.cat([x @ weights.rows(row, min(row + step, weights.out_features)).T for row in starts], dim=1)
        return y if bias is None else y + self.tensor(bias)

    def rope(self, x: torch.Tensor, positions: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
        """Rotate the first ``spec.dim`` numbers of each head: ``[n, heads, dim]`` at positions ``[n]``."""
        frequencies = torch.tensor(spec.inverse_frequencies, dtype=torch.float32, device=x.device)
        angles = positions.to(torch.float32)[:, None] * frequencies
        cos = (angles.cos() * spec.magnitude)[:, None]
        sin = (angles.sin() * spec.magnitude)[:, None]
        rotated, rest = x[..., : spec.dim], x[..., spec.dim :]
        if spec.interleaved:
            a, b = rotated[..., 0::2], rotated[..., 1::2]
            rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = rotated.chunk(2, dim=-1)
            rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return rotated if rest.shape[-1] == 0 else torch.cat((rotated, rest), dim=-1)

    def attention(self, q: torch.Tensor, pages: Pages, inputs: StepInputs, spec: AttentionSpec) -> torch.Tensor:
        """Causal attention of each row on its own sequence, keys and values only as they're stored in the pages.

        q: ``[n, heads, k_dim]`` → ``[n, heads, v_dim]``.
        """
        out = q.new_empty(len(q), spec.heads, spec.v_dim)
        for span, (start, stop) in enumerate(pairwise(inputs.span_starts.tolist())):
            length = int(inputs.lengths[span])
            k, v = pages.read(inputs.block_table[span, : -(-length // pages.block_size)])
            out[start:stop] = self.span_attention(q[start:stop], k[:length], v[:length], spec)
        return out

    def span_attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """The last ``len(q)`` positions of one sequence attend to all of its keys up to their own.

        q ``[rows, heads, k_dim]``, k ``[length, kv_heads, k_dim]``, v alike → ``[rows, heads, v_dim]``.
        """
        length, first = len(k), len(k) - len(q)
        keys, values = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        parts = []
        for rows in q.split(QUERY_ROWS):
            query = torch.arange(first, first + len(rows), device=q.device)[:, None]
            key = torch.arange(length, device=q.device)
            visible = key <= query
            if spec.window is not None:
                visible &= key > query - spec.window
            attended = F.scaled_dot_product_attention(
                rows.transpose(0, 1)[None],
                keys,
                values,
                attn_mask=visible,
                scale=spec.scale,
                enable_gqa=spec.heads != spec.kv_heads,
            )
            parts.append(attended[0].transpose(0, 1))
            first += len(rows)
        return torch.cat(parts)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """SwiGLU's product ``silu(gate) * up``: ``[n, 2 * f]`` → ``[n, f]`` (Shazeer, 2020)."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    # -- coarse operations

    def attention_block(
        self, x: torch.Tensor, layer: DecoderLayer, spec: LayerSpec, inputs: StepInputs
    ) -> torch.Tensor:
        """``x + output(attention(rope(qkv(norm(x)))))``; writes this step's keys and values into the pages first."""
        a = spec.attention
        qkv = self.linear(self.rms_norm(x, layer.attention_norm, spec.norm_eps), layer.qkv, layer.qkv_bias)
        q, k, v = qkv.split((a.heads * a.k_dim, a.kv_heads * a.k_dim, a.kv_heads * a.v_dim), dim=-1)
        q, k = q.unflatten(-1, (a.heads, a.k_dim)), k.unflatten(-1, (a.kv_heads, a.k_dim))
        if layer.q_norm is not None and layer.k_norm is not None:
            q = self.rms_norm(q, layer.q_norm, spec.norm_eps)
            k = self.rms_norm(k, layer.k_norm, spec.norm_eps)
        q, k = self.rope(q, inputs.positions, spec.rope), self.rope(k, inputs.positions, spec.rope)
        pages = inputs.pages[layer.index]
        pages.write(inputs.slots, k, v.unflatten(-1, (a.kv_heads, a.v_dim)))
        attended = self.attention(q, pages, inputs, a)
        return x + self.linear(attended.flatten(1), layer.output, layer.output_bias)

    def mlp_block(self, x: torch.Tensor, layer: DecoderLayer, spec: LayerSpec) -> torch.Tensor:
        """``x + down(silu(gate(norm(x))) * up(norm(x)))``."""
        gate_up = self.linear(self.rms_norm(x, layer.mlp_norm, spec.norm_eps), layer.gate_up, layer.gate_up_bias)
        return x + self.linear(self.silu_mul(gate_up), layer.down, layer.down_bias)

    def decoder_layer(self, x: torch.Tensor, layer: DecoderLayer, spec: LayerSpec, inputs: StepInputs) -> torch.Tensor:
        """One pre-norm transformer layer: ``[n, hidden]`` → ``[n, hidden]``."""
        return self.mlp_block(self.attention_block(x, layer, spec, inputs), layer, spec)

    def forward(self, model: Model, inputs: StepInputs) -> torch.Tensor:
        """Run the model: final hidden states of the output rows, ``[m, hidden]``.

        They are tensors, but a backend whose `stage` makes NumPy arrays may return one where the model's stack has a
        `head`: it then goes, in slabs, through its own `linear` to its own `sample` and nowhere else.
        """
        with torch.inference_mode():
            return model.forward(inputs)

    def sample(self, logits: torch.Tensor, rows: RowSampling) -> Sampled:
        """Draw one token a row from float32 logits ``[R, vocabulary]``, which may be overwritten.

        Order: log-probabilities → bias → penalties → mask and bans → temperature → top-k → top-p → min-p → draw by
        inverting the distribution, in the order of ids, at `uniforms`. Errors: `ValueError` if a row that is drawn has
        no finite largest logit, or no token left.
        """
        with torch.inference_mode():
            logprobs = None if rows.logprobs is None else logits.log_softmax(-1)
            adjusted = adjust(logits if logprobs is None else logits.clone(), rows)
            drawing = np.ones(len(logits), bool) if rows.targets is None else rows.targets < 0
            highest = adjusted.amax(-1).cpu().numpy()
            if not np.isfinite(highest[drawing]).all():
                raise ValueError("the logits of a row are not finite, or no token is allowed")
            tokens = adjusted.argmax(-1)
            drawn = np.flatnonzero((rows.temperature > 0) & drawing)
            if len(drawn):
                at = torch.from_numpy(drawn).to(logits.device)
                tokens[at] = draw(adjusted[at], rows, drawn)
            if rows.targets is not None:
                targets = torch.from_numpy(rows.targets).to(logits.device)
                tokens = torch.where(targets >= 0, targets, tokens)
            if logprobs is None or rows.logprobs is None:
                return Sampled(tokens.cpu().numpy())
            ids = most_probable(logprobs, rows.logprobs)
            return Sampled(
                tokens.cpu().numpy(),
                logprobs.gather(1, tokens[:, None])[:, 0].cpu().numpy(),
                ids.cpu().numpy(),
                logprobs.gather(1, ids).cpu().numpy(),
            )

    def close(self) -> None:
        """Free what the device holds; the engine is over."""
        gc.collect()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that take no memory on the host until they're written: torch would touch them all, calloc doesn't."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def _dequantized(weight: Weight) -> Iterator[torch.Tensor]:
    """A matrix as float32, a few rows at a time."""
    step = max(1, DEQUANTIZE_BYTES // (4 * weight.shape[1]))
    for row in range(0, weight.shape[0], step):
        yield torch.from_numpy(weight.dequantize(row, min(row + step, weight.shape[0])))


def slabs(hidden: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
    """Split ``[n, hidden]`` into pieces of at most `rows` rows; none for n = 0."""
    for start in range(0, len(hidden), rows):
        yield hidden[start : start + rows]


def host_memory() -> tuple[int, int]:
    """(free, total) bytes of the machine's memory, as far as this process's cgroup leaves them."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    try:  # https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free, total
    return max(0, min(free, limit - used)), min(total, limit)
