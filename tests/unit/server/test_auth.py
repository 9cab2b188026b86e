"""API keys: who gets in, and what a wrong key file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forge.config import Config, ServerTable
from forge.errors import ConfigError, Unauthorized
from forge.server.app import create_app
from forge.server.auth import ApiKeys
from forge.server.service import Service


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# operations\n\nsk-first\n  sk-sécond  \n", "utf-8")
    return path


def test_every_key_of_the_file_opens_and_nothing_else_does(keys: Path) -> None:
    known = ApiKeys.read(keys)
    for header in ("Bearer sk-first", "bearer  sk-first ", "Bearer " + "sk-sécond".encode().decode("latin-1")):
        known.check(header)
    for header in (
        None,
        "",
        "sk-first",
        "Basic sk-first",
        "Bearer",
        "Bearer sk-firs",
        "Bearer # operations",
        "Bearer ☃",
    ):
        with pytest.raises(Unauthorized):
            known.check(header)


def test_a_key_isnt_kept_in_the_clear(keys: Path) -> None:
    assert "sk-first" not in repr(ApiKeys.read(keys))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "can't be read"),
        (b"", "holds no key"),
        (b"# only\n\n", "holds no key"),
        (b"one key\n", "line 1: a key can't contain white space"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_a_bad_key_file_stops_the_start_and_says_why(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        ApiKeys.read(path)
    assert str(path) in caught.value.message


async def test_without_a_key_only_health_answers(keys: Path, service: Service) -> None:
    http = create_app(Config(server=ServerTable(api_key_file=str(keys))), service).test_client()
    requests: list[tuple[str, str]] = [
        ("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("POST", "/tokenize"), ("GET", "/nowhere"),
    ]  # fmt: skip
    for method, path in requests:
        response = await http.open(path, method=method)
        assert response.status_code == 401, path
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        error: dict[str, Any] = (await response.get_json())["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    for path in ("/health", "/forge/v1/health"):
        assert (await http.get(path)).status_code == 200
    assert (await http.get("/v1/models", headers={"Authorization": "Bearer sk-first"})).status_code == 200
