"""What crosses the border between the server and the engine: requests one way, deltas the other.

All are classes of plain values, so that a codec can carry them to another process: attrs classes, but for the deltas,
of which there's one for every token, and which the codec makes, writes and reads itself.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from attrs import field, frozen

from forge.errors import BY_CODE, ForgeError
from forge.interfaces.kv_cache import CacheMiss
from forge.interfaces.sampler import SamplingParams, TokenLogprobs

FinishReason = Literal["stop", "length", "error"]


@frozen
class Request:
    """A prompt and how to go on from it.

    prompt: token ids. n: how many answers. max_tokens: None for as many as fit; 0 only scores the prompt. stop:
    strings that end an answer and aren't part of it. stop_token_ids: ids that do so besides the model's own.
    prompt_logprobs: report those of the prompt's tokens too. priority: lower is served first. constraint: what the
    answer must follow, as `forge.interfaces.constraint.Constraint.lower` made it.
    """

    id: str
    prompt: list[int]
    sampling: SamplingParams = field(factory=SamplingParams)
    n: int = 1
    max_tokens: int | None = None
    stop: list[str] = field(factory=list)
    stop_token_ids: list[int] = field(factory=list)
    ignore_eos: bool = False
    prompt_logprobs: bool = False
    priority: int = 0
    constraint: bytes | None = None


@frozen
class Usage:
    """Token counts of one answer.

    cached_tokens: of the prompt, found in the KV cache. drafted_tokens: guessed by a drafter and checked by the model;
    accepted_tokens: of those, the ones that became part of the answer. queue_seconds: from its arrival to its first
    step. cache_miss: why no more of the prompt was found; None if all was that could be.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    queue_seconds: float = 0.0
    cache_miss: CacheMiss | None = None


@frozen
class ErrorInfo:
    """A `ForgeError` in transit."""

    message: str
    code: str
    param: str | None = None
    retry_after: int | None = None

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Describe any exception; one that isn't ours becomes an internal error with its type's name."""
        if isinstance(error, ForgeError):
            return cls(error.message, error.code, error.param, error.retry_after)
        return cls(f"{type(error).__name__}: {error}", ForgeError.code)

    def exception(self) -> ForgeError:
        """The error again, of the class that its code names."""
        cls = BY_CODE.get(self.code, ForgeError)
        return cls(self.message, param=self.param, retry_after=self.retry_after)


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one answer gained in one step, or in a few when there was nothing to show.

    text: whole characters only, never part of a stop string. token_ids: tokens that were accepted. logprobs: one for
    each of `token_ids`, where asked for. prompt_logprobs: one for each prompt token but the first, once, in the first
    delta. finish_reason: set in an answer's last delta, together with usage (and `error` for ``"error"``).
    """

    request_id: str
    choice: int
    text: str = ""
    token_ids: list[int] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: ErrorInfo | None = None


# ------------------------------------------------------------------------------------------------- server to engine


@frozen
class Start:
    """The first message: the effective configuration, unstructured, and the model's resolved path."""

    config: dict[str, Any]
    model_path: str


@frozen
class Submit:
    """A new request. Answered with `Accepted` or `Refused` before anything else is said of it."""

    request: Request


@frozen
class Abort:
    """Nobody wants this request's answers any more. Not answered; deltas already under way may still come."""

    request_id: str


@frozen
class Stop:
    """Finish: drop what is running and leave. The server waits for its streams before it says so."""


@frozen
class Inspect:
    """Say how you are. Answered with a `Report` between two steps."""


# ------------------------------------------------------------------------------------------------- engine to server


@frozen
class ModelInfo:
    """What the engine has loaded. max_model_len: the longest sequence it takes, prompt and answer, in tokens."""

    architecture: str
    backend: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    load_seconds: float


@frozen
class Ready:
    """The model is loaded; requests are taken from now on."""

    info: ModelInfo


@frozen
class LoadFailed:
    """The engine can't start with this configuration; it leaves after saying so."""

    error: ErrorInfo


@frozen
class Accepted:
    """The request is queued."""

    request_id: str


@frozen
class Refused:
    """The request won't be served."""

    request_id: str
    error: ErrorInfo


class Deltas(msgspec.Struct, frozen=True, array_like=True):
    """What a step brought, for all requests."""

    deltas: list[Delta]


@frozen
class Report:
    """How the engine is: what it holds now, and counts since its start.

    running, waiting: sequences. blocks: of the KV cache, by state. hits and queries: prompt tokens found in it, and
    looked up. drafted and accepted: draft tokens checked, and right.
    """

    running: int
    waiting: int
    used_blocks: int
    cached_blocks: int
    free_blocks: int
    hits: int
    queries: int
    preemptions: int
    steps: int
    drafted: int
    accepted: int


ToEngine = Start | Submit | Abort | Stop | Inspect
FromEngine = Ready | LoadFailed | Accepted | Refused | Deltas | Report
