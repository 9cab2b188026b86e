"""The real model, in float32 with the plain torch backend: it answers, and its answers don't depend on the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from forge.engine.engine import Engine
from forge.engine.request import Request
from forge.interfaces.sampler import SamplingParams

pytestmark = pytest.mark.model

Run = Callable[..., Any]
Refit = Callable[..., Engine]

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Write a haiku about the sea.",
    "Was ist 12 mal 12?",
    "Explain photosynthesis in one sentence. Be brief, but mention chlorophyll, light, water and sugar.",
    "日本の首都は？",
    "Count from one to ten.",
    "def fibonacci(n):",
]


def requests(engine: Engine) -> list[Request]:
    """Eight questions, each greedy and seeded, of different lengths and with different settings."""
    made = []
    for i, question in enumerate(QUESTIONS):
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = engine.parts.tokenizer.encode(text, add_special=False)
        made.append(Request(f"greedy{i}", ids, SamplingParams(temperature=0.0), max_tokens=24))
        seeded = SamplingParams(seed=100 + i, temperature=0.8, top_p=0.95 if i % 2 else 1.0, top_k=40 if i % 3 else 0)
        made.append(Request(f"seeded{i}", ids, seeded, max_tokens=16 + i))
    return made


@pytest.fixture(scope="module")
def alone(smollm2_engine: Engine, refit: Refit, run: Run) -> dict[str, list[int]]:
    """Each request's tokens when it has the engine and an empty cache to itself."""
    return {
        request.id: run(refit(smollm2_engine, num_blocks=16, max_model_len=256), request).tokens(request.id)
        for request in requests(smollm2_engine)
    }


def test_the_capital_of_france_is_paris(smollm2_engine: Engine, refit: Refit, run: Run) -> None:
    answers = run(refit(smollm2_engine), requests(smollm2_engine)[0])
    assert "Paris" in answers.text("greedy0")
    assert answers.last("greedy0").finish_reason == "stop"


@pytest.mark.parametrize(
    "setup",
    [{}, {"max_prefill_tokens": 7}, {"num_blocks": 24, "max_model_len": 256}],
    ids=["batch of 16", "chunks of 7", "preempted"],
)
def test_answers_are_the_same_in_every_setup(
    smollm2_engine: Engine, refit: Refit, run: Run, alone: dict[str, list[int]], setup: dict[str, Any]
) -> None:
    answers = run(refit(smollm2_engine, **setup), *requests(smollm2_engine))
    assert {name: answers.tokens(name) for name in alone} == alone


def test_answers_are_the_same_with_a_warm_prefix_cache(
    smollm2_engine: Engine, refit: Refit, run: Run, alone: dict[str, list[int]]
) -> None:
    engine = refit(smollm2_engine)
    run(engine, *requests(smollm2_engine))
    answers = run(engine, *requests(smollm2_engine))
    assert {name: answers.tokens(name) for name in alone} == alone
    assert answers.last("greedy4").usage.cached_tokens > 0
