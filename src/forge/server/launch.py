"""`forge run` from its first moment: the address, the engine process, and only then what HTTP needs.

The engine takes longest to start, so that it is begun before Quart and Hypercorn are imported; nothing imported at the
top of this module takes long.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from forge.engine.supervisor import EngineClient
from forge.models import ALIASES
from forge.server.listening import listen

if TYPE_CHECKING:
    from forge.config import Config
    from forge.plugins import Registry


async def serve(config: Config, registry: Registry, model_path: Path) -> None:
    """Serve a model until SIGTERM or SIGINT, then let running answers end and return; a second signal kills at once.

    model_path: the resolved file or directory. The server answers from the start, 503 while it loads. Errors:
    `ConfigError` for an address that can't be had or a bad key file; those of loading the model.
    """
    with listen(config.server.host, config.server.port) as listening:
        stop = _signals()
        _allow_many_connections()
        client = EngineClient(config, model_path)
        await client.start()
        try:
            from forge.server.run import host

            await host(config, registry, model_path, client, listening, stop)
        finally:
            await client.stop()


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
