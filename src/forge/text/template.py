"""Chat templates: from messages to the text that a model was trained to continue.

For the server and `forge.llm`. A template comes from GGUF metadata or from a Hugging Face directory, and is rendered as
Hugging Face's `apply_chat_template` does. Knows nothing of content parts: messages arrive as the template wants them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from forge.errors import InvalidRequest, ModelFileError, UnsupportedModel
from forge.text.sandbox import ChatEnvironment, MeteredTemplate

if TYPE_CHECKING:
    from forge.interfaces.loader import TokenizerSource
    from forge.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_SOURCE = 1 << 20
"""Characters of a template; the longest published ones have some ten thousand."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""What a model without a template gets: OpenAI's ChatML."""


class ChatTemplate:
    """One model's template, and perhaps a second one for requests with tools. Threads may share one.

    source: the (default) template's text. variables: what it sees besides messages and tools, such as ``bos_token``.
    tool_use: the template for requests with tools, if that's another. Errors: `UnsupportedModel` for a template that
    isn't valid Jinja.
    """

    source: str

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None, *, tool_use: str | None = None) -> None:
        environment = ChatEnvironment()
        self.source = source
        self._variables = dict(variables or {})
        self._default = compile_template(environment, source)
        self._tool_use = self._default if tool_use is None else compile_template(environment, tool_use)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt's text, which holds its own BOS: encode it with ``add_special=False``.

        tools: OpenAI's tool objects; none and an empty list are the same. add_generation_prompt: end where the
        assistant's answer begins. extra: further variables (``enable_thinking``). Errors: `InvalidRequest` when the
        template raises, with its message, or when it does more than `forge.text.sandbox` allows.
        """
        variables = {
            **self._variables,
            "documents": None,
            **extra,
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
        }
        template = self._tool_use if tools else self._default
        try:
            return template.render(variables)
        except TemplateError as error:
            raise InvalidRequest(f"the chat template refuses the messages: {error}", param="messages") from error
        except Exception as error:  # a template's code may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise InvalidRequest(f"the chat template fails on the messages: {reason}", param="messages") from error


def build_chat_template(source: TokenizerSource, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that a checkpoint comes with, else ChatML, of which a warning is logged.

    Errors: `ModelFileError` for a template that isn't text, `UnsupportedModel` for one that isn't valid Jinja.
    """
    templates = named_templates(source)
    if not templates:
        log.warning("the model comes without a chat template; ChatML is used, which it may not have been trained on")
        templates = {"default": CHATML}
    if "default" not in templates:
        raise ModelFileError(f"the model has chat templates ({', '.join(sorted(templates))}), but no default one")
    return ChatTemplate(templates["default"], special_texts(source, tokenizer), tool_use=templates.get("tool_use"))


def special_texts(source: TokenizerSource, tokenizer: Tokenizer) -> dict[str, str]:
    """``bos_token`` and the like, as templates see them; BOS and EOS are empty where the model has none."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_ids[:1]
    texts = {
        "bos_token": "" if bos is None else tokenizer.token_text(bos),
        "eos_token": "".join(tokenizer.token_text(token) for token in eos),
    }
    for name, value in source.metadata.items():
        text = value.get("content") if isinstance(value, dict) else value
        if source.format == "huggingface" and name.endswith("_token") and isinstance(text, str):
            texts[name] = text
    return texts


def named_templates(source: TokenizerSource) -> dict[str, str]:
    """All templates of a checkpoint, by name; the unnamed one is the default."""
    found: dict[str, Any] = {}
    prefix = "tokenizer.chat_template"
    given = source.metadata.get(prefix if source.format == "gguf" else "chat_template")
    if source.format == "gguf":
        keys = [key for key in source.metadata if key.startswith(prefix + ".")]
        found.update((key.removeprefix(prefix + "."), source.metadata[key]) for key in keys)
    if isinstance(given, list):
        for place, entry in enumerate(given):
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise ModelFileError(f"chat_template[{place}] has no name")
            found[entry["name"]] = entry.get("template")
    elif given is not None:
        found["default"] = given
    if source.chat_template is not None:
        found["default"] = source.chat_template
    for name, text in found.items():
        if not isinstance(text, str):
            raise ModelFileError(f"chat template {name!r} is {type(text).__name__}, not text")
    return found


def compile_template(environment: ChatEnvironment, source: str) -> MeteredTemplate:
    """Errors: `UnsupportedModel` that says what is wrong and where."""
    if len(source) > MAX_SOURCE:
        raise UnsupportedModel(f"the chat template has {len(source)} characters; at most {MAX_SOURCE} are read")
    try:
        return environment.compile_metered(source)
    except TemplateSyntaxError as error:
        raise UnsupportedModel(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from error
    except Exception as error:  # Python's compiler has limits of its own, on nesting for one
        raise UnsupportedModel(f"the chat template can't be compiled: {type(error).__name__}: {error}") from error
