"""Forge: an LLM inference server in which every working part is a plugin.

`hookimpl`, `Component` and `Probe` are what a plugin's registration module needs; `LLM` is the engine in-process.
Importing this package imports nothing heavy: `LLM` is looked up when it is first used.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from forge.hookspecs import API_VERSION, Component, Probe, hookimpl

if TYPE_CHECKING:
    from forge.llm import LLM

__all__ = ["API_VERSION", "LLM", "Component", "Probe", "__version__", "hookimpl"]

__version__ = version("forge")


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from forge.llm import LLM

        return LLM
    raise AttributeError(f"module 'forge' has no attribute {name!r}")
