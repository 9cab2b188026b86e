"""The request log: a JSON line for each request, with what `forge replay` needs to check that its tokens come again.

Off unless `server.request_log` names a file. The file is made for its owner's eyes only.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

import msgspec
from attrs import evolve, field, frozen

from forge.engine.request import Delta, Request
from forge.errors import ConfigError, ForgeError
from forge.server.conditions import Conditions

Redaction = Literal["nothing", "answers", "prompts"]

VERSION = 2


@frozen
class LoggedAnswer:
    """One choice. digest: of `token_ids`, which are None where answers are redacted. tokens: how many they are."""

    tokens: int
    digest: str
    finish_reason: str | None
    token_ids: list[int] | None = None


@frozen
class LoggedRequest:
    """One line of the log.

    time: seconds since 1970. model: what the server called it. conditions: what its tokens depend on. request: as the
    engine got it; without prompt, stop strings and biases where prompts are redacted. complete: no answer was cut
    short, by the client or an error.
    """

    version: int
    time: float
    model: str
    conditions: Conditions
    prompt_tokens: int
    request: Request
    answers: list[LoggedAnswer]
    complete: bool
    redacted: Redaction = "nothing"
    error: str | None = None


@frozen
class _Versioned:
    """What lines of all versions have."""

    version: int


def digest(token_ids: list[int]) -> str:
    """SHA-256 of the ids as decimal numbers with commas between."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()


@frozen
class _Open:
    begun: float
    tokens: dict[int, list[int]] = field(factory=dict)
    ends: dict[int, str] = field(factory=dict)


class RequestLog:
    """An observer (`forge.engine.supervisor.Observer`) that writes.

    describe: called once, when the first request was taken. Errors: `ConfigError` if the file can't be written.
    """

    def __init__(self, path: Path, redact: Redaction, model: str, describe: Callable[[], Conditions]) -> None:
        self._redact: Redaction = redact
        self._model, self._describe = model, describe
        self._conditions: Conditions | None = None
        self._open: dict[str, _Open] = {}
        self._encode = msgspec.json.Encoder().encode
        try:
            self._file: IO[bytes] = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        except OSError as error:
            raise ConfigError(f"server.request_log: {path} can't be written: {error.strerror or error}") from error

    def accepted(self, request: Request) -> None:
        """The engine has taken a request."""
        self._open[request.id] = _Open(time.time())
        if self._conditions is None:
            self._conditions = self._describe()

    def refused(self, request: Request, error: ForgeError) -> None:
        """A refused request has no tokens to check."""

    def gained(self, request: Request, delta: Delta) -> None:
        """Collect an answer's tokens."""
        entry = self._open.get(request.id)
        if entry is not None:
            entry.tokens.setdefault(delta.choice, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                entry.ends[delta.choice] = delta.finish_reason

    def over(self, request: Request, error: ForgeError | None) -> None:
        """Write the request's line."""
        entry = self._open.pop(request.id, None)
        if entry is None or self._conditions is None:
            return
        answers = [
            LoggedAnswer(len(ids), digest(ids), entry.ends.get(choice), ids if self._redact == "nothing" else None)
            for choice in range(request.n)
            for ids in [entry.tokens.get(choice, [])]
        ]
        kept = request
        if self._redact == "prompts":
            kept = evolve(request, prompt=[], stop=[], sampling=evolve(request.sampling, logit_bias={}))
        line = LoggedRequest(
            version=VERSION,
            time=entry.begun,
            model=self._model,
            conditions=self._conditions,
            prompt_tokens=len(request.prompt),
            request=kept,
            answers=answers,
            complete=error is None and all(answer.finish_reason in ("stop", "length") for answer in answers),
            redacted=self._redact,
            error=None if error is None else error.message,
        )
        self._file.write(self._encode(line) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def read_log(path: Path) -> Iterator[LoggedRequest]:
    """The lines of a log. Errors: `ConfigError` that names the line which isn't one."""
    decode = msgspec.json.Decoder(LoggedRequest).decode
    version_of = msgspec.json.Decoder(_Versioned).decode
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    version = version_of(line).version
                    if version != VERSION:
                        raise ConfigError(f"{path}, line {number}: is of version {version}, not {VERSION}")
                    yield decode(line)
                except msgspec.DecodeError as error:
                    raise ConfigError(f"{path}, line {number}: is not a logged request: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
