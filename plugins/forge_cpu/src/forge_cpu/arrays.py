"""NumPy arrays and torch tensors by one name: the kernels take both, and what they return is what they were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from forge.interfaces.deferred import Deferred

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")


def empty_like(x: Any, *shape: int) -> Any:
    """A float32 array or tensor of this shape, as `x` is one, its values undefined."""
    return np.empty(shape, np.float32) if isinstance(x, np.ndarray) else torch.empty(shape)


def contiguous(x: Any) -> Any:
    """The same values in row-major order; `x` itself, if they are."""
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()
