"""`LLM`: the engine in this process, without a server. The same components, configuration and fields as over HTTP.

A face of Forge as the server is one, so it shares the server's wire types: a field means the same in both.
"""

from __future__ import annotations

import queue
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeGuard, overload

import attrs
from attrs import define, field, frozen

from forge import assemble, components, models, plugins
from forge.config import Config, Origins, from_keywords, load_config
from forge.engine.channel import LocalChannel
from forge.engine.request import (
    Abort,
    Delta,
    Deltas,
    FinishReason,
    FromEngine,
    ModelInfo,
    Refused,
    Request,
    Stop,
    Submit,
    Usage,
)
from forge.errors import EngineUnavailable, ForgeError, InvalidRequest
from forge.interfaces.sampler import TokenLogprobs
from forge.server.conditions import Conditions, conditions, weights_digest
from forge.server.openai import chat_completion, completion, engine_request, prompt_ids
from forge.server.structured import Lowering, specification
from forge.text.template import build_chat_template
from forge.text.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from forge.engine.engine import Engine

OVER_HTTP = frozenset({"model", "stream", "stream_options", "echo"})
"""Fields that only mean something to a server."""

Message = Mapping[str, Any]
Prompt = str | Sequence[int]


@define
class Choice:
    """One answer. logprobs: one for each of `token_ids`, where asked for; finish_reason: "stop" or "length"."""

    text: str = ""
    token_ids: list[int] = field(factory=list)
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
    usage: Usage | None = None


@frozen
class Output:
    """What one prompt gave: its `n` choices. `text` is the first one's."""

    prompt_token_ids: list[int]
    choices: list[Choice]

    @property
    def text(self) -> str:
        return self.choices[0].text


class LLM:
    """A loaded model. Use it from any threads, and as a context manager, or `close` it.

    model: an alias, a path or a reference, as for ``forge run``. config: a forge.toml. Other arguments are the flags of
    ``forge run`` with underscores (``backend="torch"``, ``max_model_len=2048``). Errors: any `ForgeError` of loading.
    """

    def __init__(self, model: str | Path | None = None, *, config: str | Path | None = None, **flags: Any) -> None:
        if model is not None:
            flags["model_path"] = str(model)
        self._load(*load_config(None if config is None else Path(config), from_keywords(flags)))

    @classmethod
    def configured(cls, config: Config, origins: Origins) -> LLM:
        """With a configuration that has been read already."""
        llm = cls.__new__(cls)
        llm._load(config, origins)
        return llm

    def _load(self, config: Config, origins: Origins) -> None:
        # A list of prompts waits for itself: only a server has others to protect.
        self.config = attrs.evolve(config, scheduler=attrs.evolve(config.scheduler, queue_timeout=0.0))
        self._registry = plugins.load(allow=self.config.plugins.allow, deny=self.config.plugins.deny)
        components.component_options(self.config, origins, self._registry)
        self._path = models.resolve(self.config.model.path, self._registry)
        checkpoint = components.open_checkpoint(self._registry, self._path)
        self.tokenizer = build_tokenizer(checkpoint.tokenizer)
        self.template = build_chat_template(checkpoint.tokenizer, self.tokenizer)
        self._defaults = checkpoint.generation
        self._lowering = Lowering(components.optional_component(self.config, self._registry, "constraint"))
        self._lock = threading.Lock()
        self._inboxes: dict[str, queue.SimpleQueue[Delta | ForgeError]] = {}
        self._channel = LocalChannel(self._deliver)
        self._failure: ForgeError | None = None
        loaded: Future[Engine] = Future()
        # Built in its own thread: torch's thread count belongs to the thread that sets it.
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="forge-engine", daemon=True)
        self._thread.start()
        # A thread inside the kernels when the interpreter goes down would abort the process.
        weakref.finalize(self, _stop, self._channel, self._thread)
        self.engine = loaded.result()

    @property
    def info(self) -> ModelInfo:
        """What has been loaded."""
        return self.engine.parts.info

    def conditions(self) -> Conditions:
        """What its answers depend on besides the requests; reads samples of the model's files."""
        return conditions(self.config, self._registry, self.info, weights_digest(self._path))

    @overload
    def chat(self, messages: Sequence[Message], **fields: Any) -> Output: ...
    @overload
    def chat(self, messages: Sequence[Sequence[Message]], **fields: Any) -> list[Output]: ...

    def chat(self, messages: Sequence[Message] | Sequence[Sequence[Message]], **fields: Any) -> Output | list[Output]:
        """Answer one chat, or several at once. Fields are those of ``/v1/chat/completions``; errors: `ForgeError`."""
        several = _is_list(messages) and bool(messages) and all(_is_list(chat) for chat in messages)
        outputs = self._collect([self._chat_request(chat, fields) for chat in (messages if several else [messages])])
        return outputs if several else outputs[0]

    @overload
    def generate(self, prompts: str, *, max_tokens: int = 256, **fields: Any) -> Output: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int = 256, **fields: Any) -> list[Output]: ...

    def generate(
        self, prompts: str | Sequence[Prompt], *, max_tokens: int = 256, **fields: Any
    ) -> Output | list[Output]:
        """Go on from a text, or from several texts or lists of token ids at once. Fields as in ``/v1/completions``."""
        fields["max_tokens"] = max_tokens
        if isinstance(prompts, str):
            return self._collect([self._text_request(prompts, fields)])[0]
        if not _is_list(prompts):
            raise InvalidRequest(
                "prompts: expected a text, or a list of texts or of lists of token ids", param="prompts"
            )
        return self._collect([self._text_request(prompt, fields) for prompt in prompts])

    def stream(self, prompt: Prompt | Sequence[Message], **fields: Any) -> Iterator[Delta]:
        """The deltas of one chat (messages) or continuation (a text, token ids) as they come.

        Leaving the loop aborts the answer.
        """
        if isinstance(prompt, str) or (_is_list(prompt) and prompt and isinstance(prompt[0], int)):
            return self._stream(self._text_request(prompt, fields))
        return self._stream(self._chat_request(prompt, fields))

    def run(self, requests: Sequence[Request]) -> list[Output]:
        """Answer requests in the engine's own terms, as a request log holds them."""
        return self._collect(requests)

    def close(self) -> None:
        """Stop the engine. The model's memory goes with this object."""
        _stop(self._channel, self._thread)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- requests

    def _chat_request(self, messages: Any, fields: Mapping[str, Any]) -> Request:
        if not (_is_list(messages) and all(isinstance(message, Mapping) for message in messages)):
            raise InvalidRequest(
                "messages: expected a list of messages, each with a role and content", param="messages"
            )
        wire, ignored = chat_completion({"messages": [dict(message) for message in messages], **fields})
        _check_fields(fields, ignored)
        text = self.template.render([message.for_template() for message in wire.messages])
        ids = self.tokenizer.encode(text, add_special=False, parse_special=True)
        constraint = self._lowering.lower_now(specification(wire))
        return engine_request(wire, uuid.uuid4().hex, ids, self._defaults, self.info.vocab_size, constraint=constraint)

    def _text_request(self, prompt: Any, fields: Mapping[str, Any]) -> Request:
        if not (isinstance(prompt, str) or (_is_list(prompt) and all(isinstance(token, int) for token in prompt))):
            raise InvalidRequest("prompt: expected a text or a list of token ids", param="prompt")
        given = prompt if isinstance(prompt, str) else list(prompt)
        wire, ignored = completion({"prompt": given if isinstance(given, str) else [given], **fields})
        _check_fields(fields, ignored)
        ids = prompt_ids(self.tokenizer, given)
        constraint = self._lowering.lower_now(specification(wire))
        return engine_request(wire, uuid.uuid4().hex, ids, self._defaults, self.info.vocab_size, constraint=constraint)

    def _stream(self, request: Request) -> Iterator[Delta]:
        self._submit([request])
        try:
            yield from self._deltas(request)
        finally:
            self._drop(request)

    def _collect(self, requests: Sequence[Request]) -> list[Output]:
        """Answers in the order of the requests, of which no more are submitted at a time than may wait."""
        at_once = max(1, self.config.scheduler.max_queue // max((request.n for request in requests), default=1))
        outputs: list[Output] = []
        try:
            self._submit(requests[:at_once])
            for i, request in enumerate(requests):
                outputs.append(self._gather(request))
                self._submit(requests[i + at_once : i + at_once + 1])
            return outputs
        finally:  # should one be refused, the others aren't wanted any more
            for request in requests:
                self._drop(request)

    def _gather(self, request: Request) -> Output:
        choices = [Choice() for _ in range(request.n)]
        for delta in self._deltas(request):
            choice = choices[delta.choice]
            choice.text += delta.text
            choice.token_ids += delta.token_ids
            if delta.logprobs is not None:
                choice.logprobs = (choice.logprobs or []) + delta.logprobs
            choice.finish_reason, choice.usage = delta.finish_reason, delta.usage
        return Output(request.prompt, choices)

    def _submit(self, requests: Sequence[Request]) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            for request in requests:
                self._inboxes[request.id] = queue.SimpleQueue()
        for request in requests:
            self._channel.put(Submit(request))

    def _deltas(self, request: Request) -> Iterator[Delta]:
        inbox, unfinished = self._inboxes[request.id], request.n
        while unfinished:
            item = inbox.get()
            if isinstance(item, ForgeError):
                raise item
            if item.error is not None:
                raise item.error.exception()
            unfinished -= item.finish_reason is not None
            yield item

    def _drop(self, request: Request) -> None:
        with self._lock:
            known = self._inboxes.pop(request.id, None)
        if known is not None:
            self._channel.put(Abort(request.id))  # fine after the end too

    # -- the engine's thread

    def _run(self, loaded: Future[Engine]) -> None:
        try:
            engine = assemble.build(self.config, self._registry, self._path)
            self._registry.notify("forge_engine_started", engine=engine)
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(engine)
        failure = EngineUnavailable("the engine has been closed")
        try:
            engine.run(self._channel)
        except BaseException as error:
            failure = EngineUnavailable(f"the engine failed: {type(error).__name__}: {error}")
            raise
        finally:
            with self._lock:
                self._failure = failure
                for inbox in self._inboxes.values():
                    inbox.put(failure)
            self._registry.notify("forge_engine_stopped", engine=engine)
            engine.close()

    def _deliver(self, message: FromEngine) -> None:
        match message:
            case Deltas(deltas):
                for delta in deltas:
                    self._put(delta.request_id, delta)
            case Refused(request_id, error):
                self._put(request_id, error.exception())

    def _put(self, request_id: str, item: Delta | ForgeError) -> None:
        with self._lock:
            inbox = self._inboxes.get(request_id)
        if inbox is not None:
            inbox.put(item)


def _stop(channel: LocalChannel, thread: threading.Thread) -> None:
    channel.put(Stop())
    thread.join()


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _check_fields(fields: Mapping[str, Any], ignored: Sequence[str]) -> None:
    """Refuse what over HTTP is reported in a header, or what a call has no use for: in Python it's a mistake."""
    for name in [*ignored, *(OVER_HTTP & fields.keys())]:
        raise InvalidRequest(f"{name}: there is no such field", param=name)
