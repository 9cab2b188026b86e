"""From errors to HTTP responses and stream events, all in the shape of OpenAI's API. Knows no route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec
from quart import Response
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from forge.errors import ForgeError, InvalidRequest, NotFound, PayloadTooLarge

LINGER_SECONDS = 5.0
"""How long a client that was refused may go on sending its body. Closing at once would reset the connection, and the
client might never read the response."""

_CODES = {405: "method_not_allowed", 408: "request_timeout"}


def error_object(error: ForgeError) -> dict[str, Any]:
    """The body of an error response, and the data of an error event."""
    return _object(error.message, error.type, error.param, error.code)


def internal_error(request_id: str) -> ForgeError:
    """What a client is told of an unexpected exception; the rest is in the log under the same id."""
    return ForgeError(f"internal error; the server's log has the details under request id {request_id}")


def error_response(error: ForgeError, received: asyncio.Event) -> Response:
    """The response for any of our errors. received: set when the request's body has arrived completely."""
    response = _response(error_object(error), error.status, received)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="forge"'
    return response


def http_error_response(
    error: HTTPException, method: str, path: str, max_body_bytes: int, received: asyncio.Event
) -> Response:
    """The response for what Quart itself refuses: unknown paths, wrong methods, bodies too large or too slow."""
    status = error.code or 500
    if isinstance(error, RequestEntityTooLarge):
        return error_response(
            PayloadTooLarge(f"the body is larger than {max_body_bytes} bytes (server.max_body_bytes)"), received
        )
    if status == 404:
        return error_response(NotFound(f"there is no {path[:200]} here"), received)
    message = f"{path[:200]} does not take {method[:20]}" if status == 405 else (error.description or error.name)
    kind = InvalidRequest.type if status < 500 else ForgeError.type
    code = _CODES.get(status, error.name.lower().replace(" ", "_"))
    response = _response(_object(message, kind, None, code), status, received)
    if allow := dict(error.get_headers()).get("Allow"):
        response.headers["Allow"] = allow
    return response


def _object(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _response(content: dict[str, Any], status: int, received: asyncio.Event) -> Response:
    data = msgspec.json.encode(content)
    response = Response(_lingering(data, received), status, content_type="application/json")
    response.content_length = len(data)
    return response


async def _lingering(data: bytes, received: asyncio.Event) -> AsyncIterator[bytes]:
    yield data
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            await received.wait()
