"""What the routes need: the engine's client, the tokenizer and chat template, the model's names. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from attrs import define, field, frozen

from forge.errors import ContextLengthExceeded, EngineUnavailable, ModelNotFound
from forge.interfaces.loader import GenerationDefaults
from forge.server.connection import InFlight
from forge.server.metrics import Metrics
from forge.server.structured import Lowering

if TYPE_CHECKING:
    from forge.engine.supervisor import EngineClient
    from forge.text.template import ChatTemplate
    from forge.text.tokenizer import Tokenizer

T = TypeVar("T")

RETRY_SECONDS = 5
"""When a client should come again while the engine loads or restarts."""

SHORT_TEXT = 4096
"""Characters that are tokenised in passing; longer texts go to a worker thread, so that other streams go on."""


@frozen
class TextParts:
    """What turns messages and texts into token ids and back. longest_token: bytes of the longest vocabulary entry."""

    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: GenerationDefaults
    longest_token: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: ChatTemplate, defaults: GenerationDefaults) -> TextParts:
        """Put them together; looks once at the whole vocabulary."""
        longest = max((len(tokenizer.token_raw(token)) for token in range(tokenizer.vocab_size)), default=1)
        return cls(tokenizer, template, defaults, max(1, longest))


@define(eq=False)
class Service:
    """One model being served.

    model_id: what it is called in responses. names: what a request may call it, `model_id` included. text: None until
    the tokenizer has been read. lowering: what makes constraints of requests. created: when this server began,
    in seconds since 1970. logged_fields: ignored request fields that the log has already.
    """

    client: EngineClient
    model_id: str
    names: frozenset[str]
    text: TextParts | None = None
    lowering: Lowering = field(factory=lambda: Lowering(None))
    in_flight: InFlight = field(factory=InFlight)
    logged_fields: set[str] = field(factory=set)
    metrics: Metrics = field(init=False)
    created: int = field(factory=lambda: int(time.time()))

    def __attrs_post_init__(self) -> None:
        self.metrics = Metrics(self.client)
        self.client.observers.append(self.metrics)

    def health(self) -> tuple[str, str]:
        """(state, why): ``"ok"``, ``"stopping"``, or the engine's state while it can't take requests."""
        if self.in_flight.stopping:
            return "stopping", "the server is shutting down"
        if self.client.state != "ready":
            return self.client.state, self.client.detail
        if self.text is None:
            return "loading", "the tokenizer is being read"
        return "ok", ""

    def ready(self) -> TextParts:
        """The text parts, once requests can be served; `EngineUnavailable` before."""
        state, why = self.health()
        if state != "ok" or self.text is None:
            retry = None if state in ("failed", "stopped") else RETRY_SECONDS
            raise EngineUnavailable(f"the model can't be used now ({state}): {why}", retry_after=retry)
        return self.text

    def loaded(self) -> TextParts:
        """The text parts, for what needs no engine; `EngineUnavailable` until they have been read."""
        if self.text is None:
            raise EngineUnavailable("the tokenizer is being read", retry_after=RETRY_SECONDS)
        return self.text

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model. None: whatever is served."""
        if name is not None and name not in self.names:
            raise ModelNotFound(
                f"the model {name[:200]!r} is not served here; there is {self.model_id!r}", param="model"
            )

    def vocabulary(self, text: TextParts) -> int:
        """How many token ids a request may name: those that both the tokenizer and the model know."""
        info = self.client.info
        return text.tokenizer.vocab_size if info is None else min(text.tokenizer.vocab_size, info.vocab_size)

    def check_length(self, text: TextParts, prompt: str) -> None:
        """Refuse a prompt that can't fit, however it is tokenised, before any work is spent on it."""
        info = self.client.info
        if info is None or len(prompt) <= info.max_model_len:
            return
        least = -(-len(prompt.encode()) // text.longest_token)
        if least > info.max_model_len:
            raise ContextLengthExceeded(
                f"the prompt has at least {least} tokens; this model takes {info.max_model_len}, answer included"
            )


async def in_worker(size: int, work: Callable[[], T]) -> T:
    """Do it here if the text has few characters, else in a thread."""
    return work() if size <= SHORT_TEXT else await asyncio.to_thread(work)
