"""The native norm, RoPE and SiLU product against float64 formulas; rows that don't depend on each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from forge_cpu.native import extension, instruction_sets

native: Any = extension()
assert native is not None, "the tests need the compiled kernels"


@pytest.fixture(params=instruction_sets())
def pool(request: pytest.FixtureRequest) -> Any:
    return native.Pool(2, request.param)


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def close(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float64], tolerance: float = 1e-6) -> None:
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("dim", [1, 15, 64, 576, 1000])
def test_rms_norm_is_its_formula(pool: Any, dim: int) -> None:
    x, weight = normal(33, dim) * 30, normal(dim, seed=1)
    out = np.empty_like(x)
    native.rms_norm(pool, x, weight, 1e-5, out)
    x64 = x.astype(np.float64)
    close(out, x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * weight)
    alone = np.empty((1, dim), np.float32)
    native.rms_norm(pool, x[7:8], weight, 1e-5, alone)
    assert np.array_equal(alone[0], out[7])
    native.rms_norm(pool, x, weight, 1e-5, x)
    assert np.array_equal(x, out), "in place differs"


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "pairs"), [(64, 32), (64, 20), (16, 8), (128, 64), (10, 3)])
def test_rope_rotates_complex_pairs(pool: Any, interleaved: bool, dim: int, pairs: int) -> None:
    x, positions = normal(9, 3, dim), np.array([0, 1, 2, 3, 500, 8191, 131071, 7, 7])
    frequencies = 10000.0 ** (-np.arange(pairs) / pairs)
    out = np.empty_like(x)
    native.rope(pool, x, positions, frequencies, interleaved, 1.25, out)
    turn = 1.25 * np.exp(1j * positions[:, None] * frequencies)[:, None]
    wanted = x.astype(np.float64)
    if interleaved:
        pair = (x[..., 0 : 2 * pairs : 2] + 1j * x[..., 1 : 2 * pairs : 2]) * turn
        wanted[..., 0 : 2 * pairs : 2], wanted[..., 1 : 2 * pairs : 2] = pair.real, pair.imag
    else:
        pair = (x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]) * turn
        wanted[..., :pairs], wanted[..., pairs : 2 * pairs] = pair.real, pair.imag
    close(out, wanted)
    native.rope(pool, x, positions, tuple(frequencies), interleaved, 1.25, x)
    assert np.array_equal(x, out), "in place differs"


@pytest.mark.parametrize("dim", [1, 17, 1536])
def test_silu_mul_is_its_formula_for_large_gates_too(pool: Any, dim: int) -> None:
    x = normal(5, 2 * dim) * 40
    out = np.empty((5, dim), np.float32)
    native.silu_mul(pool, x, out)
    gate, up = np.split(x.astype(np.float64), 2, axis=-1)
    close(out, gate / (1 + np.exp(-gate)) * up)
    alone = np.empty((1, dim), np.float32)
    native.silu_mul(pool, x[3:4], alone)
    assert np.array_equal(alone[0], out[3])


def test_arguments_that_do_not_fit_are_refused(pool: Any) -> None:
    x = normal(4, 32)
    with pytest.raises(ValueError, match=r"weight must have shape \[32\], has \[31\]"):
        native.rms_norm(pool, x, normal(31), 1e-5, np.empty_like(x))
    with pytest.raises(ValueError, match="out must have shape"):
        native.rms_norm(pool, x, normal(32), 1e-5, np.empty((3, 32), np.float32))
    with pytest.raises(TypeError):
        native.rms_norm(pool, x.astype(np.float64), normal(32), 1e-5, np.empty_like(x))
    with pytest.raises(TypeError):
        native.rms_norm(pool, x.T, normal(4), 1e-5, np.empty((32, 4), np.float32))
    with pytest.raises(ValueError, match="17 pairs"):
        native.rope(pool, normal(1, 1, 32), np.array([0]), [1.0] * 17, True, 1.0, np.empty((1, 1, 32), np.float32))
    with pytest.raises(ValueError, match="positions must have shape"):
        native.rope(pool, normal(2, 1, 32), np.array([0]), [1.0], True, 1.0, np.empty((2, 1, 32), np.float32))
    with pytest.raises(ValueError, match="gate_up must have shape"):
        native.silu_mul(pool, normal(2, 33), np.empty((2, 16), np.float32))
