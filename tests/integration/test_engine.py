"""The engine on a tiny model: whatever happens around a request, its tokens are the same and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from attrs import evolve

from forge.builtin.sampler import DefaultSampler
from forge.engine.engine import Engine
from forge.engine.request import Request, Usage
from forge.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from forge.interfaces.backend import Backend, StepInputs
from forge.interfaces.drafter import Draft, Drafter
from forge.interfaces.sampler import Picked, SamplingParams
from forge.interfaces.scheduler import Batch
from forge.interfaces.scheduler import Sequence as LiveSeq

GREEDY = SamplingParams(temperature=0.0)
EOS = 2

Run = Callable[..., Any]
Refit = Callable[..., Engine]


def counts(usage: Usage) -> tuple[int, int, int]:
    """What of an answer's usage doesn't depend on drafts and times."""
    return usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens


def prompt(seed: int, length: int) -> list[int]:
    """Random ids that aren't special."""
    rng = random.Random(seed)
    return [rng.randrange(3, 264) for _ in range(length)]


def mixed_requests() -> list[Request]:
    """Sixteen requests of all kinds: long and short, greedy and seeded, with filters, penalties and several choices."""
    kinds = [
        GREEDY,
        SamplingParams(seed=11),
        SamplingParams(seed=12, temperature=0.7, top_k=20, top_p=0.9),
        SamplingParams(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.5, logprobs=2),
    ]
    lengths = [3, 17, 40, 90, 16, 33, 5, 64]
    return [
        Request(
            f"r{i}", prompt(i, lengths[i % 8]), kinds[i % 4], n=1 + i % 3 // 2, max_tokens=12 + i, ignore_eos=i % 2 == 0
        )
        for i in range(16)
    ]


@pytest.fixture(scope="module")
def alone(tiny_engine: Engine) -> dict[tuple[str, int], list[int]]:
    """Each request's tokens when nothing else runs: the reference."""
    tokens = {}
    for request in mixed_requests():
        tiny_engine.submit(request)
        for choice in range(request.n):
            tokens[request.id, choice] = []
        while not tiny_engine.idle:
            for delta in tiny_engine.step():
                tokens[delta.request_id, delta.choice] += delta.token_ids
    return tokens


@pytest.mark.parametrize(
    "setup",
    [
        {},
        {"max_prefill_tokens": 7},
        {"max_batch_size": 3},
        {"num_blocks": 24},
        {"num_blocks": 16, "max_model_len": 128, "max_prefill_tokens": 50},
        {"num_blocks": 300, "block_size": 1},
        {"naive": True, "num_blocks": 5, "block_size": 128, "max_model_len": 128},
    ],
    ids=["batch of 16", "chunks of 7", "3 at a time", "preempted", "much preempted", "blocks of 1", "naive cache"],
)
def test_a_request_gets_the_same_tokens_whatever_else_runs(
    tiny_engine: Engine, refit: Refit, run: Run, alone: dict[tuple[str, int], list[int]], setup: dict[str, Any]
) -> None:
    engine = refit(tiny_engine, **setup)
    answers = run(engine, *mixed_requests())
    assert {key: answers.tokens(*key) for key in alone} == alone


def test_a_warm_prefix_cache_is_used_and_changes_no_token(
    tiny_engine: Engine, refit: Refit, run: Run, alone: dict[tuple[str, int], list[int]]
) -> None:
    engine = refit(tiny_engine)
    cold = run(engine, *mixed_requests())
    warm = run(engine, *mixed_requests())
    for key in alone:
        assert cold.tokens(*key) == warm.tokens(*key) == alone[key]
    request = mixed_requests()[3]
    assert warm.last(request.id).usage.cached_tokens == 80  # of 90: whole blocks of 16
    assert engine.parts.kv.usage().hits > 0


def test_preempted_requests_are_computed_again_and_lose_no_text(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    requests = [Request(f"p{i}", prompt(i, 30), GREEDY, max_tokens=60, ignore_eos=True) for i in range(4)]
    roomy, tight = refit(tiny_engine), refit(tiny_engine, num_blocks=12, max_model_len=128)
    wanted = run(roomy, *requests)
    preempted = 0
    for request in requests:
        tight.submit(request)
    found: dict[str, list[int]] = {request.id: [] for request in requests}
    while not tight.idle:
        before = {seq.id for seq in tight.parts.scheduler.running}
        for delta in tight.step():
            found[delta.request_id] += delta.token_ids
        preempted += len(before & {seq.id for seq in tight.parts.scheduler.waiting})
        tight.parts.kv.check()
    tight.check()
    assert preempted > 0
    assert found == {request.id: wanted.tokens(request.id) for request in requests}


# ------------------------------------------------------------------------------------------------------------ drafts


class ScriptedDrafter(Drafter):
    """Proposes from known answers, with some of the tokens made wrong; remembers what it's told."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], wrong_every: int = 0) -> None:
        self.answers, self.wrong_every = answers, wrong_every
        self.observed: list[tuple[int, int]] = []
        self.released = 0

    def propose(self, seq: LiveSeq, limit: int) -> list[int]:
        answer = self.answers[tuple(seq.tokens[: seq.prompt_len])]
        done = len(seq.tokens) - seq.prompt_len
        draft = answer[done : done + 5]
        if self.wrong_every:
            draft = [3 + (t + 1) % 250 if (done + i) % self.wrong_every == 0 else t for i, t in enumerate(draft)]
        return draft[:limit]

    def observe(self, seq: LiveSeq, proposed: Sequence[int], accepted: int) -> None:
        self.observed.append((len(proposed), accepted))

    def release(self, seq: LiveSeq) -> None:
        self.released += 1


class FailingDrafter(Drafter):
    def __init__(self, failing: str) -> None:
        self.failing = failing

    def propose(self, seq: LiveSeq, limit: int) -> Draft | Sequence[int]:
        if self.failing == "unknown ids":
            return [10**6, -1]
        if self.failing == "no ids":
            return cast(list[int], ["x", None])
        if self.failing == "no chances":
            return Draft([5, 6], [0.5, 2.0])
        return self._fail("propose") or [5]

    def observe(self, seq: LiveSeq, proposed: Sequence[int], accepted: int) -> None:
        self._fail("observe")

    def release(self, seq: LiveSeq) -> None:
        self._fail("release")

    def _fail(self, method: str) -> None:
        if method == self.failing:
            raise RuntimeError("no idea")


@pytest.mark.parametrize("wrong_every", [0, 1, 3])
@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(seed=3, top_p=0.95, presence_penalty=0.5)], ids=["greedy", "seeded"]
)
def test_drafts_change_no_token_and_right_ones_save_steps(
    tiny_engine: Engine, refit: Refit, run: Run, params: SamplingParams, wrong_every: int
) -> None:
    requests = [Request(f"d{i}", prompt(i, 20 + i), params, max_tokens=40, stop=["th"]) for i in range(4)]
    plain = run(refit(tiny_engine), *requests)
    answers = {tuple(request.prompt): plain.tokens(request.id) for request in requests}
    drafter = ScriptedDrafter(answers, wrong_every)
    engine = refit(tiny_engine, drafter=drafter, num_blocks=40, max_model_len=128)
    found = run(engine, *requests)
    for request in requests:
        assert found.tokens(request.id) == plain.tokens(request.id)
        assert found.text(request.id) == plain.text(request.id)
        assert counts(found.last(request.id).usage) == counts(plain.last(request.id).usage)
    accepted = sum(a for _, a in drafter.observed)
    assert accepted > 0 if wrong_every != 1 else accepted == 0
    assert drafter.released == len(requests)


@pytest.mark.parametrize("failing", ["propose", "observe", "release", "unknown ids", "no ids", "no chances"])
def test_a_drafter_that_fails_costs_nothing_but_its_drafts(
    tiny_engine: Engine, refit: Refit, run: Run, failing: str
) -> None:
    request = Request("f", prompt(1, 10), GREEDY, max_tokens=10)
    wanted = run(refit(tiny_engine), request).tokens("f")
    assert run(refit(tiny_engine, drafter=FailingDrafter(failing)), request).tokens("f") == wanted


class Boaster(Drafter):
    """Always proposes the same, with or without chances."""

    def __init__(self, chances: tuple[float, ...]) -> None:
        self.chances = chances

    def propose(self, seq: LiveSeq, limit: int) -> Draft:
        return Draft([5, 6, 7][:limit], self.chances[:limit])


def test_drafts_without_chances_are_judged_by_those_before_and_others_by_what_they_say(
    tiny_engine: Engine, refit: Refit
) -> None:
    def proposed(chances: tuple[float, ...]) -> list[tuple[float, ...]]:
        engine = refit(tiny_engine, drafter=Boaster(chances))
        engine.submit(Request("b", prompt(1, 10), GREEDY, max_tokens=30, ignore_eos=True))
        seen = []
        for _ in range(12):
            engine.step()
            seen.append(engine.speculate()[0].chances)
        return seen

    said = proposed((0.9, 0.8, 0.7))
    assert said == [(0.9, 0.8, 0.7)] * 12
    judged = [chances[0] for chances in proposed(())]
    assert judged[0] == 0.5
    assert judged[-1] < 0.25


# ------------------------------------------------------------------------------------------------------------- faults


class PoisonedBackend(Backend):
    """Fails on every batch that has the token 200 in it."""

    def forward(self, model: Any, inputs: StepInputs) -> torch.Tensor:
        if bool((inputs.token_ids == 200).any()):
            raise RuntimeError("poison")
        return super().forward(model, inputs)


def test_a_step_that_fails_ends_only_the_request_at_fault(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    clean = [
        Request(f"c{i}", [t for t in prompt(i, 20) if t != 200], GREEDY, max_tokens=8, ignore_eos=True)
        for i in range(5)
    ]
    biased = [evolve(r, sampling=evolve(r.sampling, logit_bias={200: -100.0})) for r in clean]
    wanted = run(refit(tiny_engine), *biased)
    bad = Request("bad", [5, 200, 6], GREEDY, max_tokens=8)
    answers = run(refit(tiny_engine, backend=PoisonedBackend()), *biased[:3], bad, *biased[3:])
    for request in biased:
        assert answers.tokens(request.id) == wanted.tokens(request.id)
    last = answers.last("bad")
    assert last.finish_reason == "error"
    assert last.error.code == "engine_fault"
    assert "poison" in last.error.message


class OddSampler(DefaultSampler):
    """A third party's sampler with a fault."""

    def __init__(self, backend: Backend, fault: str) -> None:
        super().__init__(backend)
        self.fault = fault

    def sample(self, logits: Any, masks: Any, batch: Batch) -> Picked:
        picked = super().sample(logits, masks, batch)
        if self.fault == "raises" and any(200 in span.seq.tokens for span in batch.spans):
            raise RuntimeError("not that one")
        poisoned = [self.fault != "numpy" and 200 in span.seq.tokens for span in batch.spans]
        tokens: list[Any] = [list(map(np.int64, ids)) if self.fault == "numpy" else ids for ids in picked.tokens]
        if self.fault == "nothing":
            tokens = [[] if bad else ids for ids, bad in zip(tokens, poisoned)]
        if self.fault == "too much":
            tokens = [[*ids, 5, 5] if bad else ids for ids, bad in zip(tokens, poisoned)]
        return evolve(picked, tokens=tokens)

    def release(self, seq: LiveSeq) -> None:
        super().release(seq)
        if self.fault == "release":
            raise RuntimeError("won't let go")


@pytest.mark.parametrize("fault", ["numpy", "raises", "nothing", "too much", "release"])
def test_a_samplers_fault_ends_at_most_the_request_it_concerns(
    tiny_engine: Engine, refit: Refit, run: Run, fault: str
) -> None:
    careful = evolve(GREEDY, logit_bias={200: -100.0}, frequency_penalty=0.5)  # it counts tokens, once each
    good = Request("good", [5, 6, 7], careful, max_tokens=6, ignore_eos=True)
    bad = Request("bad", [5, 200, 6], GREEDY, max_tokens=6, ignore_eos=True)
    wanted = run(refit(tiny_engine), good).tokens("good")
    engine = refit(tiny_engine)
    engine.parts = evolve(engine.parts, sampler=OddSampler(engine.parts.backend, fault))
    answers = run(engine, good, bad)
    assert answers.tokens("good") == wanted
    assert all(type(token) is int for token in answers.tokens("good"))
    assert answers.last("bad").finish_reason == ("error" if fault in ("raises", "nothing", "too much") else "length")


def test_aborts_at_any_moment_leave_nothing_behind(tiny_engine: Engine, refit: Refit) -> None:
    rng = random.Random(4)
    engine = refit(tiny_engine, num_blocks=30, max_prefill_tokens=20)
    for i in range(150):
        engine.submit(Request(f"a{i}", prompt(i % 9, rng.randrange(1, 80)), GREEDY, n=1 + i % 2, max_tokens=30))
    alive = [f"a{i}" for i in range(150)]
    while not engine.idle:
        for request_id in rng.sample(alive, k=min(3, len(alive))):
            engine.abort(request_id)
            engine.abort(request_id)
            alive.remove(request_id)
        engine.step()
        engine.check()
    assert engine.parts.kv.usage().used == 0


# ---------------------------------------------------------------------------------------------------- ends and limits


def test_an_answer_ends_at_eos_without_showing_it(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    params = SamplingParams(temperature=0.0, logit_bias={EOS: 100.0})
    last = run(refit(tiny_engine), Request("e", prompt(1, 5), params, max_tokens=10)).last("e")
    assert (last.finish_reason, last.text, last.token_ids) == ("stop", "", [])
    assert last.usage.completion_tokens == 1
    ignoring = Request("i", prompt(1, 5), params, max_tokens=10, ignore_eos=True)
    answers = run(refit(tiny_engine), ignoring)
    assert answers.last("i").finish_reason == "length"
    assert len(answers.tokens("i")) == 10
    assert EOS not in answers.tokens("i")


def test_a_stop_string_across_tokens_keeps_the_text_before_it(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    whole = run(refit(tiny_engine), Request("w", prompt(7, 9), GREEDY, max_tokens=30, ignore_eos=True)).text("w")
    clean = [i for i in range(4, len(whole) - 3) if "\ufffd" not in whole[i : i + 3]]
    stop = whole[clean[0] : clean[0] + 3]
    answers = run(
        refit(tiny_engine), Request("s", prompt(7, 9), GREEDY, max_tokens=30, ignore_eos=True, stop=["never", stop])
    )
    assert answers.text("s") == whole[: whole.index(stop)]
    assert answers.last("s").finish_reason == "stop"


def test_a_stop_token_ends_the_answer(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    tokens = run(refit(tiny_engine), Request("w", prompt(7, 9), GREEDY, max_tokens=9, ignore_eos=True)).tokens("w")
    request = Request("s", prompt(7, 9), GREEDY, max_tokens=9, stop_token_ids=[tokens[3]], ignore_eos=True)
    assert run(refit(tiny_engine), request).tokens("s") == tokens[: tokens.index(tokens[3])]


@pytest.mark.parametrize("setup", [{}, {"max_prefill_tokens": 7}, {"num_blocks": 10, "max_model_len": 128}])
def test_prompt_scores_are_the_models_and_come_once(
    tiny_engine: Engine, refit: Refit, run: Run, setup: dict[str, Any]
) -> None:
    ids = prompt(3, 40)
    scored = SamplingParams(temperature=0.0, logprobs=1)
    requests = [
        Request("only", ids, scored, max_tokens=0, prompt_logprobs=True),
        Request("both", ids, scored, max_tokens=20, prompt_logprobs=True, ignore_eos=True),
        *(Request(f"x{i}", prompt(i, 50), GREEDY, max_tokens=30, ignore_eos=True) for i in range(2)),
    ]
    engine = refit(tiny_engine, **setup)
    answers = run(engine, *requests)
    parts = tiny_engine.parts
    singles = []  # one by one: what the model says after each prefix, as the first drawn token's scores
    for length in range(1, len(ids)):
        forced = SamplingParams(temperature=0.0, logprobs=0, logit_bias={ids[length]: 100.0})
        step = Request(f"l{length}", ids[:length], forced, max_tokens=1, ignore_eos=True)
        singles.append(run(refit(tiny_engine), step).of(f"l{length}")[-1].logprobs[0].token)
    for name in ("only", "both"):
        reported = [lp for delta in answers.of(name) for lp in delta.prompt_logprobs or ()]
        assert [lp.token for lp in reported] == pytest.approx(singles, abs=1e-3)
    only = answers.last("only")
    assert (only.finish_reason, only.token_ids, only.usage.completion_tokens) == ("length", [], 0)
    assert len(answers.tokens("both")) == 20
    assert parts.model.vocab_size > max(ids)


def test_simultaneous_requests_with_one_new_prefix_compute_it_once(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    """Each prompt differs from the first one a token later than the one before it, around a border of blocks."""
    shared = prompt(3, 200)
    requests = [
        Request(f"s{i}", [*shared[: 190 + i], *prompt(50 + i, 10 - i)], GREEDY, max_tokens=6, ignore_eos=True)
        for i in range(8)
    ]
    cold = [run(refit(tiny_engine), request).tokens(request.id) for request in requests]
    engine = refit(tiny_engine, max_prefill_tokens=64)
    rows = []
    schedule = engine.parts.scheduler.schedule

    def counted(drafts: Any) -> Batch | None:
        batch = schedule(drafts)
        rows.append(batch.rows if batch is not None else 0)
        return batch

    engine.parts.scheduler.schedule = counted  # type: ignore[method-assign]
    answers = run(engine, *requests)
    assert [answers.tokens(request.id) for request in requests] == cold
    found = [answers.last(request.id).usage.cached_tokens for request in requests]
    assert found == [0, 176, 176, 192, 192, 192, 192, 192], "whole blocks of 16 that somebody before has"
    assert sum(rows) == 8 * 200 - sum(found) + 8 * 5


def test_the_better_priority_is_answered_first(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    engine = refit(tiny_engine, max_batch_size=1)
    requests = [
        Request(f"p{priority}", prompt(priority, 20), GREEDY, max_tokens=4, ignore_eos=True, priority=priority)
        for priority in (3, 1, 0, 2)
    ]
    answers = run(engine, *requests)
    assert [delta.request_id for delta in answers.deltas if delta.finish_reason] == ["p0", "p1", "p2", "p3"]


def test_choices_of_one_request_differ_and_share_the_prompts_blocks(
    tiny_engine: Engine, refit: Refit, run: Run
) -> None:
    engine = refit(tiny_engine)
    answers = run(engine, Request("n", prompt(5, 64), SamplingParams(seed=9), n=4, max_tokens=8, ignore_eos=True))
    texts = {tuple(answers.tokens("n", choice)) for choice in range(4)}
    assert len(texts) == 4
    assert [answers.last("n", choice).usage.cached_tokens for choice in range(4)].count(48) == 3


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Request("x", [], GREEDY), InvalidRequest, "no tokens"),
        (Request("x", [5, 999], GREEDY), InvalidRequest, "between 0 and"),
        (Request("x", [-1], GREEDY), InvalidRequest, "between 0 and"),
        (Request("x", [5] * 513, GREEDY), ContextLengthExceeded, "513"),
        (Request("x", [5] * 512, GREEDY), ContextLengthExceeded, "512"),
        (Request("x", [5] * 500, GREEDY, max_tokens=20), ContextLengthExceeded, "520"),
        (Request("x", [5], GREEDY, n=9, max_tokens=2), InvalidRequest, "8"),
    ],
    ids=["empty", "unknown id", "negative id", "too long", "no room to answer", "answer too long", "too many choices"],
)
def test_what_cannot_be_served_is_refused_at_once_with_the_figures(
    tiny_engine: Engine, refit: Refit, request_: Request, error: type[Exception], words: str
) -> None:
    engine = refit(tiny_engine, max_queue=8)
    with pytest.raises(error, match=words):
        engine.submit(request_)
    engine.check()
    assert engine.idle


def test_a_full_queue_refuses_until_there_is_room(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    engine = refit(tiny_engine, max_queue=8)
    engine.submit(Request("first", prompt(1, 9), GREEDY, n=8, max_tokens=2))
    with pytest.raises(QueueFull) as refused:
        engine.submit(Request("second", prompt(2, 9), GREEDY, max_tokens=2))
    assert refused.value.retry_after
    run(engine)
    run(engine, Request("second", prompt(2, 9), GREEDY, max_tokens=2))


def test_without_a_limit_an_answer_may_fill_the_context(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    last = run(refit(tiny_engine), Request("x", [5] * 480, GREEDY, ignore_eos=True)).last("x")
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 32)


def test_two_requests_with_one_id_are_refused(tiny_engine: Engine, refit: Refit, run: Run) -> None:
    engine = refit(tiny_engine)
    engine.submit(Request("same", [5], GREEDY, max_tokens=2))
    with pytest.raises(InvalidRequest, match="same"):
        engine.submit(Request("same", [6], GREEDY, max_tokens=2))
    run(engine)
