"""Cases for sampling: tokens drawn on the device against a reference that sorts in float64, one row at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from attrs import evolve

from forge.interfaces.sampler import RowSampling, uniforms
from forge_cuda.backend import CudaBackend
from forge_cuda.testing.cases import Case

ROWS = 6
CLEAR = 1e-4
"""How far, in probability, a row's random number has to be from the border between two tokens to be compared."""

FILTERS: tuple[dict[str, float], ...] = (
    {},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
)


def sampling_cases() -> Iterator[Case]:
    """All of them; none depends on the dtype that the backend computes in."""
    for columns in FILTERS:
        for vocabulary in (200, 5000):
            described = ", ".join(f"{name} {value:g}" for name, value in columns.items()) or "plain"
            yield Case(
                f"draws of {vocabulary}: {described}",
                lambda b, v=vocabulary, c=columns: _draws(b, v, c),  # type: ignore[misc]
            )
    yield Case("bias, penalties, mask, bans", _adjusted)
    yield Case("log-probabilities", _logprobs)


def neutral(rows: int, **columns: Any) -> RowSampling:
    """Sampling that changes nothing, each row with a seed of its own."""
    return evolve(
        RowSampling(
            temperature=np.ones(rows, np.float32),
            top_k=np.zeros(rows, np.int32),
            top_p=np.ones(rows, np.float32),
            min_p=np.zeros(rows, np.float32),
            seed=np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15),
            choice=np.arange(rows, dtype=np.uint32) % 2,
            position=np.arange(rows, dtype=np.uint32) * 31,
        ),
        **columns,
    )


def _logits(rows: int, vocabulary: int) -> npt.NDArray[np.float32]:
    """Random multiples of 1/4: many ids share a logit, so that filters end among equals."""
    values = np.random.default_rng(vocabulary).standard_normal((rows, vocabulary), dtype=np.float32)
    return np.asarray(np.round(values * 8) / 4, dtype=np.float32)


def drawn(logits: npt.NDArray[np.float64], r: RowSampling, row: int) -> tuple[int, float]:
    """A row's token by sorting, and how far its random number was from falling on another."""
    if r.temperature[row] == 0:
        return int(logits.argmax()), 1.0
    p = np.exp((logits - logits.max()) / float(r.temperature[row]))
    order = np.lexsort((np.arange(len(p)), -p))[: int(r.top_k[row]) or None]
    before = np.cumsum(p[order]) - p[order]
    if r.top_p[row] < 1:
        order = order[before < float(r.top_p[row]) * p[order].sum()]
    kept = np.sort(order[p[order] >= float(r.min_p[row])])
    edges = np.cumsum(p[kept]) / p[kept].sum()
    at = float(uniforms(r.seed[row : row + 1], r.choice[row : row + 1], r.position[row : row + 1])[0])
    place = min(int(np.searchsorted(edges, at, side="right")), len(kept) - 1)
    return int(kept[place]), float(np.abs(np.append(edges, 0) - at).min())


def _agreement(backend: CudaBackend, logits: npt.NDArray[np.float32], wanted: npt.NDArray[np.float64],
               r: RowSampling) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """1 for each row whose token is the reference's on the logits `wanted`; and ones."""
    found = backend.sample(torch.tensor(logits, device=backend.device), r).tokens
    same = [
        token == found[row] or margin < CLEAR
        for row, (token, margin) in enumerate(drawn(wanted[row], r, row) for row in range(len(wanted)))
    ]
    return torch.tensor(same, dtype=torch.float64), torch.ones(len(same))


def _draws(backend: CudaBackend, vocabulary: int, columns: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    plain = neutral(ROWS)
    arrays: dict[str, Any] = {name: np.full(ROWS, value, getattr(plain, name).dtype) for name, value in columns.items()}
    logits = _logits(ROWS, vocabulary)
    return _agreement(backend, logits, logits.astype(np.float64), evolve(plain, **arrays))


def _adjusted(backend: CudaBackend) -> tuple[torch.Tensor, torch.Tensor]:
    """Each adjustment moves the largest logits, so that a wrong one changes tokens."""
    rng, vocabulary = np.random.default_rng(0), 200
    logits = _logits(ROWS, vocabulary)
    best = np.argsort(-logits, axis=1)[:, :8].astype(np.int64)
    counts = rng.integers(0, 3, best.shape)
    repetition, presence, frequency = (rng.uniform(0.5, 2, ROWS).astype(np.float32) for _ in range(3))
    allowed = rng.random((ROWS, 7 * 32)) < 0.7
    allowed[:, vocabulary:] = False
    starts = np.arange(ROWS + 1)
    wanted = logits.astype(np.float64)
    wanted[np.arange(ROWS), best[:, 3]] += 1.5
    for row in range(ROWS):
        for token, count in zip(best[row], counts[row]):
            x = wanted[row, token]
            x = x / repetition[row] if x > 0 else x * repetition[row]
            wanted[row, token] = x - presence[row] * (count > 0) - frequency[row] * count
    wanted[~allowed[:, :vocabulary]] = -np.inf
    banned = wanted.argmax(1)
    wanted[np.arange(ROWS), banned] = -np.inf
    r = neutral(
        ROWS,
        temperature=np.array([0, 1] * (ROWS // 2), np.float32),
        bias_starts=starts,
        bias_ids=best[:, 3].copy(),
        bias_values=np.full(ROWS, 1.5, np.float32),
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        history_starts=starts * best.shape[1],
        history_ids=best.reshape(-1),
        history_counts=counts.reshape(-1),
        masks=np.packbits(allowed, axis=1, bitorder="little").view("<i4"),
        banned_starts=starts,
        banned_ids=banned,
    )
    return _agreement(backend, logits, wanted, r)


def _logprobs(backend: CudaBackend) -> tuple[torch.Tensor, torch.Tensor]:
    """The token's own, and those of the five most probable ids, whose numbers count as well."""
    logits = _logits(ROWS, 5000)
    r = neutral(ROWS, targets=np.array([-1, 4999, 0, 77, -1, 90]), logprobs=5)
    sampled = backend.sample(torch.tensor(logits, device=backend.device), r)
    assert sampled.logprobs is not None
    assert sampled.top_ids is not None
    assert sampled.top_logprobs is not None
    z = logits.astype(np.float64)
    z -= np.log(np.exp(z).sum(1, keepdims=True))
    best = np.stack([np.lexsort((np.arange(z.shape[1]), -row))[:5] for row in z])
    wanted = (z[np.arange(ROWS), sampled.tokens][:, None], np.take_along_axis(z, best, 1), best)
    found = (sampled.logprobs[:, None], sampled.top_logprobs, sampled.top_ids)
    as_tensor = [torch.from_numpy(np.concatenate(x, axis=1).astype(np.float64)) for x in (found, wanted)]
    # An id that is off by one of 5000 must not pass for rounding.
    as_tensor[0][:, 6:] = (as_tensor[0][:, 6:] == as_tensor[1][:, 6:]).double()
    as_tensor[1][:, 6:] = 1
    return as_tensor[0], as_tensor[1]
