"""Sampling in plain torch: the arithmetic behind `Backend.sample`, in the order that `SamplingParams` documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from forge.interfaces.deferred import Deferred
from forge.interfaces.sampler import RowSampling, uniforms

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")

TOP_CANDIDATES = 1024
"""Top-p looks at so many most probable tokens before it sorts a whole row."""


def adjust(logits: torch.Tensor, rows: RowSampling) -> torch.Tensor:
    """Bias, penalties, mask and bans, in place."""

    def ragged(starts: npt.NDArray[Any], ids: npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        return torch.from_numpy(row).to(logits.device), torch.from_numpy(ids).to(logits.device)

    def by_row(values: npt.NDArray[Any], row: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(values).to(logits.device)[row]

    if rows.bias_starts is not None and rows.bias_ids is not None and rows.bias_values is not None:
        row, ids = ragged(rows.bias_starts, rows.bias_ids)
        logits[row, ids] += torch.from_numpy(rows.bias_values).to(logits.device)
    if rows.history_starts is not None and rows.history_ids is not None and rows.history_counts is not None:
        assert rows.repetition_penalty is not None
        assert rows.presence_penalty is not None
        assert rows.frequency_penalty is not None
        row, ids = ragged(rows.history_starts, rows.history_ids)
        counts = torch.from_numpy(rows.history_counts).to(logits.device)
        penalty = by_row(rows.repetition_penalty, row)
        values = logits[row, ids]
        values = torch.where(values > 0, values / penalty, values * penalty)
        values = values - by_row(rows.presence_penalty, row) * (counts > 0)
        logits[row, ids] = values - by_row(rows.frequency_penalty, row) * counts
    if rows.masks is not None:
        words = torch.from_numpy(rows.masks).to(logits.device)
        bits = words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device) & 1
        logits.masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, -torch.inf)
    if rows.banned_starts is not None and rows.banned_ids is not None:
        logits[ragged(rows.banned_starts, rows.banned_ids)] = -torch.inf
    return logits


def draw(logits: torch.Tensor, rows: RowSampling, at: npt.NDArray[Any]) -> torch.Tensor:
    """Draw from logits ``[r, vocabulary]`` of the rows `at` that aren't greedy → int64 [r]."""

    def column(values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values[at]).to(logits.device)[:, None]

    vocabulary = logits.shape[1]
    # Largest logit 0 first: a tiny temperature then can't overflow.
    scaled = (logits - logits.amax(-1, keepdim=True)) / column(rows.temperature)
    probs = scaled.softmax(-1)
    top_k = column(np.where(rows.top_k > 0, rows.top_k, vocabulary).clip(max=vocabulary).astype(np.int64))
    top_p = column(rows.top_p)
    if bool((top_k < vocabulary).any()) or bool((top_p < 1).any()):
        probs = torch.where(nucleus(probs, top_k, top_p), probs, 0.0)
    min_p = column(rows.min_p)
    probs = torch.where(probs >= min_p * probs.amax(-1, keepdim=True), probs, 0.0)
    cumulative = probs.double().cumsum(-1)
    total = cumulative[:, -1:]
    u = torch.from_numpy(uniforms(rows.seed[at], rows.choice[at], rows.position[at])).to(logits.device)
    drawn = torch.searchsorted(cumulative, u[:, None] * total, right=True)
    last = vocabulary - 1 - (probs > 0).flip(-1).int().argmax(-1, keepdim=True)  # should u * total round up to total
    return torch.minimum(drawn, last)[:, 0]


def nucleus(probs: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Which tokens top-k and then top-p keep (ties by lowest id), as bool ``[r, vocabulary]``.

    Both keep a number of most probable tokens, so that their values in order are all that's needed; those of the
    first `TOP_CANDIDATES` are enough unless a row is very flat.
    """
    vocabulary = probs.shape[1]
    candidates = min(TOP_CANDIDATES, vocabulary)
    while True:
        values = probs.topk(candidates, dim=-1).values
        cumulative = values.double().cumsum(-1)
        kept = cumulative.gather(1, (top_k - 1).clamp(max=candidates - 1))
        # Top-p works on what top-k leaves; without top-k on the whole, whose sum mustn't depend on `candidates`.
        total = torch.where((top_k <= candidates) & (top_k < vocabulary), kept, 1.0)
        inside = (cumulative < top_p.double() * total).sum(-1, keepdim=True) + 1
        count = torch.minimum(inside.where(top_p < 1, vocabulary), top_k)
        enough = (count <= candidates) & (top_k <= candidates) | (count == vocabulary)
        enough |= (count <= candidates) & (top_k == vocabulary)
        if candidates == vocabulary or bool(enough.all()):
            break
        candidates = vocabulary
    everything = count >= vocabulary
    threshold = values.gather(1, (count - 1).clamp(max=candidates - 1))
    above = probs > threshold
    ties = probs == threshold
    return everything | above | (ties & (ties.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def most_probable(logprobs: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` most probable ids of each row, best first, ties by lowest id: int64 ``[r, count]``."""
    if count == 0:
        return torch.empty(len(logprobs), 0, dtype=torch.int64, device=logprobs.device)
    least = logprobs.topk(count, dim=-1).values[:, -1:]
    rows = []
    for row, candidate in zip(logprobs, logprobs >= least):
        ids = candidate.nonzero()[:, 0]
        rows.append(ids[row[ids].argsort(descending=True, stable=True)[:count]])
    return torch.stack(rows)
