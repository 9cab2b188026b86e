"""The request log: what a line holds, what lines that aren't any are told, and what a replay is warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from forge.config import from_dict
from forge.engine.request import Delta, ModelInfo, Request, Usage
from forge.errors import ConfigError
from forge.plugins import Registry, load
from forge.server.conditions import SAMPLE_BYTES, Conditions, conditions, weights_digest
from forge.server.request_log import RequestLog, read_log

HERE = Conditions("1.0.0", "abc", {"backend.name": '"cpu"'})
INFO = ModelInfo("llama", "cpu", 100, 10, 1, 1, 0.0)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


def written(path: Path, *requests: Request) -> Path:
    log = RequestLog(path, "nothing", "tiny", lambda: HERE)
    for request in requests:
        log.accepted(request)
        log.gained(request, Delta(request.id, 0, "a", [5, 6]))
        log.gained(request, Delta(request.id, 0, "", [7], finish_reason="length", usage=Usage(1, 3, 0)))
        log.over(request, None)
    log.close()
    return path


def test_a_line_holds_the_request_its_tokens_and_the_conditions(tmp_path: Path) -> None:
    request = Request("r", [1, 2, 3], max_tokens=3)
    [entry] = read_log(written(tmp_path / "log", request))
    assert entry.request == request
    assert entry.answers[0].token_ids == [5, 6, 7]
    assert entry.complete
    assert entry.conditions == HERE


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda line: {**line, "version": 1}, "line 2: is of version 1, not 2"),
        (lambda line: {**line, "request": "none"}, r"line 2: is not a logged request.*request"),
        (lambda line: {"version": 2}, "line 2: is not a logged request"),
        (lambda line: [line], "line 2: is not a logged request"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, damage: Any, words: str) -> None:
    path = written(tmp_path / "log", Request("a", [1]), Request("b", [1]))
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{json.dumps(damage(json.loads(second)))}\n")
    with pytest.raises(ConfigError, match=words):
        list(read_log(path))


def test_what_is_auto_is_resolved_and_defaults_are_among_the_conditions(registry: Registry) -> None:
    settings = conditions(from_dict({}), registry, INFO, "abc").settings
    assert settings["backend.name"] == '"cpu"'
    assert settings["model.name"] == '"llama"'
    assert "backend.options.kv_format" in settings
    assert not [name for name in settings if name.startswith(("drafter", "scheduler", "kv_cache"))]


def test_differences_are_named_with_both_values(registry: Registry) -> None:
    was = conditions(from_dict({}), registry, INFO, "abc")
    config = from_dict({"backend": {"options": {"activation_bits": 8}}, "constraint": {"name": "none"}})
    found = was.differences(evolve(conditions(config, registry, INFO, "abd"), version="1.1.0"))
    assert found[0] == f"Forge was {was.version} and is 1.1.0"
    assert found[1] == "the model's files are others"
    assert 'constraint.name was "grammar" and is "none"' in found
    assert any(line.startswith("backend.options.activation_bits was ") and line.endswith("is 8") for line in found)
    assert was.differences(was) == []


def test_a_digest_of_weights_tells_files_apart(tmp_path: Path) -> None:
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    data = bytearray(range(256)) * (SAMPLE_BYTES // 16)
    one.write_bytes(data)
    other.write_bytes(data)
    assert weights_digest(one) == weights_digest(other)
    data[-1] ^= 1
    other.write_bytes(data)
    assert weights_digest(one) != weights_digest(other)
    assert weights_digest(tmp_path) not in (weights_digest(one), weights_digest(other))
    (tmp_path / "empty.json").touch()
    assert weights_digest(tmp_path / "empty.json")
