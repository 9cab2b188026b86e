"""The effective configuration: every value, options of the chosen components included, and where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import attrs
from attrs import frozen

from forge.components import component_options
from forge.config import DEFAULT, Config, Origins, to_dict
from forge.plugins import Registry


@frozen
class Setting:
    """One value. table: ``"kv_cache.options"``. origin: ``"default"``, ``"forge.toml:12"`` or ``"--block-size"``."""

    table: str
    key: str
    value: Any
    origin: str


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
