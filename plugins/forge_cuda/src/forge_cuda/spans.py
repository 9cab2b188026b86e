"""A step's spans as the attention kernels want them: sorted into short and long ones, on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from attrs import frozen

Numbers = npt.NDArray[np.int64]

SHORT = 16
"""Spans of at most so many rows are split over their keys: decodes and drafts."""


@frozen
class SpanLists:
    """starts: int64 [s + 1]; lengths: int64 [s], both as in `StepInputs` but on the device.

    short and long: int64, the numbers of the spans that are; longest_short, longest_long: rows of the longest of each.
    source: the host tensors that this was made from, by which stale lists are known.
    """

    starts: torch.Tensor
    lengths: torch.Tensor
    short: torch.Tensor
    long: torch.Tensor
    longest_short: int
    longest_long: int
    source: tuple[torch.Tensor, torch.Tensor]


def sort_spans(counts: Numbers) -> tuple[Numbers, Numbers]:
    """The numbers of the short and of the long spans, by how many rows each has."""
    return np.flatnonzero(counts <= SHORT), np.flatnonzero(counts > SHORT)


def make_lists(starts: torch.Tensor, lengths: torch.Tensor, device: torch.device) -> SpanLists:
    """Lists of any step, from its host tensors."""
    counts = np.diff(starts.numpy())
    short, long = sort_spans(counts)
    return SpanLists(
        starts=starts.to(device),
        lengths=lengths.to(device),
        short=torch.from_numpy(short).to(device),
        long=torch.from_numpy(long).to(device),
        longest_short=int(counts[short].max(initial=0)),
        longest_long=int(counts[long].max(initial=0)),
        source=(starts, lengths),
    )
