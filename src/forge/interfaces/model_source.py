"""Model sources: from what a user calls a model to files on this disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from attrs import frozen


@frozen
class CachedModel:
    """A model that is on this disk already: its reference, where it lies, its size in bytes."""

    reference: str
    path: Path
    nbytes: int


class ModelSource(ABC):
    """Finds models of one kind of reference (a path, ``pypi:…``, ``hf:…``).

    The factory is called with ``(cache_dir: Path)``, plus ``options=`` where the component has some.
    """

    @abstractmethod
    def accepts(self, reference: str) -> bool:
        """Whether this source understands the reference; looks at the text and at most at the local disk."""

    @abstractmethod
    def fetch(self, reference: str, *, sha256: str | None = None, progress: bool = False) -> Path:
        """Return the path of a complete file or directory, downloading it if it isn't cached.

        An interrupted download leaves no half file under the final name. `progress` draws a bar on standard error.
        Errors: `ModelSourceError`.
        """

    def cached(self) -> list[CachedModel]:
        """Models of this source that need no download."""
        return []
