"""The server's side of the engine: starts the engine process, carries requests to it, and starts it anew when it dies.

Runs in the server's event loop; imports nothing that a model needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from forge.config import Config, to_dict
from forge.engine.channel import encode
from forge.engine.link import Link
from forge.engine.request import (
    Abort,
    Accepted,
    Delta,
    Deltas,
    FromEngine,
    Inspect,
    LoadFailed,
    ModelInfo,
    Ready,
    Refused,
    Report,
    Request,
    Start,
    Stop,
    Submit,
    ToEngine,
)
from forge.errors import EngineUnavailable, ForgeError

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "restarting", "failed", "stopped"]

STOP_SECONDS = 10.0
"""How long an engine that was told to stop, or has closed its channel, may take to leave before it's killed."""

LINGER_SECONDS = 0.5
"""How long to wait for the exit status of an engine that has closed its channel, before requests are told."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between an engine's death and its restart; doubled each time it dies before it's ready."""


REPORT_SECONDS = 2.0
"""How long to wait for an engine's report before the last one has to do."""

WATCHES = 4
"""How often an engine is asked for a sign of life within the watchdog's time."""


class Observer(Protocol):
    """Hears of requests as they come and go, in the server's event loop."""

    def accepted(self, request: Request) -> None:
        """The engine has taken a request."""

    def refused(self, request: Request, error: ForgeError) -> None:
        """The engine hasn't."""

    def gained(self, request: Request, delta: Delta) -> None:
        """An answer's delta has come from the engine."""

    def over(self, request: Request, error: ForgeError | None) -> None:
        """All answers have ended. error: what ended them before their time, an abort included."""


class Answer:
    """What the engine says to one request: iterate over its deltas until all choices are over, or `listen` and `take`.

    A reader that's slower than the engine gets deltas of a choice merged, so that what waits is bounded by the answer's
    own length. Errors while iterating: `EngineUnavailable` if the engine dies.
    """

    def __init__(self, client: EngineClient, request: Request) -> None:
        self._client = client
        self.request = request
        self._unread = self._undelivered = request.n
        self._waiting: dict[int, Delta] = {}
        self._error: ForgeError | None = None
        self.accepted = False
        self._news = asyncio.Event()
        self._ring: Callable[[], None] = self._news.set

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Delta:
        while (delta := self.take()) is None:
            if self.over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return delta

    def listen(self, ring: Callable[[], None]) -> None:
        """Have `ring` called, instead of waking who iterates, whenever there may be something to take."""
        self._ring = ring

    def take(self) -> Delta | None:
        """The next delta, if there is one by now. Errors: as while iterating."""
        if not self._waiting:
            if self._error is not None:
                raise self._error
            return None
        delta = self._waiting.pop(next(iter(self._waiting)))
        if delta.finish_reason is not None:
            self._unread -= 1
        return delta

    @property
    def over(self) -> bool:
        """Whether the last delta of every choice has been taken."""
        return not self._unread

    def abort(self) -> None:
        """Tell the engine that nobody listens any more. Idempotent; fine after the end too."""
        self._client.abort(self.request.id)

    def deliver(self, delta: Delta) -> bool:
        """Called by the client for each delta of this request; whether it was the last one of the last choice."""
        earlier = self._waiting.get(delta.choice)
        self._waiting[delta.choice] = delta if earlier is None else merge(earlier, delta)
        self._ring()
        self._undelivered -= delta.finish_reason is not None
        return not self._undelivered

    def fail(self, error: ForgeError) -> None:
        """Called by the client when nothing more will come."""
        self._error = error
        self._ring()


def merge(a: Delta, b: Delta) -> Delta:
    """Two deltas of one choice as one."""
    return msgspec.structs.replace(
        b,
        text=a.text + b.text,
        token_ids=a.token_ids + b.token_ids,
        logprobs=None if a.logprobs is b.logprobs is None else (a.logprobs or []) + (b.logprobs or []),
        prompt_logprobs=a.prompt_logprobs or b.prompt_logprobs,
    )


def _log_failure(observer: Observer, event: str) -> None:
    """It's a fault of the observer's own, and no request's."""
    log.exception("%s.%s failed", type(observer).__name__, event)


class EngineClient:
    """One engine process, kept alive.

    state: "loading" (the first start), "ready", "restarting" (it died), "failed" (it can't start), "stopped". detail:
    the same in a sentence. info: what it has loaded, once it's ready. observers: who hears of requests.
    """

    def __init__(self, config: Config, model_path: Path) -> None:
        self.state: State = "loading"
        self.detail = "the engine is loading the model"
        self.info: ModelInfo | None = None
        self.observers: list[Observer] = []
        self.restarts = 0
        self._watchdog_timeout = config.server.watchdog_timeout
        self._heard = 0.0
        self._report: Report | None = None
        self._reported = asyncio.Event()
        self._start_message = Start(to_dict(config), str(model_path))
        self._accepting: dict[str, asyncio.Future[None]] = {}
        self._answers: dict[str, Answer] = {}
        self._transport: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._started: asyncio.Future[ModelInfo] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._launched = asyncio.Event()

    async def start(self) -> None:
        """Start the engine process and return once it runs; loading goes on in the background."""
        self._started = asyncio.get_running_loop().create_future()
        self._supervision = asyncio.create_task(self._supervise())
        launched = asyncio.create_task(self._launched.wait())
        await asyncio.wait((launched, self._supervision), return_when=asyncio.FIRST_COMPLETED)
        launched.cancel()

    async def ready(self) -> ModelInfo:
        """Wait until the engine has loaded its model for the first time. Errors: why it couldn't."""
        assert self._started is not None, "start() comes first"
        return await asyncio.shield(self._started)

    async def submit(self, request: Request) -> Answer:
        """Queue a request. Errors: what the engine refused it for; `EngineUnavailable`."""
        if self.state != "ready":
            raise EngineUnavailable(self.detail, retry_after=1)
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer = Answer(self, request)
        self._accepting[request.id], self._answers[request.id] = accepted, answer
        try:
            self._send(Submit(request))
            await accepted
        except BaseException as error:  # refused, or the caller was cancelled: then the engine has to know
            if isinstance(error, ForgeError):
                self._tell("refused", request, error)
            self.abort(request.id)
            raise
        return answer

    async def report(self) -> Report | None:
        """How the engine is, or was when it last said so; None if it never did."""
        if self.state == "ready":
            self._reported.clear()
            self._send(Inspect())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reported.wait(), REPORT_SECONDS)
        return self._report

    def abort(self, request_id: str) -> None:
        """Drop a request. Idempotent."""
        self._accepting.pop(request_id, None)
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            if answer.accepted:
                self._tell("over", answer.request, ForgeError("aborted"))
            if self.state == "ready":
                self._send(Abort(request_id))

    async def stop(self) -> None:
        """End the engine process; running requests fail."""
        working = self.state == "ready"
        self._stop.set()
        self._set("stopped", "the server is shutting down")
        self._send(Stop())
        if self._supervision is None:
            return
        if working:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._supervision), STOP_SECONDS)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()  # stuck, or still loading, when it doesn't listen
        await self._supervision

    # -- supervision

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            failure = await self._run_once()
            was_ready = self.state == "ready"
            if self._started is not None and not self._started.done():
                # Nobody was ever served: a wrong configuration doesn't mend itself.
                self._set("failed", failure.message)
                self._started.set_exception(failure)
                self._started.exception()
            self._set("restarting", f"the engine died ({failure.message}) and is starting again")
            news = self.detail if self.state == "stopped" else "the engine died while it worked on this request"
            self._fail_all(EngineUnavailable(news, retry_after=1))
            await self._reap()
            if self.state in ("failed", "stopped"):
                return
            pause = FIRST_PAUSE if was_ready else min(2 * pause, LONGEST_PAUSE)
            log.error("%s in %.1f s", self.detail, pause)
            self.restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    async def _run_once(self) -> ForgeError:
        """Start the process and serve it until its end of the channel is closed; why that was."""
        ours: socket.socket | None = None
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "forge.engine.process", str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
                )  # fmt: skip
            link = Link(self._receive)
            self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
            self._send(self._start_message)
            self._launched.set()
            self._watch = asyncio.create_task(self._watch_over(self._process))
            await link.ended
            return await self._cause_of_death()
        except ForgeError as error:  # it couldn't load
            return error
        except ConnectionError:
            return await self._cause_of_death()
        except Exception as error:  # no descriptors left, no process to be had, a message that makes no sense
            log.exception("the engine can't be reached")
            return EngineUnavailable(f"it can't be reached: {type(error).__name__}: {error}")
        finally:
            if self._watch is not None:
                self._watch.cancel()
            if self._transport is not None:
                self._transport.close()
            elif ours is not None:
                ours.close()
            self._transport = None

    async def _watch_over(self, process: asyncio.subprocess.Process) -> None:
        """Kill an engine that gives no sign of life for too long. Loading takes what it takes."""
        timeout = self._watchdog_timeout
        while timeout:
            await asyncio.sleep(timeout / WATCHES)
            if self.state != "ready":
                continue
            silent = time.monotonic() - self._heard
            if silent > timeout:
                log.error("the engine has said nothing for %.0f s (server.watchdog_timeout) and is killed", silent)
                process.kill()
                return
            self._send(Inspect())

    async def _cause_of_death(self) -> ForgeError:
        """What a process that closed its channel died of; one that lingers is left to `_reap`."""
        assert self._process is not None
        try:
            status = await asyncio.wait_for(self._process.wait(), LINGER_SECONDS)
        except TimeoutError:
            return EngineUnavailable("it closed its channel")
        return EngineUnavailable(f"killed by signal {-status}" if status < 0 else f"it exited with status {status}")

    async def _reap(self) -> None:
        """Wait for the process to be gone, and see to it that it goes."""
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _receive(self, message: FromEngine) -> None:
        """Take in what the engine says. Errors: why it couldn't load the model, if it says that."""
        self._heard = time.monotonic()
        match message:
            case Deltas(deltas):
                for delta in deltas:
                    answer = self._answers.get(delta.request_id)
                    if answer is None:
                        continue
                    for observer in self.observers:
                        try:
                            observer.gained(answer.request, delta)
                        except Exception:
                            _log_failure(observer, "gained")
                    if answer.deliver(delta):
                        del self._answers[delta.request_id]
                        self._tell("over", answer.request, None)
            case LoadFailed(error):
                raise error.exception()
            case Report():
                self._report = message
                self._reported.set()
            case Accepted(request_id):
                self._settle(request_id, None)
            case Refused(request_id, error):
                self._settle(request_id, error.exception())
            case Ready(info):
                self.info = info
                self._set("ready", "the engine is ready")
                if self._started is not None and not self._started.done():
                    self._started.set_result(info)

    def _settle(self, request_id: str, error: ForgeError | None) -> None:
        accepted = self._accepting.pop(request_id, None)
        if accepted is None or accepted.done():
            return
        if error is None:
            answer = self._answers[request_id]
            answer.accepted = True
            self._tell("accepted", answer.request)
            accepted.set_result(None)
        else:
            self._answers.pop(request_id, None)
            accepted.set_exception(error)

    def _fail_all(self, error: ForgeError) -> None:
        accepting, answers = self._accepting, self._answers
        self._accepting, self._answers = {}, {}
        for future in accepting.values():
            if not future.done():
                future.set_exception(error)
        for answer in answers.values():
            if answer.accepted:
                self._tell("over", answer.request, error)
            answer.fail(error)

    def _set(self, state: State, detail: str) -> None:
        if self.state not in ("failed", "stopped") or state == "stopped":
            self.state, self.detail = state, detail

    def _tell(self, event: str, *arguments: Any) -> None:
        """Tell the observers; one that raises is a fault of its own, and no request's."""
        for observer in self.observers:
            try:
                getattr(observer, event)(*arguments)
            except Exception:
                _log_failure(observer, event)

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))
