"""The half of the backend kit about `Backend.sample`: against a reference that goes token by token in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from attrs import evolve

from forge.interfaces.backend import Backend
from forge.interfaces.sampler import RowSampling, uniforms

VOCABULARY = 200


def rows(count: int, **columns: Any) -> RowSampling:
    """Neutral sampling for so many rows, each with its own seed; columns override."""
    neutral = RowSampling(
        temperature=np.ones(count, np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=np.ones(count, np.float32),
        min_p=np.zeros(count, np.float32),
        seed=np.arange(count, dtype=np.uint64) * np.uint64(7919),
        choice=np.zeros(count, np.uint32),
        position=np.arange(count, dtype=np.uint32),
    )
    return evolve(neutral, **columns)


def reference_draw(logits: npt.NDArray[np.float32], r: RowSampling, i: int) -> tuple[int, float]:
    """Row i's token, and how far (in probability) its random number was from falling on another one."""
    z = logits.astype(np.float64)
    if r.temperature[i] == 0:
        best, second = np.sort(z)[:-3:-1]
        return int(np.flatnonzero(z == z.max())[0]), float(best - second) or 1.0
    z = (z - z.max()) / float(r.temperature[i])
    p = np.exp(z) / np.exp(z).sum()
    order = sorted(range(len(p)), key=lambda t: (-p[t], t))
    if r.top_k[i] > 0:
        order = order[: int(r.top_k[i])]
    total = sum(p[t] for t in order)
    kept, mass = [], 0.0
    for t in order:
        if mass >= float(r.top_p[i]) * total and r.top_p[i] < 1:
            break
        kept.append(t)
        mass += p[t]
    kept = sorted(t for t in kept if p[t] >= float(r.min_p[i]) * p[order[0]])
    total = sum(p[t] for t in kept)
    at = float(uniforms(r.seed[i : i + 1], r.choice[i : i + 1], r.position[i : i + 1])[0])
    mass = 0.0
    for t in kept:
        mass += p[t] / total
        if at < mass:
            return t, min(mass - at, at - (mass - p[t] / total))
    return kept[-1], 0.0


class SamplingConformance:
    """Tests of `Backend.sample`; part of `forge.testing.backend.BackendConformance`.

    distribution_rows: draws by which the distribution is tested. The bound on chi-square holds for any number; 20,000
    show a probability that is off by 0.015, 2,000 one that is off by 0.05: for backends that take milliseconds a row,
    such as interpreters.
    """

    distribution_rows: int = 20_000

    def logits(self, count: int, seed: int = 0, scale: float = 3.0) -> npt.NDArray[np.float32]:
        """Random logits ``[count, VOCABULARY]``."""
        return np.random.default_rng(seed).standard_normal((count, VOCABULARY), dtype=np.float32) * np.float32(scale)

    def draw(self, backend: Backend, logits: npt.NDArray[np.float32], r: RowSampling) -> list[int]:
        """The tokens drawn; the logits given are left as they are."""
        tokens: list[int] = backend.sample(torch.tensor(logits, device=backend.device), r).tokens.tolist()
        return tokens

    def expect(self, backend: Backend, logits: npt.NDArray[np.float32], r: RowSampling) -> None:
        """Assert that every row whose random number doesn't sit on a border equals the reference."""
        found = self.draw(backend, logits, r)
        wanted = [reference_draw(logits[i], r, i) for i in range(len(logits))]
        clear = [i for i, (_, margin) in enumerate(wanted) if margin > 1e-5]
        assert len(clear) >= 0.9 * len(wanted)
        assert [found[i] for i in clear] == [wanted[i][0] for i in clear]

    def test_greedy_takes_the_largest_and_on_ties_the_lowest_id(self, backend: Backend) -> None:
        logits = self.logits(3)
        logits[1, [17, 50, 199]] = 40.0
        logits[2] = 0.5
        found = self.draw(backend, logits, rows(3, temperature=np.zeros(3, np.float32)))
        assert found == [int(logits[0].argmax()), 17, 0]

    @pytest.mark.parametrize(
        "columns",
        [
            {},
            {"temperature": 0.3},
            {"temperature": 1e-4},
            {"top_k": 5},
            {"top_k": 1},
            {"top_p": 0.7},
            {"top_p": 1e-6},
            {"min_p": 0.2},
            {"top_k": 12, "top_p": 0.8, "min_p": 0.05, "temperature": 0.9},
        ],
        ids=str,
    )
    def test_draws_follow_the_filters_in_their_order(self, backend: Backend, columns: dict[str, float]) -> None:
        count = 64
        arrays = {name: np.full(count, value, getattr(rows(1), name).dtype) for name, value in columns.items()}
        self.expect(backend, self.logits(count, seed=1), rows(count, **arrays))

    def test_every_row_has_its_own_settings(self, backend: Backend) -> None:
        count, rng = 64, np.random.default_rng(2)
        mixed = rows(
            count,
            temperature=rng.choice([0.0, 0.5, 1.0, 1.5], count).astype(np.float32),
            top_k=rng.choice([0, 1, 10, 500], count).astype(np.int32),
            top_p=rng.choice([1.0, 0.9, 0.3], count).astype(np.float32),
            min_p=rng.choice([0.0, 0.1], count).astype(np.float32),
            choice=rng.integers(0, 4, count).astype(np.uint32),
            seed=rng.integers(0, 2**64, count, dtype=np.uint64),
        )
        self.expect(backend, self.logits(count, seed=3), mixed)

    def test_flat_rows_are_filtered_right_beyond_the_first_candidates(self, backend: Backend) -> None:
        logits = np.random.default_rng(4).standard_normal((4, 5000), dtype=np.float32) * np.float32(0.1)
        self.expect(backend, logits, rows(4, top_p=np.full(4, 0.95, np.float32)))

    def test_ties_at_the_border_of_top_k_keep_the_lowest_ids(self, backend: Backend) -> None:
        count = 200
        logits = np.zeros((count, VOCABULARY), np.float32)
        logits[:, 7] = 2.0
        found = self.draw(backend, logits, rows(count, top_k=np.full(count, 4, np.int32)))
        assert set(found) == {0, 1, 2, 7}

    def test_draws_have_the_distribution_of_the_logits(self, backend: Backend) -> None:
        count, p = self.distribution_rows, np.array([0.5, 0.25, 0.15, 0.07, 0.03])
        logits = np.tile(np.log(p).astype(np.float32), (count, 1))
        found = np.bincount(self.draw(backend, logits, rows(count)), minlength=5)
        chi_square = float(((found - count * p) ** 2 / (count * p)).sum())
        assert chi_square < 23.5, f"p < 1e-4 for 4 degrees of freedom: {found.tolist()}"

    def test_a_row_draws_the_same_alone_and_in_any_batch(self, backend: Backend) -> None:
        logits, r = self.logits(16, seed=6), rows(16, top_p=np.full(16, 0.9, np.float32))
        together = self.draw(backend, logits, r)
        for i in range(16):
            one = rows(1, top_p=r.top_p[i : i + 1], seed=r.seed[i : i + 1], position=r.position[i : i + 1])
            assert self.draw(backend, logits[i : i + 1], one) == [together[i]]

    def test_bias_is_added_and_can_forbid_or_force(self, backend: Backend) -> None:
        logits = self.logits(3)
        r = rows(
            3,
            temperature=np.zeros(3, np.float32),
            bias_starts=np.array([0, 1, 1, 3]),
            bias_ids=np.array([5, int(logits[2].argmax()), 9]),
            bias_values=np.array([100, -100, 1e-3], np.float32),
        )
        second = logits[2].copy()
        second[logits[2].argmax()] -= 100
        assert self.draw(backend, logits, r) == [5, int(logits[1].argmax()), int(second.argmax())]

    def test_penalties_are_their_formulas(self, backend: Backend) -> None:
        logits, count = self.logits(40, seed=8), 40
        rng = np.random.default_rng(9)
        ids = [rng.choice(VOCABULARY, rng.integers(0, 30), replace=False) for _ in range(count)]
        counts = [rng.integers(0, 4, len(chosen)) for chosen in ids]
        repetition = rng.uniform(0.5, 2.0, count).astype(np.float32)
        presence, frequency = (rng.uniform(-2, 2, count).astype(np.float32) for _ in range(2))
        wanted = logits.astype(np.float64)
        for i in range(count):
            for token, n in zip(ids[i], counts[i]):
                x = wanted[i, token]
                x = x / repetition[i] if x > 0 else x * repetition[i]
                wanted[i, token] = x - presence[i] * (n > 0) - frequency[i] * n
        r = rows(
            count,
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
            history_starts=np.cumsum([0, *(len(chosen) for chosen in ids)]),
            history_ids=np.concatenate(ids).astype(np.int64),
            history_counts=np.concatenate(counts).astype(np.int64),
        )
        greedy = evolve(r, temperature=np.zeros(count, np.float32))
        assert self.draw(backend, logits, greedy) == wanted.argmax(-1).tolist()
        found = self.draw(backend, logits, r)
        expected = [reference_draw(wanted[i].astype(np.float32), r, i) for i in range(count)]
        assert all(f == token for f, (token, margin) in zip(found, expected) if margin > 1e-4)

    def test_masks_and_bans_are_never_drawn(self, backend: Backend) -> None:
        count, rng = 50, np.random.default_rng(10)
        allowed = rng.random((count, VOCABULARY)) < 0.1
        allowed[:, 31] = allowed[:, 64] = True  # the top bit of a word, and the first of the next
        bits = np.zeros((count, 7 * 32), bool)
        bits[:, :VOCABULARY] = allowed
        masks = np.packbits(bits, axis=1, bitorder="little").view("<i4")
        banned = [int(np.flatnonzero(row)[0]) for row in allowed]
        r = rows(count, masks=masks, banned_starts=np.arange(count + 1), banned_ids=np.array(banned))
        logits = self.logits(count, seed=11)
        for temperature in (0.0, 1.0, 2.0):
            found = self.draw(backend, logits, evolve(r, temperature=np.full(count, temperature, np.float32)))
            assert all(allowed[i, token] and token != banned[i] for i, token in enumerate(found))
        only = np.where(allowed, logits, -np.inf)
        only[np.arange(count), banned] = -np.inf
        assert (
            self.draw(backend, logits, evolve(r, temperature=np.zeros(count, np.float32))) == only.argmax(-1).tolist()
        )

    def test_equally_probable_alternatives_come_in_the_order_of_their_ids(self, backend: Backend) -> None:
        logits = np.zeros((1, VOCABULARY), np.float32)
        logits[0, [150, 20, 90]] = 2.0
        for count in range(1, 8):
            sampled = backend.sample(torch.tensor(logits, device=backend.device), rows(1, logprobs=count))
            assert sampled.top_ids is not None
            assert sampled.top_ids[0].tolist() == [20, 90, 150, 0, 1, 2, 3][:count]

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("flaw", ["nan", "infinite", "nothing allowed"])
    def test_a_row_without_a_sensible_token_is_an_error_not_an_answer(
        self, backend: Backend, temperature: float, flaw: str
    ) -> None:
        logits, r = self.logits(2), rows(2, temperature=np.full(2, temperature, np.float32))
        if flaw == "nothing allowed":
            r = evolve(r, masks=np.array([[-1] * 7, [0] * 7], np.int32))
        else:
            logits[1, 3] = np.nan if flaw == "nan" else np.inf
        with pytest.raises(ValueError, match=r"finite|allowed"):
            self.draw(backend, logits, r)
        scored = evolve(r, targets=np.array([-1, 5]))
        assert self.draw(backend, logits, scored)[1] == 5

    def test_logprobs_are_the_models_own_before_anything_else(self, backend: Backend) -> None:
        logits = self.logits(3, seed=12)
        r = rows(
            3,
            temperature=np.array([0, 1, 1], np.float32),
            top_k=np.array([0, 1, 0], np.int32),
            bias_starts=np.array([0, 1, 1, 1]),
            bias_ids=np.array([5]),
            bias_values=np.array([100], np.float32),
            targets=np.array([-1, -1, 77]),
            logprobs=4,
        )
        sampled = backend.sample(torch.tensor(logits, device=backend.device), r)
        z = logits.astype(np.float64)
        wanted = z - np.log(np.exp(z).sum(-1, keepdims=True))
        tokens = sampled.tokens.tolist()
        assert tokens == [5, int(logits[1].argmax()), 77]
        assert sampled.logprobs is not None
        assert sampled.top_ids is not None
        assert sampled.top_logprobs is not None
        assert np.allclose(sampled.logprobs, wanted[range(3), tokens], atol=1e-4)
        best = np.argsort(-wanted, axis=-1)[:, :4]
        assert sampled.top_ids.tolist() == best.tolist()
        assert np.allclose(sampled.top_logprobs, np.take_along_axis(wanted, best, -1), atol=1e-4)
