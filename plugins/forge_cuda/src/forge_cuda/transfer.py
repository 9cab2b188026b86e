"""Many small host arrays to the device in one copy, through pinned memory that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 16


class Courier:
    """Owns the pinned memory. A copy must have arrived before the next one: the device-to-host copy that ends a step
    sees to that.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._host = torch.empty(0, dtype=torch.uint8)

    def send(self, arrays: Mapping[str, npt.NDArray[Any]], into: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The arrays as tensors on the device: views of `into`, uint8, or of new memory."""
        starts, end = [], 0
        for array in arrays.values():
            starts.append(end)
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        host = self._reserve(end)
        bytes_ = host.numpy()
        for start, array in zip(starts, arrays.values()):
            bytes_[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if into is None:
            into = torch.empty(end, dtype=torch.uint8, device=self.device)
        into[:end].copy_(host[:end], non_blocking=True)
        return {
            name: into[start : start + array.nbytes].view(_DTYPES[array.dtype.name]).view(array.shape)
            for start, (name, array) in zip(starts, arrays.items())
        }

    def _reserve(self, nbytes: int) -> torch.Tensor:
        if self._host.nbytes < nbytes:
            pinned = self.device.type == "cuda"
            self._host = torch.empty(max(nbytes, 2 * self._host.nbytes), dtype=torch.uint8, pin_memory=pinned)
        return self._host


_DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "int32": torch.int32, "int64": torch.int64,
}  # fmt: skip
