"""Packed matrices and products of the native kernels, in every encoding on every instruction set of this machine.

References: gguf's own dequantisation, float64 products, and a NumPy model of int8 activations written from the
definition of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from forge_cpu.native import extension
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

native = extension()
assert native is not None, "the tests need the compiled kernels"

Floats = npt.NDArray[np.float32]

ISAS = native.isas() if native is not None else []
ENCODINGS = native.encodings() if native is not None else []
QUANTISED = [name for name in ENCODINGS if name not in ("F16", "BF16", "F32")]
SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the float16 numbers of a block lie; all other bytes of a block may be anything."""

PER_BLOCK = {"Q4_0": 32, "Q4_1": 32, "Q8_0": 32, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256, "F16": 1, "BF16": 1, "F32": 1}


@dataclass
class Weights:
    """A random matrix as a GGUF file has it, and what it means."""

    encoding: str
    data: npt.NDArray[np.uint8]
    values: Floats

    @property
    def rows(self) -> int:
        return len(self.data)

    @property
    def cols(self) -> int:
        return self.values.shape[1]


def random_weights(encoding: str, rows: int, cols: int, seed: int = 0) -> Weights:
    """Every bit of the blocks is random but for the scales: ordinary, negative, zero and subnormal numbers."""
    rng = np.random.default_rng([seed, rows, cols])
    kind = GGMLQuantizationType[encoding]
    if encoding == "F32":
        data = rng.standard_normal((rows, cols), dtype=np.float32).view(np.uint8)
    elif encoding == "F16":
        data = rng.standard_normal((rows, cols)).astype(np.float16).view(np.uint8)
    elif encoding == "BF16":
        high_halves = rng.standard_normal((rows, cols), dtype=np.float32).view(np.uint16)[:, 1::2]
        data = np.ascontiguousarray(high_halves).view(np.uint8)
    else:
        per_block, size = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (rows, cols // per_block, size), dtype=np.uint8)
        for at in SCALES[encoding]:
            scales = rng.uniform(-1e-2, 1e-2, blocks.shape[:2]).astype(np.float16)
            scales[rng.random(scales.shape) < 0.05] = 0
            scales[rng.random(scales.shape) < 0.05] = 3e-6
            blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
        data = blocks.reshape(rows, -1)
    return Weights(encoding, data, dequantize(data, kind).astype(np.float32).reshape(rows, cols))


def packed(pool: object, *parts: Weights) -> object:
    matrix = native.Matrix([(part.encoding, part.rows) for part in parts], parts[0].cols)
    for segment, part in enumerate(parts):
        matrix.pack(pool, segment, 0, part.data)
    return matrix


def product(pool: object, x: Floats, matrix: object, bias: Floats | None = None) -> Floats:
    out = np.full((len(x), matrix.out_features), np.nan, np.float32)
    native.linear(pool, x, matrix, bias, out)
    return out


def activations(rows: int, cols: int, seed: int = 1) -> Floats:
    """Normal numbers with some outliers, as hidden states have them, and one block of zeros."""
    rng = np.random.default_rng([seed, cols])
    x = rng.standard_normal((rows, cols), dtype=np.float32)
    x[:, 3] *= 20
    x[:, -1:] = 0
    if cols >= 64:
        x[0, 32:64] = 0
    return x


def as_int8_blocks(x: Floats) -> npt.NDArray[np.float64]:
    """What remains of activations in blocks of 32: multiples of the largest magnitude's 127th part."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    scale = (largest / np.float32(127)).astype(np.float32)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    q = np.rint(blocks * inverse)
    return (q.astype(np.float64) * scale).reshape(x.shape)


def relative_rms(got: Floats, wanted: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)))


@pytest.fixture(scope="module")
def pools() -> Callable[..., object]:
    made: dict[tuple[str, int], object] = {}

    def pool(isa: str, threads: int = 2) -> object:
        return made.setdefault((isa, threads), native.Pool(threads, isa))

    return pool


def test_portable_kernels_are_always_there() -> None:
    assert ISAS[-1] == "portable"
    assert {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32"} == set(ENCODINGS)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("rows", "cols"), [(16, 256), (1, 256), (53, 768)])
def test_a_packed_matrix_still_holds_the_files_numbers(
    pools: Callable[..., object], encoding: str, rows: int, cols: int
) -> None:
    weights = random_weights(encoding, rows, cols)
    matrix = packed(pools(ISAS[0]), weights)
    out = np.full((rows, cols), np.nan, np.float32)
    matrix.rows(0, rows, out)
    np.testing.assert_array_equal(out, weights.values)
    assert matrix.nbytes <= 1.03 * weights.data.nbytes * -(-rows // 16) * 16 / rows


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_packed_matrix_holds_an_odd_number_of_blocks(pools: Callable[..., object], encoding: str) -> None:
    weights = random_weights(encoding, 20, 96)
    out = np.empty((3, 96), np.float32)
    packed(pools(ISAS[0]), weights).rows(15, 18, out)
    np.testing.assert_array_equal(out, weights.values[15:18])


@pytest.mark.parametrize("encoding", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("isa", ISAS)
def test_float_weights_take_any_number_of_inputs(pools: Callable[..., object], isa: str, encoding: str) -> None:
    weights = random_weights(encoding, 19, 37)
    matrix, x = packed(pools(isa), weights), activations(5, 37)
    out = np.empty((19, 37), np.float32)
    matrix.rows(0, 19, out)
    np.testing.assert_array_equal(out, weights.values)
    assert relative_rms(product(pools(isa), x, matrix), x @ weights.values.T.astype(np.float64)) < 1e-6


def test_a_matrix_can_be_packed_piece_by_piece(pools: Callable[..., object]) -> None:
    weights = random_weights("Q4_1", 100, 64)
    matrix = native.Matrix([("Q4_1", 100)], 64)
    for start in (64, 0, 48):
        stop = {64: 100, 0: 48, 48: 64}[start]
        matrix.pack(pools(ISAS[0]), 0, start, weights.data[start:stop])
    out = np.empty((100, 64), np.float32)
    matrix.rows(0, 100, out)
    np.testing.assert_array_equal(out, weights.values)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize(("n", "rows", "cols"), [(1, 64, 512), (7, 50, 256), (37, 33, 1024)])
def test_products_equal_the_definition_of_int8_arithmetic(
    pools: Callable[..., object], isa: str, encoding: str, n: int, rows: int, cols: int
) -> None:
    weights = random_weights(encoding, rows, cols)
    x = activations(n, cols)
    exact = as_int8_blocks(x) @ weights.values.T.astype(np.float64)
    assert relative_rms(product(pools(isa), x, packed(pools(isa), weights)), exact) < 2e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("cols", [32, 96, 160])
def test_products_with_a_short_last_group(pools: Callable[..., object], isa: str, encoding: str, cols: int) -> None:
    if cols % PER_BLOCK[encoding] != 0:
        with pytest.raises(ValueError, match="blocks of 256"):
            native.Matrix([(encoding, 16)], cols)
        return
    weights, x = random_weights(encoding, 32, cols), activations(6, cols)
    exact = as_int8_blocks(x) @ weights.values.T.astype(np.float64)
    assert relative_rms(product(pools(isa), x, packed(pools(isa), weights)), exact) < 2e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_products_stay_close_to_float64(pools: Callable[..., object], isa: str, encoding: str) -> None:
    weights = random_weights(encoding, 80, 768)
    x = np.random.default_rng(3).standard_normal((20, 768), dtype=np.float32)
    error = relative_rms(product(pools(isa), x, packed(pools(isa), weights)), x @ weights.values.T.astype(np.float64))
    assert error < (1e-2 if encoding in QUANTISED else 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("encoding", sorted(QUANTISED))
def test_activations_of_16_bits_are_as_good_as_floats(isa: str, encoding: str) -> None:
    weights = random_weights(encoding, 80, 768)
    fine, coarse = native.Pool(2, isa, 16), native.Pool(2, isa, 8)
    assert (fine.activation_bits, coarse.activation_bits) == (16, 8)
    x = activations(40, 768)
    wanted = x.astype(np.float64) @ weights.values.T.astype(np.float64)
    matrix = packed(fine, weights)
    together = product(fine, x, matrix)
    assert relative_rms(together, wanted) < min(1e-4, 0.02 * relative_rms(product(coarse, x, matrix), wanted))
    for row in (0, 7, 8, 39):
        np.testing.assert_array_equal(product(native.Pool(1, isa, 16), x[row : row + 1], matrix)[0], together[row])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("encoding", sorted(QUANTISED))
def test_activations_that_stand_out_are_refined_alike_in_every_batch(isa: str, encoding: str) -> None:
    weights = random_weights(encoding, 80, 768)
    fine, mixed, coarse = native.Pool(2, isa, 16), native.Pool(2, isa, 16, 0.1), native.Pool(2, isa, 8)
    x = activations(40, 768)
    x[:, 100] *= 50  # one outlier spoils 8 bits for its 31 neighbours, in some rows only
    x[::3, 100] = 0
    wanted = x.astype(np.float64) @ weights.values.T.astype(np.float64)
    matrix = packed(fine, weights)
    together = product(mixed, x, matrix)
    errors = [relative_rms(product(pool, x, matrix), wanted) for pool in (fine, mixed, coarse)]
    assert errors[0] < errors[1] < 0.9 * errors[2]
    for row in range(40):
        np.testing.assert_array_equal(product(mixed, x[row : row + 1], matrix)[0], together[row])
    np.testing.assert_array_equal(product(native.Pool(1, isa, 16, 0.1), x[5:18], matrix), together[5:18])


@pytest.mark.parametrize("isa", ISAS)
def test_activations_of_other_widths_are_refused(isa: str) -> None:
    with pytest.raises(ValueError, match="8 or 16"):
        native.Pool(1, isa, 12)
    with pytest.raises(ValueError, match="loud"):
        native.Pool(1, isa, 16, -1.0)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_instruction_sets_agree(pools: Callable[..., object], encoding: str) -> None:
    weights, x = random_weights(encoding, 48, 512), activations(9, 512)
    results = [product(pools(isa), x, packed(pools(isa), weights)) for isa in ISAS]
    for result in results[1:]:
        assert relative_rms(result, results[0].astype(np.float64)) < 1e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_row_alone_and_among_others_is_the_same_to_the_bit(
    pools: Callable[..., object], isa: str, encoding: str
) -> None:
    weights = random_weights(encoding, 70, 512)
    matrix = packed(pools(isa), weights)
    x = activations(300, 512)
    alone = np.concatenate([product(pools(isa, 1), row[None], matrix) for row in x])
    counts = [*range(1, 41), 300]
    for threads in (1, 2, 3):
        for n in counts if threads == 1 else [*counts[threads::7], 300]:
            np.testing.assert_array_equal(product(pools(isa, threads), x[:n], matrix), alone[:n])


@pytest.mark.parametrize("isa", ISAS)
def test_segments_keep_their_encodings_and_order(pools: Callable[..., object], isa: str) -> None:
    parts = [random_weights(encoding, 16 + 5 * i, 512, seed=i) for i, encoding in enumerate(ENCODINGS)]
    matrix = packed(pools(isa), *parts)
    x = activations(11, 512)
    bias = np.random.default_rng(5).standard_normal(matrix.out_features, dtype=np.float32)
    whole = product(pools(isa), x, matrix, bias)
    single = np.concatenate([product(pools(isa), x, packed(pools(isa), part)) for part in parts], axis=1)
    np.testing.assert_array_equal(whole, single + bias)
    out = np.empty((matrix.out_features, 512), np.float32)
    matrix.rows(0, matrix.out_features, out)
    np.testing.assert_array_equal(out, np.concatenate([part.values for part in parts]))


@pytest.mark.parametrize("isa", ISAS)
def test_adding_to_a_residual_and_a_bias(pools: Callable[..., object], isa: str) -> None:
    weights, x = random_weights("Q8_0", 37, 96), activations(5, 96)
    matrix = packed(pools(isa), weights)
    rng = np.random.default_rng(6)
    residual, bias = rng.standard_normal((5, 37), dtype=np.float32), rng.standard_normal(37, dtype=np.float32)
    out = residual.copy()
    native.linear(pools(isa), x, matrix, bias, out, add=True)
    np.testing.assert_array_equal(out, (product(pools(isa), x, matrix) + bias) + residual)


def test_torch_tensors_are_taken_as_they_are(pools: Callable[..., object]) -> None:
    weights, x = random_weights("Q4_1", 32, 64), activations(3, 64)
    matrix = native.Matrix([("Q4_1", 32)], 64)
    matrix.pack(pools(ISAS[0]), 0, 0, torch.from_numpy(weights.data))
    out = torch.empty(3, 32)
    native.linear(pools(ISAS[0]), torch.from_numpy(x), matrix, None, out)
    np.testing.assert_array_equal(out.numpy(), product(pools(ISAS[0]), x, matrix))


def test_no_rows_are_no_work(pools: Callable[..., object]) -> None:
    matrix = packed(pools(ISAS[0]), random_weights("Q8_0", 16, 64))
    assert product(pools(ISAS[0]), np.empty((0, 64), np.float32), matrix).shape == (0, 16)


@pytest.mark.parametrize("isa", ISAS)
def test_extreme_activations_give_no_garbage(pools: Callable[..., object], isa: str) -> None:
    """Tiny rows count as zero, huge ones stay finite, and a NaN spoils its own row only."""
    weights = random_weights("Q8_0", 16, 64)
    matrix = packed(pools(isa), weights)
    x = activations(4, 64)
    clean = product(pools(isa), x, matrix)
    x[1] *= np.float32(1e-40)
    x[2] *= np.float32(1e30)
    x[3, 5] = np.nan
    got = product(pools(isa), x, matrix)
    np.testing.assert_array_equal(got[0], clean[0])
    np.testing.assert_array_equal(got[1], 0)
    assert np.isfinite(got[2]).all()


@pytest.mark.parametrize(
    ("segments", "cols", "message"),
    [
        ([], 32, "at least one segment"),
        ([("Q9_9", 16)], 32, "no kernel for encoding 'Q9_9'; there are: Q4_0"),
        ([("Q8_0", 16)], 40, "blocks of 32"),
        ([("Q4_K", 16)], 32, "blocks of 256"),
        ([("Q8_0", 0)], 32, "0 rows"),
        ([("Q8_0", -1)], 32, "-1 rows"),
        ([("Q8_0", 16)], 0, "0 inputs"),
        ([("Q8_0", 16)], 1 << 40, "inputs"),
        ([("F32", 1 << 62)], 32, "rows"),
    ],
)
def test_impossible_matrices_are_refused(segments: list[tuple[str, int]], cols: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.Matrix(segments, cols)


def test_a_matrix_beyond_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        native.Matrix([("F32", 1 << 30)], 1 << 30)


@pytest.mark.parametrize(
    ("segment", "row", "shape"),
    [(1, 0, (16, 34)), (-1, 0, (16, 34)), (0, 8, (16, 34)), (0, -16, (16, 34)), (0, 48, (16, 34)), (0, 0, (17, 34)),
     (0, 0, (16, 33)), (0, 0, (0, 34)), (0, 16, (1 << 20, 34)), (0, (1 << 63) - 16, (16, 34))],
)  # fmt: skip
def test_rows_that_dont_fit_are_refused(
    pools: Callable[..., object], segment: int, row: int, shape: tuple[int, int]
) -> None:
    matrix = native.Matrix([("Q8_0", 40)], 32)
    with pytest.raises(ValueError, match=r"segment|rows|bytes"):
        matrix.pack(pools(ISAS[0]), segment, row, np.zeros(shape, np.uint8))


def test_wrong_arrays_are_refused(pools: Callable[..., object]) -> None:
    pool = pools(ISAS[0])
    matrix = packed(pool, random_weights("Q8_0", 32, 64))
    x, out = np.zeros((4, 64), np.float32), np.zeros((4, 32), np.float32)
    for bad_x, bad_out in [(x[:, :32].copy(), out), (x, out[:3].copy()), (x, np.zeros((4, 33), np.float32))]:
        with pytest.raises(ValueError, match="must be"):
            native.linear(pool, bad_x, matrix, None, bad_out)
    with pytest.raises(ValueError, match="bias"):
        native.linear(pool, x, matrix, np.zeros(31, np.float32), out)
    frozen = out.copy()
    frozen.flags.writeable = False
    for bad_x, bad_out in [
        (x.astype(np.float64), out), (x, out.astype(np.float16)), (x[0], out), (x.tolist(), out), (None, out),
        (np.zeros((64, 4), np.float32).T, out), (np.zeros((4, 128), np.float32)[:, ::2], out), (x, frozen),
    ]:  # fmt: skip
        with pytest.raises(TypeError):
            native.linear(pool, bad_x, matrix, None, bad_out)
    with pytest.raises(TypeError):
        native.linear(pool, x, None, None, out)
    with pytest.raises(TypeError):
        native.linear(None, x, matrix, None, out)
    for start, stop in [(-1, 3), (3, 2), (0, 33), (1 << 62, (1 << 62) + 4)]:
        with pytest.raises(ValueError, match="aren't within"):
            matrix.rows(start, stop, np.zeros((4, 64), np.float32))
    with pytest.raises(ValueError, match=r"out\.shape"):
        matrix.rows(0, 3, np.zeros((4, 64), np.float32))
