"""HTTP itself: statuses, errors, headers, health; without a socket."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from forge.errors import ContextLengthExceeded, QueueFull

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "hi"}]}


async def error_of(response: Any) -> dict[str, Any]:
    body = await response.get_json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["Content-Type"] == "application/json"
    error: dict[str, Any] = body["error"]
    return error


async def test_an_unknown_path_is_404_and_a_wrong_method_405_in_openais_shape(http: Any) -> None:
    for path in ("/nowhere", "/v1", "/health/", "/static/x"):
        response = await http.get(path)
        assert response.status_code == 404, path
        assert (await error_of(response))["code"] == "not_found"
    response = await http.get(CHAT)
    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]
    assert (await error_of(response))["code"] == "method_not_allowed"


async def test_json_is_json_whatever_the_content_type_says(http: Any) -> None:
    data = b'{"messages": [{"role": "user", "content": "hi"}]}'
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"):
        response = await http.post(CHAT, data=data, headers={"Content-Type": content_type})
        assert response.status_code == 200, content_type


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"a":' * 10_000, b'{"messages": "\\ud800"}'])
async def test_a_body_that_isnt_a_json_object_is_400(body: bytes, http: Any) -> None:
    for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
        response = await http.post(path, data=body)
        assert response.status_code == 400
        assert (await error_of(response))["message"].startswith("the body")


async def test_a_declared_body_over_the_limit_is_413(http: Any) -> None:
    response = await http.post(CHAT, data=b" " * 65537)
    assert response.status_code == 413
    error = await error_of(response)
    assert error["code"] == "payload_too_large"
    assert "65536" in error["message"]


async def test_a_template_that_refuses_gives_its_message(http: Any, client: Any) -> None:
    response = await http.post(CHAT, json={"messages": [{"role": "user", "content": "raise"}]})
    assert response.status_code == 400
    assert "refuses these messages" in (await error_of(response))["message"]
    assert client.requests == []


async def test_what_the_engine_refuses_has_its_status(http: Any, client: Any) -> None:
    client.refusal = lambda _: QueueFull("1024 requests wait", retry_after=3)
    response = await http.post(CHAT, json=ASK | {"stream": True})
    assert (response.status_code, response.headers["Retry-After"]) == (429, "3")
    assert (await error_of(response))["type"] == "rate_limit_error"
    client.refusal = lambda _: ContextLengthExceeded("600 tokens, 512 fit", param="messages")
    response = await http.post(CHAT, json=ASK)
    assert response.status_code == 400
    assert (await error_of(response))["code"] == "context_length_exceeded"


async def test_every_response_has_a_request_id_and_a_sane_one_is_kept(http: Any) -> None:
    for path, method in ((CHAT, "POST"), ("/health", "GET"), ("/nowhere", "GET"), ("/v1/models", "POST")):
        response = await http.open(path, method=method, headers={"X-Request-Id": "abc-123_x.y"})
        assert response.headers["X-Request-Id"] == "abc-123_x.y"
    made = {(await http.get("/health")).headers["X-Request-Id"] for _ in range(2)}
    assert len(made) == 2
    for bad in ("", "a b", "x" * 129, "é", "<script>"):
        response = await http.get("/health", headers={"X-Request-Id": bad})
        assert response.headers["X-Request-Id"] != bad
        assert len(response.headers["X-Request-Id"]) == 32


@pytest.mark.parametrize("state", ["loading", "restarting", "failed", "stopped"])
async def test_health_says_what_the_engine_does_and_requests_get_503(state: str, http: Any, client: Any) -> None:
    client.state, client.detail = state, "the engine died of signal 9"
    for path in ("/health", "/forge/v1/health"):
        response = await http.get(path)
        assert response.status_code == 503
        assert await response.get_json() == {"status": state, "detail": "the engine died of signal 9", "model": "tiny"}
    response = await http.post(CHAT, json=ASK)
    assert response.status_code == 503
    assert ("Retry-After" in response.headers) == (state in ("loading", "restarting"))
    error = await error_of(response)
    assert error["code"] == "engine_unavailable"
    assert "signal 9" in error["message"]
    assert (await http.get("/v1/models")).status_code == 200


async def test_until_the_tokenizer_is_read_the_server_is_loading(http: Any, service: Any) -> None:
    service.text = None
    assert (await (await http.get("/health")).get_json())["status"] == "loading"
    for path, body in ((CHAT, ASK), ("/tokenize", {"content": "x"}), ("/detokenize", {"tokens": []})):
        response = await http.post(path, json=body)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")


async def test_a_ready_server_is_healthy(http: Any) -> None:
    response = await http.get("/health")
    assert response.status_code == 200
    assert (await response.get_json())["status"] == "ok"


async def test_a_stopping_server_takes_nothing_new_but_says_so(http: Any, service: Any) -> None:
    service.in_flight.stopping = True
    response = await http.post(CHAT, json=ASK)
    assert response.status_code == 503
    assert (response.headers["Retry-After"], response.headers["Connection"]) == ("5", "close")
    assert "shutting down" in (await error_of(response))["message"]
    response = await http.get("/health")
    assert response.status_code == 503
    assert (await response.get_json())["status"] == "stopping"


async def test_an_unexpected_exception_is_a_500_that_leaks_nothing(http: Any, caplog: pytest.LogCaptureFixture) -> None:
    response = await http.post(CHAT, json={"messages": [{"role": "user", "content": "crash"}]})
    assert response.status_code == 500
    error = await error_of(response)
    assert "secret" not in str(error)
    assert response.headers["X-Request-Id"] in error["message"]
    assert any("a secret of the server" in str(record.exc_info) for record in caplog.records)


def test_the_server_process_doesnt_import_torch() -> None:
    code = (
        "import sys, forge.server.app, forge.server.run, forge.engine.supervisor, forge.text.template, forge.plugins;"
        "from forge.components import open_checkpoint;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
