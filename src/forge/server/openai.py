"""Wire types of the OpenAI-compatible endpoints, and from them to the engine's `Request`. Validation ends here.

A field is honoured, or refused with its name; only what can't change an answer (or what nobody knows) is ignored, and
then reported. Where a request says nothing, the model's own generation defaults hold.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
from attrs import field, frozen
from attrs.validators import and_, gt, le, min_len, optional

from forge.engine.request import Request
from forge.errors import InvalidRequest
from forge.interfaces.loader import GenerationDefaults
from forge.interfaces.sampler import MAX_TOP_LOGPROBS, SamplingParams
from forge.server.body import parse_object
from forge.server.structured import ResponseFormat, StructuredOutputs
from forge.strict import between, place, structure, unknown_keys

if TYPE_CHECKING:
    from forge.text.tokenizer import Tokenizer

W = TypeVar("W", bound=attrs.AttrsInstance)

MAX_CHOICES = 128
MAX_PROMPTS = 256
MAX_STOPS = 16
LEGACY_MAX_TOKENS = 16
"""How many tokens `/v1/completions` generates where a request doesn't say, as in OpenAI's API."""

INT32 = 2**31 - 1
SEEDS = (-(2**63), 2**64 - 1)
"""Signed or unsigned 64 bits; a negative seed stands for the unsigned number of the same bits."""


# ---------------------------------------------------------------------------------------------------------- wire types


@frozen
class TextPart:
    """A part of a message's content; only text is served."""

    type: Literal["text"]
    text: str


def _is_json_object(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    try:
        parse_object(value.encode())
    except InvalidRequest as error:
        raise ValueError(f"'{attribute.name}' must be a JSON object in a text") from error


@frozen
class FunctionCall:
    """A function that the model called earlier; `arguments` is a JSON object in a text."""

    name: str
    arguments: str = field(default="{}", validator=_is_json_object)


@frozen
class ToolCall:
    """A tool call in the history of a chat."""

    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: the arguments are an object, which most of them write with ``tojson``."""
        call = {"name": self.function.name, "arguments": parse_object(self.function.arguments.encode())}
        return {"id": self.id, "type": self.type, "function": call}


def _has_content(message: Message, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None and message.role != "assistant":
        raise ValueError(f"'{attribute.name}' must be a text or a list of parts of type text, got null")


@frozen(kw_only=True)
class Message:
    """One message of a chat. Only an assistant's content may be absent."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = field(default=None, validator=_has_content)
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: content is one text, and a developer is what used to be called the system."""
        content = self.content
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content or ())
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


@frozen
class StreamOptions:
    """include_usage: end the stream with a chunk that has the token counts."""

    include_usage: bool | None = None


def _no_empty_text(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if "" in ([value] if isinstance(value, str) else value or []):
        raise ValueError(f"'{attribute.name}' must not hold an empty text")


def _few_stops(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, list) and len(value) > MAX_STOPS:
        raise ValueError(f"'{attribute.name}' must have at most {MAX_STOPS} entries, got {len(value)}")


@frozen(kw_only=True)
class GenerationFields:
    """The fields that both endpoints share; None where the request doesn't say."""

    model: str | None = None
    temperature: float | None = field(default=None, validator=optional(between(0, 2)))
    top_p: float | None = field(default=None, validator=optional(and_(gt(0), le(1))))
    top_k: int | None = field(default=None, validator=optional(between(-1, INT32)))
    min_p: float | None = field(default=None, validator=optional(between(0, 1)))
    repetition_penalty: float | None = field(default=None, validator=optional(and_(gt(0), between(1e-6, 1e6))))
    presence_penalty: float | None = field(default=None, validator=optional(between(-2, 2)))
    frequency_penalty: float | None = field(default=None, validator=optional(between(-2, 2)))
    logit_bias: dict[str, float] | None = None
    seed: int | None = field(default=None, validator=optional(between(*SEEDS)))
    n: int | None = field(default=None, validator=optional(between(1, MAX_CHOICES)))
    stop: str | list[str] | None = field(default=None, validator=[_no_empty_text, _few_stops])
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    priority: int | None = field(default=None, validator=optional(between(-INT32, INT32)))
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    json_schema: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


@frozen(kw_only=True)
class ChatCompletion(GenerationFields):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = field(validator=min_len(1))
    max_tokens: int | None = field(default=None, validator=optional(between(1, INT32)))
    max_completion_tokens: int | None = field(default=None, validator=optional(between(1, INT32)))
    logprobs: bool | None = None
    top_logprobs: int | None = field(default=None, validator=optional(between(0, MAX_TOP_LOGPROBS)))

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report for each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


@frozen(kw_only=True)
class Completion(GenerationFields):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = field(default=None, validator=optional(between(0, INT32)))
    echo: bool | None = None
    logprobs: int | None = field(default=None, validator=optional(between(0, MAX_TOP_LOGPROBS)))

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One or more prompts, each a text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [[token for token in prompt if isinstance(token, int)]]
        return [item for item in prompt if not isinstance(item, int)]

    def place(self, index: int) -> str:
        """Where the request has its prompt of that index."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return "prompt" if alone else f"prompt[{index}]"


@frozen(kw_only=True)
class Tokenize:
    """The body of ``POST /tokenize``. with_pieces: also say which text each id stands for."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


@frozen(kw_only=True)
class Detokenize:
    """The body of ``POST /detokenize``."""

    tokens: list[int]


# ------------------------------------------------------------------------------------------------- bodies to wire types


_NOT_YET: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "moderation": (),
    "grammar": ("",),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "truncate_prompt_tokens": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": ([],),
    "prompt_logprobs": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "typical_p": (1,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "repeat_penalty": (1,),
    "n_predict": (),
}
"""Fields of other servers and of OpenAI's that change what the answer must be and that Forge doesn't honour, each with
the values that ask for nothing. Anything else in them is refused."""

_INSTEAD = {
    "repeat_penalty": "repetition_penalty",
    "n_predict": "max_tokens",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
}


def chat_completion(body: Mapping[str, Any]) -> tuple[ChatCompletion, list[str]]:
    """Read a chat request; also the fields that were ignored. `InvalidRequest` names the field at fault."""
    wire, ignored = read(body, ChatCompletion)
    if wire.top_logprobs and not wire.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    both = (wire.max_tokens, wire.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise InvalidRequest("max_tokens: differs from max_completion_tokens; give one of them", param="max_tokens")
    return wire, ignored


def completion(body: Mapping[str, Any]) -> tuple[Completion, list[str]]:
    """Read a completion request; also the fields that were ignored. `InvalidRequest` names the field at fault."""
    wire, ignored = read(body, Completion)
    if not 1 <= len(wire.prompts) <= MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt: there must be 1 to {MAX_PROMPTS} prompts, got {len(wire.prompts)}", param="prompt"
        )
    return wire, ignored


def read(body: Mapping[str, Any], cls: type[W]) -> tuple[W, list[str]]:
    """Structure a body as `cls`; null counts as absent. Also the places of the fields that were ignored."""
    given = _without_nulls(body)
    known = attrs.fields_dict(cls)
    not_yet = _NOT_YET if issubclass(cls, GenerationFields) else {}
    for name, value in given.items():
        if name in known or name not in not_yet or value in not_yet[name]:
            continue
        instead = f"use {_INSTEAD[name]}" if name in _INSTEAD else "this server doesn't implement it"
        raise InvalidRequest(f"{name}: {instead}", param=name)
    wire = structure(given, cls, error=InvalidRequest, root="", ignore_unknown=True)
    if isinstance(wire, GenerationFields) and wire.stream_options is not None and not wire.stream:
        raise InvalidRequest("stream_options: only a streamed answer has them (stream: true)", param="stream_options")
    unknown = (re.sub(r"\[\d+\]", "[]", name) for name in unknown_keys(given, cls) if name not in not_yet)
    return wire, list(dict.fromkeys(unknown))


def _without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without null fields, and its messages likewise: clients send back messages full of them."""
    given = {name: value for name, value in body.items() if value is not None}
    if isinstance(messages := given.get("messages"), list):
        given["messages"] = [
            {name: value for name, value in message.items() if value is not None}
            if isinstance(message, dict)
            else message
            for message in messages
        ]
    return given


# ----------------------------------------------------------------------------------------------- wire types to requests


def check_ids(ids: Sequence[int], vocabulary: int, where: str) -> None:
    """Refuse token ids that don't exist; `where` is the place of the list."""
    for index, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            at = f"{where}[{index}]"
            raise InvalidRequest(f"{at}: there is no token {token}; ids go from 0 to {vocabulary - 1}", param=at)


def prompt_ids(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    """A prompt's token ids; an empty one becomes the start token, since a model can't go on from nothing."""
    ids = tokenizer.encode(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else prompt
    if ids:
        return ids
    if tokenizer.bos_token_id is None:
        raise InvalidRequest("prompt: is empty, and this model has no start token to stand for it", param="prompt")
    return [tokenizer.bos_token_id]


def sampling(
    wire: GenerationFields, defaults: GenerationDefaults, logprobs: int | None, vocabulary: int
) -> SamplingParams:
    """How tokens are drawn: the request's values, else the model's, else neutral ones; without a seed, a random one."""

    def choose(name: str, neutral: float) -> float:
        asked = getattr(wire, name)
        advised = getattr(defaults, name)
        return float(asked if asked is not None else advised if advised is not None else neutral)

    return SamplingParams(
        logit_bias=_biases(wire.logit_bias or {}, vocabulary),
        repetition_penalty=choose("repetition_penalty", 1.0),
        presence_penalty=wire.presence_penalty or 0.0,
        frequency_penalty=wire.frequency_penalty or 0.0,
        temperature=choose("temperature", 1.0),
        top_k=max(0, int(choose("top_k", 0))),
        top_p=choose("top_p", 1.0),
        min_p=choose("min_p", 0.0),
        seed=secrets.randbits(64) if wire.seed is None else wire.seed % 2**64,
        logprobs=logprobs,
    )


def _biases(biases: Mapping[str, float], vocabulary: int) -> dict[int, float]:
    by_id: dict[int, float] = {}
    for key, bias in biases.items():
        at = place(("logit_bias", key))
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", key) or int(key) >= vocabulary:
            raise InvalidRequest(f"{at}: keys are token ids from 0 to {vocabulary - 1}", param=at)
        if not -100 <= bias <= 100:
            raise InvalidRequest(f"{at}: must be between -100 and 100, got {bias}", param=at)
        by_id[int(key)] = bias
    return by_id


def engine_request(
    wire: ChatCompletion | Completion,
    request_id: str,
    prompt: list[int],
    defaults: GenerationDefaults,
    vocabulary: int,
    *,
    where: str = "prompt",
    constraint: bytes | None = None,
) -> Request:
    """What the engine is asked for one prompt.

    vocabulary: ids go up to it. where: the place of the prompt's ids. constraint: as `structured.Lowering` gives it.
    """
    if isinstance(wire, ChatCompletion):
        logprobs, max_tokens = wire.alternatives, wire.max_completion_tokens or wire.max_tokens
    else:
        logprobs, max_tokens = wire.logprobs, LEGACY_MAX_TOKENS if wire.max_tokens is None else wire.max_tokens
    check_ids(prompt, vocabulary, where)
    check_ids(wire.stop_token_ids or (), vocabulary, "stop_token_ids")
    return Request(
        id=request_id,
        prompt=prompt,
        sampling=sampling(wire, defaults, logprobs, vocabulary),
        n=wire.n or 1,
        max_tokens=max_tokens,
        stop=[wire.stop] if isinstance(wire.stop, str) else list(wire.stop or ()),
        stop_token_ids=list(wire.stop_token_ids or ()),
        ignore_eos=bool(wire.ignore_eos),
        prompt_logprobs=isinstance(wire, Completion) and bool(wire.echo) and wire.logprobs is not None,
        priority=wire.priority or 0,
        constraint=constraint,
    )
