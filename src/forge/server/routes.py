"""The endpoints: each reads a body, asks the service, and writes a response. What fields mean is said in `openai`."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, cast

import quart
from quart import Response

from forge import __version__
from forge.engine.request import Request as EngineRequest
from forge.errors import ModelNotFound
from forge.server import openai, stream
from forge.server.body import parse_object
from forge.server.connection import App, Request
from forge.server.metrics import CONTENT_TYPE
from forge.server.service import Service, TextParts, in_worker
from forge.server.shapes import ChatShape, CompletionShape, EchoedPrompt, Identity, Shape, encode
from forge.server.structured import specification

log = logging.getLogger(__name__)

W = TypeVar("W")

REPORTED_FIELDS = 20
"""So many ignored fields are listed in the response header."""

LOGGED_FIELDS = 1000
"""So many different ignored fields are logged in a server's life; clients make the names up."""


def add_routes(app: App) -> None:
    """Give an app its endpoints."""
    service = app.service
    for path, handler, method in (
        ("/v1/chat/completions", chat_completions, "POST"),
        ("/v1/completions", completions, "POST"),
        ("/v1/models", list_models, "GET"),
        ("/v1/models/<path:name>", one_model, "GET"),
        ("/tokenize", tokenize, "POST"),
        ("/detokenize", detokenize, "POST"),
        ("/metrics", metrics, "GET"),
        ("/health", health, "GET"),
        ("/forge/v1/health", health, "GET"),
    ):
        app.add_url_rule(path, path, partial(handler, service), methods=[method])


def current() -> Request:
    """The request that is being handled."""
    return cast(Request, quart.request)


# ---------------------------------------------------------------------------------------------------------- generation


async def chat_completions(service: Service) -> Response:
    """Serve ``POST /v1/chat/completions``."""
    body = parse_object(await current().body_bytes())
    wire, ignored = openai.chat_completion(body)
    service.check_model(wire.model)
    text = service.ready()
    size = sum(len(part) for message in wire.messages for part in _texts(message))
    prompt = await in_worker(size, partial(_chat_prompt, service, text, wire.messages))
    constraint = await service.lowering.lower(specification(wire))
    identity = _identity(service, "chatcmpl")
    request = openai.engine_request(
        wire,
        identity.id,
        prompt,
        text.defaults,
        service.vocabulary(text),
        where="messages",
        constraint=constraint,
    )
    shape = ChatShape(text.tokenizer, wire.alternatives)
    return await _answer(service, wire, shape, identity, [request], ignored)


def _texts(message: openai.Message) -> Sequence[str]:
    content = message.content
    return [content] if isinstance(content, str) else [part.text for part in content or ()]


def _chat_prompt(service: Service, text: TextParts, messages: Sequence[openai.Message]) -> list[int]:
    rendered = text.template.render([message.for_template() for message in messages])
    service.check_length(text, rendered)
    return text.tokenizer.encode(rendered, add_special=False, parse_special=True)


async def completions(service: Service) -> Response:
    """Serve ``POST /v1/completions``."""
    body = parse_object(await current().body_bytes())
    wire, ignored = openai.completion(body)
    service.check_model(wire.model)
    text = service.ready()
    size = sum(len(prompt) for prompt in wire.prompts)
    prompts = await in_worker(size, lambda: [_prompt_ids(service, text, prompt) for prompt in wire.prompts])
    constraint = await service.lowering.lower(specification(wire))
    identity = _identity(service, "cmpl")
    requests = [
        openai.engine_request(
            wire,
            f"{identity.id}-{index}",
            ids,
            text.defaults,
            service.vocabulary(text),
            where=wire.place(index),
            constraint=constraint,
        )
        for index, ids in enumerate(prompts)
    ]
    echo = [_echoed(text, *pair) for pair in zip(wire.prompts, prompts)] if wire.echo else []
    shape = CompletionShape(text.tokenizer, wire.logprobs, wire.n or 1, echo)
    return await _answer(service, wire, shape, identity, requests, ignored)


def _prompt_ids(service: Service, text: TextParts, prompt: str | list[int]) -> list[int]:
    """A prompt's token ids, once it's clear that they may fit."""
    if isinstance(prompt, str):
        service.check_length(text, prompt)
    return openai.prompt_ids(text.tokenizer, prompt)


def _echoed(text: TextParts, prompt: str | list[int], ids: list[int]) -> EchoedPrompt:
    return EchoedPrompt(ids, prompt if isinstance(prompt, str) else text.tokenizer.decode(prompt, skip_special=False))


def _identity(service: Service, prefix: str) -> Identity:
    info = service.client.info
    fingerprint = f"forge-{__version__}" + (f"-{info.backend}" if info is not None else "")
    return Identity(f"{prefix}-{uuid.uuid4().hex}", service.model_id, fingerprint)


async def _answer(
    service: Service,
    wire: openai.ChatCompletion | openai.Completion,
    shape: Shape,
    identity: Identity,
    requests: Sequence[EngineRequest],
    ignored: Sequence[str],
) -> Response:
    """Hand the requests to the engine and make the response once it has accepted all of them."""
    request, cut = current(), service.in_flight.cut

    async def submit(each: EngineRequest) -> None:
        request.answers[each.id] = await service.client.submit(each)

    await _all_or_none([submit(each) for each in requests])
    answers = [request.answers[each.id] for each in requests]
    n = wire.n or 1
    if wire.stream:
        events = stream.EventStream(
            shape, identity, answers, n, cut, include_usage=wire.include_usage, request_id=request.request_id
        )
        response = Response(events, content_type="text/event-stream; charset=utf-8")
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
    else:
        response = json_response(await stream.whole(shape, identity, answers, n, cut))
    return report_ignored(service, response, ignored)


async def _all_or_none(coroutines: Sequence[Any]) -> None:
    """Run them together; the first error is raised once all have ended."""
    for result in await asyncio.gather(*coroutines, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


# -------------------------------------------------------------------------------------------------------------- others


async def list_models(service: Service) -> Response:
    """Serve ``GET /v1/models``."""
    return json_response({"object": "list", "data": [_model(service)]})


async def one_model(service: Service, name: str) -> Response:
    """Serve ``GET /v1/models/{name}``."""
    if name not in service.names:
        raise ModelNotFound(f"the model {name[:200]!r} is not served here; there is {service.model_id!r}")
    return json_response(_model(service))


def _model(service: Service) -> dict[str, Any]:
    info = service.client.info
    model = {"id": service.model_id, "object": "model", "created": service.created, "owned_by": "forge"}
    return model if info is None else model | {"max_model_len": info.max_model_len}


async def health(service: Service) -> Response:
    """``GET /health``: 200 if requests would be taken, else 503 and why not."""
    state, why = service.health()
    content = {"status": state, "detail": why or "requests are served", "model": service.model_id}
    return json_response(content, 200 if state == "ok" else 503)


async def metrics(service: Service) -> Response:
    """``GET /metrics``: for Prometheus."""
    return Response(await service.metrics.text(), content_type=CONTENT_TYPE)


async def tokenize(service: Service) -> Response:
    """``POST /tokenize``: the token ids of a text."""
    wire, ignored = openai.read(parse_object(await current().body_bytes()), openai.Tokenize)
    tokenizer = service.loaded().tokenizer
    encode_text = partial(
        tokenizer.encode, wire.content, add_special=wire.add_special, parse_special=wire.parse_special
    )
    ids = await in_worker(len(wire.content), encode_text)
    if not wire.with_pieces:
        return report_ignored(service, json_response({"tokens": ids}), ignored)
    pieces = [{"id": token, "piece": tokenizer.token_text(token)} for token in ids]
    return report_ignored(service, json_response({"tokens": pieces}), ignored)


async def detokenize(service: Service) -> Response:
    """``POST /detokenize``: the text of token ids, special tokens by their names."""
    wire, ignored = openai.read(parse_object(await current().body_bytes()), openai.Detokenize)
    tokenizer = service.loaded().tokenizer
    openai.check_ids(wire.tokens, tokenizer.vocab_size, "tokens")
    content = await in_worker(len(wire.tokens), partial(tokenizer.decode, wire.tokens, skip_special=False))
    return report_ignored(service, json_response({"content": content}), ignored)


# ----------------------------------------------------------------------------------------------------------- responses


def json_response(content: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(encode(content), status, content_type="application/json")


def report_ignored(service: Service, response: Response, names: Sequence[str]) -> Response:
    """Tell the client which of its fields were ignored, and the log each name once."""
    if names:
        shown = [re.sub(r"[^\w.\[\]-]", "?", name, flags=re.ASCII)[:64] for name in names[:REPORTED_FIELDS]]
        more = len(names) - len(shown)
        response.headers["X-Forge-Ignored-Fields"] = ", ".join(shown) + (f" and {more} more" if more else "")
        for name in shown:
            if name not in service.logged_fields and len(service.logged_fields) < LOGGED_FIELDS:
                service.logged_fields.add(name)
                log.warning("requests have the field %s, which is ignored", name)
    return response
