"""Loaders: from files on disk to a `Checkpoint`, lazily and without copying; no tensor library involved.

A loader's factory is called without arguments (or with its options). It reads a hostile file: every length is checked
before anything is allocated, and damage is a `ModelFileError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Weight(ABC):
    """One tensor of a checkpoint: a read-only view of the mapped file that can be dequantised piece by piece.

    name: as the file spells it. shape: row-major, outermost dimension first (a linear layer is ``[out, in]``).
    encoding: the GGUF name of the number format (``"F32"``, ``"BF16"``, ``"Q4_K"``, …), for SafeTensors too.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str

    @property
    @abstractmethod
    def data(self) -> npt.NDArray[np.uint8]:
        """The stored bytes, read-only: ``[rows, bytes a row]``, rows being all dimensions but the last."""

    @property
    def nbytes(self) -> int:
        """Stored size in bytes."""
        return int(self.data.nbytes)

    @abstractmethod
    def dequantize(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Entries ``start:stop`` of the outermost dimension as float32 ``[stop - start, *shape[1:]]``; a new array."""

    @abstractmethod
    def release(self) -> None:
        """Tell the system that the mapped pages of this tensor aren't needed for now; reading it again still works."""


@frozen
class TokenizerSource:
    """What a checkpoint says about its tokenizer, unparsed; `forge.text.tokenizer` builds one from it.

    format: ``"gguf"``: `metadata` holds the ``tokenizer.*`` keys. ``"huggingface"``: `metadata` is
    tokenizer_config.json and `path` is tokenizer.json. chat_template: Jinja source, if there is one.
    """

    format: Literal["gguf", "huggingface"]
    metadata: Mapping[str, Any] = field(factory=dict)
    path: Path | None = None
    chat_template: str | None = None


@frozen
class GenerationDefaults:
    """What the model's authors say about generating: all end-of-sequence ids, and sampling values to be used where a
    request has none (None: nothing said). From generation_config.json, config.json or GGUF metadata.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@frozen
class Checkpoint:
    """An opened model file or directory.

    architecture: the name by which a model family is looked up (``general.architecture`` or config.json's
    ``model_type``). metadata: GGUF's keys (without ``tokenizer.*``) or config.json. tensors: by the file's own names.
    raw: what the loader wants to hand to a model that needs more (the GGUF reader, the directory).
    """

    format: Literal["gguf", "safetensors"]
    path: Path
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Weight]
    tokenizer: TokenizerSource
    generation: GenerationDefaults
    raw: Any = None


class Loader(ABC):
    """Reads one file format."""

    @abstractmethod
    def accepts(self, path: Path) -> bool:
        """Whether this path looks like this loader's format (by name or first bytes; never raises)."""

    @abstractmethod
    def open(self, path: Path) -> Checkpoint:
        """Map the file and parse its header. Errors: `ModelFileError`, `UnsupportedModel`."""
