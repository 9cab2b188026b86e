"""Model families: what a checkpoint's tensors mean, and the forward pass in terms of a backend's operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    import torch

    from forge.interfaces.backend import Backend, StepInputs
    from forge.interfaces.layers import DecoderStack
    from forge.interfaces.loader import Checkpoint

LOGIT_ROWS = 64
"""Logits are made in slabs of at most so many rows: 64 x 128k floats are 32 MiB."""


@frozen
class LayerKV:
    """What one layer keeps for each position: `kv_heads` keys of `k_dim` numbers and values of `v_dim`.

    window: how many last positions it can see, itself included; None: all.
    """

    kv_heads: int
    k_dim: int
    v_dim: int
    kind: str = "attention"
    window: int | None = None


class Model(ABC):
    """A loaded model. The factory is called with ``(checkpoint, backend)``, plus ``options=`` where it has some.

    Its `__init__` hands every weight to the backend, which keeps the only copy. `forward` never branches on the values
    of tensors, so that a backend may record it as a graph.
    """

    vocab_size: int
    """Entries of the logits."""
    context_length: int
    """Positions that the model was made for."""

    @classmethod
    @abstractmethod
    def read(cls, checkpoint: Checkpoint) -> tuple[Any, Mapping[str, tuple[int, ...]]]:
        """The family's own config class, and the shape of every tensor it wants by name.

        Every metadata key is consumed, known not to change the mathematics, or refused; the same for tensors. Needs no
        backend and reads no weight. Errors: `UnsupportedModel` that names key and value; `ModelFileError` for missing
        tensors or shapes that differ.
        """

    @abstractmethod
    def __init__(self, checkpoint: Checkpoint, backend: Backend) -> None: ...

    @abstractmethod
    def kv_spec(self) -> tuple[LayerKV, ...]:
        """What each layer keeps in the KV cache."""

    def stack(self) -> DecoderStack | None:
        """The whole of `forward` as data, for backends that run it in one call; None if it's more than that."""
        return None

    @abstractmethod
    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Final hidden states of ``inputs.output_rows``: ``[rows, hidden]``."""

    @abstractmethod
    def logits(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Slabs of float32 ``[at most LOGIT_ROWS, vocabulary]`` for hidden states ``[rows, hidden]``, in order."""
