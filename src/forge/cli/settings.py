"""The effective configuration: every value, options of the chosen components included, and where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import attrs
from attrs import frozen

from forge.config import AUTO, DEFAULT, NONE, Config, Origins, to_dict
from forge.errors import ConfigError, PluginError
from forge.plugins import KINDS, Registry
from forge.strict import Keys


@frozen
class Setting:
    """One value. table: ``"kv_cache.options"``. origin: ``"default"``, ``"forge.toml:12"`` or ``"--block-size"``."""

    table: str
    key: str
    value: Any
    origin: str


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


def effective(config: Config, origins: Origins, registry: Registry) -> list[Setting]:
    """All settings in the order of the file. Options that aren't set are shown with the component's defaults."""
    options = component_options(config, origins, registry)
    settings = []
    for name, table in to_dict(config).items():
        given = table.pop("options", {})
        settings += [Setting(name, key, value, origins[name, key]) for key, value in table.items()]
        whole = given if options.get(name) is None else attrs.asdict(options[name])
        for key, value in whole.items():
            path = (name, "options", key)
            origin = next((origins[keys] for keys in origins if keys[:3] == path), DEFAULT)
            settings.append(Setting(f"{name}.options", key, value, origin))
    return settings


def as_toml(settings: Iterable[Setting]) -> str:
    """A file that says the same, with the origin of each value as a comment. What isn't set is a comment itself."""
    blocks = []
    for table, members in groupby(settings, key=lambda setting: setting.table):
        rows = [
            (
                f"{_key(one.key)} = {_value(one.value)}" if one.value is not None else f"# {one.key} is not set",
                one.origin,
            )
            for one in members
        ]
        width = min(48, max(len(row) for row, _ in rows))
        blocks.append("\n".join([f"[{table}]", *(f"{row:{width}}  # {origin}" for row, origin in rows), ""]))
    return "\n".join(blocks)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    """As TOML (https://toml.io/en/v1.0.0)."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_key(key)} = {_value(entry)}" for key, entry in value.items() if entry is not None) + "}"
        )
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(entry) for entry in value)}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL, which only TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)  # dates and times
