"""Cases for whole steps: a small model's prompt and decodes, padded and recorded as they're served, against the same
layers computed operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from forge.interfaces.backend import Backend, Pages, StepInputs
from forge.interfaces.kv_cache import CacheShape
from forge.interfaces.layers import DecoderLayer, DecoderStack
from forge.interfaces.loader import Checkpoint
from forge.interfaces.model import LayerKV, Model
from forge.interfaces.scheduler import Batch, Span
from forge.testing.workbench import FFN, HIDDEN, SPEC, ArrayWeight, Workbench
from forge_cuda.backend import CudaBackend
from forge_cuda.testing.cases import Case

VOCABULARY, BLOCK, LAYERS = 96, 4, 2
ENCODINGS = {"qkv": "Q8_0", "output": "F16", "gate_up": "Q4_0", "down": "BF16"}

STEPS = (
    ((0, 0, 8), (1, 0, 11), (2, 0, 5)),
    ((0, 8, 1), (1, 11, 1), (2, 5, 1)),
    ((0, 9, 1), (1, 12, 1), (2, 6, 1)),
    ((2, 7, 1), (0, 10, 1), (1, 13, 1)),
    ((1, 14, 1), (0, 11, 1)),
    ((0, 12, 1), (1, 15, 1)),
    ((1, 16, 1), (0, 13, 1), (2, 8, 1)),
)
"""Spans (sequence, start, length): a prompt, then decodes of three, two, and three again, each size more than twice."""


def step_cases() -> Iterator[Case]:
    """All of them."""
    yield Case("steps, decodes recorded and padded", _steps, 10)


class TinyModel(Model):
    """Random layers with weights in several encodings. coarse: whether a layer is one operation of the backend."""

    vocab_size, context_length = VOCABULARY, 64

    def __init__(self, backend: Backend, *, coarse: bool = True) -> None:
        bench = Workbench()
        self.backend, self.coarse = backend, coarse
        self._stack = DecoderStack(
            embedding=backend.prepare([bench.weights(VOCABULARY, HIDDEN, "F16", 99)], {"linear", "embedding"}),
            layers=tuple(_layer(bench, backend, index) for index in range(LAYERS)),
            specs=(SPEC,) * LAYERS,
            final_norm=backend.vector([ArrayWeight("n", np.linspace(0.5, 1.5, HIDDEN, dtype=np.float32))]),
            norm_eps=SPEC.norm_eps,
        )

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> tuple[Any, Mapping[str, tuple[int, ...]]]:
        raise ValueError("this model has no checkpoint")

    def kv_spec(self) -> tuple[LayerKV, ...]:
        a = SPEC.attention
        return (LayerKV(a.kv_heads, a.k_dim, a.v_dim),) * LAYERS

    def stack(self) -> DecoderStack | None:
        return self._stack if self.coarse else None

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        stack, backend = self._stack, self.backend
        x = backend.embedding(stack.embedding, inputs.token_ids)
        for layer, spec in zip(stack.layers, stack.specs, strict=True):
            if self.coarse:
                x = backend.decoder_layer(x, layer, spec, inputs)
            else:
                x = Backend.mlp_block(backend, Backend.attention_block(backend, x, layer, spec, inputs), layer, spec)
        return backend.rms_norm(x[inputs.output_rows], stack.final_norm, stack.norm_eps)

    def logits(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        yield self.backend.linear(hidden, self._stack.embedding)


def _layer(bench: Workbench, backend: Backend, index: int) -> DecoderLayer:
    """One of the workbench's layers with its matrices in the encodings above."""
    a, seed = SPEC.attention, 100 * index
    q, kv = a.heads * a.k_dim, a.kv_heads * a.k_dim

    def matrix(name: str, columns: int, *rows: int) -> Any:
        parts = [bench.weights(count, columns, ENCODINGS[name], seed + 7 * i + columns) for i, count in enumerate(rows)]
        return backend.prepare(parts, {"linear"})

    return evolve(
        bench.layer(backend, SPEC, index),
        qkv=matrix("qkv", HIDDEN, q, kv, kv),
        output=matrix("output", q, HIDDEN),
        gate_up=matrix("gate_up", HIDDEN, FFN, FFN),
        down=matrix("down", FFN, HIDDEN),
    )


@frozen
class Sequence:
    """What a step needs to know of a sequence."""

    id: int
    tokens: list[int]
    prompt_len: int = 1
    prompt_logprobs: bool = False


class Run:
    """Sequences of a model with pages of their own."""

    def __init__(self, model: TinyModel, lengths: tuple[int, ...]) -> None:
        self.model, self.backend = model, model.backend
        rng = np.random.default_rng(11)
        self.tokens = [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]
        needed = [-(-length // BLOCK) for length in lengths]
        blocks = rng.permutation(sum(needed)).tolist()
        self.tables = [[blocks.pop() for _ in range(count)] for count in needed]
        self.shape = CacheShape(sum(needed), BLOCK)
        self.pages: tuple[Pages, ...] = tuple(
            self.backend.kv_pages(layer, self.shape.num_blocks, BLOCK) for layer in model.kv_spec()
        )

    def table(self, seq: Sequence) -> list[int]:
        """What `Backend.stage` asks a KV cache for."""
        return self.tables[seq.id]

    def stage(self, *spans: tuple[int, int, int]) -> StepInputs:
        """Spans that each end their sequence so far: their last rows are wanted."""
        kv: Any = self
        staged: Any = [(Sequence(i, self.tokens[i][: start + length]), start, length) for i, start, length in spans]
        return self.backend.stage(Batch(tuple(Span(*span) for span in staged)), kv, self.pages)

    def step(self, *spans: tuple[int, int, int]) -> torch.Tensor:
        """Hidden states of the spans' last rows."""
        return self.backend.forward(self.model, self.stage(*spans))


def _steps(backend: CudaBackend) -> tuple[torch.Tensor, torch.Tensor]:
    plain = CudaBackend(evolve(backend.place, record=None, products=None), backend.options)
    runs = [Run(TinyModel(b, coarse=b is backend), (14, 17, 9)) for b in (backend, plain)]
    found, wanted = ([run.step(*spans).clone() for spans in STEPS] for run in runs)
    return torch.cat(found), torch.cat(wanted)
