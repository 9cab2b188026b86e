"""One streamed answer: from bytes and the times at which they came to its figures, or to the reason why it failed.

Knows neither sockets nor clocks: the caller says what came, and when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import msgspec
from attrs import frozen

FailureKind = Literal["status", "timeout", "connection", "broken stream", "server error", "token count"]


@frozen
class Failure:
    """Why a request doesn't count."""

    kind: FailureKind
    message: str


@frozen(kw_only=True)
class Outcome:
    """One request's figures, in seconds.

    start: since the stage began. ttft: time to first token. e2e: to the last. gaps: between tokens, one for each that
    came after the first chunk: a chunk of k tokens after a pause of g is k gaps of g / k, so that they add up to the
    time between first and last token. Without a failure everything but `failure` is there.
    """

    index: int
    start: float
    end: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    chunks: int = 0
    ttft: float | None = None
    e2e: float | None = None
    gaps: tuple[float, ...] = ()
    failure: Failure | None = None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None if there are fewer than two."""
        if self.ttft is None or self.e2e is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)


# -------------------------------------------------------------------------------------------------- the stream's bytes


class Events:
    """Server-sent events' data (https://html.spec.whatwg.org/multipage/server-sent-events.html), from any pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the events that this piece completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def _text(choice: _Choice) -> str:
    if choice.delta is None:
        return choice.text or ""
    return choice.delta.content or choice.delta.reasoning_content or choice.delta.reasoning or ""


# ------------------------------------------------------------------------------------------------------------- figures


@frozen
class _Piece:
    """A chunk with text. so_far: tokens of the answer up to it, if the server says that with every chunk."""

    time: float
    length: int
    so_far: int | None


class Recorder:
    """What one stream has said so far. Times are on any clock, and the same for all calls."""

    def __init__(self) -> None:
        self.finished = False
        """True after ``[DONE]``, or an error in the stream: nothing that counts can follow."""
        self._unread: list[tuple[bytes, float]] = []
        """What has come and not been looked at: reading JSON can wait until there are no tokens to be waited for."""
        self._events = Events()
        self._pieces: list[_Piece] = []
        self._usage: _Usage | None = None
        self._last: float | None = None
        self._ended = False
        self._failure: Failure | None = None

    def feed(self, piece: bytes, now: float) -> None:
        """These bytes arrived at `now`."""
        self._unread.append((piece, now))
        if b"[DONE]" in piece or b'"error"' in piece:  # it may be over
            self._read()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for piece, now in unread:
            self._read_piece(piece, now)

    def _read_piece(self, piece: bytes, now: float) -> None:
        for data in self._events.feed(piece):
            if self.finished:
                return
            if data == b"[DONE]":
                self.finished = True
                return
            try:
                self._chunk(_decode(data), now)
            except msgspec.DecodeError as error:
                self.fail("broken stream", f"{data[:80]!r} is no chunk of an answer: {error}")

    def fail(self, kind: FailureKind, message: str) -> None:
        """Nothing that comes later mends this; the first failure counts."""
        self._read()
        self._failure = self._failure or Failure(kind, message)
        self.finished = True

    def outcome(self, index: int, start: float, end: float, wanted: int, *, exactly: bool) -> Outcome:
        """The figures of the request sent at `start`, whose last byte came at `end`.

        wanted: as many tokens were asked for, and must have come if `exactly`.
        """
        self._read()
        failure = self._failure or self._incomplete(wanted, exactly)
        if failure is not None or self._usage is None or self._last is None:
            return Outcome(index=index, start=start, end=end, chunks=len(self._pieces), failure=failure)
        times = [piece.time for piece in self._pieces]
        return Outcome(
            index=index,
            start=start,
            end=end,
            prompt_tokens=self._usage.prompt_tokens,
            output_tokens=self._usage.completion_tokens,
            chunks=len(times),
            ttft=times[0] - start,
            e2e=self._last - start,
            gaps=tuple(token_gaps(times, self._counts(self._usage.completion_tokens))),
        )

    def _chunk(self, chunk: _Chunk, now: float) -> None:
        if chunk.error is not None:
            said = chunk.error.get("message") if isinstance(chunk.error, dict) else chunk.error
            self.fail("server error", str(said))
            return
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            length = len(_text(choice))
            if length:
                self._pieces.append(_Piece(now, length, chunk.usage.completion_tokens if chunk.usage else None))
            if length or choice.finish_reason is not None:
                self._last = now  # the last tokens may have no text of their own
            self._ended |= choice.finish_reason is not None

    def _incomplete(self, wanted: int, exactly: bool) -> Failure | None:
        if not self._ended:
            return Failure("broken stream", "the stream ended without a finish_reason")
        if self._usage is None:
            return Failure("token count", "the stream has no usage, so nobody knows how many tokens it had")
        got = self._usage.completion_tokens
        if got > wanted or got < 1 or (exactly and got != wanted):
            return Failure("token count", f"{got} tokens instead of {wanted}")
        if not self._pieces:
            return Failure("token count", f"{got} tokens without any text")
        return None

    def _counts(self, tokens: int) -> list[int]:
        known = [piece.so_far for piece in self._pieces if piece.so_far is not None]
        if len(known) == len(self._pieces) and known == sorted(known) and known[-1] <= tokens:
            return [after - before for before, after in zip([0, *known], known)]
        return apportion(tokens, [piece.length for piece in self._pieces])


def apportion(tokens: int, lengths: Sequence[int]) -> list[int]:
    """How many tokens chunks of text have, if only their sum is known.

    One each as far as they reach, evenly; what is left goes to the longest texts, in proportion to their lengths
    (largest remainders, then longest texts). Adds up to `tokens`.
    """
    chunks = len(lengths)
    if tokens <= chunks:
        marks = [-(-tokens * number // chunks) for number in range(chunks + 1)]
        return [after - before for before, after in pairwise(marks)]
    more, total = tokens - chunks, sum(lengths)
    counts = [1 + more * length // total for length in lengths]
    remainders = sorted(range(chunks), key=lambda chunk: (-(more * lengths[chunk] % total), -lengths[chunk]))
    for chunk in remainders[: tokens - sum(counts)]:
        counts[chunk] += 1
    return counts


def token_gaps(times: Sequence[float], counts: Sequence[int]) -> Iterator[float]:
    """Gaps of the tokens after the first chunk; a chunk without a token of its own belongs to the next that has one."""
    before = times[0]
    for now, count in zip(times[1:], counts[1:]):
        if count:
            for _ in range(count):
                yield (now - before) / count
            before = now
