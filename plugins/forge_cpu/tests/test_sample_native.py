"""The native sampler: the backend kit's sampling half, the plain backend on random rows, and the same random bits."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import torch
from attrs import field, frozen
from forge_cpu.native import extension, instruction_sets
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.interfaces.backend import Backend
from forge.interfaces.drawing import adjust
from forge.interfaces.sampler import RowSampling, Sampled, uniforms
from forge.testing.sampling import SamplingConformance, reference_draw, rows

native: Any = extension()
assert native is not None, "the tests need the compiled kernels"


@frozen
class NativeSampler:
    """As much of a backend as the kit's sampling half asks for."""

    isa: str
    threads: int = 2
    pool: Any = field(init=False)
    device: torch.device = field(init=False, factory=lambda: torch.device("cpu"))

    @pool.default
    def _pool(self) -> Any:
        return native.Pool(self.threads, self.isa)

    def sample(self, logits: torch.Tensor, rows: RowSampling) -> Sampled:
        return Sampled(*native.sample(self.pool, logits, *attrs.astuple(rows, recurse=False)))


@pytest.fixture(scope="module", params=instruction_sets())
def backend(request: pytest.FixtureRequest) -> Any:
    return NativeSampler(request.param)


class TestNativeSampling(SamplingConformance):
    """The kit, for every instruction set."""


def test_uniforms_are_the_same_bits_as_the_reference() -> None:
    rng, count = np.random.default_rng(0), 1_000_000
    seed = rng.integers(0, 2**64, count, dtype=np.uint64)
    choice, position = (rng.integers(0, 2**32, count, dtype=np.uint32) for _ in range(2))
    seed[:2], choice[:2], position[:2] = (0, 2**64 - 1), (0, 2**32 - 1), (0, 2**32 - 1)
    assert np.array_equal(native.uniforms(seed, choice, position), uniforms(seed, choice, position))


@frozen
class Case:
    """Logits, and the settings of their rows."""

    logits: npt.NDArray[np.float32]
    rows: RowSampling


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Rows with everything that a row can have."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, vocabulary = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 31, 33, 200, 700, 3000]))
    scale = draw(st.sampled_from([0.0, 0.1, 3.0, 30.0]))
    logits = (rng.standard_normal((count, vocabulary)) * scale).astype(np.float32)
    if draw(st.booleans()):
        logits = np.round(logits)  # many ties
    columns: dict[str, Any] = {
        "temperature": rng.choice([0, 0.1, 0.7, 1, 2], count).astype(np.float32),
        "top_k": rng.choice([0, 1, 3, 50, 5000], count).astype(np.int32),
        "top_p": rng.choice([1, 0.99, 0.9, 0.3], count).astype(np.float32),
        "min_p": rng.choice([0, 0.01, 0.5, 1], count).astype(np.float32),
        "seed": rng.integers(0, 2**64, count, dtype=np.uint64),
        "choice": rng.integers(0, 2**32, count, dtype=np.uint32),
    }

    def ragged(most: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        ids = [rng.permutation(vocabulary)[: rng.integers(0, most + 1)] for _ in range(count)]
        return np.cumsum([0, *map(len, ids)]), np.concatenate(ids).astype(np.int64)

    if draw(st.booleans()):
        columns["bias_starts"], columns["bias_ids"] = ragged(5)
        columns["bias_values"] = rng.normal(0, 5, len(columns["bias_ids"])).astype(np.float32)
    if draw(st.booleans()):
        columns["history_starts"], columns["history_ids"] = ragged(20)
        columns["history_counts"] = rng.integers(0, 4, len(columns["history_ids"]))
        columns["repetition_penalty"] = rng.uniform(0.5, 2, count).astype(np.float32)
        columns["presence_penalty"] = rng.normal(0, 1, count).astype(np.float32)
        columns["frequency_penalty"] = rng.normal(0, 1, count).astype(np.float32)
    if draw(st.booleans()):
        columns["banned_starts"], columns["banned_ids"] = ragged(min(3, vocabulary - 1))
    if draw(st.booleans()):
        allowed = rng.random((count, -(-vocabulary // 32) * 32)) < 0.5
        if columns.get("banned_ids") is not None:
            allowed[:, :vocabulary] = True
        allowed[:, 0] = True
        columns["masks"] = np.packbits(allowed, axis=1, bitorder="little").view("<i4")
    if draw(st.booleans()):
        columns["targets"] = rng.integers(-1, vocabulary, count)
    columns["logprobs"] = draw(st.sampled_from([None, 0, 1, min(20, vocabulary)]))
    return Case(logits, rows(count, **columns))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_rows_with_everything_are_sampled_as_by_the_plain_backend(case: Case) -> None:
    """Up to draws on a border between two tokens, of which the reference says how near they are."""
    found = SAMPLERS[0].sample(torch.tensor(case.logits), case.rows)
    wanted = Backend().sample(torch.tensor(case.logits), case.rows)
    for sampler in SAMPLERS[1:]:
        assert sampler.sample(torch.tensor(case.logits), case.rows).tokens.shape == found.tokens.shape
    for row in np.flatnonzero(found.tokens != wanted.tokens).tolist():
        assert near_a_border(case, row, int(found.tokens[row]), int(wanted.tokens[row]))
    if case.rows.logprobs is None:
        assert found.logprobs is None
        return
    assert found.logprobs is not None
    assert found.top_ids is not None
    assert found.top_logprobs is not None
    assert wanted.logprobs is not None
    assert wanted.top_logprobs is not None
    same = found.tokens == wanted.tokens
    assert np.allclose(found.logprobs[same], wanted.logprobs[same], atol=1e-4, rtol=1e-5)
    assert np.allclose(found.top_logprobs, wanted.top_logprobs, atol=1e-4, rtol=1e-5)
    assert len(found.top_ids[0]) == case.rows.logprobs
    for ids, values, logits in zip(found.top_ids, found.top_logprobs, case.logits):
        order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
        assert ids.tolist() == order[: len(values)]


SAMPLERS = [NativeSampler(isa, threads=1) for isa in instruction_sets()]


def near_a_border(case: Case, row: int, found: int, wanted: int) -> bool:
    """Whether rounding decides between two tokens: their adjusted logits or their draw's borders nearly coincide."""
    adjusted = adjust(torch.tensor(case.logits), case.rows)[row].numpy()
    _, margin = reference_draw(adjusted, case.rows, row)
    return margin < 1e-4 or abs(float(adjusted[found]) - float(adjusted[wanted])) < 1e-4


@pytest.mark.parametrize("filters", [{}, {"top_k": 40}, {"top_p": 0.95}, {"top_k": 40, "top_p": 0.9, "min_p": 0.02}])
def test_a_large_vocabulary_is_drawn_from_as_by_the_reference(backend: Any, filters: dict[str, float]) -> None:
    count, vocabulary = 16, 49152
    logits = np.random.default_rng(3).standard_normal((count, vocabulary), dtype=np.float32) * np.float32(2.5)
    arrays = {name: np.full(count, value, getattr(rows(1), name).dtype) for name, value in filters.items()}
    settings_of_rows = rows(count, **arrays)
    found = backend.sample(torch.tensor(logits), settings_of_rows).tokens
    for row in range(count):
        wanted, margin = reference_draw(logits[row], settings_of_rows, row)
        assert found[row] == wanted or margin < 1e-6


def test_a_million_ties_keep_the_lowest_ids(backend: Any) -> None:
    vocabulary, count = 100_000, 50
    logits = np.zeros((count, vocabulary), np.float32)
    few = backend.sample(torch.tensor(logits), rows(count, top_k=np.full(count, 7, np.int32))).tokens
    assert set(few.tolist()) <= set(range(7))
    half = backend.sample(torch.tensor(logits), rows(count, top_p=np.full(count, 0.5, np.float32))).tokens
    assert half.max() < vocabulary // 2
    assert half.max() > vocabulary // 4


def test_rows_do_not_depend_on_each_other_or_on_threads(backend: Any) -> None:
    rng, count = np.random.default_rng(5), 9
    logits = rng.standard_normal((count, 5000), dtype=np.float32) * 2
    r = rows(count, top_p=rng.choice([0.5, 1.0], count).astype(np.float32), logprobs=5)
    wanted = backend.sample(torch.tensor(logits), r)
    for threads in (1, 3):
        found = NativeSampler(backend.isa, threads).sample(torch.tensor(logits), r)
        assert all(np.array_equal(x, y) for x, y in zip(attrs.astuple(found), attrs.astuple(wanted)))
    for i in range(count):
        one = rows(1, top_p=r.top_p[i : i + 1], seed=r.seed[i : i + 1], position=r.position[i : i + 1], logprobs=5)
        alone = backend.sample(torch.tensor(logits[i : i + 1]), one)
        assert all(np.array_equal(x[0], y[i]) for x, y in zip(attrs.astuple(alone), attrs.astuple(wanted)))


@pytest.mark.parametrize("columns", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"temperature": 0.0}], ids=str)
def test_forbidden_logits_beside_finite_ones_are_never_drawn(backend: Any, columns: dict[str, float]) -> None:
    logits = np.full((20, 300), -np.inf, np.float32)
    logits[:, [5, 70]] = 1e-3, 0
    arrays = {name: np.full(20, x, getattr(rows(1), name).dtype) for name, x in columns.items()}
    found = backend.sample(torch.tensor(logits), rows(20, logprobs=3, **arrays))
    assert set(found.tokens.tolist()) <= {5, 70}
    assert found.top_ids[:, :2].tolist() == [[5, 70]] * 20
    assert np.allclose(found.top_logprobs[:, :2], np.log(0.5), atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_masked_tokens_may_have_any_logit(backend: Any, value: float) -> None:
    logits = np.random.default_rng(6).standard_normal((1, 64), dtype=np.float32)
    logits[0, 40] = value
    allowed = rows(1, masks=np.array([[-1, 0]], np.int32))
    assert backend.sample(torch.tensor(logits), allowed).tokens[0] < 32


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"top_k": np.zeros(2, np.int32)}, "top_k must have shape"),
        (
            {"bias_starts": np.array([0, 1]), "bias_ids": np.array([10]), "bias_values": np.ones(1, np.float32)},
            "bias_ids",
        ),
        ({"banned_starts": np.array([0, 2]), "banned_ids": np.array([1])}, "banned_starts"),
        ({"banned_starts": np.array([0, 1]), "banned_ids": np.array([-1])}, "banned_ids has -1"),
        ({"masks": np.zeros((1, 2), np.int32)}, "masks must have shape"),
        ({"targets": np.array([10])}, "targets has 10"),
        ({"logprobs": 11}, "logprobs asks for 11"),
        (
            {"history_starts": np.array([0, 1]), "history_ids": np.array([1]), "history_counts": np.array([1])},
            "repetition_penalty is missing",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_do_not_fit_the_logits_are_refused(backend: Any, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend.sample(torch.zeros(1, 10), rows(1, **columns))


def test_logits_of_another_type_are_refused_rather_than_copied(backend: Any) -> None:
    with pytest.raises(TypeError):
        backend.sample(torch.zeros(1, 10, dtype=torch.float64), rows(1))
