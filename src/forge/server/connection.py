"""What Forge adds to Quart's requests and connections: an id, the answers that a request waits for, and its end.

However a request ends (answered, failed, the client gone, the server stopping), its answers are aborted here and
nowhere else. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import TYPE_CHECKING, Any, cast

import quart
from quart import Quart
from quart.asgi import ASGIHTTPConnection

from forge.server.stream import EventStream
from forge.server.transport import direct_write

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
    from quart.typing import ResponseTypes

    from forge.engine.supervisor import Answer
    from forge.server.service import Service

_SANE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


class InFlight:
    """The requests that are being answered, and the two steps of a shutdown: `stopping`, then `cut`.

    stopping: no new requests. cut: those that still run end now, with an error.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.cut = asyncio.Event()
        self._requests: set[Request] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._requests)

    def enter(self, request: Request) -> None:
        """A request has arrived completely: a shutdown waits for its end. Nothing for one that is over already."""
        if not request.over:
            self._requests.add(request)
            self._idle.clear()

    def leave(self, request: Request) -> None:
        """A request is over, its last byte handed to the connection."""
        request.over = True
        self._requests.discard(request)
        if not self._requests:
            self._idle.set()

    async def idle(self, seconds: float) -> bool:
        """Wait until no request is being answered, for at most so many seconds. Returns whether that is so."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Request(quart.Request):
    """A request with its id, the answers that it waits for, and whether its body has arrived completely."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = self.headers.get("X-Request-Id", "")
        self.request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        self.answers: dict[str, Answer] = {}
        self.received = asyncio.Event()
        self.over = False

    async def body_bytes(self) -> bytes:
        """The whole body, whatever its content type says."""
        return await self.get_data(cache=True, as_text=False, parse_form_data=False)


class Connection(ASGIHTTPConnection):
    """One request on its way through the app."""

    app: App

    async def handle_messages(self, request: quart.Request, receive: ASGIReceiveCallable) -> None:
        """Feed the body to the request until the client goes away."""
        own = cast(Request, request)
        while True:
            message = await receive()
            if message["type"] == "http.request":
                own.body.append(message.get("body", b""))
                if not message.get("more_body", False):
                    own.body.set_complete()
                    own.received.set()
                    self.app.service.in_flight.enter(own)
            elif message["type"] == "http.disconnect":
                return

    async def handle_request(self, request: quart.Request, send: ASGISendCallable) -> None:
        """Answer; cancelled when the client goes away."""
        own = cast(Request, request)
        in_flight = self.app.service.in_flight
        try:
            await super().handle_request(request, send)
        finally:
            for answer in own.answers.values():
                answer.abort()
            in_flight.leave(own)

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        """Send a response; a stream of events that nobody has wrapped may write to the client by itself."""
        events = getattr(getattr(response, "response", None), "iter", None)
        if isinstance(events, EventStream):
            events.write = direct_write(send)
        await super()._send_response(send, response)


class App(Quart):
    """A Quart app that serves one model."""

    request_class = Request
    asgi_http_class = Connection

    def __init__(self, service: Service) -> None:
        super().__init__("forge.server", static_folder=None)
        self.service = service
