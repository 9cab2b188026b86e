"""The n-gram drafter and the policy about drafts and chunks: right guesses, bounded work, nothing that doesn't pay."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.builtin.ngram import LONGEST_MATCH, Match, NgramDrafter, NgramOptions, SuffixIndex, continuation
from forge.builtin.policy import STALL, Pace, affordable, draft_limit
from forge.errors import ConfigError
from forge.interfaces.cost import PATIENCE, StepCost
from forge.interfaces.drafter import MAX_DRAFT, AcceptanceWindow, Draft
from forge.testing.kv_cache import PlainSequence


def longest_earlier_match(tokens: list[int], gram: int) -> int:
    """By definition: the length of the longest earlier occurrence of the text's end, up to what counts."""
    best = 0
    for end in range(gram, len(tokens)):
        common = 0
        while common < min(end, LONGEST_MATCH) and tokens[end - 1 - common] == tokens[-1 - common]:
            common += 1
        best = max(best, common)
    return best if best >= gram else 0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 4))
def test_a_match_is_real_and_found_whenever_there_is_one(tokens: list[int], gram: int) -> None:
    index = SuffixIndex(tokens, gram, 1000)
    index.extend(1000)
    match = index.find()
    assert (match is None) == (longest_earlier_match(tokens, gram) == 0)
    if match is not None:
        assert gram <= match.end < len(tokens)
        assert gram <= match.length
        assert tokens[match.end - match.length : match.end] == tokens[-match.length :]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 32), st.integers(1, 4))
def test_the_longest_match_comes_first(seed: int, gram: int) -> None:
    rng = random.Random(seed)
    phrase = [rng.randrange(100, 1 << 16) for _ in range(12)]
    near = [1, *phrase[-gram:], 2, 3]  # the last place where the text went like this, but not for as long
    tokens = [*phrase, 7, 8, *near, 9, *phrase]
    index = SuffixIndex(tokens, gram, 1000)
    index.extend(1000)
    assert index.find() == Match(len(phrase), 12)


def test_an_index_that_grows_token_by_token_is_that_of_the_whole_text() -> None:
    rng = random.Random(3)
    tokens: list[int] = []
    grown = SuffixIndex(tokens, 3, 1 << 17)
    for _ in range(3000):
        tokens.append(rng.randrange(12))
        grown.extend(2048)
        if len(tokens) % 250 == 0:
            whole = SuffixIndex(tokens, 3, 1 << 17)
            whole.extend(1 << 17)
            assert grown.find() == whole.find()
    assert grown.nbytes <= 16 * len(tokens) + 4096


def test_memory_and_the_work_of_one_call_are_bounded() -> None:
    seq = PlainSequence(1, list(range(10_000)) * 2)
    drafter = NgramDrafter(NgramOptions(max_tokens=5000))
    for _ in range(10):
        drafter.propose(seq, 8)
    index = drafter._draftees[1].index
    assert index.indexed == 5000
    assert index.nbytes < 16 * 2 * 5000
    drafter.release(seq)
    assert len(drafter) == 0


def test_a_text_that_repeats_itself_is_continued_beyond_its_end() -> None:
    assert continuation([1, 2, 3, 1, 2], 3, 7) == [1, 2, 1, 2, 1, 2, 1]
    seq = PlainSequence(1, [5, 6, 7, 5, 6, 7, 5, 6, 7])
    drafter = NgramDrafter()
    drafter.propose(seq, 3)
    for _ in range(20):
        drafter.observe(seq, [1] * 4, 4)
    assert drafter.propose(seq, 3).tokens == (5, 6, 7)


def test_drafts_get_shorter_as_they_fail_and_longer_as_they_are_right() -> None:
    drafter = NgramDrafter()
    seq = PlainSequence(1, [1, 2, 3] * 30)
    first = len(drafter.propose(seq, MAX_DRAFT))
    for _ in range(16):
        drafter.observe(seq, [0] * 4, 0)
    assert len(drafter.propose(seq, MAX_DRAFT)) == 2  # ceil(1 / (1 - 0.8 * 2 / 18))
    for _ in range(16):
        drafter.observe(seq, [0] * 16, 16)
    assert 2 < first < len(drafter.propose(seq, MAX_DRAFT)) == MAX_DRAFT


def test_a_draft_is_the_likelier_right_the_longer_its_match() -> None:
    rng = random.Random(2)
    text = [rng.randrange(1 << 16) for _ in range(80)]
    drafter = NgramDrafter(NgramOptions(min_draft=8))
    short = drafter.propose(PlainSequence(1, [*text, 1, *text[30:33]]), 8)
    long = drafter.propose(PlainSequence(2, [*text, 1, *text[30:60]]), 8)
    assert short.tokens == tuple(text[33:41])
    assert list(short.chances) == sorted(short.chances)
    assert short.chances[0] < 0.5 < long.chances[0]


@pytest.mark.parametrize("right", [True, False])
def test_guesses_that_are_never_checked_tell_how_good_the_next_ones_are(right: bool) -> None:
    rng = random.Random(5)
    text = [rng.randrange(1 << 16) for _ in range(40)]
    drafter, seq = NgramDrafter(), PlainSequence(1, [*text, 1, *text[:5]])
    first = drafter.propose(seq, 4)
    for token in text[5:25]:
        seq.tokens.append(token if right else rng.randrange(1 << 16))
        seq.tokens += [] if right else text[:5]
        later = drafter.propose(seq, 4)
    assert (later.chances[0] > 0.85) if right else (later.chances[0] < first.chances[0] - 0.3)
    fresh = drafter.propose(PlainSequence(2, [*text, 1, *text[:5]]), 4)
    assert (fresh.chances[0] >= first.chances[0]) if right else (fresh.chances[0] < first.chances[0] - 0.2)


def test_a_copy_goes_on_behind_a_word_that_was_changed() -> None:
    """The usual three tokens occur after every word; only the place of the copy tells which of them is meant."""
    comma = [7, 8, 9]
    words = [[100 + i, 200 + i] for i in range(12)]
    text = [token for word in words for token in (*word, *comma)]
    copied = [token for word in words[:4] for token in (*word, *comma)]
    seq = PlainSequence(1, [*text, 1, *copied[:-1]])
    drafter = NgramDrafter()
    assert drafter.propose(seq, 2).tokens == (9, 104)
    seq.tokens += [9]
    assert drafter.propose(seq, 2).tokens == (104, 204)
    seq.tokens += [555]  # the model writes another word of one token instead
    drafter.propose(seq, 2)
    seq.tokens += comma
    assert drafter.propose(seq, 2).tokens == (105, 205)


@pytest.mark.parametrize("chances", [(0.5,), (0.5, 1.1), (float("nan"), 0.5)])
def test_chances_that_are_none_are_refused(chances: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="chances"):
        Draft([1, 2], chances)


def test_unequal_bounds_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="min_draft"):
        NgramOptions(min_draft=9, max_draft=4)


def test_an_acceptance_window_forgets_what_is_old() -> None:
    window = AcceptanceWindow(4)
    for _ in range(4):
        window.add(8, 8)
    assert window.rate(0.5, 0.0001) > 0.99
    for _ in range(4):
        window.add(8, 0)
    assert window.rate(0.5, 0.0001) < 0.01


# -- costs


def learned(seconds: dict[int, float], times: int = 8) -> StepCost:
    """A cost model that has seen these steps."""
    cost = StepCost()
    for _ in range(times):
        for rows, each in seconds.items():
            cost.observe(rows, each)
    return cost


def test_a_cost_model_learns_rows_and_interpolates() -> None:
    cost = learned({1: 0.01, 9: 0.018, 100: 0.2})
    assert cost.seconds(1) == pytest.approx(0.01)
    assert cost.seconds(5) == pytest.approx(0.014)
    assert cost.seconds(200) == pytest.approx(0.4)
    assert StepCost().seconds(3) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0.001, 1.0)), min_size=3, max_size=60))
def test_more_rows_never_cost_less(observed: list[tuple[int, float]]) -> None:
    cost = StepCost()
    for rows, seconds in observed:
        cost.observe(rows, seconds)
    curve = [cost.seconds(rows) or 0.0 for rows in (1, 2, 3, 7, 20, 150, 900, 4000, 9000)]
    assert all(b >= a - 1e-9 for a, b in pairwise(curve))


def test_single_steps_that_a_neighbour_disturbed_hardly_count() -> None:
    cost = learned({4: 0.01}, times=50)
    cost.observe(4, 5.0)
    assert (cost.seconds(4) or 0) < 0.012


def test_a_machine_that_slows_down_little_by_little_is_followed() -> None:
    cost = learned({1: 0.005, 4: 0.01, 16: 0.02})
    seconds = 0.01
    for _ in range(400):
        seconds *= 1.002
        cost.observe(4, seconds)
        assert cost.seconds(4) == pytest.approx(seconds, rel=0.05)
    assert (cost.seconds(16) or 0) >= (cost.seconds(4) or 0) > 0.02


def test_rows_within_a_time_are_the_most_that_fit() -> None:
    cost = learned({1: 0.004, 10: 0.012, 1000: 1.0})
    for seconds in (0.001, 0.004, 0.01, 0.05, 0.5):
        rows = cost.rows_within(seconds, 4096)
        assert rows == 0 or (cost.seconds(rows) or 0) <= seconds
        assert (cost.seconds(rows + 1) or 0) > seconds


def test_prompts_beside_decodes_get_what_keeps_the_decodes_going() -> None:
    cost = learned({1: 0.005, 16: 0.02, 256: 0.26})
    tokens = Pace().prompt_tokens(cost, 16, 4096)
    assert tokens >= 16
    assert (cost.seconds(16 + tokens) or 0) <= STALL * 0.02 + 0.001
    assert Pace().prompt_tokens(cost, 0, 4096) > 200
    assert Pace(0.2).prompt_tokens(cost, 16, 4096) > 2 * tokens
    assert Pace().prompt_tokens(cost, 16, 4) == 4


def test_one_bad_moment_does_not_cut_prompts_into_crumbs() -> None:
    cost = learned({16: 0.01})
    cost.observe(40, 5.0)
    cost.observe(300, 9.0)
    tokens = Pace().prompt_tokens(cost, 16, 4096)
    assert 20 <= tokens <= 24, "24 more rows take at most as long in proportion: 2.5 times as long together"


def best_by_trying(cost: StepCost, rows: int, chances: dict[int, list[float]]) -> float:
    """The best rate over all choices of draft lengths."""

    def options(keys: list[int]) -> list[dict[int, int]]:
        if not keys:
            return [{}]
        return [{**rest, keys[0]: n} for rest in options(keys[1:]) for n in range(len(chances[keys[0]]) + 1)]

    return max(rate(cost, rows, chances, choice) for choice in options(list(chances)))


def rate(cost: StepCost, rows: int, chances: dict[int, list[float]], choice: dict[int, int]) -> float:
    gain = sum(math.prod(chances[key][: i + 1]) for key, n in choice.items() for i in range(n))
    return (rows + gain) / (cost.seconds(rows + sum(choice.values())) or 1.0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4), min_size=1, max_size=3),
    st.floats(0.0, 0.004),
    st.floats(0.001, 0.02),
)
def test_the_drafts_that_are_checked_are_the_best_choice(chances: list[list[float]], each: float, fixed: float) -> None:
    cost = learned({rows: fixed + each * rows for rows in (1, 2, 4, 8, 16, 64)})
    drafts = dict(enumerate(chances))
    kept = affordable(cost, len(drafts), drafts)
    assert rate(cost, len(drafts), drafts, kept) >= best_by_trying(cost, len(drafts), drafts) / 1.031


def test_nothing_is_drafted_where_the_machine_is_full() -> None:
    linear = learned({rows: 0.001 * rows for rows in (1, 2, 4, 8, 16, 32, 64, 128)})
    flat = learned({1: 0.02, 8: 0.02, 16: 0.02, 32: 0.021, 64: 0.021, 512: 0.05})
    sure = {key: [0.9] * 4 for key in range(8)}
    assert affordable(linear, 8, sure) == {}
    assert draft_limit(linear, 8) == 0
    assert draft_limit(flat, 8) == MAX_DRAFT
    assert sum(affordable(flat, 8, sure).values()) == 32


@define
class Machine:
    """Steps of `streams` sequences whose drafts of four are right with some chance, on a machine of known speed."""

    streams: int
    chance: float
    seconds: Callable[[int], float]
    cost: StepCost = field(factory=StepCost)
    time: float = 0.0
    gained: float = 0.0

    def run(self, steps: int, slower: Callable[[int], float] = lambda rows: 1.0) -> int:
        """So many steps; how many of them had drafts. slower: a factor by rows, for bad moments."""
        drafted = 0
        for _ in range(steps):
            chances = {key: [self.chance] * 4 for key in range(self.streams)} if draft_limit(
                self.cost, self.streams
            ) else {}  # fmt: skip
            kept = affordable(self.cost, self.streams, chances)
            rows = self.streams + sum(kept.values())
            took = self.seconds(rows) * slower(rows)
            self.cost.observe(rows, took)
            self.time += took
            self.gained += self.streams + sum(self.chance ** (i + 1) for n in kept.values() for i in range(n))
            drafted += bool(kept)
        return drafted

    @property
    def speed(self) -> float:
        """Tokens per second, as a multiple of what plain decoding reaches."""
        return self.gained / self.time * self.seconds(self.streams) / self.streams


def test_a_bad_start_does_not_turn_drafts_off() -> None:
    """The first steps with more than one row take fifty times as long: pages are touched, a neighbour has the core."""
    machine = Machine(1, 0.9, lambda rows: 0.004 + 0.0003 * rows)
    machine.cost.observe(300, 4.0)
    machine.cost.observe(300, 4.0)
    machine.cost.observe(40, 3.0)
    machine.run(6, lambda rows: 50.0 if rows > 1 else 1.0)
    machine.run(20)
    assert machine.run(50) == 50


def test_drafts_come_back_when_what_made_them_dear_is_over() -> None:
    machine = Machine(1, 0.9, lambda rows: 0.004 + 0.0003 * rows)
    machine.run(200, lambda rows: 50.0 if rows > 1 else 1.0)
    assert machine.run(50, lambda rows: 50.0 if rows > 1 else 1.0) == 0
    machine.run(PATIENCE + 20)
    assert machine.run(50) == 50


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("each", [0.00005, 0.0003, 0.0007, 0.002])
def test_finding_out_what_drafts_cost_takes_next_to_nothing(streams: int, chance: float, each: float) -> None:
    """Whatever rows cost, and however bad the guesses: 2,000 steps are at most 2% slower than without drafts."""
    machine = Machine(streams, chance, lambda rows: 0.003 + each * rows)
    machine.run(2000)
    assert machine.speed > 0.98
    if chance == 0.95 and each == 0.0003:
        assert machine.speed > 1.3
