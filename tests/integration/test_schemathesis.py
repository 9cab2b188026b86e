"""The HTTP interface against Schemathesis: whatever fits or doesn't fit the description below has a proper answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis

from forge.testing.server import Server, serve

TEXT = {"type": "string", "maxLength": 40}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string", "minLength": 1},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
SAMPLING = {
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 3},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
    "n": {"type": "integer", "minimum": 1, "maximum": 3},
    "stop": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}]},
    "stream": {"const": False},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
}
MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": TEXT},
    "required": ["role", "content"],
}


def operation(method: str, schema: dict[str, Any] | None = None, *parameters: dict[str, Any]) -> dict[str, Any]:
    """One operation that answers 200, or with an error in OpenAI's shape."""
    bad = {"description": "refused", "content": {"application/json": {"schema": ERROR}}}
    responses: dict[str, Any] = {str(status): bad for status in (400, 404, 405, 406, 413, 415, 422, 429)}
    responses["200"] = {"description": "answered"}
    made: dict[str, Any] = {"responses": responses, "parameters": list(parameters)}
    if schema is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {method: made}


def body(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**properties, "model": {"const": "tiny"}}, "required": [required]}


MODEL = {"name": "model", "in": "path", "required": True, "schema": TEXT}
PROMPT = {"anyOf": [TEXT, {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 400}}]}
API = schemathesis.openapi.from_dict({
    "openapi": "3.1.0",
    "info": {"title": "Forge", "version": "1"},
    "paths": {
        "/health": operation("get"),
        "/v1/models": operation("get"),
        "/v1/models/{model}": operation("get", None, MODEL),
        "/v1/chat/completions": operation(
            "post", body("messages", messages={"type": "array", "minItems": 1, "items": MESSAGE}, **SAMPLING)
        ),
        "/v1/completions": operation("post", body("prompt", prompt=PROMPT, **SAMPLING)),
        "/tokenize": operation("post", body("prompt", prompt=TEXT)),
        "/detokenize": operation("post", body("tokens", tokens={"type": "array", "items": {"type": "integer"}})),
    },
})  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny model, by the name "tiny"."""
    folder = tmp_path_factory.mktemp("schemathesis")
    with serve(folder, tiny_path, "--threads", "1", "--num-blocks", "300", "--served-model-name", "tiny") as server:
        server.wait()
        yield server


@API.parametrize()
@hypothesis.settings(
    max_examples=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
def test_every_request_has_an_answer_as_described(case: schemathesis.Case, server: Server) -> None:
    response = case.call(base_url=server.url, timeout=60)
    assert response.status_code < 500, response.text
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.checks.status_code_conformance,
            schemathesis.checks.response_schema_conformance,
        ],
    )
