"""The conformance kit for backends: subclass `BackendConformance`, give it a `backend` fixture, run pytest.

    class TestMetal(BackendConformance):
        @pytest.fixture
        def backend(self):
            return MetalBackend()

Fine operations are compared with float64 formulas written here, coarse ones with the plain `Backend` reading the
plugin's own handles through `Prepared.rows` and `Pages.read`. Not-a-numbers are looked for before errors are measured.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import torch
from attrs import evolve, field, frozen

from forge.interfaces.backend import Backend, Pages, Prepared, StepInputs
from forge.interfaces.layers import AttentionSpec, DecoderLayer, LayerSpec, RopeSpec
from forge.interfaces.model import LayerKV
from forge.testing.sampling import SamplingConformance
from forge.testing.stack import StackConformance
from forge.testing.workbench import ATTENTION, HIDDEN, ROPE, SPEC, ArrayWeight


@frozen
class _Shape:
    num_blocks: int
    block_size: int


@frozen
class _Table:
    """What `Backend.stage` needs of a KV cache."""

    shape: _Shape
    tables: dict[int, list[int]]

    def table(self, seq: Any) -> list[int]:
        return self.tables[seq.id]


@frozen
class _Seq:
    id: int
    tokens: list[int]
    prompt_len: int = 1
    prompt_logprobs: bool = False


@frozen
class _Span:
    """A span as `Backend.stage` sees it."""

    seq: _Seq
    start: int
    length: int
    output_rows: range = field(factory=lambda: range(0))

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def token_ids(self) -> list[int]:
        return self.seq.tokens[self.start : self.stop]


@frozen
class _Batch:
    spans: tuple[_Span, ...]


class BackendConformance(StackConformance, SamplingConformance):
    """What every backend must get right: operations one by one, whole stacks, sampling."""

    def stage(self, backend: Backend, spans: Seq[tuple[int, int]], block_size: int = 4) -> tuple[StepInputs, LayerKV]:
        """Inputs for spans (start, length) of different sequences whose blocks are shuffled, and one layer's pages."""
        needed = [-(-(start + length) // block_size) for start, length in spans]
        blocks = np.random.default_rng(5).permutation(sum(needed) + 3).tolist()
        tables = {i: [blocks.pop() for _ in range(count)] for i, count in enumerate(needed)}
        layer = LayerKV(ATTENTION.kv_heads, ATTENTION.k_dim, ATTENTION.v_dim)
        shape = _Shape(sum(needed) + 3, block_size)
        pages = (backend.kv_pages(layer, shape.num_blocks, block_size),)
        batch: Any = _Batch(
            tuple(
                _Span(_Seq(i, list(range(start + length))), start, length, range(length - 1, length))
                for i, (start, length) in enumerate(spans)
            )
        )
        kv: Any = _Table(shape, tables)
        return backend.stage(batch, kv, pages).tensors(backend.device), layer

    def fill(self, pages: Pages, inputs: StepInputs, seed: int = 7) -> None:
        """Put random keys and values everywhere."""
        generator = torch.Generator().manual_seed(seed)
        count = pages.num_blocks * pages.block_size
        device = inputs.slots.device
        k = torch.randn(count, ATTENTION.kv_heads, ATTENTION.k_dim, generator=generator).to(device)
        v = torch.randn(count, ATTENTION.kv_heads, ATTENTION.v_dim, generator=generator).to(device)
        pages.write(torch.arange(count, device=device), k, v)

    # -- weights and memory

    def test_memory_is_free_and_total_in_bytes(self, backend: Backend) -> None:
        free, total = backend.memory()
        assert 0 < free <= total

    def test_prepared_rows_equal_the_checkpoints_values(self, backend: Backend) -> None:
        for encoding in self.encodings:
            weight = self.weights(48, 256, encoding)
            handle = backend.prepare([weight], {"linear", "embedding"})
            assert (handle.out_features, handle.in_features) == (48, 256)
            assert 0 < handle.nbytes <= 8 * 48 * 256
            self.close(handle.rows(0, 48), weight.dequantize())
            self.close(handle.rows(5, 9), weight.dequantize(5, 9))
            assert weight.released, "the mapped pages are still held, so that the model is in memory twice"

    def test_prepared_parts_keep_their_order_whatever_their_encodings(self, backend: Backend) -> None:
        parts = [self.weights(32, 256, encoding, seed=i) for i, encoding in enumerate(self.encodings)]
        handle = backend.prepare(parts, {"linear"})
        self.close(handle.rows(0, handle.out_features), np.concatenate([part.dequantize() for part in parts]))

    def test_vectors_are_exact_and_in_order(self, backend: Backend) -> None:
        parts = [ArrayWeight("b", np.arange(n, dtype=np.float32)) for n in (3, 5)]
        assert backend.tensor(backend.vector(parts)).cpu().tolist() == [0, 1, 2, 0, 1, 2, 3, 4]

    # -- fine operations

    def test_embedding_takes_the_rows_of_its_ids(self, backend: Backend) -> None:
        weight = self.weights(50, 64)
        ids = torch.tensor([49, 0, 7, 7], device=backend.device)
        handle = backend.prepare([weight], {"embedding"})
        self.close(backend.embedding(handle, ids), weight.dequantize()[[49, 0, 7, 7]])

    @pytest.mark.parametrize("rows", [1, 2, 5, 33])
    def test_linear_is_the_product_with_its_own_rows(self, backend: Backend, rows: int) -> None:
        for encoding in self.encodings:
            handle = backend.prepare([self.weights(48, 256, encoding), self.weights(16, 256, "F32", 2)], {"linear"})
            x = self.tensor(backend, rows, 256)
            bias = self.tensor(backend, 64, seed=3)
            wanted = x.cpu().double().numpy() @ self.rows_of(handle).T
            self.close(backend.linear(x, handle), wanted)
            self.close(backend.linear(x, handle, bias), wanted + bias.cpu().double().numpy())

    def test_rms_norm_is_its_formula(self, backend: Backend) -> None:
        x, weight = self.tensor(backend, 5, 64) * 30, self.tensor(backend, 64, seed=2)
        x64 = x.cpu().double().numpy()
        wanted = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * weight.cpu().double().numpy()
        self.close(backend.rms_norm(x, weight, 1e-5), wanted)

    @pytest.mark.parametrize("interleaved", [False, True])
    @pytest.mark.parametrize("pairs", [16, 6])
    def test_rope_is_a_rotation_of_complex_pairs(self, backend: Backend, interleaved: bool, pairs: int) -> None:
        spec = RopeSpec(tuple(100.0 ** (-i / pairs) for i in range(pairs)), interleaved, magnitude=1.25)
        x = self.tensor(backend, 7, 3, 32)
        positions = torch.tensor([0, 1, 2, 3, 50, 51, 1000], device=backend.device)
        x64 = x.cpu().double().numpy()
        turned, rest = x64[..., : 2 * pairs], x64[..., 2 * pairs :]
        a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else np.split(turned, 2, axis=-1)
        angle = positions.cpu().numpy()[:, None, None] * np.array(spec.inverse_frequencies)
        pair = (a + 1j * b) * np.exp(1j * angle) * 1.25
        wanted = np.empty_like(turned)
        if interleaved:
            wanted[..., 0::2], wanted[..., 1::2] = pair.real, pair.imag
        else:
            wanted[..., :pairs], wanted[..., pairs:] = pair.real, pair.imag
        self.close(backend.rope(x, positions, spec), np.concatenate([wanted, rest], axis=-1), factor=20)

    def test_silu_mul_is_its_formula(self, backend: Backend) -> None:
        x = self.tensor(backend, 3, 64) * 10
        gate, up = np.split(x.cpu().double().numpy(), 2, axis=-1)
        self.close(backend.silu_mul(x), gate / (1 + np.exp(-gate)) * up)

    # -- pages and attention

    def test_pages_hold_what_was_written_and_nothing_else_changes(self, backend: Backend) -> None:
        inputs, layer = self.stage(backend, [(0, 6), (3, 2)])
        pages = inputs.pages[0]
        self.fill(pages, inputs)
        everything = torch.arange(pages.num_blocks, device=backend.device)
        before = [x.clone() for x in pages.read(everything)]
        assert pages.nbytes > 0
        k = self.tensor(backend, len(inputs.slots), layer.kv_heads, layer.k_dim, seed=8)
        v = self.tensor(backend, len(inputs.slots), layer.kv_heads, layer.v_dim, seed=9)
        pages.write(inputs.slots, k, v)
        after = pages.read(everything)
        self.close(after[0][inputs.slots], k)
        self.close(after[1][inputs.slots], v)
        untouched = np.setdiff1d(np.arange(len(after[0])), inputs.slots.cpu().numpy())
        for x, y in zip(before, after):
            assert torch.equal(x.cpu()[untouched], y.cpu()[untouched]), "a slot that wasn't written has changed"

    @pytest.mark.parametrize(
        "spans",
        [[(0, 1)], [(0, 9)], [(30, 1)], [(4, 1), (5, 1), (18, 1)], [(0, 7), (12, 1), (13, 5), (9, 1), (8, 1)]],
        ids=["first token", "prompt", "decode", "decodes", "ragged"],
    )
    @pytest.mark.parametrize("window", [None, 5])
    @pytest.mark.parametrize("block_size", [4, 64])
    def test_attention_is_softmax_over_the_stored_keys(
        self, backend: Backend, spans: list[tuple[int, int]], window: int | None, block_size: int
    ) -> None:
        inputs, _ = self.stage(backend, spans, block_size)
        pages, spec = inputs.pages[0], evolve(ATTENTION, window=window)
        self.fill(pages, inputs)
        q = self.tensor(backend, len(inputs.slots), spec.heads, spec.k_dim, seed=3)
        found = backend.attention(q, pages, inputs, spec)
        self.close(found, attention64(q, pages, inputs, spec), factor=2)

    def test_attention_sees_nothing_beyond_a_sequences_end(self, backend: Backend) -> None:
        inputs, layer = self.stage(backend, [(4, 1), (5, 1), (17, 1), (2, 3)])
        pages = inputs.pages[0]
        self.fill(pages, inputs)
        q = self.tensor(backend, len(inputs.slots), ATTENTION.heads, ATTENTION.k_dim, seed=3)
        wanted = attention64(q, pages, inputs, ATTENTION)
        own = {
            int(inputs.block_table[span, p // pages.block_size]) * pages.block_size + p % pages.block_size
            for span, length in enumerate(inputs.lengths.tolist())
            for p in range(length)
        }
        stale = sorted(set(range(pages.num_blocks * pages.block_size)) - own)
        poison = torch.full((len(stale), layer.kv_heads, layer.k_dim), torch.nan, device=backend.device)
        pages.write(torch.tensor(stale, device=backend.device), poison, poison)
        self.close(backend.attention(q, pages, inputs, ATTENTION), wanted, factor=2)

    # -- coarse operations

    @pytest.mark.parametrize(
        "spec",
        [
            SPEC,
            evolve(SPEC, qkv_bias=True),
            evolve(SPEC, qkv_bias=True, output_bias=True, mlp_bias=True),
            evolve(SPEC, qk_norm=True),
            evolve(SPEC, rope=evolve(ROPE, interleaved=True)),
            evolve(SPEC, attention=evolve(ATTENTION, window=3)),
        ],
        ids=["plain", "qkv bias", "all biases", "qk norm", "interleaved rope", "window"],
    )
    def test_decoder_layer_equals_the_plain_backends_on_the_same_handles(
        self, backend: Backend, spec: LayerSpec
    ) -> None:
        reference = Backend()
        layer = self.layer(backend, spec)
        inputs, kv = self.stage(backend, [(0, 5), (7, 1), (6, 1), (9, 3)])
        self.fill(inputs.pages[0], inputs)
        plain = reference.kv_pages(kv, inputs.pages[0].num_blocks, inputs.pages[0].block_size)
        blocks = torch.arange(plain.num_blocks, device=backend.device)
        k, v = inputs.pages[0].read(blocks)
        plain.write(torch.arange(len(k)), k.cpu(), v.cpu())
        x = self.tensor(backend, len(inputs.slots), HIDDEN, seed=11)
        with torch.inference_mode():
            wanted = reference.decoder_layer(
                x.cpu(), _on_host(layer), spec, evolve(inputs_on_host(inputs), pages=(plain,))
            )
            self.close(backend.decoder_layer(x, layer, spec, inputs), wanted, factor=10)
        for stored, expected in zip(inputs.pages[0].read(blocks), plain.read(torch.arange(plain.num_blocks))):
            self.close(stored, expected, factor=10)

    def test_rows_do_not_depend_on_the_rest_of_the_batch(self, backend: Backend) -> None:
        layer = self.layer(backend, SPEC)
        spans = [(0, 5), (7, 1), (6, 1), (9, 3), (16, 1)]
        x = self.tensor(backend, sum(length for _, length in spans), HIDDEN, seed=11)
        inputs, _ = self.stage(backend, spans)
        self.fill(inputs.pages[0], inputs)
        together = backend.decoder_layer(x, layer, SPEC, inputs)
        starts = inputs.span_starts.tolist()
        for i in range(len(spans)):
            rows = slice(starts[i], starts[i + 1])
            alone = evolve(
                inputs,
                token_ids=inputs.token_ids[rows],
                positions=inputs.positions[rows],
                slots=inputs.slots[rows],
                span_starts=torch.tensor([0, starts[i + 1] - starts[i]]),
                lengths=inputs.lengths[i : i + 1],
                block_table=inputs.block_table[i : i + 1],
            )
            found = backend.decoder_layer(x[rows], layer, SPEC, alone)
            if backend.invariance == "bitwise":
                assert torch.equal(found, together[rows]), "the backend promises bitwise invariance"
            self.close(found, together[rows], factor=10)


class _HostHandle(Prepared):
    """A plugin's weights seen from the host, through `rows`."""

    def __init__(self, inner: Prepared) -> None:
        self.inner = inner
        self.out_features, self.in_features, self.nbytes = inner.out_features, inner.in_features, inner.nbytes

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.inner.rows(start, stop).cpu()


def _on_host(layer: DecoderLayer) -> DecoderLayer:
    """The same layer for the reference: handles through their own methods, vectors copied."""
    changes: dict[str, Any] = {}
    for name in attrs.fields_dict(DecoderLayer):
        value = getattr(layer, name)
        if isinstance(value, Prepared):
            changes[name] = _HostHandle(value)
        elif isinstance(value, torch.Tensor):
            changes[name] = value.cpu()
    return evolve(layer, **changes)


def inputs_on_host(inputs: StepInputs) -> StepInputs:
    """The same step inputs with every tensor on the host."""
    tensors = {
        name: getattr(inputs, name).cpu()
        for name in ("token_ids", "positions", "slots", "span_starts", "lengths", "block_table", "output_rows")
    }
    return StepInputs(**tensors, pages=inputs.pages)


def attention64(q: torch.Tensor, pages: Pages, inputs: StepInputs, spec: AttentionSpec) -> npt.NDArray[np.float64]:
    """Attention in float64, one query and one head at a time."""
    out = np.empty((len(q), spec.heads, spec.v_dim))
    queries = q.cpu().double().numpy()
    starts, lengths = inputs.span_starts.tolist(), inputs.lengths.tolist()
    for span, length in enumerate(lengths):
        blocks = inputs.block_table[span, : -(-length // pages.block_size)]
        k, v = (x[:length].cpu().double().numpy() for x in pages.read(blocks))
        for row in range(starts[span], starts[span + 1]):
            last = length - (starts[span + 1] - row)
            first = 0 if spec.window is None else max(0, last + 1 - spec.window)
            for head in range(spec.heads):
                shared = head // (spec.heads // spec.kv_heads)
                scores = k[first : last + 1, shared] @ queries[row, head] * spec.scale
                weights = np.exp(scores - scores.max())
                out[row, head] = weights / weights.sum() @ v[first : last + 1, shared]
    return out
