"""The native attention and its pages: float64 formulas, and bits that depend on nothing but a row's own sequence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from attrs import frozen
from forge_cpu.native import extension, instruction_sets

native: Any = extension()
assert native is not None, "the tests need the compiled kernels"

ISAS = instruction_sets()
FORMATS = ("f32", "f16", "bf16", "int8")
Floats = npt.NDArray[np.float32]


@frozen
class Shape:
    """Heads and their sizes."""

    heads: int = 6
    kv_heads: int = 2
    k_dim: int = 32
    v_dim: int = 32
    scale: float = 0.2
    window: int = 0


@frozen
class Cached:
    """Sequences of these lengths, in pages, with random keys and values."""

    shape: Shape
    pages: Any
    table: npt.NDArray[np.int64]
    lengths: tuple[int, ...]
    queries: tuple[Floats, ...]

    def stored(self, sequence: int) -> tuple[Floats, Floats]:
        """Keys and values of one sequence as the pages give them out."""
        used = -(-self.lengths[sequence] // self.pages.block_size)
        rows = used * self.pages.block_size
        k = np.empty((rows, self.shape.kv_heads, self.shape.k_dim), np.float32)
        v = np.empty((rows, self.shape.kv_heads, self.shape.v_dim), np.float32)
        self.pages.read(np.ascontiguousarray(self.table[sequence, :used]), k, v)
        return k[: self.lengths[sequence]], v[: self.lengths[sequence]]

    def attend(self, pool: Any, spans: Sequence[tuple[int, int, int]]) -> list[Floats]:
        """Attention of spans (sequence, start, stop) in one call, span by span."""
        starts = np.cumsum([0, *(stop - start for _, start, stop in spans)])
        q = np.concatenate([self.queries[sequence][start:stop] for sequence, start, stop in spans])
        out = np.full((len(q), self.shape.heads, self.shape.v_dim), np.nan, np.float32)
        native.attention(
            pool,
            q,
            self.pages,
            starts,
            np.array([stop for *_, stop in spans], np.int64),
            np.ascontiguousarray(self.table[[sequence for sequence, *_ in spans]]),
            self.shape.scale,
            self.shape.window,
            out,
        )
        return [out[start:stop] for start, stop in pairwise(starts.tolist())]

    def wanted(self, sequence: int, start: int, stop: int) -> npt.NDArray[np.float64]:
        """The same in float64, one query and one head at a time."""
        s = self.shape
        k, v = (x.astype(np.float64) for x in self.stored(sequence))
        out = np.empty((stop - start, s.heads, s.v_dim))
        for row in range(start, stop):
            first = max(0, row + 1 - s.window) if s.window else 0
            for head in range(s.heads):
                shared = head // (s.heads // s.kv_heads)
                scores = k[first : row + 1, shared] @ self.queries[sequence][row, head] * s.scale
                weights = np.exp(scores - scores.max())
                out[row - start, head] = weights / weights.sum() @ v[first : row + 1, shared]
        return out


def cached(
    pool: Any, lengths: Sequence[int], shape: Shape = Shape(), block_size: int = 16, form: str = "f16", shuffle: int = 1
) -> Cached:
    """Random sequences, the same for the same lengths and shape, in shuffled blocks."""
    counts = [-(-length // block_size) for length in lengths]
    blocks = np.random.default_rng(shuffle).permutation(sum(counts) + 3).tolist()
    table = np.zeros((len(lengths), max(counts)), np.int64)
    pages = native.Pages(len(blocks), block_size, shape.kv_heads, shape.k_dim, shape.v_dim, form)
    queries = []
    for row, (length, count) in enumerate(zip(lengths, counts)):
        table[row, :count] = [blocks.pop() for _ in range(count)]
        rng = np.random.default_rng([row, length])
        queries.append(rng.standard_normal((length, shape.heads, shape.k_dim), dtype=np.float32))
        at = np.arange(length)
        pages.write(
            pool,
            table[row, at // block_size] * block_size + at % block_size,
            rng.standard_normal((length, shape.kv_heads, shape.k_dim), dtype=np.float32),
            rng.standard_normal((length, shape.kv_heads, shape.v_dim), dtype=np.float32),
        )
    return Cached(shape, pages, table, tuple(lengths), tuple(queries))


@pytest.fixture(params=ISAS)
def pool(request: pytest.FixtureRequest) -> Any:
    """Float products: what 16-bit activations bring along."""
    return native.Pool(2, request.param, 16)


@pytest.fixture(params=ISAS)
def rounded_pool(request: pytest.FixtureRequest) -> Any:
    """Products of rounded operands, where the instruction set has any."""
    return native.Pool(2, request.param, 8)


@pytest.fixture(params=[16, 8])
def any_pool(request: pytest.FixtureRequest, isa: str) -> Any:
    return native.Pool(2, isa, request.param)


SPANS = ((0, 0, 9), (1, 299, 300), (2, 509, 512), (3, 250, 263), (4, 0, 1))
LENGTHS = (9, 300, 512, 263, 1)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("window", [0, 5, 260])
def test_attention_is_softmax_over_the_stored_keys(pool: Any, form: str, window: int) -> None:
    sequences = cached(pool, LENGTHS, Shape(window=window), form=form)
    for found, span in zip(sequences.attend(pool, SPANS), SPANS):
        assert np.abs(found - sequences.wanted(*span)).max() < 3e-6


@pytest.mark.parametrize(
    "shape",
    [
        Shape(9, 3, 64, 64),
        Shape(4, 4, 16, 48),
        Shape(8, 1, 128, 128),
        Shape(2, 1, 256, 256, scale=0.06),
        Shape(6, 2, 40, 24),
        Shape(5, 1, 7, 3),
        Shape(50, 1, 16, 16),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["f16", "int8"])
def test_attention_takes_any_number_of_heads_and_any_dims(pool: Any, shape: Shape, form: str) -> None:
    sequences = cached(pool, (40, 300), shape, form=form)
    spans = ((0, 3, 40), (1, 298, 300))
    for found, span in zip(sequences.attend(pool, spans), spans):
        assert np.abs(found - sequences.wanted(*span)).max() < 1e-5


@pytest.mark.parametrize(
    "shape",
    [
        Shape(9, 3, 64, 64),
        Shape(8, 1, 128, 128),
        Shape(6, 2, 40, 24),
        Shape(5, 1, 7, 3),
        Shape(50, 1, 16, 16),
        Shape(window=5),
        Shape(window=260),
    ],
    ids=str,
)
def test_rounded_operands_cost_at_most_a_hundredth(rounded_pool: Any, shape: Shape) -> None:
    """bfloat16 keeps 8 bits of a number: half a 256th of each operand, which partly cancel out."""
    sequences = cached(rounded_pool, LENGTHS, shape)
    for found, span in zip(sequences.attend(rounded_pool, SPANS), SPANS):
        assert np.abs(found - sequences.wanted(*span)).max() < 0.02
        assert np.sqrt(np.mean((found - sequences.wanted(*span)) ** 2)) < 0.004


@pytest.mark.parametrize("isa", ISAS)
def test_only_products_of_bfloat16_pairs_on_float16_pages_round_their_operands(isa: str) -> None:
    fine, coarse, auto = (native.Pool(2, isa, *rounding) for rounding in ((16,), (8,), (16, 0.1)))
    for form in FORMATS:
        sequences = cached(fine, (300,), form=form)
        exact, *others = (sequences.attend(pool, [(0, 250, 300)])[0] for pool in (fine, coarse, auto))
        for found in others:
            assert np.array_equal(found, exact) == (isa != "avx512bf16" or form != "f16")


@pytest.mark.parametrize("block_size", [1, 4, 16, 20, 64, 1000])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_blocks(any_pool: Any, block_size: int, form: str) -> None:
    spans = ((0, 0, 70), (1, 530, 531))
    wanted = cached(any_pool, (70, 531), form=form).attend(any_pool, spans)
    found = cached(any_pool, (70, 531), block_size=block_size, form=form, shuffle=2).attend(any_pool, spans)
    for x, y in zip(found, wanted):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_how_a_prompt_is_chunked(any_pool: Any, chunk: int, window: int) -> None:
    length = 330
    sequences = cached(any_pool, (length,), Shape(window=window))
    (whole,) = sequences.attend(any_pool, [(0, 0, length)])
    pieces = [sequences.attend(any_pool, [(0, i, min(i + chunk, length))])[0] for i in range(0, length, chunk)]
    assert np.array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("form", "bits"), [("f16", 16), ("f16", 8), ("int8", 16)])
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_or_on_the_rest_of_the_batch(
    isa: str, threads: int, form: str, bits: int
) -> None:
    """A long decode is split among threads when it's alone, and not when it's one of many."""
    spans = [(0, 2000, 2001), (1, 100, 163), (2, 697, 700), (3, 40, 41)]
    one = native.Pool(1, isa, bits)
    sequences = cached(one, (2001, 163, 700, 41), form=form)
    together = sequences.attend(one, spans)
    pool = native.Pool(threads, isa, bits)
    for x, y in zip(sequences.attend(pool, spans), together):
        assert np.array_equal(x, y)
    order = np.random.default_rng(threads).permutation(len(spans))
    for i, x in zip(order, sequences.attend(pool, [spans[i] for i in order])):
        assert np.array_equal(x, together[i])
    for span, wanted in zip(spans, together):
        assert np.array_equal(sequences.attend(pool, [span])[0], wanted)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e30])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_is_unharmed_by_extreme_values_of_later_rows(any_pool: Any, form: str, bad: float) -> None:
    sequences = cached(any_pool, (40,), form=form)
    (wanted,) = sequences.attend(any_pool, [(0, 0, 40)])
    slot = sequences.table[0, 39 // 16] * 16 + 39 % 16
    extreme = np.full((1, 2, 32), bad, np.float32)
    sequences.pages.write(any_pool, np.array([slot]), extreme, extreme)
    (found,) = sequences.attend(any_pool, [(0, 0, 40)])
    assert np.array_equal(found[:39], wanted[:39])


# -- pages


ERROR = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.5 / 127}
"""Relative to the largest value of a position's head."""


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("block_size", [1, 6, 16, 40])
def test_pages_hold_what_was_written_and_nothing_else_changes(pool: Any, form: str, block_size: int) -> None:
    pages = native.Pages(7, block_size, 3, 24, 40, form)
    rng = np.random.default_rng(3)
    slots = rng.permutation(7 * block_size)[: 4 * block_size].astype(np.int64)
    k = rng.standard_normal((len(slots), 3, 24), dtype=np.float32)
    v = rng.standard_normal((len(slots), 3, 40), dtype=np.float32) * 100
    pages.write(pool, slots, k, v)
    stored = np.empty((7 * block_size, 3, 24), np.float32), np.empty((7 * block_size, 3, 40), np.float32)
    pages.read(np.arange(7), *stored)
    for found, written in zip(stored, (k, v)):
        allowed = ERROR[form] * np.abs(written).max(-1, keepdims=True)
        assert (np.abs(found[slots] - written) <= allowed * 1.001).all()
        assert not np.delete(found, slots, axis=0).any(), "a slot that wasn't written isn't zero"
    assert pages.nbytes >= 7 * block_size * 3 * 64 * {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}[form]


def test_float16_pages_hold_the_nearest_finite_number(pool: Any) -> None:
    pages = native.Pages(1, 16, 1, 16, 16, "f16")
    x = np.zeros((1, 1, 16), np.float32)
    x[0, 0, :4] = [1e6, -np.inf, 65504, 1e-3]
    pages.write(pool, np.array([3]), x, x)
    k, v = np.empty((16, 1, 16), np.float32), np.empty((16, 1, 16), np.float32)
    pages.read(np.array([0]), k, v)
    assert k[3, 0, :4].tolist() == v[3, 0, :4].tolist() == [65504, -65504, 65504, float(np.float16(1e-3))]


def test_pages_that_nobody_writes_take_no_memory() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    pages = native.Pages(1 << 16, 16, 8, 128, 128, "f16")
    assert pages.nbytes == (1 << 16) * 16 * 8 * 256 * 2
    assert process.memory_info().rss - before < 16 << 20


def test_int8_pages_cost_at_most_a_hundredth_of_the_values_in_attention(pool: Any) -> None:
    exact, rounded = (cached(pool, (600,), form=form).attend(pool, [(0, 536, 600)])[0] for form in ("f32", "int8"))
    assert 0 < np.abs(rounded - exact).max() < 0.01 * np.abs(exact).max() + 0.01


# -- hostile arguments


def test_arguments_that_do_not_fit_are_refused_with_their_name(pool: Any) -> None:
    pages = native.Pages(4, 16, 2, 32, 32, "f16")
    k = np.zeros((1, 2, 32), np.float32)
    with pytest.raises(ValueError, match="slots has 64"):
        pages.write(pool, np.array([64]), k, k)
    with pytest.raises(ValueError, match="slots has -1"):
        pages.write(pool, np.array([-1]), k, k)
    with pytest.raises(ValueError, match=r"k must have shape \[1, 2, 32\]"):
        pages.write(pool, np.array([0]), np.zeros((1, 2, 16), np.float32), k)
    with pytest.raises(TypeError):
        pages.write(pool, np.array([0]), k.astype(np.float64), k)
    with pytest.raises(ValueError, match="blocks has 4"):
        pages.read(np.array([4]), np.zeros((16, 2, 32), np.float32), np.zeros((16, 2, 32), np.float32))
    with pytest.raises(ValueError, match="page format 'q4'"):
        native.Pages(4, 16, 2, 32, 32, "q4")
    with pytest.raises(ValueError, match="between 1 and"):
        native.Pages(4, 0, 2, 32, 32, "f16")
    with pytest.raises(ValueError, match="address space"):
        native.Pages(2**30, 2**30, 2**20, 2**20, 32, "f16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 65}, "blocks hold 64"),
        ({"length": 2}, "3 rows in a sequence of 2"),
        ({"starts": [0, 2]}, "spans end at row 2"),
        ({"starts": [1, 3]}, "begin at row 0"),
        ({"block": 9}, "block_table has 9"),
        ({"block": -1}, "block_table has -1"),
        ({"heads": 5}, "5 heads"),
        ({"window": -1}, "window"),
    ],
    ids=str,
)
def test_attention_refuses_what_would_read_outside_the_pages(pool: Any, change: dict[str, Any], message: str) -> None:
    heads = change.get("heads", 6)
    q = np.zeros((3, heads, 32), np.float32)
    table = np.array([[0, 1, 2, change.get("block", 3)]])
    with pytest.raises(ValueError, match=message):
        native.attention(
            pool,
            q,
            native.Pages(4, 16, 2, 32, 32, "f16"),
            np.array(change.get("starts", [0, 3])),
            np.array([change.get("length", 64)]),
            table,
            0.1,
            change.get("window", 0),
            np.empty_like(q),
        )
