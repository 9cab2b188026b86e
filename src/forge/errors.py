"""One hierarchy of errors: each knows its HTTP status and the `type` and `code` of OpenAI's error object.

Raise the most specific class; the server turns any of them into a response, the command line into one line.
"""

from __future__ import annotations

from typing import ClassVar


class ForgeError(Exception):
    """Base of all errors that Forge raises on purpose.

    `param` names the request field at fault (``messages[0].content``); `retry_after` is in seconds.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(ForgeError):
    """The request can't be served as it is: a wrong type or range, a template that raises, a bad schema."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested tokens don't fit the context or the whole KV cache; the message has the figures."""

    code = "context_length_exceeded"


class Unauthorized(ForgeError):
    """No API key, or not one of those configured."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(ForgeError):
    """No such model or path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """The request names a model that this server doesn't serve."""

    code = "model_not_found"


class PayloadTooLarge(ForgeError):
    """The body is larger than `server.max_body_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class QueueFull(ForgeError):
    """As many requests wait as `scheduler.max_queue` allows."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class QueueTimeout(ForgeError):
    """The request has waited for as long as `scheduler.queue_timeout` allows, and not been begun."""

    status = 503
    type = "server_error"
    code = "queue_timeout"


class DeadlineExceeded(ForgeError):
    """The answer took longer than `scheduler.request_timeout` allows."""

    status = 504
    type = "server_error"
    code = "deadline_exceeded"


class EngineUnavailable(ForgeError):
    """The engine is loading, has died, or the server is shutting down."""

    status = 503
    type = "server_error"
    code = "engine_unavailable"


class EngineFault(ForgeError):
    """A component failed while it computed this request; other requests go on."""

    code = "engine_fault"


class ConfigError(ForgeError):
    """A configuration file, flag or component option is wrong; the message names place, reason and nearest name."""

    code = "config_error"


class PluginError(ForgeError):
    """A plugin is broken, missing, or can't run here, and something asked for its component."""

    code = "plugin_error"


class OutOfMemory(ForgeError):
    """The machine, or the device, hasn't the memory that the model and its KV cache take."""

    code = "out_of_memory"


class ModelFileError(ForgeError):
    """A model file is damaged, truncated, hostile, or not of the format that its name promises."""

    code = "model_file_error"


class UnsupportedModel(ForgeError):
    """A model wants something (architecture, RoPE scaling, tensor type, tokenizer) that isn't implemented."""

    code = "unsupported_model"


class ModelSourceError(ForgeError):
    """A model can't be found or fetched: no such file, no network, a checksum that differs."""

    code = "model_source_error"


BY_CODE: dict[str, type[ForgeError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest, ContextLengthExceeded, Unauthorized, NotFound, ModelNotFound, PayloadTooLarge, QueueFull,
        QueueTimeout, DeadlineExceeded,
        EngineUnavailable, EngineFault, ConfigError, PluginError, OutOfMemory, ModelFileError, UnsupportedModel,
        ModelSourceError,
    )
}  # fmt: skip
"""Every class by its `code`, so that an error that crossed the process border is raised again as what it was."""
