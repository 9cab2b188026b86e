"""The n-gram drafter and the policy about drafts and chunks: right guesses, bounded work, nothing that doesn't pay."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.builtin.ngram import LONGEST_MATCH, NOWHERE, NgramDrafter, NgramOptions, SuffixIndex, continuation
from forge.builtin.policy import STALL, Pace, affordable, draft_limit
from forge.errors import ConfigError
from forge.interfaces.cost import StepCost
from forge.interfaces.drafter import MAX_DRAFT, AcceptanceWindow
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
    end = index.find()
    assert (end == NOWHERE) == (longest_earlier_match(tokens, gram) == 0)
    if end != NOWHERE:
        assert gram <= end < len(tokens)
        assert tokens[end - gram : end] == tokens[-gram:]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 32), st.integers(1, 4))
def test_the_longest_match_comes_first(seed: int, gram: int) -> None:
    rng = random.Random(seed)
    phrase = [rng.randrange(100, 1 << 16) for _ in range(12)]
    near = [1, *phrase[-gram:], 2, 3]  # the last place where the text went like this, but not for as long
    tokens = [*phrase, 7, 8, *near, 9, *phrase]
    index = SuffixIndex(tokens, gram, 1000)
    index.extend(1000)
    assert index.find() == len(phrase)


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
    for _ in range(20):
        drafter.observe(seq, [1] * 4, 4)
    assert drafter.propose(seq, 3) == [5, 6, 7]


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


def best_by_trying(cost: StepCost, rows: int, acceptance: dict[int, float], lengths: dict[int, int]) -> float:
    """The best rate over all choices of draft lengths."""

    def options(keys: list[int]) -> list[dict[int, int]]:
        if not keys:
            return [{}]
        return [{**rest, keys[0]: n} for rest in options(keys[1:]) for n in range(lengths[keys[0]] + 1)]

    return max(rate(cost, rows, acceptance, choice) for choice in options(list(lengths)))


def rate(cost: StepCost, rows: int, acceptance: dict[int, float], choice: dict[int, int]) -> float:
    gain = sum(acceptance[key] ** (i + 1) for key, n in choice.items() for i in range(n))
    return (rows + gain) / (cost.seconds(rows + sum(choice.values())) or 1.0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3), st.floats(0.0, 0.004), st.floats(0.001, 0.02))
def test_the_drafts_that_are_checked_are_the_best_choice(chances: list[float], each: float, fixed: float) -> None:
    cost = learned({rows: fixed + each * rows for rows in (1, 4, 8, 16, 64)})
    acceptance = dict(enumerate(chances))
    lengths = dict.fromkeys(acceptance, 4)
    kept = affordable(cost, len(chances), acceptance, lengths)
    best = best_by_trying(cost, len(chances), acceptance, lengths)
    assert rate(cost, len(chances), acceptance, kept) >= best / 1.011


def test_nothing_is_drafted_where_the_machine_is_full() -> None:
    linear = learned({1: 0.001, 8: 0.008, 64: 0.064, 512: 0.512})
    flat = learned({1: 0.02, 8: 0.02, 64: 0.021, 512: 0.05})
    assert affordable(linear, 8, dict.fromkeys(range(8), 0.9), dict.fromkeys(range(8), 4)) == {}
    assert draft_limit(linear, 8) == 0
    assert draft_limit(flat, 8) == MAX_DRAFT
    assert sum(affordable(flat, 8, dict.fromkeys(range(8), 0.9), dict.fromkeys(range(8), 4)).values()) == 32
