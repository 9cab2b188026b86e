"""Chat templates: rendered as transformers renders them, refused as they ask, and bounded whatever they do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from forge.errors import InvalidRequest, ModelFileError, UnsupportedModel
from forge.interfaces.loader import TokenizerSource
from forge.text.template import ChatTemplate, build_chat_template
from forge.text.tokenizer import Tokenizer

Metadata = dict[str, Any]
Build = Callable[[Metadata], Tokenizer]
Messages = list[dict[str, Any]]

LLAMA3 = """
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}
    {{- 'Environment: ipython\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
{%- endif %}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}' }}
        {%- for name, value in call.arguments | items %}{{- name ~ '=' ~ value }}{% if not loop.last %}, {% endif %}
        {%- endfor %}
    {%- else %}
        {{- message.content | tojson if message.content is iterable else message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{% endfor %}"""

QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- macro show(role, content) -%}{{ '<|im_start|>' ~ role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}{%- endmacro %}
{%- for message in messages %}
    {%- if message.role == "system" and tools %}{% continue %}{% endif %}
    {%- if message.role == "assistant" and message.content and '</think>' in message.content %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- show(message.role, content) }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- show(message.role, message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>' + call.function.name | upper + call.function.arguments | tojson + '</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {%- if loop.index0 == ns.last_query_index and loop.last %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

SUNDRY = """{% set parts = [] %}
  {% block body %}
    {{ messages | map(attribute='role') | join(', ') }} {{ '%s-%05.1f' | format('x', 3) }} {{ '{:>8}|'.format('r') }}
  {% endblock %}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'a b'.title() | replace('A', 'bb') }}
{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | list }} {{ range(3) | list }}
{% for key, entries in messages | groupby('role') %}
{{ key }}:{{ entries | length }}{{ loop.cycle(';', '.') }} {{ loop.length }} {{ loop.revindex }} {{ loop.nextitem }}
{% endfor %}
{{ {'b': 1, 'a': [1, 2.5, none, true]} | dictsort }} {{ 'x' * 3 + 'y' ~ 2 ** 5 ~ 7 % 4 }}
{{ 'line\\nline' | indent(3) }} {% for x in [] %}{% else %}none{% endfor %}
{% set block %}<{{ messages[-1].content | upper | truncate(9) }}>{% endset %}{{ block | safe | trim }}
{{ messages | tojson(indent=2) }} {{ undefined_name }} {{ documents is none }} {{ {'é': '<&\\u2028>'} | tojson }}
{% for a in [[1, [2]], [3]] recursive %}{{ loop(a) if a is iterable else a }}{% if loop.last %}!{% endif %}
{% endfor %}"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Wetter für <Ort> & 'Umgebung'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CHAT: Messages = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Grüße 👋\n<b>&amp;</b>"},
    {"role": "assistant", "content": '<think>hm</think>\n\nHello, it\'s "me"!'},
    {"role": "user", "content": "weather?"},
]
CALLS: Messages = [
    *CHAT,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Köln"}}}],
    },
    {"role": "tool", "content": "12°"},
    {"role": "tool", "content": "rain"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def reference(source: str, messages: Messages, **variables: Any) -> str:
    """The same by transformers."""
    [text], _ = render_jinja_template([messages], chat_template=source, **{**SPECIAL, **variables})
    return str(text)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("messages", [CHAT, CALLS, CHAT[1:], CHAT[1:2]], ids=["chat", "calls", "no-system", "one"])
@pytest.mark.parametrize("source", [LLAMA3, MISTRAL, QWEN, SUNDRY], ids=["llama3", "mistral", "qwen", "sundry"])
def test_templates_render_as_in_transformers(
    source: str, messages: Messages, tools: list[dict[str, Any]] | None, prompt: bool
) -> None:
    template = ChatTemplate(source, SPECIAL)
    if source is MISTRAL and messages in (CHAT, CALLS):
        with pytest.raises(InvalidRequest, match="Conversation roles must alternate") as caught:
            template.render(messages, tools=tools, add_generation_prompt=prompt)
        assert (caught.value.status, caught.value.param) == (400, "messages")
        return
    expected = reference(source, messages, tools=tools, add_generation_prompt=prompt)
    assert template.render(messages, tools=tools, add_generation_prompt=prompt) == expected


def test_extra_variables_reach_the_template_but_cannot_replace_the_messages() -> None:
    template = ChatTemplate(QWEN, SPECIAL)
    expected = reference(QWEN, CHAT, add_generation_prompt=True, enable_thinking=False)
    assert template.render(CHAT, enable_thinking=False) == expected
    assert "<think>" in expected
    extra = {"forge budget": None, "documents": [{"title": "a"}]}
    assert ChatTemplate("{{ documents[0].title }}").render([], **extra) == "a"


def test_a_template_knows_todays_date() -> None:
    now = ChatTemplate("{{ strftime_now('%Y-%m') }}").render([])
    assert now in (datetime.now().strftime("%Y-%m"), reference("{{ strftime_now('%Y-%m') }}", []))


@pytest.mark.model
def test_smollm2_prompts_are_those_of_transformers(smollm2_metadata: Metadata, smollm2: Tokenizer) -> None:
    template = build_chat_template(TokenizerSource("gguf", smollm2_metadata), smollm2)
    assert template.source == smollm2_metadata["tokenizer.chat_template"]
    for messages in (CHAT, CHAT[1:]):
        for prompt in (True, False):
            expected = reference(template.source, messages, add_generation_prompt=prompt)
            assert template.render(messages, add_generation_prompt=prompt) == expected
    ids = smollm2.encode(template.render(CHAT), add_special=False)
    assert ids.count(1) == len(CHAT) + 1  # <|im_start|>, once a message and once for the answer


# -------------------------------------------------------------------------------------------------- finding templates


@pytest.fixture(scope="module")
def tokenizer(byte_level_metadata: Metadata, from_gguf: Build) -> Tokenizer:
    return from_gguf(byte_level_metadata)


def test_a_model_without_a_template_gets_chatml_and_a_warning(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    template = build_chat_template(TokenizerSource("gguf"), tokenizer)
    assert template.render([{"role": "user", "content": "hi"}]) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "without a chat template" in caplog.text


def test_templates_see_the_texts_of_bos_and_eos(tokenizer: Tokenizer) -> None:
    source = TokenizerSource("gguf", chat_template="{{ bos_token }}|{{ eos_token }}")
    assert build_chat_template(source, tokenizer).render([]) == "<s>|<|end|>"
    config = {"bos_token": "<s>", "pad_token": {"content": "<pad>"}, "chat_template": "{{ bos_token + pad_token }}"}
    assert build_chat_template(TokenizerSource("huggingface", config), tokenizer).render([]) == "<s><pad>"


@pytest.mark.parametrize(
    "source",
    [
        TokenizerSource(
            "huggingface",
            {"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]},
        ),
        TokenizerSource(
            "gguf",
            {
                "tokenizer.chat_template": "plain",
                "tokenizer.chat_templates": ["tool_use"],
                "tokenizer.chat_template.tool_use": "tools",
            },
        ),
    ],
    ids=["huggingface", "gguf"],
)
def test_requests_with_tools_use_the_template_that_is_meant_for_them(
    source: TokenizerSource, tokenizer: Tokenizer
) -> None:
    template = build_chat_template(source, tokenizer)
    assert template.render([]) == "plain"
    assert template.render([], tools=[]) == "plain"
    assert template.render([], tools=TOOLS) == "tools"


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ("{% for x in %}", UnsupportedModel, "not valid Jinja: line 1"),
        ("a\n{{ b", UnsupportedModel, "not valid Jinja: line 2"),
        ("{% if x %}", UnsupportedModel, "not valid Jinja"),
        ("{% quux %}", UnsupportedModel, "unknown tag 'quux'"),
        ("{{ x | quux }}", UnsupportedModel, "No filter named 'quux'"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", UnsupportedModel, "can't be compiled"),
        ("x" * 2_000_000, UnsupportedModel, "2000000 characters"),
        (7, ModelFileError, "'default' is int, not text"),
        ([{"template": "x"}], ModelFileError, "has no name"),
        ([{"name": "rag", "template": "x"}], ModelFileError, r"\(rag\), but no default"),
        ([{"name": "default", "template": None}], ModelFileError, "'default' is NoneType"),
    ],
)
def test_a_broken_template_is_refused_when_the_model_is_loaded(
    given: object, error: type[Exception], reason: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(error, match=reason):
        build_chat_template(TokenizerSource("huggingface", {"chat_template": given}), tokenizer)


def test_a_very_long_conversation_stays_within_the_budget() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 50} for i in range(10_000)]
    assert ChatTemplate(QWEN, SPECIAL).render(messages) == reference(QWEN, messages, add_generation_prompt=True)
