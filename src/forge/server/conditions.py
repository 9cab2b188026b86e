"""What an answer's tokens depend on besides its request: version, weights, backend, and the options that matter.

The request log holds it, and `forge replay` says what is different where it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from forge import __version__
from forge.config import NONE

if TYPE_CHECKING:
    from forge.config import Config
    from forge.engine.request import ModelInfo
    from forge.plugins import Registry

SAMPLES, SAMPLE_BYTES = 64, 1 << 16
"""So many pieces of a file, evenly spread, stand for all of it."""

SUFFIXES = (".safetensors", ".json", ".model", ".gguf", ".jinja")

KINDS = ("backend", "model", "sampler", "constraint")
"""Components that have a say in what is drawn. Drafters, schedulers and caches have none."""


@frozen
class Conditions:
    """Under what an answer was made.

    weights: a digest of the model's files, as `weights_digest` makes it. settings: names and options of the components
    in `KINDS`, defaults included, as JSON by their place in the configuration.
    """

    version: str
    weights: str
    settings: dict[str, str] = field(factory=dict)

    def differences(self, here: Conditions) -> list[str]:
        """What is different here, each in words; empty if nothing is."""
        found = []
        if self.version != here.version:
            found.append(f"Forge was {self.version} and is {here.version}")
        if self.weights != here.weights:
            found.append("the model's files are others")
        for name in sorted(self.settings.keys() | here.settings.keys()):
            was, now = self.settings.get(name, "unknown"), here.settings.get(name, "unknown")
            if was != now:
                found.append(f"{name} was {was} and is {now}")
        return found


def conditions(config: Config, registry: Registry, info: ModelInfo, weights: str) -> Conditions:
    """Those of an engine that was loaded with this configuration; what is "auto" in it is resolved."""
    names = {kind: str(getattr(config, kind).name) for kind in KINDS}
    names |= {"backend": info.backend, "model": info.architecture if config.model.name == "auto" else config.model.name}
    settings: dict[str, Any] = {}
    for kind, name in names.items():
        settings[f"{kind}.name"] = name
        options = None if name == NONE else registry.options(kind, name, getattr(config, kind).options)
        if options is not None:
            settings |= {f"{kind}.options.{key}": value for key, value in attrs.asdict(options).items()}
    return Conditions(__version__, weights, {key: json.dumps(value, default=str) for key, value in settings.items()})


def weights_digest(model_path: Path) -> str:
    """SHA-256 of the sizes and of samples of a model's files, in the order of their names.

    Files that were made in different ways differ nearly everywhere; a few flipped bytes may go unnoticed.
    """
    digest = hashlib.sha256()
    for path in _files(model_path):
        size = path.stat().st_size
        digest.update(f"{size};".encode())
        with path.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(i * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _files(model_path: Path) -> Iterator[Path]:
    """The file itself, or those of a model that lie in the directory."""
    if model_path.is_dir():
        yield from sorted(path for path in model_path.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    else:
        yield model_path
