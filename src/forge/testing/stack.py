"""The part of the backend kit that is about whole models: `Backend.forward` on stacks of decoder layers.

Compared with the plain backend on the plugin's own handles; and with itself, in other batches and other chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen

from forge.interfaces.backend import Backend, Pages, StepInputs
from forge.interfaces.kv_cache import CacheShape
from forge.interfaces.layers import DecoderStack, LayerSpec
from forge.interfaces.loader import Checkpoint
from forge.interfaces.model import LayerKV, Model
from forge.interfaces.scheduler import Batch, Span
from forge.testing.sampling import rows
from forge.testing.workbench import ATTENTION, HIDDEN, ROPE, SPEC, ArrayWeight, Workbench

VOCABULARY = 96
BLOCK = 4

STACKS = {
    "plain": (SPEC, SPEC),
    "biases": (evolve(SPEC, qkv_bias=True), evolve(SPEC, qkv_bias=True, output_bias=True, mlp_bias=True)),
    "windows": (SPEC, evolve(SPEC, attention=evolve(ATTENTION, window=6))),
    "qk norm": (evolve(SPEC, qk_norm=True),),
    "interleaved": (evolve(SPEC, rope=evolve(ROPE, interleaved=True)),),
}
"""Layers of models that a backend may run in one call."""


class StackModel(Model):
    """A model that is its stack and nothing else."""

    vocab_size = VOCABULARY
    context_length = 4096

    def __init__(self, stack: DecoderStack, backend: Backend) -> None:
        self._stack, self.backend = stack, backend

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> tuple[Any, Mapping[str, tuple[int, ...]]]:
        raise ValueError("a stack has no checkpoint")

    def kv_spec(self) -> tuple[LayerKV, ...]:
        attentions = [spec.attention for spec in self._stack.specs]
        return tuple(LayerKV(a.kv_heads, a.k_dim, a.v_dim, window=a.window) for a in attentions)

    def stack(self) -> DecoderStack:
        return self._stack

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        stack, backend = self._stack, self.backend
        x = backend.embedding(stack.embedding, inputs.token_ids)
        for layer, spec in zip(stack.layers, stack.specs, strict=True):
            x = backend.decoder_layer(x, layer, spec, inputs)
        return backend.rms_norm(x[inputs.output_rows], stack.final_norm, stack.norm_eps)

    def logits(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        yield self.backend.linear(hidden, self._stack.embedding)


@frozen
class ScoredSequence:
    """A sequence whose every row is wanted."""

    id: int
    tokens: list[int]
    prompt_len: int = 1 << 30
    prompt_logprobs: bool = True


class Run:
    """Steps of a model over sequences that keep their pages from step to step."""

    def __init__(self, backend: Backend, model: Model, sequences: Sequence[ScoredSequence], seed: int = 1) -> None:
        self.backend, self.model, self.sequences = backend, model, sequences
        needed = [-(-len(seq.tokens) // BLOCK) for seq in sequences]
        blocks = np.random.default_rng(seed).permutation(sum(needed) + 2).tolist()
        self.tables = {seq.id: [blocks.pop() for _ in range(count)] for seq, count in zip(sequences, needed)}
        self.shape = CacheShape(sum(needed) + 2, BLOCK)
        self.pages: tuple[Pages, ...] = tuple(
            backend.kv_pages(layer, self.shape.num_blocks, BLOCK) for layer in model.kv_spec()
        )

    def table(self, seq: ScoredSequence) -> list[int]:
        """What `Backend.stage` asks a KV cache for."""
        return self.tables[seq.id]

    def step(self, *spans: tuple[int, int, int]) -> torch.Tensor:
        """Compute spans (sequence, start, length): final hidden states of all rows."""
        return torch.as_tensor(self.backend.forward(self.model, self.stage(*spans)))

    def stage(self, *spans: tuple[int, int, int]) -> StepInputs:
        """The spans as the backend lays them out."""
        sequences: Sequence[Any] = self.sequences
        kv: Any = self
        batch = Batch(tuple(Span(sequences[i], start, length) for i, start, length in spans))
        return self.backend.stage(batch, kv, self.pages)


class StackConformance(Workbench):
    """Tests of `Backend.forward`; part of `forge.testing.backend.BackendConformance`."""

    def model(self, backend: Backend, *specs: LayerSpec) -> StackModel:
        """A random model with a layer of each spec."""
        norm = np.random.default_rng(9).standard_normal(HIDDEN, dtype=np.float32) * np.float32(0.1) + 1
        embedding = backend.prepare([self.weights(VOCABULARY, HIDDEN, seed=99)], {"linear", "embedding"})
        stack = DecoderStack(
            embedding=embedding,
            layers=tuple(self.layer(backend, spec, index) for index, spec in enumerate(specs)),
            specs=specs,
            final_norm=backend.vector([ArrayWeight("n", norm)]),
            norm_eps=specs[0].norm_eps,
            head=embedding,
        )
        return StackModel(stack, backend)

    def sequences(self, *lengths: int) -> list[ScoredSequence]:
        """Random token ids."""
        rng = np.random.default_rng(11)
        return [ScoredSequence(i, rng.integers(0, VOCABULARY, n).tolist()) for i, n in enumerate(lengths)]

    def same(self, backend: Backend, found: torch.Tensor, wanted: torch.Tensor) -> None:
        """Assert equality to the bit where the backend promises it, else up to rounding."""
        if backend.invariance == "bitwise":
            assert torch.equal(found, wanted), "the backend promises bitwise invariance"
        self.close(found, wanted, factor=20)

    @pytest.mark.parametrize("specs", STACKS.values(), ids=STACKS.keys())
    def test_forward_equals_the_plain_backend_on_the_same_handles(
        self, backend: Backend, specs: tuple[LayerSpec, ...]
    ) -> None:
        model, sequences = self.model(backend, *specs), self.sequences(9, 23, 14)
        steps = [[(0, 0, 8), (1, 0, 20)], [(0, 8, 1), (1, 20, 3), (2, 0, 14)]]
        found = Run(backend, model, sequences)
        wanted = _PlainRun(backend, model, sequences)
        for step in steps:
            self.close(found.step(*step), wanted.step(*step), factor=20)

    @pytest.mark.parametrize("specs", STACKS.values(), ids=STACKS.keys())
    def test_a_prompt_gives_the_same_in_any_chunks_and_beside_anything(
        self, backend: Backend, specs: tuple[LayerSpec, ...]
    ) -> None:
        model, sequences = self.model(backend, *specs), self.sequences(41, 30, 17)
        whole = Run(backend, model, sequences).step((0, 0, 41))
        for chunk in (1, 7, 40):
            run = Run(backend, model, sequences, seed=chunk)
            starts = range(0, 41, chunk)
            rows = [run.step((0, start, min(chunk, 41 - start))) for start in starts]
            self.same(backend, torch.cat(rows), whole)
        crowd = Run(backend, model, sequences, seed=5)
        first = crowd.step((1, 0, 30), (0, 0, 23), (2, 0, 16))
        second = crowd.step((2, 16, 1), (0, 23, 18))
        self.same(backend, torch.cat([first[30:53], second[1:]]), whole)

    def test_logits_of_few_rows_are_the_same_as_among_many(self, backend: Backend) -> None:
        model = self.model(backend, SPEC)
        hidden = self.tensor(backend, 37, HIDDEN)
        (together,) = model.logits(hidden)
        for row in (0, 17, 36):
            (alone,) = model.logits(hidden[row : row + 1])
            self.same(backend, alone, together[row : row + 1])

    def test_tokens_come_of_what_forward_returns_whatever_arrays_that_are(self, backend: Backend) -> None:
        model, sequences = self.model(backend, SPEC), self.sequences(9, 23)
        run = Run(backend, model, sequences)
        hidden = backend.forward(model, run.stage((0, 0, 8), (1, 0, 20)))
        (logits,) = model.logits(torch.as_tensor(hidden))
        wanted = torch.as_tensor(logits).cpu().numpy().copy()
        (slab,) = model.logits(hidden)
        found = backend.sample(slab, rows(len(slab), temperature=np.zeros(len(slab), np.float32))).tokens
        assert found.tolist() == wanted.argmax(-1).tolist()


class _PlainRun(Run):
    """The same steps by the base class's own operations, on the plugin's weights and pages."""

    def step(self, *spans: tuple[int, int, int]) -> torch.Tensor:
        inputs = self.stage(*spans)
        with torch.inference_mode():
            return self.model.forward(inputs.tensors(self.backend.device))
