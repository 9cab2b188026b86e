"""What the README says is so: its configuration is the default one, its snippets are Python, its plugin registers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import attrs
import pytest

from forge import plugins
from forge.cli import cli
from forge.config import FLAGS, Config, load_config

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_configuration_shown_is_the_default_one(tmp_path: Path) -> None:
    (shown,) = [block for block in blocks("toml") if "[model]" in block]
    path = tmp_path / "forge.toml"
    path.write_text(shown)
    config, _ = load_config(path)
    registry = plugins.load()
    for kind in ("kv_cache", "scheduler", "drafter"):
        table = getattr(config, kind)
        assert table.options
        assert registry.options(kind, table.name, table.options) == registry.options(kind, table.name, {})
    path.write_text(re.sub(r"\[\w+\.options\].*?(?=^\[)", "", shown, flags=re.MULTILINE | re.DOTALL))
    assert load_config(path)[0] == Config()


def test_the_settings_shown_but_not_set_can_be_set(tmp_path: Path) -> None:
    (shown,) = [block for block in blocks("toml") if "[model]" in block]
    path = tmp_path / "forge.toml"
    path.write_text(re.sub(r"^# (\w+ = )", r"\1", shown, flags=re.MULTILINE))
    config, _ = load_config(path)
    assert config.model.max_len == 4096
    assert config.plugins.allow is not None


def test_the_options_of_the_cpu_backend_are_shown_with_their_defaults(tmp_path: Path) -> None:
    (shown,) = [block for block in blocks("toml") if "activation_bits" in block]
    path = tmp_path / "forge.toml"
    path.write_text(shown)
    config, _ = load_config(path)
    registry = plugins.load()
    given, default = (registry.options("backend", "cpu", table) for table in (config.backend.options, {}))
    assert given == default
    assert set(config.backend.options) == {field.name for field in attrs.fields(type(default))}


@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets_compile(snippet: str) -> None:
    assert compile(snippet, "README.md", "exec")


def test_the_example_plugin_registers_its_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = [block for block in blocks("python") if "forge_metal" in block]
    (points,) = [block for block in blocks("toml") if "entry-points" in block]
    (tmp_path / "forge_metal.py").write_text(source)
    info = tmp_path / "forge_metal-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forge-metal\nVersion: 1.0\n")
    name, module = re.findall(r'^(\w+) = "(\w+)"$', points, re.MULTILINE)[0]
    (info / "entry_points.txt").write_text(f"[forge]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        registry = plugins.load()
        assert "metal" in registry.names("backend")
        assert registry.probe("backend", ["metal"])["metal"].ok
    finally:
        sys.modules.pop("forge_metal", None)


def test_every_command_and_component_named_exists() -> None:
    for command in re.findall(r"`forge (\w+)", README):
        assert command in cli.commands, command
    registry = plugins.load()
    known = {name for kind in plugins.KINDS for name in registry.names(kind)}
    (table,) = re.findall(r"^\| distribution .*?\n\n", README, re.MULTILINE | re.DOTALL)
    named = {word for word in re.findall(r"`([\w-]+)`", table) if not word.startswith("forge")}
    assert named <= known
    assert known <= named, "a component is missing in the README"


def test_make_targets_named_exist() -> None:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_flags_are_documented_by_the_command_line_itself() -> None:
    assert {flag.name for flag in FLAGS} <= {
        option for parameter in cli.commands["run"].params for option in parameter.opts
    }
