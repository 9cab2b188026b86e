"""The command line, in this process where that is enough, and as a program of its own where it isn't."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import forge.models
import forge.server.launch
from forge import plugins, probing
from forge.cli import cli
from forge.cli.settings import Setting, as_toml
from forge.config import Config
from forge.errors import ModelSourceError
from forge.hookspecs import Probe

InstallPlugin = Callable[..., str]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, a configuration directory and a cache of nobody's."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FORGE_CACHE", str(tmp_path / "cache"))
    return home


def forge_command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="forge")


def forge_program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from forge.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


# ------------------------------------------------------------------------------------------------------- configuration


def test_config_prints_a_file_that_means_the_same_and_says_where_each_value_is_from(empty_home: Path) -> None:
    (empty_home / "forge.toml").write_text('[server]\nhost = "::1"\n[kv_cache.options]\nblock_size = 32\n')
    result = forge_command("config", "--port", "9000", "--num-blocks", "500", "models/x.gguf")
    assert result.exit_code == 0, result.output
    data = tomllib.loads(result.output)
    assert data["server"]["host"] == "::1"
    assert data["server"]["port"] == 9000
    assert data["model"]["path"] == "models/x.gguf"
    assert data["kv_cache"]["options"]["block_size"] == 32
    assert data["kv_cache"]["options"]["num_blocks"] == 500
    origins = {line.split(" = ")[0]: line.rpartition("# ")[2] for line in result.output.splitlines() if " = " in line}
    assert origins["host"] == "forge.toml:2"
    assert origins["port"] == "--port"
    assert origins["path"] == "--model-path"
    assert origins["block_size"] == "forge.toml:4"
    assert origins["num_blocks"] == "--num-blocks"
    assert origins["log_level"] == "default"

    (empty_home / "again.toml").write_text(result.output)
    again = forge_command("config", "--config", "again.toml")
    assert tomllib.loads(again.output) == data


def test_config_in_json_has_value_and_origin() -> None:
    settings_ = json.loads(forge_command("config", "--json", "--port", "9000").output)
    assert {"table": "server", "key": "port", "value": 9000, "origin": "--port"} in settings_
    assert {"table": "model", "key": "max_len", "value": None, "origin": "default"} in settings_


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.recursive(
            st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=12),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_whatever_a_value_is_it_is_printed_as_right_toml(options: dict[str, Any]) -> None:
    text = as_toml([Setting("kv_cache.options", key, value, "default") for key, value in options.items()])
    assert tomllib.loads(text)["kv_cache"]["options"] == options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "99999"), "--port: must be between 0 and 65535, got 99999"),
        (("--kv-cache", "pagd"), "--kv-cache: there is no KV cache 'pagd', did you mean \"paged\"?"),
        (("--kv-cache", "auto"), "--kv-cache: there is no KV cache 'auto', "),
        (("--block-size", "0"), "--block-size: kv_cache.options.block_size: must be at least 1, got 0"),
        (("--config", "nowhere.toml"), "nowhere.toml: can't be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("command", ["config", "run"])
def test_a_wrong_setting_is_one_line_that_names_the_flag(
    command: str, arguments: tuple[str, ...], message: str
) -> None:
    result = forge_command(command, *arguments)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"forge: error: {message}")
    assert result.stderr.count("\n") == 1


def test_a_wrong_option_in_the_file_names_its_line(empty_home: Path) -> None:
    (empty_home / "forge.toml").write_text("[kv_cache]\n\n[kv_cache.options]\nblok_size = 1\n")
    result = forge_command("config")
    assert result.exit_code == 2
    assert result.stderr == (
        'forge: error: forge.toml:4: kv_cache.options.blok_size: unknown key, did you mean "block_size"?\n'
    )
    (empty_home / "forge.toml").write_text('[drafter]\nname = "none"\n[drafter.options]\nk = 1\n')
    assert "forge.toml:4: drafter.options.k: no drafter is chosen" in forge_command("config").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--port", "http"), "'--port': expected an integer, got 'http'"),
        (("run", "--num-blocks", "many"), "'--num-blocks': expected an integer or auto, got 'many'"),
        (("run", "a.gguf", "-m", "b.gguf"), "the model is named twice"),
        (("rum",), "No such command 'rum'"),
    ],
)
def test_wrong_usage_ends_with_code_2(arguments: tuple[str, ...], message: str) -> None:
    result = forge_command(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


# ------------------------------------------------------------------------------------------------------------ run, pull


def test_run_serves_the_model_with_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Config, plugins.Registry, Path]] = []

    async def serve(config: Config, registry: plugins.Registry, model_path: Path) -> None:
        served.append((config, registry, model_path))

    def resolve(reference: str, registry: plugins.Registry, *, progress: bool = False) -> Path:
        return Path("/models") / reference

    monkeypatch.setattr(forge.server.launch, "serve", serve)
    monkeypatch.setattr(forge.models, "resolve", resolve)
    result = forge_command("run", "tiny", "--port", "0", "--backend", "torch", "--api-key-file", "keys")
    assert result.exit_code == 0, result.output
    ((config, registry, model_path),) = served
    assert (config.server.port, config.server.api_key_file, config.backend.name) == (0, "keys", "torch")
    assert model_path == Path("/models/tiny")
    assert "torch" in registry.names("backend")


def test_pull_prints_where_the_model_lies(tmp_path: Path) -> None:
    model = tmp_path / "some.gguf"
    model.write_bytes(b"GGUF")
    result = forge_command("pull", str(model))
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.rstrip("\n")) == model


def test_a_model_that_cannot_be_found_is_an_error_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(reference: str, registry: plugins.Registry, *, progress: bool = False) -> Path:
        raise ModelSourceError(f"there is no model {reference!r}")

    monkeypatch.setattr(forge.models, "resolve", resolve)
    result = forge_command("pull", "nonesuch")
    assert (result.exit_code, result.stderr) == (1, "forge: error: there is no model 'nonesuch'\n")


def test_models_lists_the_short_names() -> None:
    assert json.loads(forge_command("models", "--json").output)["names"].keys() == forge.models.ALIASES.keys()
    text = forge_command("models").output
    assert "none yet" in text
    assert "smollm2" in text


# ------------------------------------------------------------------------------------------------------ plugins, doctor


ODD = """
    import os
    import forge
    from attrs import frozen

    @frozen
    class Options:
        speed: int = 1

    def crash():
        os.abort()

    @forge.hookimpl
    def forge_backends():
        return [forge.Component("odd", factory="a:B", options=Options, probe=crash, summary="an odd one")]
"""


def test_plugins_shows_components_probes_failures_and_conflicts(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-odd", ODD, version="3.1")
    install_plugin("forge-cuda", "raise ImportError('libcuda.so.1 not found')")
    install_plugin("forge-twin", ODD.replace('"odd"', '"torch"'))
    report = json.loads(forge_command("plugins", "--json").output)
    found = {plugin["distribution"]: plugin for plugin in report["plugins"]}
    assert found["forge-cuda"]["failure"] == "could not be imported: libcuda.so.1 not found"
    assert found["forge-odd"]["version"] == "3.1"
    assert found["forge-odd"]["import_seconds"] > 0
    (odd,) = found["forge-odd"]["components"]
    assert (odd["kind"], odd["name"], odd["options"]) == ("backend", "odd", ["speed"])
    assert odd["probe"]["ok"] is False
    assert "SIGABRT" in odd["probe"]["detail"]
    (twin,) = found["forge-twin"]["components"]
    assert "forge-twin 1.0" in twin["conflict"]
    assert f"forge {version('forge')}" in twin["conflict"]

    text = forge_command("plugins").output
    assert "FAILED: could not be imported: libcuda.so.1 not found" in text
    assert "CONFLICT: backend 'torch' is offered by" in text
    assert "can't run here: its probe was killed by SIGABRT" in text
    assert "an odd one" in text


def test_plugins_obeys_the_deny_list(install_plugin: InstallPlugin, empty_home: Path) -> None:
    install_plugin("forge-odd", ODD)
    (empty_home / "forge.toml").write_text('[plugins]\ndeny = ["forge-odd"]\n')
    assert "FAILED: is denied by plugins.deny" in forge_command("plugins").output


def test_doctor_says_what_runs_here_and_why_not_the_rest(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-odd", ODD)
    install_plugin("forge-cuda", "raise ImportError('libcuda.so.1 not found')")
    result = forge_command("doctor", "--json")
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["backends"]["torch"]["ok"] is True
    assert report["backends"]["odd"]["ok"] is False
    able = {name: probe["score"] for name, probe in report["backends"].items() if probe["ok"]}
    assert report["chosen"] == max(able, key=lambda name: able[name])
    assert report["failures"] == {"forge-cuda (cuda)": "could not be imported: libcuda.so.1 not found"}
    assert report["torch"] == version("torch")
    assert report["cpu"]["usable_threads"] >= 1
    assert report["memory"]["total"] >= report["memory"]["available"] > 0

    text = forge_command("doctor").output
    assert "chosen by auto" in text
    assert "forge-cuda (cuda) FAILED: could not be imported: libcuda.so.1 not found" in text


def test_doctor_fails_where_no_backend_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "run", lambda probes, timeout: {name: Probe(False, 0, "no torch") for name in probes})
    result = forge_command("doctor")
    assert result.exit_code == 1
    assert "torch: can't run here: no torch" in result.output
    assert "none can run here" in result.output


# ---------------------------------------------------------------------------------------------------- plugins' commands


COMMANDS = """
    import click
    import forge

    @forge.hookimpl
    def forge_commands(cli):
        @cli.command("greet")
        @click.argument("name")
        def greet(name):
            click.echo(f"hello {name}")

        @cli.command("run")
        def run():
            click.echo("hijacked")
"""


def test_a_plugin_adds_a_command_but_replaces_none(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-greeter", COMMANDS)
    install_plugin("forge-rude", "import forge\n@forge.hookimpl\ndef forge_commands(cli):\n    raise OSError('no')\n")
    greeting = forge_program("greet", "you")
    assert (greeting.returncode, greeting.stdout) == (0, "hello you\n")
    assert "forge: warning: forge-rude 1.0 has a broken hook forge_commands: OSError: no" in greeting.stderr
    assert "forge: warning: forge-greeter 1.0 adds a command 'run', which is there already" in greeting.stderr
    assert "greet" in forge_program("--help").stdout
    usage = forge_program("run", "--help")
    assert "--max-prefill-tokens" in usage.stdout
    assert usage.stderr == ""


def test_a_broken_file_does_not_take_the_help_away(empty_home: Path) -> None:
    (empty_home / "forge.toml").write_text("[server]\nprot = 1\n")
    result = forge_program("--help")
    assert result.returncode == 0
    assert "doctor" in result.stdout
    assert "plugins' commands are missing: forge.toml:2: server.prot: unknown key" in result.stderr


# ---------------------------------------------------------------------------------------------------- as a program


def test_version() -> None:
    assert forge_command("--version").output == f"forge, version {version('forge')}\n"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = [sys.executable, "-c", "from forge.cli import main; main()", "config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stderr
        program.stdout.close()
        assert program.stderr.read() == ""


def test_nothing_but_the_engine_needs_torch() -> None:
    code = """
import sys
import forge.cli, forge.config, forge.plugins, forge.models, forge.server.run
for command in (["plugins"], ["doctor"], ["models"], ["config", "--backend", "torch"]):
    forge.cli.cli(command, standalone_mode=False)
assert "torch" not in sys.modules, "torch was imported"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_settings_cover_every_table_of_the_configuration() -> None:
    settings_ = json.loads(forge_command("config", "--json").output)
    assert {setting["table"].partition(".")[0] for setting in settings_} == {
        field.name for field in attrs.fields(Config)
    }
