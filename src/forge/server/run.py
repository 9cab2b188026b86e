"""The server once its engine has been started: tokenizer, Hypercorn, the orderly shutdown."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import hypercorn.asyncio.run
import hypercorn.protocol
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.events import Event, RawData
from hypercorn.protocol.events import Body, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol

from forge.components import open_checkpoint, optional_component
from forge.config import Config
from forge.engine.supervisor import EngineClient
from forge.server.app import create_app
from forge.server.launch import model_names
from forge.server.listening import BACKLOG, Listening
from forge.server.service import Service, TextParts
from forge.server.structured import Lowering

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
    registry.notify("forge_app_created", app=app, client=client)
    log.info("listening on http://%s:%d", *listening.getsockname()[:2])
    loading = asyncio.create_task(_load(service, registry, model_path))
    await run(app, service, listening, config.server.drain_timeout, stop, loading)


async def run(
    app: Quart,
    service: Service,
    listening: Listening,
    drain_timeout: float,
    stop: asyncio.Event,
    loading: asyncio.Task[None],
) -> None:
    """Serve until `stop` is set or `loading` fails, then drain. Errors: those of `loading`."""
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


class _Http1(H11Protocol):
    """Hypercorn's HTTP/1, with a shorter way for the chunks of a stream: at 32 streams those are most of its work.

    h11 frames chunks (RFC 9112, section 7.1) without remembering them, so that they needn't pass through it.
    """

    _chunked = False

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Body) and self._chunked and event.data:
            await self.send(RawData(data=b"%x\r\n%b\r\n" % (len(event.data), event.data)))
            return
        await super().stream_send(event)
        if isinstance(event, Response):
            framed = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in event.headers)
            http = self.connection  # of a websocket it's something else
            http11 = isinstance(http, h11.Connection) and http.their_http_version == b"1.1"
            self._chunked = not framed and http11 and http.our_state is h11.SEND_BODY


class _Connection(TCPServer):
    """Hypercorn's connection, which by itself notices only at its idle time-out that an idle client has left: until
    then each one would hold a descriptor.
    """

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData) and not self.send_lock.locked() and not self.writer.transport.is_closing():
            self.writer.write(event.data)
            if not self.writer.transport.get_write_buffer_size():
                return  # all of it is with the system: nothing to wait for
            event = RawData(data=b"")
        await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


vars(hypercorn.asyncio.run)["TCPServer"] = _Connection  # Hypercorn has no setting for either
vars(hypercorn.protocol)["H11Protocol"] = _Http1


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
