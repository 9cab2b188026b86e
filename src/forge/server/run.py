"""One server process from start to end: engine client, tokenizer, Hypercorn, signals, the orderly shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypercorn.asyncio.run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.events import Event, Updated

from forge.assemble import optional_component
from forge.config import Config
from forge.engine.supervisor import EngineClient
from forge.errors import ConfigError
from forge.models import ALIASES
from forge.server.app import create_app
from forge.server.conditions import Conditions, conditions, weights_digest
from forge.server.request_log import RequestLog
from forge.server.service import Service, TextParts
from forge.server.structured import Lowering

if TYPE_CHECKING:
    from quart import Quart

    from forge.plugins import Registry

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 5.0
"""How long responses that were cut short, and then idle connections, may take to be sent and closed."""

BACKLOG = 2048
"""Connections that may wait to be accepted."""

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients and proxies keep theirs, so that they close first."""

ACCESS_LOG = '%(h)s "%(r)s" %(s)s %(b)s bytes in %(L)s s, request %({x-request-id}o)s'


async def serve(config: Config, registry: Registry, model_path: Path) -> None:
    """Serve a model until SIGTERM or SIGINT, then let running answers end and return; a second signal kills at once.

    model_path: the resolved file or directory. The server answers from the start, 503 while it loads. Errors:
    `ConfigError` for an address that can't be had or a bad key file; those of loading the model.
    """
    model_id, names = model_names(config, model_path)
    client = EngineClient(config, model_path)
    lowering = Lowering(optional_component(config, registry, "constraint"))
    service = Service(client, model_id, names, lowering=lowering)
    app = create_app(config, service)
    if config.server.request_log is not None:
        client.observers.append(_request_log(config, registry, client, model_id, model_path))
    with listen(config.server.host, config.server.port) as listening:
        registry.notify("forge_app_created", app=app, client=client)
        stop = _signals()
        _allow_many_connections()
        await client.start()
        try:
            log.info("listening on http://%s:%d", *listening.getsockname()[:2])
            loading = asyncio.create_task(_load(service, registry, model_path))
            await run(app, service, listening, config.server.drain_timeout, stop, loading)
        finally:
            await client.stop()


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


def model_names(config: Config, model_path: Path) -> tuple[str, frozenset[str]]:
    """What the model is called in responses, and all that requests may call it."""
    reference = config.model.path
    if reference in ALIASES:
        name = reference
    elif reference.startswith("hf:"):
        name = reference.removeprefix("hf:")
    else:
        name = Path(reference.rpartition("#")[2]).name.removesuffix(".gguf") or model_path.name
    name = config.model.served_name or name
    return name, frozenset({name, reference, str(model_path), model_path.name, model_path.stem})


class Listening(socket.socket):
    """A listening socket that can end the connections which came through it.

    Hypercorn waits for what it has written to be read, so that a client which reads nothing could hold it forever.
    """

    def __init__(self, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection and remember it."""
        connection, address = super().accept()
        self._accepted.add(connection)
        return connection, address

    def disconnect(self) -> None:
        """End all connections that are still open, whatever waits to be sent."""
        for connection in list(self._accepted):
            with contextlib.suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)


class _Connection(TCPServer):
    """Hypercorn's connection, which by itself notices only at its idle time-out that an idle client has left: until
    then each one would hold a descriptor. An answer that ends after its client has left would start that timer anew,
    and hold three tasks.
    """

    _left = False

    async def _read_data(self) -> None:
        await super()._read_data()
        self._left = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Hand something to the client or to the timer."""
        if not (self._left and isinstance(event, Updated)):
            await super().protocol_send(event)


vars(hypercorn.asyncio.run)["TCPServer"] = _Connection  # Hypercorn has no setting for it


def listen(host: str, port: int) -> Listening:
    """A listening socket; port 0 is any free one. `ConfigError` if it can't be had."""
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with contextlib.ExitStack() as undo:
            listening = undo.enter_context(Listening(family))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
            undo.pop_all()
            return listening
    except OSError as error:
        raise ConfigError(f"server: can't listen on {host}:{port}: {error.strerror or error}") from error


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


def _read_text(registry: Registry, model_path: Path) -> TextParts:
    from forge.assemble import open_checkpoint
    from forge.text.template import build_chat_template
    from forge.text.tokenizer import build_tokenizer

    checkpoint = open_checkpoint(registry, model_path)
    tokenizer = build_tokenizer(checkpoint.tokenizer)
    return TextParts.of(tokenizer, build_chat_template(checkpoint.tokenizer, tokenizer), checkpoint.generation)


def _allow_many_connections() -> None:
    """Raise the soft limit on open files to the hard one: requests that wait in the queue hold a connection each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS reports a hard limit that it doesn't grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets; the next one does what it would to any process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    both = (signal.SIGTERM, signal.SIGINT)

    def told() -> None:
        for number in both:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in both:
        loop.add_signal_handler(number, told)
    return stop
