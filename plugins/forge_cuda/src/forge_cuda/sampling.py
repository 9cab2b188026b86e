"""`Backend.sample` in kernels: what the rows ask for goes to the device in one copy, the draws come back in one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton

from forge.interfaces.sampler import RowSampling, Sampled, uniforms
from forge_cuda.kernels.sample import ban_kernel, bias_kernel, logprob_kernel, mask_kernel, penalty_kernel, pick_kernel
from forge_cuda.launching import Launch, power_of_two
from forge_cuda.transfer import Courier

BLOCK, TRIED, LISTED = 4096, 1024, 256
"""Logits that a program looks at together; while thresholds are tried; entries of lists that a program changes."""


def sample(launch: Launch, courier: Courier, logits: torch.Tensor, rows: RowSampling) -> Sampled:
    """Draw one token a row from float32 logits ``[R, vocabulary]``, which are overwritten.

    The random numbers are `forge.interfaces.sampler.uniforms` of (seed, choice, position), made on the host: one
    float64 a row. The distribution is inverted at them, as `Backend.sample` lays down; so the tokens are those of the
    other backends, except where a number falls on a border up to rounding. Errors: `ValueError` if a row has no finite
    largest logit or no token left.
    """
    logits = logits.contiguous()
    count, vocabulary = logits.shape
    sent = courier.send(_arrays(rows, count))
    plain = logits.clone() if rows.logprobs is not None else None
    _adjust(launch, logits, sent)
    alternatives = rows.logprobs or 0
    results = torch.empty(count, 3 + 2 * alternatives, dtype=torch.int32, device=logits.device)
    block = min(BLOCK, power_of_two(vocabulary, 32))
    launch(
        pick_kernel, (count,), logits, *(sent[name] for name in ("temperature", "top_k", "top_p", "min_p")),
        sent["uniform"], sent["targets"], results, vocabulary, results.stride(0), BLOCK=block,
        TRIED=min(TRIED, block), num_warps=8,
    )  # fmt: skip
    if plain is not None:
        launch(
            logprob_kernel, (count,), plain, results, vocabulary, results.stride(0), alternatives, BLOCK=block,
            num_warps=8,
        )  # fmt: skip
    return _unpack(results.cpu().numpy(), None if plain is None else alternatives)


def _arrays(rows: RowSampling, count: int) -> dict[str, npt.NDArray[Any]]:
    """What the kernels read, by name; lists are flat, with the row of each entry."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "uniform": uniforms(rows.seed, rows.choice, rows.position),
        "temperature": rows.temperature,
        "top_k": rows.top_k,
        "top_p": rows.top_p,
        "min_p": rows.min_p,
        "targets": np.full(count, -1, np.int64) if rows.targets is None else rows.targets,
    }

    def listed(name: str, starts: npt.NDArray[np.int64] | None, **columns: npt.NDArray[Any] | None) -> None:
        if starts is not None:
            arrays[f"{name}_rows"] = np.repeat(np.arange(count, dtype=np.int64), np.diff(starts))
            arrays.update({f"{name}_{key}": column for key, column in columns.items() if column is not None})

    listed("bias", rows.bias_starts, ids=rows.bias_ids, values=rows.bias_values)
    listed("history", rows.history_starts, ids=rows.history_ids, counts=rows.history_counts)
    listed("banned", rows.banned_starts, ids=rows.banned_ids)
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "masks"):
        if getattr(rows, name) is not None:
            arrays[name] = getattr(rows, name)
    return arrays


def _adjust(launch: Launch, logits: torch.Tensor, sent: dict[str, torch.Tensor]) -> None:
    """Bias, penalties, mask and bans, in place."""
    vocabulary = logits.shape[1]

    def listed(kernel: Any, name: str, *more: str) -> None:
        rows = sent.get(f"{name}_rows")
        if rows is not None and len(rows):
            columns = [sent[f"{name}_ids"], *(sent[key] for key in more)]
            grid = (triton.cdiv(len(rows), LISTED),)
            launch(kernel, grid, logits, rows, *columns, len(rows), vocabulary, BLOCK=LISTED)

    listed(bias_kernel, "bias", "bias_values")
    listed(penalty_kernel, "history", "history_counts", "repetition_penalty", "presence_penalty", "frequency_penalty")
    masks = sent.get("masks")
    if masks is not None:
        grid = (len(logits), triton.cdiv(vocabulary, 1024))
        launch(mask_kernel, grid, logits, masks, vocabulary, masks.shape[1], BLOCK=1024)
    listed(ban_kernel, "banned")


def _unpack(results: npt.NDArray[np.int32], alternatives: int | None) -> Sampled:
    if not results[:, 1].all():
        raise ValueError("the logits of a row are not finite, or no token is allowed")
    tokens = results[:, 0].astype(np.int64)
    if alternatives is None:
        return Sampled(tokens)
    floats = results.view(np.float32)
    return Sampled(
        tokens, floats[:, 2], results[:, 3 : 3 + alternatives].astype(np.int64), floats[:, 3 + alternatives :]
    )
