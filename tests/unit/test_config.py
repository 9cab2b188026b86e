"""The configuration: what is wrong is refused with its place, and every value knows where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.config import FLAGS, Config, from_dict, load_config, to_dict
from forge.errors import ConfigError
from forge.plugins import KINDS


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a user's configuration directory without files."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return home


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --------------------------------------------------------------------------------------------------- values and origins


def test_without_file_and_flags_the_documented_defaults_hold() -> None:
    config, origins = load_config()
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert (config.model.path, config.model.name, config.backend.name) == ("smollm2", "auto", "auto")
    assert (config.kv_cache.name, config.scheduler.name, config.sampler.name) == ("paged", "continuous", "default")
    assert (config.scheduler.max_batch_size, config.scheduler.max_prefill_tokens) == (256, 4096)
    assert (config.constraint.name, config.drafter.name) == ("grammar", "ngram")
    assert set(origins.values()) == {"default"}


def test_flags_beat_the_file_and_the_file_beats_defaults_and_each_value_tells(empty_home: Path) -> None:
    write(
        empty_home / "forge.toml",
        '# ports\n[server]\nhost = "::1"\nport = 9000\n\n[kv_cache.options]\n"block_size" = 8\n'
        "[scheduler]\noptions = {a = 1}\n",
    )
    config, origins = load_config(flags={"--port": 9001, "--num-blocks": "auto", "--threads": None})
    assert (config.server.host, config.server.port) == ("::1", 9001)
    assert config.kv_cache.options == {"block_size": 8, "num_blocks": "auto"}
    assert origins["server", "host"] == "forge.toml:3"
    assert origins["server", "port"] == "--port"
    assert origins["kv_cache", "options", "block_size"] == "forge.toml:7"
    assert origins["kv_cache", "options", "num_blocks"] == "--num-blocks"
    assert origins["scheduler", "options", "a"] == "forge.toml:9"
    assert origins["backend", "threads"] == origins["server", "log_level"] == "default"


def test_the_file_is_the_named_one_else_that_of_the_directory_else_the_users(empty_home: Path, tmp_path: Path) -> None:
    write(tmp_path / "xdg" / "forge" / "forge.toml", "[server]\nport = 1")
    assert load_config()[0].server.port == 1
    write(empty_home / "forge.toml", "[server]\nport = 2")
    assert load_config()[0].server.port == 2
    assert load_config(write(tmp_path / "other.toml", "[server]\nport = 3"))[0].server.port == 3


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_each_flag_sets_its_value(flag: Any) -> None:
    text = {"--log-level": "debug", "--num-blocks": "77"}.get(flag.name, "7")
    value = flag.parse(text)
    config, origins = load_config(flags={flag.name: value})
    found: Any = to_dict(config)
    for key in flag.path:
        found = found[key]
    assert found == value
    assert origins[flag.path] == flag.name


def test_every_kind_of_component_with_a_table_is_one_that_plugins_can_offer() -> None:
    tables = {field.name for field in attrs.fields(Config)} - {"server", "plugins"}
    assert tables == set(KINDS) - {"loader", "model_source"}


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[server]\nport = "80"', 'forge.toml:2: server.port: expected an integer, got the text "80"'),
        ("[server]\nport = true", "forge.toml:2: server.port: expected an integer, got true"),
        ("[server]\nport = 80.0", "forge.toml:2: server.port: expected an integer, got 80.0"),
        ("[server]\nport = 65536", "forge.toml:2: server.port: must be between 0 and 65535, got 65536"),
        ("[server]\n\nprot = 80", 'forge.toml:3: server.prot: unknown key, did you mean "port"?'),
        ("[sever]\nport = 80", 'forge.toml:1: sever: unknown key, did you mean "server"?'),
        ("server.port = -1", "forge.toml:1: server.port: must be between 0 and 65535, got -1"),
        ("server = 5", "forge.toml:1: server: expected an object, got 5"),
        ("server = {host = 5}", "forge.toml:1: server.host: expected a text, got 5"),
        ("[server]\nhost.name = 1", "forge.toml:2: server.host: expected a text, got an object"),
        ("[server]\ndrain_timeout = inf", "forge.toml:2: server.drain_timeout: expected a finite number"),
        (
            "[server]\nlog_level = 'loud'",
            'forge.toml:2: server.log_level: expected "debug", "info", "warning" or "error", got the text "loud"',
        ),
        ("[model]\nmax_len = 0", "forge.toml:2: model.max_len: must be between 1 and 2147483647, got 0"),
        ("[backend]\nthreads = 0", "forge.toml:2: backend.threads: must be between 1 and 4096, got 0"),
        ("[plugins]\ndeny = 'cpu'", 'forge.toml:2: plugins.deny: expected a list of texts, got the text "cpu"'),
        ("[plugins]\nallow = [\n'a',\n1]", "forge.toml:2: plugins.allow[1]: expected a text, got 1"),
        ("[[kv_cache]]\nname = 'paged'", "forge.toml:1: kv_cache: expected an object, got a list"),
        ("[model]\npath = 2024-01-01", "forge.toml:2: model.path: expected a text, got a date"),
        (
            "[server]\nport = 'a'\nhost = 1",
            "forge.toml:3: server.host: expected a text, got 1; "
            'forge.toml:2: server.port: expected an integer, got the text "a"',
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_line_place_and_reason(empty_home: Path, text: str, message: str) -> None:
    write(empty_home / "forge.toml", text)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert caught.value.message == message


def test_a_flag_out_of_range_is_blamed_on_the_flag(empty_home: Path) -> None:
    write(empty_home / "forge.toml", "[server]\nport = 80")
    with pytest.raises(ConfigError, match=r"^--port: must be between 0 and 65535, got 70000$"):
        load_config(flags={"--port": 70000})


def test_a_flag_does_not_hide_a_wrong_value_in_the_file(empty_home: Path) -> None:
    write(empty_home / "forge.toml", "[server]\nport = 'x'")
    with pytest.raises(ConfigError, match=r"forge\.toml:2: server\.port"):
        load_config(flags={"--port": 80})


def test_what_is_not_toml_is_refused_with_line_and_column(empty_home: Path) -> None:
    write(empty_home / "forge.toml", "[server]\nport = = 80")
    with pytest.raises(ConfigError, match=r"^forge\.toml: is not valid TOML: .*line 2, column 8"):
        load_config()
    write(empty_home / "forge.toml", f"x = {'9' * 5000}")
    with pytest.raises(ConfigError, match=r"^forge\.toml: is not valid TOML: "):
        load_config()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: can't be read: No such file"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigError, match=r"latin\.toml: is not UTF-8 text \(byte 5\)"):
        load_config(tmp_path / "latin.toml")


# ---------------------------------------------------------------------------------------------- to the engine and back


scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=10)
options = st.dictionaries(
    st.text(min_size=1, max_size=8), st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)), max_size=3
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.fixed_dictionaries(
                {"options": options}, optional={"max_len": st.integers(1, 10**6), "served_name": st.text(min_size=1)}
            ),
            "server": st.fixed_dictionaries(
                {}, optional={"port": st.integers(0, 65535), "drain_timeout": st.floats(0, 1e6)}
            ),
            "plugins": st.fixed_dictionaries({}, optional={"allow": st.lists(st.text()), "deny": st.lists(st.text())}),
            "kv_cache": st.fixed_dictionaries({"options": options}),
        },
    )
)
@settings(max_examples=60, deadline=None)
def test_the_engine_process_gets_the_configuration_that_the_server_has(data: dict[str, Any]) -> None:
    config = from_dict(data)
    packed = msgspec.msgpack.encode(to_dict(config))
    assert from_dict(msgspec.msgpack.decode(packed)) == config
