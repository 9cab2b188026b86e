"""Structured output as clients meet it: 100 schemas at temperature 1 over HTTP, and together with everything else."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from attrs import evolve

from forge import LLM
from forge.errors import InvalidRequest
from forge.interfaces.cost import StepCost
from forge.testing.server import serve

pytestmark = pytest.mark.model

QUESTION = [{"role": "user", "content": "Describe a person, a city and a book, in JSON."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3, "uniqueItems": True},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def scalar(rng: random.Random) -> dict[str, Any]:
    """A schema of strings, numbers or literals, with the keywords that real schemas use most."""
    return rng.choice([
        {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 12)},
        {"type": "string", "pattern": rng.choice(["^[a-z]{2,6}$", r"^\d{3}-\d$", "^(red|blue)", "o"]), "maxLength": 9},
        {"type": "string", "format": rng.choice(["date", "time", "ipv4", "uuid", "date-time"])},
        {"type": "integer", "minimum": rng.randrange(-50, 0), "exclusiveMaximum": rng.randrange(1, 1000)},
        {"type": "number", "minimum": 0, "maximum": rng.choice([1, 2.5, 100]), "multipleOf": rng.choice([0.5, 0.25])},
        {"enum": ["a", 1, None, True, "ü\"\\"][: rng.randrange(1, 6)]},
        {"const": rng.choice(["fixed", 42, False])},
        {"type": ["boolean", "null"]},
        {"type": "string", "not": {"enum": ["", "x"]}, "maxLength": 9},
    ])  # fmt: skip


def schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A random schema, nested up to `depth`."""
    kind = rng.choice(["object", "object", "array", "anyOf", "oneOf", "scalar"]) if depth else "scalar"
    if kind == "object":
        names = rng.sample(["id", "name", "città", "value", "note", "kind"], rng.randrange(1, 4))
        return {
            "type": "object",
            "properties": {name: schema(rng, depth - 1) for name in names},
            "required": names[: rng.randrange(len(names) + 1)],
            "additionalProperties": False,
        }
    if kind == "array":
        return {"type": "array", "items": schema(rng, depth - 1), "minItems": rng.randrange(2), "maxItems": 3}
    if kind == "anyOf":
        return {"anyOf": [schema(rng, depth - 1), schema(rng, depth - 1)]}
    if kind == "oneOf":
        return {"oneOf": [{"type": "string", "maxLength": 8}, {"type": "integer", "minimum": 0, "maximum": 99}]}
    return scalar(rng)


@pytest.fixture(scope="module")
def structured_server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the real model."""
    with serve(tmp_path_factory.mktemp("server"), smollm2_path, "--served-model-name", "smollm2") as server:
        server.wait()
        yield server.url


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(smollm2_path, num_blocks=800) as llm:
        yield llm


def test_a_hundred_schemas_at_temperature_one_over_http_are_all_kept(structured_server: str) -> None:
    schemas = [schema(random.Random(seed)) for seed in range(100)]

    async def ask(client: openai.AsyncOpenAI, gate: asyncio.Semaphore, seed: int) -> tuple[str, str]:
        async with gate:
            form: Any = {"type": "json_schema", "json_schema": {"name": f"s{seed}", "schema": schemas[seed]}}
            reply = await client.chat.completions.create(
                model="smollm2", messages=QUESTION, temperature=1, seed=seed, max_tokens=150, response_format=form
            )
            return str(reply.choices[0].finish_reason), reply.choices[0].message.content or ""

    async def all_of_them() -> list[tuple[str, str]]:
        gate = asyncio.Semaphore(16)
        async with openai.AsyncOpenAI(base_url=f"{structured_server}/v1", api_key="-", timeout=120) as client:
            return await asyncio.gather(*(ask(client, gate, seed) for seed in range(100)))

    finished = 0
    for seed, (reason, text) in enumerate(asyncio.run(all_of_them())):
        assert reason in ("stop", "length"), (seed, reason)
        if reason == "stop":
            finished += 1
            checker = jsonschema.Draft202012Validator(
                schemas[seed], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
            )
            checker.validate(json.loads(text))
    assert finished >= 90


def test_a_bad_schema_is_refused_with_its_place_and_others_go_on(structured_server: str) -> None:
    bad = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a)\\1"}}}
    response = httpx.post(
        f"{structured_server}/v1/chat/completions", json={"messages": QUESTION, "json_schema": bad}, timeout=60
    )
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == "json_schema.properties.a.pattern"
    assert "pattern" in error["message"]
    fine = httpx.post(
        f"{structured_server}/v1/chat/completions",
        json={"messages": QUESTION, "choice": ["yes", "no"], "max_tokens": 5},
        timeout=60,
    )
    assert fine.json()["choices"][0]["message"]["content"] in ("yes", "no")


def test_a_streamed_answer_has_the_same_text(structured_server: str) -> None:
    fields = {"messages": QUESTION, "json_schema": PERSON, "temperature": 1, "seed": 7, "max_tokens": 100}
    url = f"{structured_server}/v1/chat/completions"
    whole = httpx.post(url, json=fields, timeout=60).json()["choices"][0]["message"]["content"]
    with httpx.stream("POST", url, json=fields | {"stream": True}, timeout=60) as response:
        events = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == whole
    jsonschema.validate(json.loads(text), PERSON)


def test_choices_log_probabilities_and_penalties_go_with_a_schema(llm: LLM) -> None:
    output = llm.chat(
        QUESTION, json_schema=PERSON, temperature=1, seed=3, n=4, logprobs=True, top_logprobs=2,
        frequency_penalty=0.5, repetition_penalty=1.1, max_tokens=120,
    )  # fmt: skip
    for choice in output.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.text), PERSON)
        assert choice.logprobs is not None
        assert len(choice.logprobs) == len(choice.token_ids)


def test_a_regular_expression_and_a_choice_bound_the_whole_answer(llm: LLM) -> None:
    pattern = r"(yes|no), because [a-z ]{5,30}\."
    text = llm.chat(QUESTION, regex=pattern, temperature=1, seed=1, max_tokens=60).text
    assert re.fullmatch(pattern, text)
    assert llm.chat(QUESTION, choice=["Paris", "Rome"], temperature=1, seed=1, max_tokens=10).text in ("Paris", "Rome")


def test_an_answer_cut_by_max_tokens_says_length(llm: LLM) -> None:
    choice = llm.chat(QUESTION, json_schema=PERSON, temperature=0, max_tokens=4).choices[0]
    assert choice.finish_reason == "length"
    assert choice.text.startswith("{")


def test_a_stop_string_ends_a_constrained_answer_early(llm: LLM) -> None:
    choice = llm.chat(QUESTION, json_schema=PERSON, temperature=0, max_tokens=60, stop='"age"').choices[0]
    assert choice.finish_reason == "stop"
    assert '"name"' in choice.text
    assert '"age"' not in choice.text


def test_jump_forward_and_drafts_change_no_token(smollm2_path: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCost, "seconds", lambda *_: None)  # on every machine drafts seem worth their rows
    keys = ["registration_number_of_the_vehicle", "name_of_the_first_owner", "year_of_manufacture"]
    long_keys = {
        "type": "object",
        "properties": {key: {"type": "string", "maxLength": 8} for key in keys},
        "required": keys,
        "additionalProperties": False,
    }
    fields: dict[str, Any] = {"json_schema": long_keys, "temperature": 1, "seed": 11, "max_tokens": 100}
    prompts = [QUESTION, [{"role": "user", "content": "Who is Ada?"}]]
    drafted = [output.choices[0] for output in llm.chat(prompts, **fields)]
    with LLM(smollm2_path, num_blocks=800, drafter="none") as plain:
        plain.engine.parts = evolve(plain.engine.parts, drafter=None)
        alone = [output.choices[0] for output in plain.chat(prompts, **fields)]
    assert [choice.token_ids for choice in drafted] == [choice.token_ids for choice in alone]
    assert sum(choice.usage.accepted_tokens for choice in drafted if choice.usage) > 0
    assert sum(choice.usage.drafted_tokens for choice in alone if choice.usage) == 0


def test_errors_name_the_place_in_process_too(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"json_schema: .*no value") as caught:
        llm.chat(QUESTION, json_schema={"type": "object", "required": ["a"], "properties": {"a": False}})
    assert caught.value.param == "json_schema"
