"""Modules that are imported once something of them is needed: torch takes a second to import and 200 MB of memory,
which a backend with kernels of its own needn't spend.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Deferred:
    """Stands for a module: the first attribute asked of it imports it.

    For type checkers import it as usual::

        if TYPE_CHECKING:
            import torch
        else:
            torch = Deferred("torch")
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        vars(self)[attribute] = value  # not asked again
        return value
