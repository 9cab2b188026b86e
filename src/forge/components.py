"""From a configuration to its components: the only place that calls their factories. Imports none of them itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from forge.config import AUTO, DEFAULT, NONE, Config, Origins
from forge.errors import ConfigError, ModelFileError, PluginError
from forge.plugins import KINDS
from forge.strict import Keys

if TYPE_CHECKING:
    from forge.interfaces.loader import Checkpoint
    from forge.plugins import Registry


def create(registry: Registry, kind: str, name: str, table: Mapping[str, Any], *args: Any) -> Any:
    """Make a component: its factory, called with its kind's arguments and, where it has any, its options."""
    options = registry.options(kind, name, table)
    factory = registry.factory(kind, name)
    return factory(*args) if options is None else factory(*args, options=options)


def component_options(config: Config, origins: Origins, registry: Registry) -> dict[str, Any]:
    """By kind, the options of each component that the configuration names; "auto" is left for later.

    Errors: `ConfigError` and `PluginError` that say which line or flag is at fault.
    """
    options: dict[str, Any] = {}
    for kind in (field.name for field in attrs.fields(Config) if field.name in KINDS):
        table = getattr(config, kind)
        if table.name == AUTO and kind in ("model", "backend"):
            continue
        if table.name == NONE and kind in ("constraint", "drafter"):
            if table.options:
                key = min(table.options)
                raise ConfigError(_at(origins, (kind, "options", key), f"{kind}.options.{key}: no {kind} is chosen"))
            continue
        try:
            registry.component(kind, table.name)
        except PluginError as error:
            raise PluginError(_at(origins, (kind, "name"), error.message)) from error
        try:
            options[kind] = registry.options(kind, table.name, table.options)
        except ConfigError as error:
            first = re.match(r"[\w-]*", error.param or "")
            path = (kind, "options", first[0] if first else "")
            raise ConfigError(_at(origins, path, error.message), param=error.param) from error
    return options


def _at(origins: Origins, path: Keys, message: str) -> str:
    """The message with its origin in front. A value that is itself a table has the origin of its first entry."""
    found = next((origin for keys, origin in origins.items() if keys[: len(path)] == path), DEFAULT)
    return message if found == DEFAULT else f"{found}: {message}"


def open_checkpoint(registry: Registry, path: Path) -> Checkpoint:
    """Open a model file or directory with the first loader that accepts it; reads no weights. `ModelFileError`."""
    names = registry.names("loader")
    for name in names:
        loader = create(registry, "loader", name, {})
        if loader.accepts(path):
            checkpoint: Checkpoint = loader.open(path)
            return checkpoint
    raise ModelFileError(f"{path}: no loader knows this format (there are: {', '.join(names)})")


def optional_component(config: Config, registry: Registry, kind: str) -> Any:
    """The drafter or constraint that the configuration names; None for "none"."""
    table = getattr(config, kind)
    return None if table.name == NONE else create(registry, kind, table.name, table.options)
