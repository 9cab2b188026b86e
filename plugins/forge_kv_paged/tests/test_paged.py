"""What the paged cache promises beyond every cache: sharing, waiting, eviction order, and options that are obeyed."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import pytest
from forge_kv_paged.options import PagedOptions
from forge_kv_paged.paged import PagedKVCache

from forge.errors import ConfigError
from forge.interfaces.kv_cache import CacheLimits, CacheMiss, CacheShape, Growth
from forge.testing.kv_cache import ModelledPages, PlainSequence

BLOCK = 4


@pytest.fixture
def kv() -> PagedKVCache:
    return PagedKVCache(CacheShape(num_blocks=16, block_size=BLOCK))


def sequence(number: int, tokens: Seq[int], prompt_logprobs: bool = False) -> PlainSequence:
    return PlainSequence(number, list(tokens), prompt_logprobs=prompt_logprobs)


def begin(kv: PagedKVCache, seq: PlainSequence, limit: int | None = None) -> Growth:
    """Attach and grow over the whole prompt."""
    seq.num_computed = kv.attach(seq, len(seq.tokens) - 1 if limit is None else limit)
    return kv.grow(seq, len(seq.tokens))


def run(kv: PagedKVCache, seq: PlainSequence, limit: int | None = None) -> None:
    """Begin, compute and publish the whole prompt."""
    assert begin(kv, seq, limit) is Growth.READY
    kv.publish(seq, len(seq.tokens))
    kv.check()


# -- sharing


def test_a_repeated_prompt_is_found_but_for_its_last_token(kv: PagedKVCache) -> None:
    first, again, longer = sequence(1, range(12)), sequence(2, range(12)), sequence(3, range(13))
    run(kv, first)
    assert kv.attach(again, 11) == 8, "the last token has to be computed, so its block isn't taken"
    assert kv.attach(longer, 12) == 12
    assert list(kv.table(longer))[:3] == list(kv.table(first))
    kv.check()


def test_a_released_prefix_is_found_again(kv: PagedKVCache) -> None:
    run(kv, sequence(1, range(9)))
    kv.release(sequence(1, range(9)))
    assert (kv.usage().used, kv.usage().cached, kv.usage().free) == (0, 2, 14)
    assert kv.attach(sequence(2, range(10)), 9) == 8
    assert (kv.usage().used, kv.usage().cached) == (2, 0)


def test_an_answer_is_reused_in_the_next_turn_of_a_conversation(kv: PagedKVCache) -> None:
    seq = sequence(1, range(6))
    run(kv, seq)
    for token in range(6, 13):
        seq.tokens.append(token)
        assert kv.grow(seq, len(seq.tokens)) is Growth.READY
        kv.publish(seq, len(seq.tokens))
    kv.release(seq)
    assert kv.attach(sequence(2, range(40)), 39) == 12


def test_only_full_blocks_are_published(kv: PagedKVCache) -> None:
    seq = sequence(1, range(11))
    assert begin(kv, seq) is Growth.READY
    kv.publish(seq, 7)
    assert kv.attach(sequence(2, range(11)), 10) == 4


def test_a_block_with_the_same_tokens_after_another_prefix_is_not_reused(kv: PagedKVCache) -> None:
    run(kv, sequence(1, [1, 1, 1, 1, 5, 5, 5, 5, 0]))
    assert kv.attach(sequence(2, [2, 2, 2, 2, 5, 5, 5, 5, 0]), 8) == 0
    assert kv.attach(sequence(3, [5, 5, 5, 5, 0]), 4) == 0


def test_a_shared_block_stays_until_its_last_user_leaves(kv: PagedKVCache) -> None:
    first, second = sequence(1, range(9)), sequence(2, range(9))
    run(kv, first)
    run(kv, second)
    kv.release(first)
    assert kv.usage().cached == 0
    kv.release(second)
    assert kv.usage().cached == 2
    kv.check()


def test_attaching_again_looks_further_and_gives_back_what_was_not_computed(kv: PagedKVCache) -> None:
    leader, follower = sequence(1, range(14)), sequence(2, range(14))
    assert begin(kv, leader) is Growth.READY
    kv.publish(leader, 4)
    assert begin(kv, follower) is Growth.LATER
    assert follower.num_computed == 4
    kv.publish(leader, 8)
    assert begin(kv, follower) is Growth.LATER
    kv.publish(leader, 12)
    assert begin(kv, follower) is Growth.READY
    assert follower.num_computed == 12
    assert kv.attach(follower, 13) == 12
    assert len(kv.table(follower)) == 3
    assert kv.attach(follower, 6) == 4
    kv.check()


# -- simultaneous prompts


def test_equal_blocks_of_two_who_computed_them_are_kept_once(kv: PagedKVCache) -> None:
    pages = ModelledPages(kv)
    first, second = sequence(1, range(13)), sequence(2, range(13))
    for seq in (first, second):
        assert begin(kv, seq, limit=0) is Growth.READY
        pages.write(seq, 0, seq.tokens)
    assert kv.usage().used == 8
    for seq in (first, second, first, second):
        kv.publish(seq, 13)
        kv.check()
    assert kv.usage().used == 5, "three shared blocks, and two that aren't full"
    assert list(kv.table(first))[:3] == list(kv.table(second))[:3]
    assert pages.holds(first, 13)
    assert pages.holds(second, 13)


def test_a_last_block_computed_twice_does_not_cut_off_what_follows_it(kv: PagedKVCache) -> None:
    first, again = sequence(1, range(8)), sequence(2, range(8))
    run(kv, first)
    run(kv, again)  # its second block can't be attached: a token must be left
    again.tokens += range(100, 105)
    assert kv.grow(again, 13) is Growth.READY
    kv.publish(again, 13)
    assert kv.attach(sequence(3, again.tokens), 12) == 12


def test_a_prompt_whose_prefix_is_being_computed_waits(kv: PagedKVCache) -> None:
    assert begin(kv, sequence(1, range(10))) is Growth.READY
    assert begin(kv, sequence(2, range(20))) is Growth.LATER
    assert begin(kv, sequence(3, [*range(4), 99, 99])) is Growth.LATER
    assert begin(kv, sequence(4, [99, *range(10)])) is Growth.READY
    assert begin(kv, sequence(5, range(4))) is Growth.READY, "nothing to gain: its only block has its last token"


def test_a_scored_prompt_neither_attaches_nor_waits(kv: PagedKVCache) -> None:
    leader, scored = sequence(1, range(9)), sequence(2, range(9), prompt_logprobs=True)
    run(kv, sequence(0, range(5)))
    assert begin(kv, leader) is Growth.READY
    assert begin(kv, scored, limit=0) is Growth.READY
    assert scored.num_computed == 0
    assert len(set(kv.table(scored)) & set(kv.table(leader))) == 0


def test_a_leader_is_waited_for_over_its_whole_prompt(kv: PagedKVCache) -> None:
    leader, follower = sequence(1, range(13)), sequence(2, range(13))
    kv.attach(leader, 12)
    assert kv.grow(leader, 4) is Growth.READY  # the first chunk only
    kv.publish(leader, 4)
    assert begin(kv, follower) is Growth.LATER
    assert kv.grow(leader, 13) is Growth.READY


@pytest.mark.parametrize("computed", [0, 4, 8])
def test_when_a_leader_goes_one_follower_takes_over(kv: PagedKVCache, computed: int) -> None:
    leader, second, third = (sequence(number, range(13)) for number in range(3))
    assert begin(kv, leader) is Growth.READY
    kv.publish(leader, computed)
    assert [begin(kv, seq) for seq in (second, third)] == [Growth.LATER, Growth.LATER]
    kv.release(leader)
    kv.check()
    assert [begin(kv, seq) for seq in (second, third)] == [Growth.READY, Growth.LATER]
    assert second.num_computed == computed


def test_nobody_waits_when_reuse_is_off() -> None:
    kv = PagedKVCache(CacheShape(16, BLOCK), PagedOptions(prefix_reuse=False))
    run(kv, sequence(1, range(9)))
    assert begin(kv, sequence(2, range(9))) is Growth.READY
    assert begin(kv, sequence(3, range(9))) is Growth.READY
    usage = kv.usage()
    assert (usage.hits, usage.queries, usage.cached) == (0, 0, 0)


# -- collisions


def test_one_hash_for_everything_never_mixes_up_prefixes() -> None:
    kv = PagedKVCache(CacheShape(16, BLOCK), chain=lambda parent, tokens: 0)
    first, other = sequence(1, range(9)), sequence(2, range(50, 59))
    run(kv, first)
    run(kv, other)
    assert kv.attach(sequence(3, range(9)), 8) == 4, "the block that has the hash is still found"
    assert kv.attach(sequence(4, range(50, 59)), 8) == 0
    assert kv.attach(sequence(5, range(4, 13)), 8) == 0
    kv.check()


def test_a_collision_does_not_make_unrelated_prompts_wait() -> None:
    kv = PagedKVCache(CacheShape(16, BLOCK), chain=lambda parent, tokens: 0)
    assert begin(kv, sequence(1, range(9))) is Growth.READY
    assert begin(kv, sequence(2, range(50, 59))) is Growth.READY


def test_nobody_waits_for_a_leader_that_can_not_publish() -> None:
    kv = PagedKVCache(CacheShape(16, BLOCK), chain=lambda parent, tokens: 7 if tokens[0] in (0, 54) else sum(tokens))
    run(kv, sequence(1, range(4)))
    leader = sequence(2, range(50, 63))
    assert begin(kv, leader) is Growth.READY
    kv.publish(leader, 8)  # its second block has the first one's hash
    kv.check()
    follower = sequence(3, range(50, 63))
    assert begin(kv, follower) is Growth.READY
    assert follower.num_computed == 4


# -- blocks


def test_eviction_takes_the_longest_idle_prefix_from_its_end() -> None:
    kv = PagedKVCache(CacheShape(num_blocks=6, block_size=BLOCK))
    old, new = sequence(1, range(12)), sequence(2, range(50, 62))
    for seq in (old, new):
        run(kv, seq)
    kv.release(old)
    kv.release(new)
    for evicted, (old_found, new_found) in enumerate([(12, 12), (8, 12), (4, 12), (0, 12), (0, 8), (0, 4)]):
        for prefix, found in ((range(13), old_found), (range(50, 63), new_found)):
            probe = sequence(90, prefix)
            # Looking at a prefix makes it the one used last; so look at all of it, the old one first.
            assert kv.attach(probe, 12) == found, f"after {evicted} evictions"
            kv.release(probe)
        taker = sequence(100 + evicted, [200 + evicted])
        assert kv.grow(taker, 1) is Growth.READY
        kv.check()


def test_a_prefix_in_use_is_never_evicted() -> None:
    kv = PagedKVCache(CacheShape(num_blocks=4, block_size=BLOCK))
    run(kv, sequence(1, range(8)))
    kv.release(sequence(1, range(8)))
    user = sequence(2, range(9))
    assert kv.attach(user, 8) == 8
    greedy = sequence(3, range(50, 62))
    assert kv.grow(greedy, 12) is Growth.FULL
    assert kv.grow(greedy, 8) is Growth.READY
    assert kv.attach(user, 8) == 8
    kv.check()


def test_blocks_freed_last_are_used_first_so_that_fresh_memory_stays_untouched(kv: PagedKVCache) -> None:
    touched = set()
    for number in range(50):
        seq = sequence(number, [number, number])
        assert begin(kv, seq) is Growth.READY
        touched |= set(kv.table(seq))
        kv.release(seq)
    assert len(touched) == 1


def test_published_blocks_can_not_be_truncated(kv: PagedKVCache) -> None:
    seq = sequence(1, range(9))
    run(kv, seq)
    with pytest.raises(ValueError, match="first 8 are published"):
        kv.truncate(seq, 4)
    kv.truncate(seq, 8)
    assert len(kv.table(seq)) == 2
    kv.check()


def test_positions_that_were_never_computed_can_not_be_published(kv: PagedKVCache) -> None:
    seq = sequence(1, range(9))
    kv.attach(seq, 8)
    assert kv.grow(seq, 5) is Growth.READY
    with pytest.raises(ValueError, match="publish"):
        kv.publish(seq, 12)
    kv.check()


def test_hits_count_each_prompt_token_once_however_often_a_follower_asks(kv: PagedKVCache) -> None:
    leader, follower = sequence(1, range(13)), sequence(2, range(13))
    assert begin(kv, leader) is Growth.READY
    for upto in (4, 8, 13):
        kv.publish(leader, upto)
        begin(kv, follower)
    assert (kv.usage().hits, kv.usage().queries) == (12, 26)


def test_check_notices_damage(kv: PagedKVCache) -> None:
    first, second = sequence(1, range(9)), sequence(2, range(50, 59))
    run(kv, first)
    run(kv, second)
    table = kv.table(first)
    assert isinstance(table, list)
    table[2] = kv.table(second)[2]
    with pytest.raises(AssertionError):
        kv.check()


# -- shape


@pytest.mark.parametrize(
    ("free_bytes", "options", "blocks"),
    [
        (10**6, PagedOptions(), 312),  # half of it, in blocks of 16 * 100 bytes
        (10**6, PagedOptions(memory_fraction=1.0), 625),
        (10**12, PagedOptions(), 16 * 63),  # 16 sequences of 1000 positions
        (10**6, PagedOptions(block_size=1000), 5),
        (10**6, PagedOptions(num_blocks=600), 600),
    ],
)
def test_plan(free_bytes: int, options: PagedOptions, blocks: int) -> None:
    limits = CacheLimits(free_bytes, bytes_per_token=100, max_model_len=1000, max_batch_size=16)
    assert PagedKVCache.plan(limits, options) == CacheShape(blocks, options.block_size)


@pytest.mark.parametrize("options", [PagedOptions(num_blocks=7), PagedOptions(block_size=64)])
def test_plan_that_does_not_fit_names_the_figures(options: PagedOptions) -> None:
    limits = CacheLimits(free_bytes=10_000, bytes_per_token=100, max_model_len=1000, max_batch_size=4)
    with pytest.raises(ConfigError, match=r"10,000.* bytes"):
        PagedKVCache.plan(limits, options)


@pytest.mark.parametrize(
    "wrong",
    [{"block_size": 0}, {"num_blocks": 0}, {"num_blocks": "many"}, {"num_blocks": True}, {"memory_fraction": 1.5}],
)
def test_wrong_options_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PagedOptions(**wrong)


# -- why a prefix wasn't found


def test_a_cache_says_why_a_prefix_was_not_found() -> None:
    kv = PagedKVCache(CacheShape(6, 4))

    def run(number: int, tokens: list[int]) -> tuple[int, CacheMiss | None]:
        seq = PlainSequence(number, tokens)
        found = kv.attach(seq, len(tokens) - 1)
        assert kv.grow(seq, len(tokens)) is Growth.READY
        miss = kv.explain(seq)
        kv.publish(seq, len(tokens))
        kv.release(seq)
        kv.check()
        return found, miss

    first = list(range(12))
    assert run(1, first) == (0, CacheMiss("new", 0))
    assert run(2, [*first[:10], 99, 98, 97]) == (8, CacheMiss("diverged", 10))
    assert run(3, first) == (8, None), "the last token is always computed"
    assert run(4, [0, 1, 50]) == (0, None), "not a whole block"
    assert run(5, list(range(100, 124))) == (0, CacheMiss("new", 0)), "it evicts all that it could be compared with"
    assert run(6, first) == (0, CacheMiss("evicted", 0))


def test_a_cache_without_reuse_says_so() -> None:
    kv = PagedKVCache(CacheShape(6, 4), PagedOptions(prefix_reuse=False))
    seq = PlainSequence(1, list(range(9)))
    kv.attach(seq, 8)
    kv.grow(seq, 9)
    assert kv.explain(seq) == CacheMiss("disabled", 0)
