"""What a response looks like, for chat and for completions, whole and in chunks: from the engine's deltas to JSON.

A chunk with nothing but text, the usual case, is the text's own JSON between bytes made before the stream began.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from attrs import field, frozen

from forge.engine.request import Delta, Usage
from forge.server.logprobs import LegacyLogprobs, chat_logprobs, joined

if TYPE_CHECKING:
    from forge.text.tokenizer import Tokenizer

encode = msgspec.json.Encoder().encode


@frozen
class Identity:
    """What all chunks of a response have in common. created: in seconds since 1970."""

    id: str
    model: str
    fingerprint: str
    created: int = field(factory=lambda: int(time.time()))

    def fields(self, kind: str) -> dict[str, Any]:
        """As the first fields of a response of this kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class Shape(ABC):
    """One response's form. Choices are numbered over all prompts: ``prompt * n + choice``."""

    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    @abstractmethod
    def opening(self, index: int) -> bytes | None:
        """What a choice's first chunk has to say before the engine has said anything, as JSON."""

    @abstractmethod
    def pieces(self, index: int, delta: Delta) -> Iterator[bytes]:
        """The choice as it stands in the chunks that a delta becomes, as JSON; none if there is nothing to show."""

    @abstractmethod
    def whole(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The finished choice, of all its deltas."""


class ChatShape(Shape):
    """Chat completions. alternatives: how many to report for each token; None: no log-probabilities."""

    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, alternatives: int | None) -> None:
        self._tokenizer = tokenizer
        self._alternatives = alternatives

    def opening(self, index: int) -> bytes:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def pieces(self, index: int, delta: Delta) -> Iterator[bytes]:
        if self._alternatives is not None and delta.logprobs:
            yield self._chunk(index, {"content": delta.text}, logprobs=self._logprobs([delta]))
        elif delta.text:
            yield b'{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}' % (
                index, encode(delta.text),
            )  # fmt: skip
        if delta.finish_reason is not None:
            yield self._chunk(index, {}, finish_reason=delta.finish_reason)

    def whole(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(delta.text for delta in deltas), "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(deltas),
            "finish_reason": deltas[-1].finish_reason,
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
    ) -> bytes:
        return encode({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})

    def _logprobs(self, deltas: Sequence[Delta]) -> dict[str, Any] | None:
        if self._alternatives is None:
            return None
        ids = [token for delta in deltas for token in delta.token_ids]
        logprobs = [found for delta in deltas for found in delta.logprobs or ()]
        return chat_logprobs(self._tokenizer, ids, logprobs, self._alternatives)


@frozen
class EchoedPrompt:
    """A prompt as an answer repeats it."""

    ids: Sequence[int]
    text: str


class CompletionShape(Shape):
    """Completions. echo: the prompts, to be put before their answers, or none. alternatives: as for chat."""

    whole_kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(
        self, tokenizer: Tokenizer, alternatives: int | None, n: int = 1, echo: Sequence[EchoedPrompt] = ()
    ) -> None:
        self._alternatives = alternatives
        self._n = n
        self._echo = echo
        self._legacy = cache(lambda index: LegacyLogprobs(tokenizer, alternatives or 0))
        self._echoed: set[int] = set()

    def opening(self, index: int) -> bytes | None:
        if not self._echo or self._alternatives is not None:  # the prompt's log-probabilities come with a delta
            return None
        self._echoed.add(index)
        return self._choice(index, self._echo[index // self._n].text)

    def pieces(self, index: int, delta: Delta) -> Iterator[bytes]:
        if self._alternatives is None:
            if delta.text:
                yield self._choice(index, delta.text)
        elif text_and_logprobs := self._scored(index, delta):
            yield self._choice(index, *text_and_logprobs)
        if delta.finish_reason is not None:
            yield self._choice(index, "", finish_reason=delta.finish_reason)

    def whole(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        text, logprobs = "".join(delta.text for delta in deltas), None
        if self._alternatives is not None:
            scored = [found for delta in deltas if (found := self._scored(index, delta))]
            text, logprobs = "".join(piece for piece, _ in scored), joined([found for _, found in scored])
        elif self._echo:
            text = self._echo[index // self._n].text + text
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": deltas[-1].finish_reason}

    def _choice(self, index: int, text: str, logprobs: Any = None, finish_reason: str | None = None) -> bytes:
        return encode({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason})

    def _scored(self, index: int, delta: Delta) -> tuple[str, dict[str, Any]] | None:
        """A delta's text and log-probabilities, after the prompt's if they are still to come; None: nothing new."""
        legacy: LegacyLogprobs = self._legacy(index)
        text, pieces = "", []
        if self._echo and index not in self._echoed:
            self._echoed.add(index)
            prompt = self._echo[index // self._n]
            text = prompt.text
            pieces.append(legacy.prompt(prompt.ids, delta.prompt_logprobs or (), prompt.text))
        if delta.logprobs:
            pieces.append(legacy.answer(delta.token_ids, delta.logprobs))
        if not pieces and not delta.text:
            return None
        return text + delta.text, joined(pieces)


class Counts:
    """Token counts of a whole response: each prompt once, all answers."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, Usage]] = {}
        self._completion = self._drafted = self._accepted = 0

    def add(self, prompt: int, delta: Delta) -> None:
        """Take in a choice's last delta; others have no usage.

        Of a prompt's choices the first speaks for it: the others find in the cache what that one computed.
        """
        if delta.usage is None:
            return
        self._completion += delta.usage.completion_tokens
        self._drafted += delta.usage.drafted_tokens
        self._accepted += delta.usage.accepted_tokens
        known = self._prompts.get(prompt)
        if known is None or delta.choice < known[0]:
            self._prompts[prompt] = (delta.choice, delta.usage)

    def usage(self) -> dict[str, Any]:
        """As OpenAI's ``usage``; drafts count as its predictions. Of several prompts, the first one's miss is told."""
        usages = [usage for _, (_, usage) in sorted(self._prompts.items())]
        prompt = sum(usage.prompt_tokens for usage in usages)
        details: dict[str, Any] = {"cached_tokens": sum(usage.cached_tokens for usage in usages)}
        if usages and (miss := usages[0].cache_miss) is not None:
            details["cache_miss"] = {"reason": miss.reason, "position": miss.position}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
            "prompt_tokens_details": details,
            "completion_tokens_details": {
                "accepted_prediction_tokens": self._accepted,
                "rejected_prediction_tokens": self._drafted - self._accepted,
            },
        }
