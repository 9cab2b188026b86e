"""The sampler: right rows to right sequences, drafts accepted as far as they equal the draws, counts that are right."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from forge.builtin.sampler import DefaultSampler, History
from forge.interfaces.backend import Backend
from forge.interfaces.sampler import RowSampling, Sampled, SamplingParams, philox4x32, uniforms
from forge.interfaces.scheduler import Batch, Outputs, Span

VOCABULARY = 100


@define
class FakeSequence:
    """A sequence as the sampler sees it."""

    id: int
    tokens: list[int]
    prompt_len: int
    sampling: SamplingParams = field(factory=SamplingParams)
    choice: int = 0
    banned: tuple[int, ...] = ()
    matcher: None = None
    prompt_logprobs: bool = False
    num_computed: int = 0
    num_cached: int = 0
    max_len: int = 1000
    priority: int = 0
    arrival: float = 0.0


@define
class RecordingBackend(Backend):
    """The plain backend, which remembers what it was asked."""

    seen: list[RowSampling] = field(factory=list)

    def sample(self, logits: torch.Tensor, rows: RowSampling) -> Sampled:
        self.seen.append(rows)
        return super().sample(logits, rows)


def logits_of(seq: FakeSequence, position: int) -> torch.Tensor:
    """What the 'model' says after the tokens before `position`: a function of the last token and the position."""
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(position * 1000 + seq.id)) * 2


def sample(sampler: DefaultSampler, spans: list[Span], slab: int = 64) -> Any:
    """Run the sampler with the logits of each span's output rows, in slabs."""
    rows = [logits_of(span.seq, span.start + row + 1) for span in spans for row in span.output_rows]
    return sampler.sample(list(torch.stack(rows).split(slab)) if rows else [], {}, Batch(tuple(spans)))


def decode(seq: FakeSequence, drafts: tuple[int, ...] = ()) -> Span:
    return Span(seq, len(seq.tokens) - 1, 1 + len(drafts), drafts)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(seed=5, top_p=0.9)])
@pytest.mark.parametrize("slab", [64, 2])
def test_a_draft_is_accepted_as_far_as_it_equals_the_draws(params: SamplingParams, slab: int) -> None:
    sampler = DefaultSampler(Backend(threads=1))
    seq = FakeSequence(1, [1, 2, 3], prompt_len=3, sampling=params)
    plain = []
    for _ in range(5):
        plain += sample(sampler, [decode(seq)]).tokens[0]
        seq = evolve(seq, tokens=[1, 2, 3, *plain])
    start = FakeSequence(1, [1, 2, 3], prompt_len=3, sampling=params)
    wrong = (plain[2] + 1) % VOCABULARY
    other = FakeSequence(2, [4], prompt_len=1)
    second = (plain[0] + 1) % VOCABULARY
    cases = [((), 0), (tuple(plain[:4]), 4), ((*plain[:2], wrong, plain[3]), 2), ((second,), 0)]
    for drafts, accepted in cases:
        picked = sample(DefaultSampler(Backend()), [decode(other), decode(start, drafts)], slab)
        assert picked.tokens[1] == plain[: accepted + 1]
        assert len(picked.tokens[0]) == 1


def test_draws_with_penalties_are_the_same_with_and_without_drafts() -> None:
    params = SamplingParams(temperature=0.0, frequency_penalty=2.0, presence_penalty=1.0, repetition_penalty=1.5)
    seq = FakeSequence(3, [9, 8, 7], prompt_len=3, sampling=params)
    sampler, plain = DefaultSampler(Backend()), []
    for _ in range(6):
        plain += sample(sampler, [decode(seq)]).tokens[0]
        seq = evolve(seq, tokens=[9, 8, 7, *plain])
    again = evolve(seq, tokens=[9, 8, 7, *plain[:2]])
    picked = sample(DefaultSampler(Backend()), [decode(again, tuple(plain[2:5]))])
    assert picked.tokens == [plain[2:6]]


def test_a_prompt_chunk_draws_nothing_and_the_last_one_draws_one() -> None:
    seq = FakeSequence(1, list(range(10)), prompt_len=10)
    chunk, last = Span(seq, 0, 6), Span(evolve(seq, id=2), 6, 4)
    assert (chunk.outputs, last.outputs) == (Outputs.NONE, Outputs.LAST)
    picked = sample(DefaultSampler(Backend()), [chunk, last])
    assert [len(tokens) for tokens in picked.tokens] == [0, 1]


def test_scored_prompts_report_the_probability_of_each_of_their_own_tokens() -> None:
    params = SamplingParams(temperature=0.0, logprobs=2)
    seq = FakeSequence(4, [5, 6, 7, 8, 9], prompt_len=5, sampling=params, prompt_logprobs=True)
    sampler = DefaultSampler(Backend())
    first, second = Span(seq, 0, 3), Span(seq, 3, 2)
    picked = sample(sampler, [first])
    assert picked.tokens == [[]]
    scored = picked.prompt_logprobs[0] + sample(sampler, [second]).prompt_logprobs[0]
    wanted = [float(logits_of(seq, p).log_softmax(-1)[seq.tokens[p]]) for p in range(1, 5)]
    assert [lp.token for lp in scored] == pytest.approx(wanted, abs=1e-5)
    assert all(len(lp.top) == 2 and lp.top[0][1] >= lp.top[1][1] for lp in scored)
    (token,) = sample(sampler, [second]).tokens[0]
    assert token == int(logits_of(seq, 5).argmax())


def test_each_row_gets_only_as_many_alternatives_as_it_asked_for() -> None:
    seqs = [FakeSequence(i, [1], 1, SamplingParams(logprobs=n)) for i, n in enumerate((None, 0, 3))]
    picked = sample(DefaultSampler(Backend()), [decode(seq) for seq in seqs])
    assert picked.logprobs[0] is None
    assert [len(picked.logprobs[i][0].top) for i in (1, 2)] == [0, 3]


@given(st.lists(st.integers(0, 20), max_size=30), st.lists(st.lists(st.integers(0, 20), max_size=5), max_size=6))
def test_history_counts_the_answer_and_knows_the_prompt(prompt: list[int], steps: list[list[int]]) -> None:
    history = History(prompt)
    for step in steps:
        before = dict(zip(history.ids, history.counts))
        drafted = history.copy()
        drafted.extend([99, 99])
        assert dict(zip(history.ids, history.counts)) == before
        history.extend(step)
    generated = Counter(token for step in steps for token in step)
    assert dict(zip(history.ids, history.counts)) == {t: generated[t] for t in {*prompt, *generated}}


def test_counts_survive_a_preemption_and_are_dropped_at_the_end() -> None:
    backend = RecordingBackend()
    sampler = DefaultSampler(backend)
    seq = FakeSequence(1, [1, 2, 50, 50, 51], prompt_len=2, sampling=SamplingParams(frequency_penalty=1.0))
    sample(sampler, [decode(seq)])
    sample(sampler, [Span(seq, 0, 5)])  # recomputed from the start
    for rows in backend.seen:
        assert rows.history_ids is not None
        assert rows.history_counts is not None
        assert dict(zip(rows.history_ids.tolist(), rows.history_counts.tolist())) == {50: 2, 51: 1}
    assert len(sampler.state()) == 1
    sampler.release(seq)
    assert not sampler.state()


def test_banned_ids_and_biases_reach_their_own_rows_only() -> None:
    banned = FakeSequence(1, [1], 1, SamplingParams(temperature=0.0), banned=tuple(range(1, VOCABULARY)))
    biased = FakeSequence(2, [1], 1, SamplingParams(temperature=0.0, logit_bias={42: 100.0}))
    plain = FakeSequence(3, [1], 1, SamplingParams(temperature=0.0))
    picked = sample(DefaultSampler(Backend()), [decode(seq) for seq in (banned, biased, plain)])
    assert picked.tokens == [[0], [42], [int(logits_of(plain, 1).argmax())]]


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_random_numbers_are_philox_by_its_published_test_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    words = philox4x32([np.array([w], np.uint64) for w in counter], [np.array([w], np.uint64) for w in key])
    assert tuple(int(w[0]) for w in words) == wanted


def test_random_numbers_are_uniform_and_differ_by_seed_choice_and_position() -> None:
    count = 100_000
    zeros, running = np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32)
    for columns in [(running.astype(np.uint64), zeros, zeros), (zeros.astype(np.uint64), running, zeros),
                    (zeros.astype(np.uint64), zeros, running)]:  # fmt: skip
        u = uniforms(*columns)
        assert u.min() >= 0
        assert u.max() < 1
        histogram = np.bincount((u * 100).astype(int), minlength=100)
        assert ((histogram - 1000) ** 2 / 1000).sum() < 180, "chi-square of 99 degrees of freedom, p < 1e-6"
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02


def test_draws_stay_the_same_whoever_joins_leaves_or_asks_for_more() -> None:
    first = SamplingParams(seed=5, top_p=0.9, temperature=1.3)
    greedy, penalized = SamplingParams(temperature=0.0), SamplingParams(seed=2, presence_penalty=1.0)
    told = SamplingParams(seed=3, logprobs=2)
    batches: list[list[tuple[int, SamplingParams, tuple[int, ...]]]] = [
        [(1, first, ())], [(1, first, ()), (2, greedy, ())], [(1, first, ()), (2, greedy, (7, 8))],
        [(3, penalized, ()), (1, first, ())], [(1, first, ()), (4, told, ())], [(1, first, ()), (2, greedy, ())],
        [(2, greedy, ()), (1, first, ())], [(1, first, (9,))], [(1, first, ())], [(1, first, ())],
    ]  # fmt: skip
    together, alone = DefaultSampler(Backend(threads=1)), {}
    for step, members in enumerate(batches):
        seqs = [FakeSequence(i, [i] * (step + 2), 1, sampling=params, banned=banned) for i, params, banned in members]
        picked = sample(together, [decode(seq) for seq in seqs], slab=1 + step % 2)
        for seq, tokens, logprobs in zip(seqs, picked.tokens, picked.logprobs, strict=True):
            fresh = sample(DefaultSampler(Backend(threads=1)), [decode(seq)])
            assert (tokens, logprobs) == (fresh.tokens[0], fresh.logprobs[0])
            assert not set(tokens) & set(seq.banned)
            alone[step, seq.id] = tokens
    assert len({tuple(tokens) for (_, i), tokens in alone.items() if i == 1}) > 3
