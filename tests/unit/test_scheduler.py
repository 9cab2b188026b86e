"""The continuous scheduler on both caches: who is served when, and a simulated engine that lives by its contract.

After every step the engine proves that each sequence finds all of its own tokens, in order, where its table points.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

import pytest
from attrs import define, evolve, field
from forge_kv_paged.naive import NaiveKVCache
from forge_kv_paged.paged import PagedKVCache
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.builtin.policy import LEAST_TOKENS, SMOOTH_SECONDS, STALL
from forge.builtin.scheduler import ContinuousScheduler, fair_shares
from forge.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from forge.interfaces.cost import StepCost
from forge.interfaces.drafter import Draft
from forge.interfaces.kv_cache import CacheShape, KVCache
from forge.interfaces.scheduler import Batch, Outputs, SchedulerLimits
from forge.testing.kv_cache import ModelledPages, PlainSequence

LIMITS = SchedulerLimits(max_batch_size=8, max_prefill_tokens=64, max_model_len=512, max_queue=100)


@define(eq=False)
class SimulatedEngine:
    """Forge's engine without a model: schedules, "computes" into slots, draws a function of the history, commits.

    eos: the token that ends a sequence, if any does.
    """

    kv: KVCache
    limits: SchedulerLimits
    eos: int | None = None
    scheduler: ContinuousScheduler = field(init=False)
    pages: ModelledPages = field(init=False)
    done: dict[int, list[int]] = field(factory=dict)
    steps: int = 0

    def __attrs_post_init__(self) -> None:
        self.scheduler = ContinuousScheduler(self.kv, self.limits)
        self.pages = ModelledPages(self.kv)

    def submit(self, seq: PlainSequence) -> None:
        self.scheduler.check(seq.prompt_len, seq.max_len, 1)
        self.scheduler.add(seq)

    def step(self, drafts: Mapping[int, Draft] | None = None) -> Batch | None:
        """One step; returns what was computed."""
        proposed = drafts or {}
        batch = self.scheduler.schedule(proposed)
        if batch is None:
            return None
        self.steps += 1
        self.check(batch)
        for span in batch.spans:
            self.pages.write(_plain(span.seq), span.start, span.token_ids)
        for span in batch.spans:
            self._commit(_plain(span.seq), span.stop, span.drafts, span.samples)
        self.kv.check()
        return batch

    def _commit(self, seq: PlainSequence, stop: int, drafts: tuple[int, ...], samples: bool) -> None:
        seq.num_computed = stop - len(drafts)
        if samples:
            for guess in (*drafts, None):
                assert self.pages.holds(seq, len(seq.tokens)), f"{seq} reads what isn't its own"
                seq.tokens.append(next_token(seq.tokens))
                if seq.tokens[-1] == self.eos or len(seq.tokens) == seq.max_len:
                    self._finish(seq)
                    return
                if seq.tokens[-1] != guess:
                    break
                seq.num_computed += 1
            if drafts:
                self.kv.truncate(seq, seq.num_computed)
        self.kv.publish(seq, seq.num_computed)

    def _finish(self, seq: PlainSequence) -> None:
        self.done[seq.id] = seq.tokens[seq.prompt_len :]
        self.kv.publish(seq, seq.num_computed)
        self.scheduler.finished(seq)

    def check(self, batch: Batch) -> None:
        """What holds for every batch."""
        ids = [span.seq.id for span in batch.spans]
        assert len(set(ids)) == len(ids), "a sequence twice in a batch"
        assert len(ids) <= self.limits.max_batch_size
        assert set(ids) <= {seq.id for seq in self.scheduler.running}
        prompt_tokens = 0
        for span in batch.spans:
            assert span.start == span.seq.num_computed
            assert span.length >= 1
            assert len(self.kv.table(span.seq)) * self.kv.shape.block_size >= span.stop, "no slot for a position"
            if span.length - len(span.drafts) > 1 or span.outputs is Outputs.NONE:
                prompt_tokens += span.length
        assert prompt_tokens <= self.limits.max_prefill_tokens
        decoding = {seq.id for seq in self.scheduler.running if len(seq.tokens) - seq.num_computed == 1}
        assert decoding <= set(ids), "a decode was delayed"

    def run(self) -> None:
        """Steps until nothing is left."""
        while self.scheduler.waiting or self.scheduler.running:
            assert self.step() is not None, "sequences are left, and nothing is computed"
        assert self.kv.usage().used == 0


def _plain(seq: object) -> PlainSequence:
    assert isinstance(seq, PlainSequence)
    return seq


def next_token(history: Seq[int]) -> int:
    """What follows a history: one of twelve tokens."""
    value = 17
    for token in history:
        value = (value * 31 + token + 7) % 1_000_003
    return value % 12


def alone(prompt: Seq[int], max_len: int, eos: int | None = None) -> list[int]:
    """The answer by definition, without engine, scheduler or cache."""
    tokens = list(prompt)
    while len(tokens) < max_len:
        tokens.append(next_token(tokens))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


def paged(num_blocks: int, block_size: int = 4) -> KVCache:
    return PagedKVCache(CacheShape(num_blocks, block_size))


def naive(num_blocks: int, block_size: int = 64) -> KVCache:
    return NaiveKVCache(CacheShape(num_blocks, block_size))


def prompt(number: int, length: int) -> list[int]:
    """Tokens that no other number's prompt begins with."""
    return [1000 + number, *range(1, length)]


def sequence(number: int, length: int, answer: int = 20, priority: int = 0) -> PlainSequence:
    return PlainSequence(number, prompt(number, length), length + answer, priority, arrival=float(number))


def spans(batch: Batch | None) -> dict[int, int]:
    """Lengths of a batch's spans, by sequence."""
    assert batch is not None
    return {span.seq.id: span.length for span in batch.spans}


@pytest.fixture
def engine() -> SimulatedEngine:
    return SimulatedEngine(paged(1000), LIMITS)


# -- budget and fairness


def test_nothing_to_do(engine: SimulatedEngine) -> None:
    assert engine.step() is None


def test_a_long_prompt_is_computed_in_chunks(engine: SimulatedEngine) -> None:
    engine.submit(sequence(1, 150))
    assert [spans(engine.step()) for _ in range(4)] == [{1: 64}, {1: 64}, {1: 22}, {1: 1}]


def test_a_short_prompt_does_not_wait_for_a_long_one(engine: SimulatedEngine) -> None:
    engine.submit(sequence(1, 400))
    engine.step()
    engine.submit(sequence(2, 5))
    assert spans(engine.step()) == {1: 59, 2: 5}


def test_long_prompts_share_the_budget_evenly(engine: SimulatedEngine) -> None:
    for number in range(3):
        engine.submit(sequence(number, 200))
    assert spans(engine.step()) == {0: 22, 1: 21, 2: 21}


def test_only_some_long_prompts_share_and_short_ones_pass_those_that_wait(engine: SimulatedEngine) -> None:
    for number in range(6):
        engine.submit(sequence(number, 200))
    engine.submit(sequence(6, 8))
    assert spans(engine.step()) == {0: 14, 1: 14, 2: 14, 3: 14, 6: 8}
    assert [seq.id for seq in engine.scheduler.waiting] == [4, 5]


def test_decodes_go_on_in_every_step_beside_prompts(engine: SimulatedEngine) -> None:
    decoding = [sequence(number, 3, answer=100) for number in range(3)]
    for seq in decoding:
        engine.submit(seq)
    engine.step()
    engine.submit(sequence(9, 300))
    for _ in range(4):
        batch = engine.step()
        assert batch is not None
        running = {seq.id for seq in decoding if seq.id not in engine.done}
        lengths = spans(batch)
        assert all(lengths[number] == 1 for number in running)
        assert lengths[9] == 64
        assert batch.spans[-1].seq.id == 9, "decodes come first"


def test_no_more_sequences_than_the_batch_has_seats(engine: SimulatedEngine) -> None:
    for number in range(20):
        engine.submit(sequence(number, 2))
    assert list(spans(engine.step())) == list(range(8))
    assert len(engine.scheduler.waiting) == 12


def test_a_better_priority_is_served_first_and_gets_the_rest_of_the_budget(engine: SimulatedEngine) -> None:
    engine.submit(sequence(1, 400, priority=5))
    engine.submit(sequence(2, 400, priority=1))
    assert spans(engine.step()) == {2: 56, 1: 8}


def test_a_better_priority_starts_although_others_fill_the_budget(engine: SimulatedEngine) -> None:
    for number in range(4):
        engine.submit(sequence(number, 400, priority=5))
    engine.step()
    engine.submit(sequence(9, 400, priority=0))
    assert spans(engine.step())[9] == 32


@settings(derandomize=True)
@given(st.integers(0, 500), st.lists(st.integers(0, 100), max_size=12))
def test_shares_are_max_min_fair(budget: int, wants: list[int]) -> None:
    shares = fair_shares(budget, wants)
    assert sum(shares) == min(budget, sum(wants))
    unsatisfied = [share for share, want in zip(shares, wants) if share < want]
    assert all(share <= want for share, want in zip(shares, wants))
    if unsatisfied:  # nobody has more than one who wants more, but for an odd unit
        assert max(shares) <= min(unsatisfied) + 1


# -- blocks


def test_the_youngest_is_preempted_and_later_continues_its_answer() -> None:
    engine = SimulatedEngine(paged(10), LIMITS)
    sequences = [sequence(number, 12, answer=20) for number in range(2)]
    for seq in sequences:
        engine.submit(seq)
    engine.run()
    assert engine.scheduler.preemptions >= 1
    assert engine.done == {seq.id: alone(prompt(seq.id, 12), 32) for seq in sequences}


def test_the_worst_priority_is_preempted_before_the_youngest() -> None:
    engine = SimulatedEngine(paged(9), LIMITS)
    early, late = sequence(1, 12, priority=5), sequence(2, 12, priority=0)
    for seq in (early, late):
        seq.max_len = 36
        engine.submit(seq)
    while not engine.scheduler.preemptions:
        assert engine.step() is not None
    assert [seq.id for seq in engine.scheduler.running] == [2]
    assert [seq.id for seq in engine.scheduler.waiting] == [1]
    assert early.num_computed == 0


def test_a_preempted_sequence_is_the_next_of_those_that_wait() -> None:
    engine = SimulatedEngine(paged(10), evolve(LIMITS, max_batch_size=2))
    for number in range(5):
        engine.submit(sequence(number, 12, answer=28))
    while not engine.scheduler.preemptions:
        engine.step()
    assert engine.scheduler.waiting[0].id == 1
    assert [seq.id for seq in engine.scheduler.running] == [0]


def test_nobody_is_let_in_at_the_expense_of_those_who_run() -> None:
    engine = SimulatedEngine(paged(8), LIMITS)
    engine.submit(sequence(1, 12, answer=8))  # 3 blocks, 5 at its end
    engine.step()
    engine.submit(sequence(2, 15, answer=8))  # 4 blocks: they're there, but not one more for each
    engine.step()
    assert [seq.id for seq in engine.scheduler.waiting] == [2]
    engine.run()
    assert engine.scheduler.preemptions == 0


def test_the_naive_cache_fills_its_last_block() -> None:
    engine = SimulatedEngine(naive(4), LIMITS)
    for number in range(5):
        engine.submit(sequence(number, 4))
    assert list(spans(engine.step())) == [0, 1, 2, 3]


def test_drafts_are_dropped_before_anybody_is_preempted() -> None:
    engine = SimulatedEngine(paged(4), LIMITS)
    first, second = (PlainSequence(number, prompt(number, 5), 8, arrival=float(number)) for number in (1, 2))
    for seq in (first, second):
        engine.submit(seq)
    engine.step()
    assert len(first.tokens) == len(second.tokens) == 6
    first.max_len = second.max_len = 100
    batch = engine.scheduler.schedule({1: Draft([1] * 9), 2: Draft([1] * 9)})
    assert batch is not None
    assert [(span.seq.id, span.length, len(span.drafts)) for span in batch.spans] == [(1, 3, 2), (2, 3, 2)]
    assert engine.scheduler.preemptions == 0


def test_drafts_never_reach_beyond_the_end_of_a_sequence(engine: SimulatedEngine) -> None:
    seq = PlainSequence(1, prompt(1, 5), 9)
    engine.submit(seq)
    engine.step()
    assert len(seq.tokens) == 6
    batch = engine.scheduler.schedule({1: Draft([1] * 9)})
    assert batch is not None
    assert len(batch.spans[0].drafts) == 2, "with the token after them, the sequence has its 9"


# -- prefixes


def test_followers_of_one_prompt_compute_only_what_is_theirs(engine: SimulatedEngine) -> None:
    shared = list(range(1, 41))
    sequences = [PlainSequence(number, [*shared, 100 + number], 60, arrival=float(number)) for number in range(5)]
    for seq in sequences:
        engine.submit(seq)
    assert spans(engine.step()) == {0: 41}
    assert len(engine.scheduler.waiting) == 4
    assert spans(engine.step()) == dict.fromkeys(range(5), 1)
    assert [seq.num_cached for seq in sequences] == [0, 40, 40, 40, 40]


def test_those_who_wait_for_a_prefix_do_not_hold_up_others(engine: SimulatedEngine) -> None:
    long = list(range(1, 301))
    engine.submit(PlainSequence(1, long, 320, arrival=1.0))
    engine.submit(PlainSequence(2, long, 320, arrival=2.0))
    engine.submit(sequence(3, 6))
    assert spans(engine.step()) == {1: 58, 3: 6}


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_follower_takes_over_when_its_leader_is_aborted(engine: SimulatedEngine, after: int) -> None:
    long = list(range(1, 301))
    first, second, third = (PlainSequence(number, list(long), 320, arrival=float(number)) for number in range(3))
    for seq in (first, second, third):
        engine.submit(seq)
    for _ in range(1 + after):
        engine.step()
    engine.scheduler.abort(first.id)
    computed = 64 * (1 + after)
    assert spans(engine.step()) == {second.id: min(64, 300 - computed)}
    assert second.num_cached == computed
    engine.run()
    assert engine.done == {1: alone(long, 320), 2: alone(long, 320)}


def test_a_scored_prompt_is_computed_in_full_beside_its_like(engine: SimulatedEngine) -> None:
    first, scored = sequence(1, 20), sequence(2, 20)
    scored.tokens[:] = first.tokens
    scored.prompt_logprobs = True
    engine.submit(first)
    engine.submit(scored)
    assert spans(engine.step()) == {1: 20, 2: 20}
    assert scored.num_cached == 0


def test_cached_tokens_are_those_of_the_first_start_not_of_a_recompute() -> None:
    engine = SimulatedEngine(paged(10), LIMITS)
    sequences = [sequence(number, 12, answer=20) for number in range(2)]
    for seq in sequences:
        engine.submit(seq)
    engine.run()
    assert engine.scheduler.preemptions
    assert [seq.num_cached for seq in sequences] == [0, 0]


# -- refusals


@pytest.mark.parametrize(
    ("prompt_len", "max_len", "message"),
    [
        (500, 600, r"500 prompt tokens and 100 requested ones make 600.*context of 512"),
        (600, 600, r"600 prompt tokens: more than the context of 512"),
        (600, 512, r"600 prompt tokens: more than the context of 512"),
        (300, 450, r"300 prompt tokens and 150 requested ones make 450.*KV cache holds, 400"),
    ],
)
def test_what_never_fits_is_refused_with_the_figures(prompt_len: int, max_len: int, message: str) -> None:
    scheduler = ContinuousScheduler(paged(100), LIMITS)
    with pytest.raises(ContextLengthExceeded, match=message):
        scheduler.check(prompt_len, max_len, 1)


def test_what_fits_exactly_is_served() -> None:
    engine = SimulatedEngine(paged(10), LIMITS)
    engine.submit(PlainSequence(1, prompt(1, 30), 40))
    engine.submit(PlainSequence(2, prompt(2, 40), 40))
    engine.scheduler.abort(2)
    engine.run()
    assert engine.done == {1: alone(prompt(1, 30), 40)}


def test_an_empty_prompt_is_refused(engine: SimulatedEngine) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        engine.scheduler.check(0, 10, 1)


def test_a_full_queue_says_when_to_come_back() -> None:
    engine = SimulatedEngine(paged(100), evolve(LIMITS, max_queue=10, max_batch_size=4))
    for number in range(9):
        engine.submit(sequence(number, 3))
    with pytest.raises(QueueFull, match="9 sequences wait and 2 more would exceed 10") as refused:
        engine.scheduler.check(3, 10, 2)
    assert refused.value.retry_after == 3
    engine.step()
    engine.scheduler.check(3, 10, 5)  # 5 wait, those that run don't count
    with pytest.raises(InvalidRequest, match="11 answers"):
        engine.scheduler.check(3, 10, 11)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that moves the time the scheduler sees."""
    now = [1000.0]
    monkeypatch.setattr("forge.builtin.scheduler.time.monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def busy(clock: Callable[[float], None], waiting: int, each: float) -> SimulatedEngine:
    """One seat, somebody leaves every `each` seconds, and so many more wait."""
    engine = SimulatedEngine(paged(1000), evolve(LIMITS, max_batch_size=1, queue_timeout=60.0))
    for number in range(40):
        engine.submit(sequence(number, 3, answer=1))
    for _ in range(30):
        engine.step()
        clock(each)
    for number in range(10, waiting):
        engine.scheduler.add(sequence(100 + number, 3, answer=1))
    assert len(engine.scheduler.waiting) == waiting
    return engine


def test_a_queue_that_would_take_longer_than_its_limit_says_how_long(clock: Callable[[float], None]) -> None:
    engine = busy(clock, waiting=40, each=2.0)  # 80 seconds
    with pytest.raises(QueueFull, match=r"40 sequences wait, which takes 80 s, more than 60") as refused:
        engine.scheduler.check(3, 10, 1)
    assert refused.value.retry_after == 40


def test_a_queue_that_moves_fast_enough_takes_more(clock: Callable[[float], None]) -> None:
    busy(clock, waiting=40, each=1.0).scheduler.check(3, 10, 1)
    engine = busy(clock, waiting=40, each=2.0)
    engine.scheduler.limits = evolve(engine.scheduler.limits, queue_timeout=0.0)
    engine.scheduler.check(3, 10, 1)


def test_quiet_times_do_not_make_a_queue_look_slow(clock: Callable[[float], None]) -> None:
    """Sixteen requests within an hour, each served at once, say nothing of how long the next ones would wait."""
    engine = SimulatedEngine(paged(1000), evolve(LIMITS, max_batch_size=2, queue_timeout=60.0))
    for number in range(40):
        engine.submit(sequence(number, 3, answer=1))
        engine.step()
        clock(90.0)
    for number in range(100, 110):
        engine.scheduler.check(3, 10, 1)
        engine.submit(sequence(number, 3, answer=20))
        engine.step()


# -- aborts


def test_a_sequence_can_be_aborted_while_it_waits_computes_and_decodes(engine: SimulatedEngine) -> None:
    for number in range(10):
        engine.submit(sequence(number, 100))
    engine.scheduler.abort(9)
    engine.step()
    engine.scheduler.abort(0)
    assert [seq.id for seq in engine.scheduler.running] == [1, 2, 3]
    engine.scheduler.abort(0)
    engine.scheduler.abort(12345)
    engine.run()
    assert set(engine.done) == set(range(1, 9))


def test_an_aborted_sequence_is_forgotten_wherever_it_was(engine: SimulatedEngine) -> None:
    sequences = [sequence(1, 300), sequence(1, 300), sequence(1, 300), sequence(4, 3)]
    for number, seq in enumerate(sequences):
        seq.id = number  # the second and third wait for the first one's prefix
        engine.submit(seq)
    engine.step()
    engine.step()
    traces = [weakref.ref(seq) for seq in sequences]
    del seq
    sequences.clear()
    for number in range(len(traces)):
        engine.scheduler.abort(number)
    gc.collect()
    assert [trace() for trace in traces] == [None] * 4


def test_blocks_found_by_those_who_wait_do_not_keep_out_the_only_one_that_could_run() -> None:
    engine = SimulatedEngine(paged(10), evolve(LIMITS, max_prefill_tokens=16))
    leader, follower = PlainSequence(1, prompt(1, 36), 40), PlainSequence(2, prompt(1, 36), 40)
    engine.submit(leader)
    engine.submit(follower)
    engine.step()
    engine.step()  # the follower has found four blocks
    engine.submit(PlainSequence(3, prompt(3, 40), 40, priority=-1))
    engine.scheduler.abort(leader.id)
    assert spans(engine.step()) == {3: 16}
    engine.scheduler.abort(3)
    engine.run()
    assert engine.done == {2: alone(prompt(1, 36), 40)}


# -- random traces


@define
class Trace:
    """How a random run goes, drawn by hypothesis."""

    seed: int
    blocks: int
    block_size: int
    batch: int
    prefill: int
    naive: bool


traces = st.builds(
    Trace,
    seed=st.integers(0, 1 << 32),
    blocks=st.integers(2, 40),
    block_size=st.integers(1, 8),
    batch=st.integers(1, 8),
    prefill=st.integers(1, 48),
    naive=st.sampled_from([False, False, False, True]),
)


@settings(max_examples=800, deadline=None, derandomize=True)
@given(traces)
def test_random_traces_all_finish_with_the_answers_they_get_alone(trace: Trace) -> None:
    draw = random.Random(trace.seed)
    limits = SchedulerLimits(trace.batch, trace.prefill, max_model_len=60, max_queue=1000)
    kv = naive(1 + trace.blocks // 8, 60) if trace.naive else paged(trace.blocks, trace.block_size)
    engine = SimulatedEngine(kv, limits, eos=0)
    prompts = _arrivals(draw, min(60, kv.max_sequence_len))
    expected = {seq.id: alone(seq.tokens, seq.max_len, eos=0) for seq in prompts}
    aborted: set[int] = set()
    pending = list(prompts)
    while pending or engine.scheduler.waiting or engine.scheduler.running:
        while pending and draw.random() < 0.4:
            engine.submit(pending.pop(0))
        alive = [*engine.scheduler.running, *engine.scheduler.waiting]
        if alive and draw.random() < 0.03:
            victim = draw.choice(alive)
            engine.scheduler.abort(victim.id)
            aborted.add(victim.id)
        drafts = {seq.id: _drafts(draw, seq.tokens) for seq in engine.scheduler.running if draw.random() < 0.5}
        left = engine.scheduler.running or engine.scheduler.waiting
        assert (engine.step(drafts) is not None) == bool(left), "None exactly when there's nothing to compute"
        assert engine.steps < 5000, "no progress"
    assert engine.done == {number: answer for number, answer in expected.items() if number not in aborted}
    assert engine.kv.usage().used == 0


def _arrivals(draw: random.Random, longest: int) -> list[PlainSequence]:
    """Prompts of a few families, so that many share prefixes, with a few priorities."""
    families = [[draw.randrange(1, 4) for _ in range(longest)] for _ in range(3)]
    sequences = []
    for number in range(draw.randint(1, 25)):
        length = draw.randint(1, longest - 1)
        common = draw.choice(families)[: draw.randint(0, length)]
        tokens = [*common, *(draw.randrange(1, 5) for _ in range(length - len(common)))]
        max_len = draw.choice((longest, draw.randint(length + 1, longest)))
        scored = draw.random() < 0.1
        priority, arrival = draw.choice((0, 0, 1)), float(number // 2)
        sequences.append(PlainSequence(number, tokens, max_len, priority, arrival, prompt_logprobs=scored))
    return sequences


def _drafts(draw: random.Random, tokens: Seq[int]) -> Draft:
    """Guesses that are right for a while."""
    guesses: list[int] = []
    for _ in range(draw.randint(1, 6)):
        right = next_token([*tokens, *guesses])
        guesses.append(right if draw.random() < 0.7 else 11)
    return Draft(guesses, [0.7] * len(guesses))


def test_under_a_steady_stream_nobody_starves() -> None:
    engine = SimulatedEngine(paged(60), evolve(LIMITS, max_prefill_tokens=16))
    long = [sequence(number, 100, answer=5) for number in range(6)]
    for seq in long:
        engine.submit(seq)
    number = 100
    while not all(seq.id in engine.done for seq in long):
        for _ in range(2):
            engine.submit(sequence(number, 2, answer=5))
            number += 1
        engine.step()
        for late in engine.scheduler.waiting[20:]:  # those clients give up
            engine.scheduler.abort(late.id)
        assert engine.steps < 2000, "short prompts keep the long ones out"
    engine.run()


# -- what steps take


class LinearCost(StepCost):
    """A machine that takes as long for each row."""

    def __init__(self, fixed: float, each: float) -> None:
        super().__init__()
        self.fixed, self.each = fixed, each

    def seconds(self, rows: int) -> float:
        return self.fixed + self.each * rows


def priced(engine: SimulatedEngine, cost: StepCost) -> SimulatedEngine:
    """The same engine, with a scheduler that knows what steps take."""
    engine.scheduler = ContinuousScheduler(engine.kv, engine.limits, cost)
    return engine


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(traces, st.floats(0.0, 0.01), st.floats(0.0001, 0.005))
def test_steps_stay_within_their_time_and_nobody_starves(trace: Trace, fixed: float, each: float) -> None:
    draw = random.Random(trace.seed)
    limits = SchedulerLimits(trace.batch, 4 * trace.prefill, max_model_len=60, max_queue=1000)
    kv = naive(1 + trace.blocks // 8, 60) if trace.naive else paged(trace.blocks, trace.block_size)
    cost = LinearCost(fixed, each)
    engine = priced(SimulatedEngine(kv, limits, eos=0), cost)
    prompts = _arrivals(draw, min(60, kv.max_sequence_len))
    expected = {seq.id: alone(seq.tokens, seq.max_len, eos=0) for seq in prompts}
    pending = list(prompts)
    while pending or engine.scheduler.waiting or engine.scheduler.running:
        while pending and draw.random() < 0.4:
            engine.submit(pending.pop(0))
        drafts = {seq.id: _drafts(draw, seq.tokens) for seq in engine.scheduler.running if draw.random() < 0.5}
        decodes = sum(len(seq.tokens) - seq.num_computed == 1 for seq in engine.scheduler.running)
        batch = engine.step(drafts)
        assert engine.steps < 8000, "no progress"
        if batch is not None and decodes:
            prompt_rows = sum(span.length for span in batch.spans if not span.drafts and span.length > 1)
            target = max(SMOOTH_SECONDS, STALL * cost.seconds(decodes))
            assert prompt_rows <= LEAST_TOKENS or cost.seconds(decodes + prompt_rows) <= target + 1e-9
    assert engine.done == expected
    assert engine.kv.usage().used == 0


def test_waiting_outweighs_priority_in_time(engine: SimulatedEngine) -> None:
    old = PlainSequence(1, prompt(1, 9), 40, priority=1, arrival=0.0)
    soon = PlainSequence(2, prompt(2, 9), 40, priority=0, arrival=29.0)
    late = PlainSequence(3, prompt(3, 9), 40, priority=0, arrival=31.0)
    for seq in (late, old, soon):
        engine.submit(seq)
    assert [seq.id for seq in engine.scheduler.waiting] == [2, 1, 3]


def test_a_shorter_prompt_does_not_wait_for_much_longer_ones(engine: SimulatedEngine) -> None:
    for number in range(4):
        engine.submit(sequence(number, 400))
    engine.step()
    engine.submit(sequence(8, 380))
    engine.submit(sequence(9, 40))
    assert 9 in spans(engine.step())
    assert [seq.id for seq in engine.scheduler.waiting] == [8]
