"""The Quart app: limits, API keys, request ids and errors around the endpoints. `forge.server.run` serves it."""

from __future__ import annotations

import logging
from pathlib import Path

import quart
from quart import Quart, Response
from werkzeug.exceptions import HTTPException

from forge.config import Config
from forge.errors import EngineUnavailable, ForgeError
from forge.server.auth import ApiKeys
from forge.server.connection import App
from forge.server.errors import error_response, http_error_response, internal_error
from forge.server.routes import add_routes, current
from forge.server.service import RETRY_SECONDS, Service

log = logging.getLogger(__name__)

BODY_SECONDS = 60
"""How long a client may take to send a request's body. Nothing limits how long a response may take."""

ALWAYS_OPEN = ("/health", "/forge/v1/health")
"""Answered without an API key and while the server stops."""


def create_app(config: Config, service: Service) -> Quart:
    """The whole HTTP face of one model. Errors: `ConfigError` for the API key file."""
    app = App(service)
    app.config.update(
        DEBUG=False,
        MAX_CONTENT_LENGTH=config.server.max_body_bytes,
        BODY_TIMEOUT=BODY_SECONDS,
        RESPONSE_TIMEOUT=None,
    )
    app.url_map.merge_slashes = False  # it would answer "//v1/models" with a redirect
    add_routes(app)
    _add_guards(app, _api_keys(config))
    _add_error_handlers(app, config.server.max_body_bytes)
    return app


def _api_keys(config: Config) -> ApiKeys | None:
    path = config.server.api_key_file
    return None if path is None else ApiKeys.read(Path(path))


def _add_guards(app: App, keys: ApiKeys | None) -> None:
    @app.before_request
    async def guard() -> None:
        request = current()
        if request.path in ALWAYS_OPEN:
            return
        if keys is not None:
            keys.check(request.headers.get("Authorization"))
        if app.service.in_flight.stopping:
            raise EngineUnavailable("the server is shutting down", retry_after=RETRY_SECONDS)

    @app.before_websocket
    async def guard_websocket() -> Response | None:  # Forge has none, but a plugin may
        try:
            if keys is not None:
                keys.check(quart.websocket.headers.get("Authorization"))
        except ForgeError as error:
            return Response(error.message, error.status)
        return None

    @app.after_request
    async def sign(response: Response) -> Response:
        request = current()
        response.headers["X-Request-Id"] = request.request_id
        if app.service.in_flight.stopping and request.http_version < "2":  # HTTP/2 has no such header
            response.headers["Connection"] = "close"
        return response


def _add_error_handlers(app: App, max_body_bytes: int) -> None:
    @app.errorhandler(ForgeError)
    async def known(error: ForgeError) -> Response:
        request = current()
        if error.status == 500:
            log.error("request %s failed: %s", request.request_id, error.message)
        return error_response(error, request.received)

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> Response:
        if quart.has_websocket_context():
            return Response(error.description or "", error.code)
        request = current()
        return http_error_response(error, request.method, request.path, max_body_bytes, request.received)

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        if quart.has_websocket_context():
            log.error("a websocket of a plugin failed", exc_info=error)
            return Response("internal error", 500)
        request = current()
        log.error("request %s failed", request.request_id, exc_info=error)
        return error_response(internal_error(request.request_id), request.received)
