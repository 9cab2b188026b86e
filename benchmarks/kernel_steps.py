"""Whole steps for `kernels.py`: all layers in one native call, the output layer, a greedy choice. Random weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen
from kernel_cases import BLOCK, Case, Group, filled_pages, packed, random_blocks, sample_columns

CONTEXT = 512
"""Positions of each sequence in a decode step, tokens of a prompt."""


@frozen
class Shape:
    """A decoder. down: the encoding of what leads back to the hidden state and of values; others have `most`."""

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    dim: int
    vocabulary: int
    most: str
    down: str
    embedding: str


SHAPES = (
    Shape("SmolLM2, Q4_1", 30, 576, 1536, 9, 3, 64, 49152, "Q4_1", "Q4_1", "Q8_0"),
    Shape("1.1B, Q4_K and Q6_K", 22, 2048, 5632, 32, 4, 64, 32000, "Q4_K", "Q6_K", "Q6_K"),
)


class Decoder:
    """A model of random weights with the cache of `sequences` sequences."""

    def __init__(self, native: Any, pool: Any, shape: Shape, kv_format: str, sequences: int) -> None:
        self.native, self.pool, self.shape = native, pool, shape
        self.embedding = self._matrix(shape.hidden, (shape.embedding, shape.vocabulary))
        frequencies = [10000 ** (-2 * i / shape.dim) for i in range(shape.dim // 2)]
        ones = np.ones(shape.hidden, np.float32)
        self.model = native.Model(self.embedding, ones, 1e-5, frequencies, False, 1.0)
        self.nbytes, self.weights = self.embedding.nbytes, shape.vocabulary * shape.hidden
        for _ in range(shape.layers):
            self._add_layer(ones)
        self.each = CONTEXT // BLOCK
        blocks = sequences * self.each
        self.pages = [
            filled_pages(native, pool, blocks, shape.kv_heads, shape.dim, kv_format) for _ in range(shape.layers)
        ]
        self.cached = sum(pages.nbytes for pages in self.pages) // (blocks * BLOCK)

    def _matrix(self, cols: int, *parts: tuple[str, int]) -> Any:
        return packed(self.native, self.pool, [(kind, random_blocks(kind, rows, cols)) for kind, rows in parts], cols)

    def _add_layer(self, ones: npt.NDArray[np.float32]) -> None:
        s = self.shape
        query, value = s.heads * s.dim, s.kv_heads * s.dim
        matrices = {
            "qkv": self._matrix(s.hidden, (s.most, query), (s.most, value), (s.down, value)),
            "output": self._matrix(query, (s.most, s.hidden)),
            "gate_up": self._matrix(s.hidden, (s.most, 2 * s.ffn)),
            "down": self._matrix(s.ffn, (s.down, s.hidden)),
        }
        self.nbytes += sum(matrix.nbytes for matrix in matrices.values())
        self.weights += sum(matrix.in_features * matrix.out_features for matrix in matrices.values())
        absent = dict.fromkeys(("qkv_bias", "output_bias", "gate_up_bias", "down_bias", "q_norm", "k_norm"))
        self.model.add_layer(
            heads=s.heads, kv_heads=s.kv_heads, k_dim=s.dim, v_dim=s.dim, scale=s.dim**-0.5, window=0,
            attention_norm=ones, mlp_norm=ones, **matrices, **absent,
        )  # fmt: skip

    def step(self, name: str, sequences: int, rows: int) -> Case:
        """The last `rows` positions of each sequence, and its next token."""
        s, total = self.shape, sequences * rows
        table = np.arange(sequences * self.each).reshape(sequences, self.each)
        positions = np.tile(np.arange(CONTEXT - rows, CONTEXT), sequences)
        slots = positions + np.repeat(np.arange(sequences), rows) * CONTEXT
        ids = np.random.default_rng(6).integers(0, s.vocabulary, total)
        starts, lengths = np.arange(sequences + 1) * rows, np.full(sequences, CONTEXT)
        out, logits = np.ones((sequences, s.hidden), np.float32), np.ones((sequences, s.vocabulary), np.float32)
        choice = sample_columns(sequences, temperature=0.0)

        def run() -> None:
            self.model.forward(
                self.pool, self.pages, ids, positions, slots, starts, lengths, table, starts[1:] - 1, out
            )
            self.native.linear(self.pool, out, self.embedding, None, logits)
            self.native.sample(self.pool, logits, *choice)

        inner = self.weights - s.vocabulary * s.hidden
        seen = total * (CONTEXT - (rows - 1) / 2)
        products = 2.0 * (total * inner + sequences * s.vocabulary * s.hidden)
        attended = 4.0 * seen * s.heads * s.dim * s.layers
        return Case(name, run, self.nbytes + sequences * CONTEXT * self.cached, products + attended)


def steps(native: Any, pool: Any, kv_format: str, sequences: Sequence[int] = (1, 8, 32)) -> Iterator[Group]:
    """Decode steps of so many sequences, and a prompt."""
    for shape in SHAPES:
        title = f"{shape.name}, a step at {CONTEXT} positions, {kv_format} cache; sequences"
        yield Group(title, "int8", partial(_steps, native, pool, shape, kv_format, sequences))


def _steps(native: Any, pool: Any, shape: Shape, kv_format: str, sequences: Sequence[int]) -> Sequence[Case]:
    decoder = Decoder(native, pool, shape, kv_format, max(sequences))
    return [decoder.step(f"{n}", n, 1) for n in sequences] + [decoder.step("prompt", 1, CONTEXT)]
