"""The n-gram drafter on the native backend: with and without drafts, of any length, the answers are the same bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from forge.builtin.ngram import NgramDrafter, NgramOptions
from forge.engine.engine import Engine
from forge.engine.request import Request
from forge.interfaces.drafter import Drafter
from forge.interfaces.sampler import SamplingParams
from forge.interfaces.scheduler import Batch, Span
from forge.testing.kv_cache import PlainSequence

Run = Callable[..., Any]
Refit = Callable[..., Engine]

KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "seeded": SamplingParams(seed=5, temperature=0.6, top_p=0.9),
    "scored": SamplingParams(seed=6, temperature=0.5, logprobs=3),
    "penalized": SamplingParams(temperature=0.0, repetition_penalty=1.05, frequency_penalty=0.05),
}


@pytest.fixture(scope="module")
def cpu_engine(tiny_path: Path) -> Iterator[Engine]:
    from tests.integration.conftest import build

    engine = build(tiny_path, backend="cpu", num_blocks=400)
    yield engine
    engine.check()


def requests() -> list[Request]:
    """Prompts that repeat themselves, of every kind, one with a stop string and several choices."""
    made = []
    for i, (name, params) in enumerate(KINDS.items()):
        prompt = [20 + i, 21, 22, 23, 24 + i] * 8
        made.append(Request(name, prompt, params, n=1 + i % 2, max_tokens=60, ignore_eos=True))
    made.append(Request("stopped", [30, 31, 32] * 9, KINDS["greedy"], max_tokens=60, stop=["e", "zz"]))
    return made


@pytest.mark.parametrize("setup", [{}, {"num_blocks": 22, "max_model_len": 128}], ids=["roomy", "preempted"])
@pytest.mark.parametrize("longest", [1, 4, 16])
def test_drafts_of_any_length_give_the_same_bits(
    cpu_engine: Engine, refit: Refit, run: Run, longest: int, setup: dict[str, Any]
) -> None:
    plain = run(refit(cpu_engine), *requests())
    drafter = NgramDrafter(NgramOptions(min_match=1, max_draft=longest))
    answers = run(refit(cpu_engine, drafter=drafter, **setup), *requests())
    drafted = 0
    for request in requests():
        for choice in range(request.n):
            key = (request.id, choice)
            assert answers.tokens(*key) == plain.tokens(*key)
            assert answers.text(*key) == plain.text(*key)
            scores = [[lp for d in a.of(*key) for lp in d.logprobs or ()] for a in (answers, plain)]
            assert scores[0] == scores[1]
            drafted += answers.last(*key).usage.drafted_tokens
    assert drafted > 0
    assert len(drafter) == 0, "sequences that are over are remembered"


def test_the_distribution_with_drafts_is_the_targets(cpu_engine: Engine, refit: Refit, run: Run) -> None:
    """Pearson's chi-square over 800 seeds: the token after a draft against the probabilities the model reports."""
    prompt = [40, 41, 42, 43] * 6
    bias = dict.fromkeys((40, 41, 42, 43, 50), 6.0)
    base = SamplingParams(temperature=1.0, logit_bias=bias, top_k=5)
    engine = refit(cpu_engine, drafter=NgramDrafter(NgramOptions(min_match=1)))
    seeds = [Request(f"s{seed}", prompt, evolve(base, seed=seed), max_tokens=3, ignore_eos=True) for seed in range(800)]
    answers = run(engine, *seeds)
    plain = run(
        refit(cpu_engine), *(evolve(r, sampling=evolve(r.sampling, seed=r.sampling.seed + 10_000)) for r in seeds)
    )
    counts: dict[int, list[int]] = {}
    for which, each in enumerate((answers, plain)):
        for request in seeds:
            counts.setdefault(each.tokens(request.id)[1], [0, 0])[which] += 1
    common = {token: pair for token, pair in counts.items() if sum(pair) >= 10}
    statistic = sum((a - b) ** 2 / (a + b) for a, b in common.values())
    assert sum(answers.last(request.id).usage.drafted_tokens for request in seeds) > 100
    assert len(common) >= 3
    assert statistic < 3 * len(common) + 12, f"chi-square {statistic:.1f} with {len(common)} values"


class Always(Drafter):
    """Proposes the same tokens after every text."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def propose(self, seq: Any, limit: int) -> list[int]:
        return self.tokens[:limit]


def next_logits(engine: Engine, tokens: list[int]) -> torch.Tensor:
    """The model's logits after a text, float32 ``[vocab]``, from one forward pass of its own."""
    parts, seq = engine.parts, PlainSequence(1 << 40, tokens)
    parts.kv.attach(seq, 0)
    parts.kv.grow(seq, len(tokens))
    inputs = parts.backend.stage(Batch((Span(seq, 0, len(tokens)),)), parts.kv, parts.pages)
    (logits,) = parts.model.logits(parts.backend.forward(parts.model, inputs))
    parts.kv.release(seq)
    return torch.tensor(logits[-1])


def target(logits: torch.Tensor, bias: dict[int, float], temperature: float, top_p: float) -> torch.Tensor:
    """What to draw from, by definition: softmax, then the likeliest tokens until their sum reaches top_p."""
    biased = logits.double()
    for token, value in bias.items():
        biased[token] += value
    chances, order = torch.softmax(biased / temperature, 0).sort(descending=True)
    chances[chances.cumsum(0) - chances >= top_p] = 0
    return torch.zeros_like(biased).scatter(0, order, chances / chances.sum())


def critical(freedom: int) -> float:
    """Chi-square that is exceeded once in 10,000 times (Wilson and Hilferty, 1931)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 3.719 * spread**0.5) ** 3


@pytest.mark.parametrize(("temperature", "top_p"), [(2.0, 1.0), (2.0, 0.97)])
def test_tokens_beside_and_after_drafts_are_drawn_from_the_models_own_distribution(
    cpu_engine: Engine, refit: Refit, run: Run, temperature: float, top_p: float
) -> None:
    """Pearson's chi-square over 3,000 seeds: the token that a draft guesses at, and the one after if it was right."""
    prompt, drafts = [40, 41, 42, 43] * 6, [50, 52]
    bias = dict.fromkeys((41, 45, 50, 52, 60), 7.0)
    params = SamplingParams(temperature=temperature, top_p=top_p, logit_bias=bias)
    seeds = [
        Request(f"s{seed}", prompt, evolve(params, seed=seed), max_tokens=3, ignore_eos=True) for seed in range(3000)
    ]
    engine = refit(cpu_engine, drafter=Always(drafts), max_queue=4000)
    answers = run(engine, *seeds)
    drawn = [tuple(answers.tokens(request.id)) for request in seeds]
    assert sum(answers.last(request.id).usage.accepted_tokens for request in seeds) > 50
    for place, pool in (1, drawn), (2, [each for each in drawn if each[1] == drafts[0]]):
        expected = torch.zeros(engine.parts.model.vocab_size, dtype=torch.float64)
        for before, count in Counter(each[:place] for each in pool).items():
            expected += count * target(next_logits(engine, [*prompt, *before]), bias, temperature, top_p)
        found = torch.bincount(torch.tensor([each[place] for each in pool]), minlength=len(expected)).double()
        common = expected >= 5
        rare = torch.stack([expected[~common].sum(), found[~common].sum()])
        assert found[expected == 0].sum() == 0, "a token was drawn that top_p leaves out"
        statistic = ((found - expected) ** 2 / expected)[common].sum()
        if rare[0] > 0:
            statistic += (rare[1] - rare[0]) ** 2 / rare[0].clamp(min=5)
        freedom = int(common.sum()) - 1 + int(rare[0] >= 5)
        assert freedom >= 2
        assert statistic < critical(freedom), f"chi-square {statistic:.1f} with {freedom} degrees of freedom"
