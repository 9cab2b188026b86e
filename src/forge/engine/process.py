"""The engine process, ``python -m forge.engine.process FD``: the supervisor starts it with one end of a socket pair."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from pathlib import Path

from forge.config import from_dict
from forge.engine.channel import SocketChannel
from forge.engine.request import ErrorInfo, LoadFailed, Ready, Start
from forge.errors import ForgeError

log = logging.getLogger(__name__)


def main(fd: int) -> int:
    """Load what `Start` says, serve until `Stop` or until the server is gone; the exit status."""
    # Both signals go to whole process groups: the server decides, and the channel tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = SocketChannel(socket.socket(fileno=fd))
    start, *more = channel.receive(wait=True)
    if not isinstance(start, Start) or more:  # told to stop before it began
        return 0
    config = from_dict(start.config)
    logging.basicConfig(level=config.server.log_level.upper(), format="%(levelname)s engine: %(message)s")
    from forge import assemble, plugins

    try:
        registry = plugins.load(allow=config.plugins.allow, deny=config.plugins.deny)
        engine = assemble.build(config, registry, Path(start.model_path))
    except Exception as error:  # whatever a plugin raises, the server has to hear why
        if not isinstance(error, ForgeError):
            log.exception("the model could not be loaded")
        channel.send(LoadFailed(ErrorInfo.of(error)))
        return 1
    registry.notify("forge_engine_started", engine=engine)
    gc.collect()
    gc.freeze()  # what is loaded stays: later collections needn't look at it
    channel.send(Ready(engine.parts.info))
    try:
        engine.run(channel)
    finally:
        registry.notify("forge_engine_stopped", engine=engine)
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
