"""What `kernels.py` times: single kernels on random data, with the bytes and operations that the rates count.

Shapes are those of SmolLM2-135M and of a Llama of 1.1 billion weights (TinyLlama's). Where memory is the limit in
practice, data comes from memory here too: copies side by side that fill `COLD` bytes are passed over in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from attrs import frozen
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

COLD = 192 << 20
"""Bytes that a pass goes through, so that they come from memory and not from a cache."""

BLOCK = 16
"""Positions in a block of the KV cache."""

LINEAR = (
    ("SmolLM2 q, k, v", 960, 576),
    ("SmolLM2 gate, up", 3072, 576),
    ("SmolLM2 down", 576, 1536),
    ("SmolLM2 head", 49152, 576),
    ("1.1B gate, up", 11264, 2048),
    ("1.1B down", 2048, 5632),
)
SMALL, LARGE = ("Q4_1", "Q8_0"), ("Q4_K", "Q6_K")
"""Encodings measured by default: those that the models have."""

HEADS = (("SmolLM2", 9, 3, 64), ("1.1B", 32, 4, 64))
"""Query heads, KV heads, numbers in a head."""

VOCABULARY = 49152


@frozen
class Case:
    """One line of a table. run: a pass over `copies` of what nbytes (read or written) and operations count one of.

    before: what isn't timed.
    """

    name: str
    run: Callable[[], object]
    nbytes: int
    operations: float
    copies: int = 1
    before: Callable[[], object] = lambda: None


@frozen
class Group:
    """Cases of one title that belong together. units: which of the processor's units the operations need.

    make: their data is made when their turn comes.
    """

    title: str
    units: Literal["int8", "float"]
    make: Callable[[], Sequence[Case]]


def random_blocks(encoding: str, rows: int, cols: int) -> npt.NDArray[np.uint8]:
    """Bytes of a GGUF tensor whose float16 scales, wherever they lie, are finite."""
    per_block, size = GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]
    data = np.random.default_rng(0).integers(0, 256, (rows, cols // per_block * size), dtype=np.uint8)
    return data & 0x3F


def random_activations(rows: int, cols: int) -> npt.NDArray[np.float32]:
    """Normal numbers; in one block of seven there is one that stands out from its row, as in SmolLM2."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, cols), dtype=np.float32)
    x.reshape(rows, -1, 32)[..., 5][rng.random((rows, cols // 32)) < 1 / 7] = 20
    return x


def packed(native: Any, pool: Any, parts: Sequence[tuple[str, npt.NDArray[np.uint8]]], cols: int) -> Any:
    """A matrix of these encodings and stored rows, one below the other."""
    matrix = native.Matrix([(encoding, len(data)) for encoding, data in parts], cols)
    for segment, (_, data) in enumerate(parts):
        matrix.pack(pool, segment, 0, data)
    return matrix


def linear(native: Any, pool: Any, rows: Sequence[int], encodings: Sequence[str] | None) -> Iterator[Group]:
    """Linear layers. Up to 16 activation rows weights come from memory, above from 8 MB of copies."""
    for name, out, cols in LINEAR:
        for encoding in encodings or (LARGE if cols % 256 == 0 and cols >= 2048 else SMALL):
            title = f"{name}: {cols} → {out}, {encoding}; rows"
            yield Group(title, "int8", partial(_linear, native, pool, encoding, (out, cols), rows))


def _linear(native: Any, pool: Any, encoding: str, shape: tuple[int, int], rows: Sequence[int]) -> Sequence[Case]:
    data = random_blocks(encoding, *shape)
    copies = max(1, COLD // data.nbytes)
    many = packed(native, pool, [(encoding, data)] * copies, shape[1])
    few = packed(native, pool, [(encoding, data)] * min(copies, max(1, (8 << 20) // data.nbytes)), shape[1])
    return [_multiply(native, pool, many if n <= 16 else few, n, shape[0]) for n in rows]


def _multiply(native: Any, pool: Any, matrix: Any, n: int, out_features: int) -> Case:
    x = random_activations(n, matrix.in_features)
    out = np.ones((n, matrix.out_features), np.float32)  # touched: page faults aren't the kernel's
    copies = matrix.out_features // out_features
    return Case(
        f"{n}",
        lambda: native.linear(pool, x, matrix, None, out),
        matrix.nbytes // copies,
        2.0 * n * out_features * matrix.in_features,
        copies,
    )


def filled_pages(native: Any, pool: Any, blocks: int, kv_heads: int, dim: int, kv_format: str) -> Any:
    """Pages of one layer, all written: untouched ones would all be the one page of zeros."""
    pages = native.Pages(blocks, BLOCK, kv_heads, dim, dim, kv_format)
    rng = np.random.default_rng(1)
    for first in range(0, blocks, 256):
        slots = np.arange(first * BLOCK, min(blocks, first + 256) * BLOCK, dtype=np.int64)
        k, v = rng.standard_normal((2, len(slots), kv_heads, dim), dtype=np.float32)
        pages.write(pool, slots, k, v)
    return pages


def attention(native: Any, pool: Any, kv_format: str) -> Iterator[Group]:
    """One layer's attention: rows of sequences far along, which read the cache from memory, and prompts."""
    for name, heads, kv_heads, dim in HEADS:
        title = f"{name} attention, {heads} heads over {kv_heads} of {dim}, {kv_format}; "
        attend = partial(_attend, native, pool, (heads, kv_heads, dim), kv_format)
        far = [partial(attend, n, 1, 4096) for n in (1, 8)]
        yield Group(title + "sequences at 4,096", "float", partial(_all, far))
        prompts = [partial(attend, 1, n, n) for n in (128, 1024, 4096)]
        yield Group(title + "prompt of", "float", partial(_all, prompts))


def _all(cases: Sequence[Callable[[], Case]]) -> Sequence[Case]:
    return [make() for make in cases]


def _attend(
    native: Any, pool: Any, shape: tuple[int, int, int], kv_format: str, spans: int, rows: int, length: int
) -> Case:
    heads, kv_heads, dim = shape
    each = length // BLOCK
    position = native.Pages(1, BLOCK, kv_heads, dim, dim, kv_format).nbytes // BLOCK
    nbytes = spans * length * position
    copies = max(1, COLD // nbytes) if rows == 1 else 1
    layers = cycle([filled_pages(native, pool, spans * each, kv_heads, dim, kv_format) for _ in range(copies)])
    q = np.random.default_rng(2).standard_normal((spans * rows, heads, dim), dtype=np.float32)
    out = np.ones_like(q)
    starts, lengths = np.arange(spans + 1) * rows, np.full(spans, length)
    table = np.arange(spans * each).reshape(spans, each)

    def run() -> None:
        for _ in range(copies):
            native.attention(pool, q, next(layers), starts, lengths, table, dim**-0.5, 0, out)

    seen = spans * rows * (length - (rows - 1) / 2)
    return Case(f"{rows if rows > 1 else spans}", run, nbytes, 4.0 * seen * heads * dim, copies)


def row_operations(native: Any, pool: Any, rows: int = 512) -> Iterator[Group]:
    """What lies between the products, for the rows of a prompt: numbers read and written."""
    yield Group(f"1.1B, {rows} rows", "float", partial(_row_operations, native, pool, rows))


def _row_operations(native: Any, pool: Any, rows: int) -> Sequence[Case]:
    hidden, ffn, heads, dim = 2048, 5632, 32, 64
    rng = np.random.default_rng(3)
    x, gate_up = (rng.standard_normal((rows, n), dtype=np.float32) for n in (hidden, 2 * ffn))
    weight = np.ones(hidden, np.float32)
    to, half = np.ones_like(x), np.ones((rows, ffn), np.float32)
    positions, frequencies = np.arange(rows), [10000 ** (-2 * i / dim) for i in range(dim // 2)]
    turned = (rows, heads, dim)
    return [
        Case("norm", lambda: native.rms_norm(pool, x, weight, 1e-5, to), 2 * x.nbytes, 0),
        Case(
            "RoPE",
            lambda: native.rope(pool, x.reshape(turned), positions, frequencies, False, 1.0, to.reshape(turned)),
            2 * x.nbytes,
            0,
        ),
        Case("SiLU, mul", lambda: native.silu_mul(pool, gate_up, half), gate_up.nbytes + half.nbytes, 0),
    ]


def sampling(native: Any, pool: Any, rows: int = 16) -> Iterator[Group]:
    """Choosing tokens from logits about as peaked as a model's: their bytes, whatever is read again or written."""
    yield Group(f"sampling, {rows} rows of {VOCABULARY:,}", "float", partial(_sampling, native, pool, rows))


def _sampling(native: Any, pool: Any, rows: int) -> Sequence[Case]:
    logits = np.random.default_rng(4).standard_normal((rows, VOCABULARY), dtype=np.float32) * 3
    mask = np.random.default_rng(5).integers(-(1 << 31), 1 << 31, (rows, VOCABULARY // 32)).astype(np.int32)
    sample = partial(_sample, native, pool, logits)
    return [
        sample("greedy", temperature=0.0),
        sample("t = 1"),
        sample("top-k, p", top_k=50, top_p=0.9),
        sample("min-p", min_p=0.05),
        sample("mask", masks=mask),
        sample("logprobs", logprobs=5),
    ]


def sample_columns(
    rows: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Sequence[npt.NDArray[Any]]:
    """What `native.sample` wants of each row: filters, then seed, choice and position."""
    filters = [np.full(rows, value, np.float32) for value in (top_p, min_p)]
    draws = [np.zeros(rows, np.uint64), np.zeros(rows, np.uint32), np.arange(rows, dtype=np.uint32)]
    return [np.full(rows, temperature, np.float32), np.full(rows, top_k, np.int32), *filters, *draws]


def _sample(
    native: Any,
    pool: Any,
    logits: npt.NDArray[np.float32],
    name: str,
    *,
    masks: npt.NDArray[np.int32] | None = None,
    logprobs: int | None = None,
    **filters: Any,
) -> Case:
    work, columns = np.ones_like(logits), sample_columns(len(logits), **filters)
    return Case(
        name,
        lambda: native.sample(pool, work, *columns, masks=masks, logprobs=logprobs),
        logits.nbytes,
        0,
        before=lambda: np.copyto(work, logits),
    )
