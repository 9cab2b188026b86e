"""NumPy arrays and torch tensors by one name: the kernels take both, and what they return is what they were given."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.interfaces.deferred import Deferred

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")


class Recycled:
    """Arrays in memory that is used again once nobody holds the last one: of fresh memory, every page is a fault."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)
        self._unused = sys.getrefcount(self._memory)  # of memory that no array is in

    def empty(self, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A float32 array of this shape, its values undefined."""
        size = math.prod(shape)
        if self._memory.size < size or sys.getrefcount(self._memory) > self._unused:  # arrays hold their memory
            self._memory = np.empty(size, np.float32)
        return self._memory[:size].reshape(shape)


def empty_like(x: Any, *shape: int) -> Any:
    """A float32 array or tensor of this shape, as `x` is one, its values undefined."""
    return np.empty(shape, np.float32) if isinstance(x, np.ndarray) else torch.empty(shape)


def contiguous(x: Any) -> Any:
    """The same values in row-major order; `x` itself, if they are."""
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()
