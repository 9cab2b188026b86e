"""The server once its engine has been started: tokenizer, Hypercorn, the orderly shutdown."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import hypercorn.asyncio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets

from forge.components import open_checkpoint, optional_component
from forge.config import Config
from forge.engine.supervisor import EngineClient
from forge.server.app import create_app
from forge.server.conditions import Conditions, conditions, weights_digest
from forge.server.launch import model_names
from forge.server.listening import BACKLOG, Listening
from forge.server.request_log import RequestLog
from forge.server.service import Service, TextParts
from forge.server.structured import Lowering
from forge.server.transport import improve_hypercorn

if TYPE_CHECKING:
    from quart import Quart

    from forge.plugins import Registry

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 5.0
"""How long responses that were cut short, and then idle connections, may take to be sent and closed."""

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients and proxies keep theirs, so that they close first."""

ACCESS_LOG = '%(h)s "%(r)s" %(s)s %(b)s bytes in %(L)s s, request %({x-request-id}o)s'


async def host(
    config: Config,
    registry: Registry,
    model_path: Path,
    client: EngineClient,
    listening: Listening,
    stop: asyncio.Event,
) -> None:
    """Serve what a started engine computes until `stop` is set. Errors: as `forge.server.launch.serve`."""
    model_id, names = model_names(config, model_path)
    lowering = Lowering(optional_component(config, registry, "constraint"))
    service = Service(client, model_id, names, lowering=lowering)
    app = create_app(config, service)
    if config.server.request_log is not None:
        client.observers.append(_request_log(config, registry, client, model_id, model_path))
    registry.notify("forge_app_created", app=app, client=client)
    log.info("listening on http://%s:%d", *listening.getsockname()[:2])
    loading = asyncio.create_task(_load(service, registry, model_path))
    await run(app, service, listening, config.server.drain_timeout, stop, loading)


def _request_log(
    config: Config, registry: Registry, client: EngineClient, model_id: str, model_path: Path
) -> RequestLog:
    assert config.server.request_log is not None
    weights = weights_digest(model_path)

    def describe() -> Conditions:
        assert client.info is not None, "no request is taken before the engine is loaded"
        return conditions(config, registry, client.info, weights)

    return RequestLog(Path(config.server.request_log), config.server.request_log_redact, model_id, describe)


async def run(
    app: Quart,
    service: Service,
    listening: Listening,
    drain_timeout: float,
    stop: asyncio.Event,
    loading: asyncio.Task[None],
) -> None:
    """Serve until `stop` is set or `loading` fails, then drain. Errors: those of `loading`."""
    improve_hypercorn()
    closing = asyncio.Event()
    settings = hypercorn_settings(listening)
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, settings, shutdown_trigger=closing.wait))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((serving, stopping, loading), return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and loading.exception() is None:
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await drain(service, drain_timeout)
    finally:
        closing.set()
        await asyncio.wait((serving,), timeout=LAST_WORDS_SECONDS)
        listening.disconnect()
        await asyncio.wait((serving,), timeout=LAST_WORDS_SECONDS)
        for task in (serving, stopping, loading):
            task.cancel()
        ended = await asyncio.gather(serving, stopping, loading, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def drain(service: Service, seconds: float) -> None:
    """Take no more requests, wait for the running ones up to so many seconds, then end the rest."""
    in_flight = service.in_flight
    in_flight.stopping = True
    log.info("stopping: %d requests are being answered and have %g seconds to end", len(in_flight), seconds)
    if not await in_flight.idle(seconds):
        log.warning("ending %d requests that took longer than server.drain_timeout", len(in_flight))
        in_flight.cut.set()
        await in_flight.idle(LAST_WORDS_SECONDS)


class _Settings(HypercornConfig):
    """A configuration whose one socket is there already: Hypercorn's own would accept past `Listening.accept`."""

    def __init__(self, listening: Listening) -> None:
        super().__init__()
        self._listening = listening

    def create_sockets(self) -> Sockets:
        return Sockets([], [self._listening], [])


def hypercorn_settings(listening: Listening) -> HypercornConfig:
    """Hypercorn's configuration: none of its limits on time touches a request that is being answered."""
    settings = _Settings(listening)
    settings.backlog = BACKLOG
    settings.read_timeout = None
    settings.keep_alive_timeout = KEEP_ALIVE_SECONDS
    settings.graceful_timeout = LAST_WORDS_SECONDS
    settings.include_server_header = False
    settings.accesslog = logging.getLogger("forge.server.access")
    settings.access_log_format = ACCESS_LOG
    settings.errorlog = logging.getLogger("forge.server.http")
    return settings


async def _load(service: Service, registry: Registry, model_path: Path) -> None:
    """Read the tokenizer and the chat template, in a thread, while the engine loads the weights; wait for both."""
    service.text = await asyncio.to_thread(_read_text, registry, model_path)
    await service.client.ready()
    gc.collect()
    gc.freeze()  # modules and vocabulary stay: later collections needn't look at them


def _read_text(registry: Registry, model_path: Path) -> TextParts:
    from forge.text.template import build_chat_template
    from forge.text.tokenizer import build_tokenizer

    checkpoint = open_checkpoint(registry, model_path)
    tokenizer = build_tokenizer(checkpoint.tokenizer)
    return TextParts.of(tokenizer, build_chat_template(checkpoint.tokenizer, tokenizer), checkpoint.generation)
