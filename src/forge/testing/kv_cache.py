"""What every KV cache has to do, as a pytest suite: subclass `KVCacheConformance` and give it a fixture.

::

    class TestMyCache(KVCacheConformance):
        @pytest.fixture
        def make_cache(self) -> MakeCache:
            return lambda num_blocks, block_size: MyCache(CacheShape(num_blocks, block_size))

It needs neither a model nor torch: `ModelledPages` stand for the backend's pages and remember what was written where.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq

import pytest
from attrs import define, field

from forge.errors import ConfigError
from forge.interfaces.constraint import Matcher
from forge.interfaces.kv_cache import CacheLimits, CacheMiss, Growth, KVCache
from forge.interfaces.sampler import SamplingParams

MakeCache = Callable[[int, int], KVCache]
"""(num_blocks, block_size) → an empty cache of that shape."""


@define(eq=False)
class PlainSequence:
    """A `forge.interfaces.scheduler.Sequence` of plain values."""

    id: int
    tokens: list[int]
    max_len: int = 1 << 30
    priority: int = 0
    arrival: float = 0.0
    choice: int = 0
    prompt_logprobs: bool = False
    num_computed: int = 0
    num_cached: int = 0
    prompt_len: int = field(init=False)
    sampling: SamplingParams = field(factory=SamplingParams, repr=False)
    banned: tuple[int, ...] = ()
    matcher: Matcher | None = None
    cache_miss: CacheMiss | None = None

    def __attrs_post_init__(self) -> None:
        self.prompt_len = len(self.tokens)


class ModelledPages:
    """Slots that remember what was written: at each position a value that stands for the whole prefix up to there.

    As with real keys and values, a slot's content depends on every token before it, and is only right if those before
    were read from the right slots.
    """

    def __init__(self, kv: KVCache) -> None:
        self.kv = kv
        self.content: dict[int, int] = {}
        self._values: dict[tuple[int, int, int], int] = {}

    def slot(self, seq: PlainSequence, position: int) -> int:
        """Where a position of the sequence lies."""
        size = self.kv.shape.block_size
        return self.kv.table(seq)[position // size] * size + position % size

    def write(self, seq: PlainSequence, start: int, token_ids: Seq[int]) -> None:
        """Compute positions from `start` on."""
        for position, token in enumerate(token_ids, start):
            before = self.content[self.slot(seq, position - 1)] if position else -1
            self.content[self.slot(seq, position)] = self._value(before, position, token)

    def holds(self, seq: PlainSequence, length: int) -> bool:
        """Whether the sequence's first `length` positions are all as they'd be if it were alone."""
        value = -1
        for position, token in enumerate(seq.tokens[:length]):
            value = self._value(value, position, token)
            if self.content.get(self.slot(seq, position)) != value:
                return False
        return True

    def _value(self, before: int, position: int, token: int) -> int:
        return self._values.setdefault((before, position, token), len(self._values))


class KVCacheConformance:
    """Behaviour that the engine and the backends count on, whatever a cache shares, keeps or evicts."""

    @pytest.fixture
    def make_cache(self) -> MakeCache:
        """Overridden by the subclass: (num_blocks, block_size) → an empty cache."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture make_cache")

    # -- shape

    def test_plan_stays_within_free_memory(self, make_cache: MakeCache) -> None:
        cache_class = type(make_cache(1, 16))
        for free_bytes in (1 << 20, 10**8, 10**12):
            limits = CacheLimits(free_bytes, bytes_per_token=100, max_model_len=512, max_batch_size=8)
            shape = cache_class.plan(limits)
            assert shape.num_blocks >= 1
            assert shape.capacity * 100 <= free_bytes
            assert make_cache(shape.num_blocks, shape.block_size).max_sequence_len >= 1

    def test_plan_refuses_memory_that_holds_nothing_with_the_figures(self, make_cache: MakeCache) -> None:
        limits = CacheLimits(free_bytes=99, bytes_per_token=1000, max_model_len=512, max_batch_size=8)
        with pytest.raises(ConfigError, match="99"):
            type(make_cache(1, 16)).plan(limits)

    def test_new_cache_is_free(self, make_cache: MakeCache) -> None:
        kv = make_cache(5, 8)
        usage = kv.usage()
        assert (usage.used, usage.cached, usage.free) == (0, 0, 5)
        assert list(kv.table(_sequence(1, 3))) == []
        kv.check()

    # -- growing

    def test_sequences_never_share_blocks_they_compute(self, make_cache: MakeCache) -> None:
        kv = make_cache(6, 8)
        sequences = [_sequence(number, 8, first=100 * number) for number in range(6)]
        for seq in sequences:
            kv.attach(seq, 7)
            assert kv.grow(seq, 8) is Growth.READY
        blocks = [block for seq in sequences for block in kv.table(seq)]
        assert sorted(blocks) == list(range(6))
        kv.check()

    def test_growing_keeps_the_blocks_a_sequence_has(self, make_cache: MakeCache) -> None:
        kv = make_cache(8, 8)
        seq = _sequence(1, kv.max_sequence_len)
        kv.attach(seq, 0)
        before: list[int] = []
        for total in range(1, kv.max_sequence_len + 1):
            assert kv.grow(seq, total) is Growth.READY
            table = list(kv.table(seq))
            assert table[: len(before)] == before
            assert len(table) * 8 >= total
            before = table
        kv.check()

    def test_full_changes_nothing(self, make_cache: MakeCache) -> None:
        kv = make_cache(4, 8)
        first = _sequence(1, kv.max_sequence_len)
        kv.attach(first, 0)
        assert kv.grow(first, kv.max_sequence_len) is Growth.READY
        others = [_sequence(number, 8, first=100 * number) for number in (2, 3, 4, 5)]
        refused = None
        for seq in others:
            kv.attach(seq, 7)
            before = kv.usage(), list(kv.table(seq)), list(kv.table(first))
            if kv.grow(seq, 8) is Growth.FULL:
                refused = seq
                assert (kv.usage(), list(kv.table(seq)), list(kv.table(first))) == before
                kv.check()
                break
        assert refused is not None, "a cache of 4 blocks gave 5 to different sequences"
        kv.release(first)
        assert kv.grow(refused, 8) is Growth.READY
        kv.check()

    def test_growth_that_fits_in_part_takes_nothing(self, make_cache: MakeCache) -> None:
        kv = make_cache(4, 8)
        small, large = _sequence(1, 8), _sequence(2, 32, first=100)
        kv.attach(small, 0)
        assert kv.grow(small, 8) is Growth.READY
        kv.attach(large, 0)
        before = kv.usage()
        assert kv.grow(large, 32) is Growth.FULL
        assert list(kv.table(large)) == []
        assert kv.usage() == before
        kv.check()

    def test_longest_sequence_always_fits_alone(self, make_cache: MakeCache) -> None:
        kv = make_cache(4, 8)
        for number in range(12):
            seq = _sequence(number, 8, first=100 * number)
            _run(kv, seq)
            kv.release(seq)
        seq = _sequence(99, kv.max_sequence_len)
        kv.attach(seq, len(seq.tokens) - 1)
        assert kv.grow(seq, kv.max_sequence_len) is Growth.READY
        assert kv.grow(seq, kv.max_sequence_len + 1) is Growth.FULL
        kv.check()

    # -- prefixes

    def test_attach_keeps_to_its_limit_and_leaves_a_token_to_compute(self, make_cache: MakeCache) -> None:
        kv = make_cache(8, 4)
        length = min(16, kv.max_sequence_len)
        _run(kv, _sequence(1, length))
        for limit in range(length + 4):
            seq = _sequence(2, length)
            found = kv.attach(seq, limit)
            assert 0 <= found <= min(limit, length - 1)
            assert len(kv.table(seq)) * 4 >= found
            kv.check()
            kv.release(seq)

    def test_attach_takes_only_equal_prefixes(self, make_cache: MakeCache) -> None:
        kv = make_cache(16, 4)
        length = min(16, kv.max_sequence_len)
        pages = ModelledPages(kv)
        _run(kv, _sequence(1, length), pages)
        for different in range(length):
            seq = _sequence(2 + different, length)
            seq.tokens[different] += 1000
            found = kv.attach(seq, length)
            assert found <= different
            assert pages.holds(seq, found)
            kv.release(seq)
        kv.check()

    def test_unpublished_tokens_are_not_found(self, make_cache: MakeCache) -> None:
        kv = make_cache(16, 4)
        leader, seq = _sequence(1, 4), _sequence(2, 4)
        kv.attach(leader, 3)
        assert kv.grow(leader, 4) is Growth.READY
        assert kv.attach(seq, 3) == 0

    def test_follower_goes_on_after_its_leader_has_published(self, make_cache: MakeCache) -> None:
        kv, leader, follower = self._two_with_one_prompt(make_cache)
        _compute(kv, leader)
        found = kv.attach(follower, len(follower.tokens) - 1)
        assert kv.grow(follower, len(follower.tokens)) is Growth.READY
        assert found <= len(follower.tokens) - 1
        kv.check()

    def test_follower_takes_over_when_its_leader_goes(self, make_cache: MakeCache) -> None:
        kv, leader, follower = self._two_with_one_prompt(make_cache)
        kv.release(leader)
        kv.attach(follower, len(follower.tokens) - 1)
        assert kv.grow(follower, len(follower.tokens)) is Growth.READY
        kv.check()

    def test_later_changes_nothing_and_is_not_for_those_who_may_not_reuse(self, make_cache: MakeCache) -> None:
        kv, leader, follower = self._two_with_one_prompt(make_cache)
        kv.attach(follower, len(follower.tokens) - 1)
        before = kv.usage(), list(kv.table(follower)), list(kv.table(leader))
        if kv.grow(follower, len(follower.tokens)) is Growth.LATER:
            assert (kv.usage(), list(kv.table(follower)), list(kv.table(leader))) == before
        kv.release(follower)
        alone = _sequence(3, len(leader.tokens))
        assert kv.attach(alone, 0) == 0
        assert kv.grow(alone, len(alone.tokens)) is Growth.READY
        kv.check()

    def _two_with_one_prompt(self, make_cache: MakeCache) -> tuple[KVCache, PlainSequence, PlainSequence]:
        kv = make_cache(32, 4)
        length = min(18, kv.max_sequence_len)
        leader, follower = _sequence(1, length), _sequence(2, length)
        kv.attach(leader, length - 1)
        assert kv.grow(leader, length) is Growth.READY
        kv.attach(follower, length - 1)
        assert kv.grow(follower, length) is not Growth.FULL
        return kv, leader, follower

    # -- giving back

    def test_truncate_gives_back_rejected_drafts_only(self, make_cache: MakeCache) -> None:
        kv = make_cache(8, 4)
        length = min(6, kv.max_sequence_len)
        seq = _sequence(1, length)
        _run(kv, seq)
        before, used = list(kv.table(seq)), kv.usage().used
        assert kv.grow(seq, min(length + 9, kv.max_sequence_len)) is Growth.READY
        kv.truncate(seq, length)
        assert list(kv.table(seq)) == before
        assert kv.usage().used == used
        kv.check()

    def test_release_frees_everything_and_unknown_sequences_are_fine(self, make_cache: MakeCache) -> None:
        kv = make_cache(8, 4)
        sequences = [_sequence(number, 4, first=100 * number) for number in range(3)]
        for seq in sequences:
            _run(kv, seq)
        for seq in [*sequences, *sequences, _sequence(77, 3)]:
            kv.release(seq)
            kv.check()
        usage = kv.usage()
        assert usage.used == 0
        assert usage.cached + usage.free == 8
        assert all(list(kv.table(seq)) == [] for seq in sequences)

    # -- everything at once

    @pytest.mark.parametrize("seed", range(40))
    def test_random_lives_never_mix_up_tokens(self, make_cache: MakeCache, seed: int) -> None:
        draw = random.Random(seed)
        kv = make_cache(draw.randint(1, 24), draw.choice((1, 2, 3, 4, 8)))
        trace = _Trace(kv, draw)
        for _ in range(250):
            trace.step()
            kv.check()
            trace.check()
        for seq in list(trace.live):
            kv.release(seq)
        kv.check()
        assert kv.usage().used == 0


class _Trace:
    """Random sequences that live by the engine's rules: attach, grow, compute, truncate, publish, release."""

    def __init__(self, kv: KVCache, draw: random.Random) -> None:
        self.kv = kv
        self.draw = draw
        self.pages = ModelledPages(kv)
        self.live: list[PlainSequence] = []
        self.began: set[int] = set()
        self.families = [[draw.randrange(3) for _ in range(kv.max_sequence_len)] for _ in range(3)]
        self.ids = iter(range(1 << 30))

    def step(self) -> None:
        if not self.live or (len(self.live) < 8 and self.draw.random() < 0.25):
            self.live.append(self._new())
        seq = self.draw.choice(self.live)
        if self.draw.random() < 0.08:
            self._release(seq)
        elif seq.id in self.began:
            self._go_on(seq)
        else:
            self._begin(seq)

    def check(self) -> None:
        """Every sequence reads its own tokens, and the counts add up."""
        usage = self.kv.usage()
        assert usage.used + usage.cached + usage.free == self.kv.shape.num_blocks
        assert 0 <= usage.hits <= usage.queries
        for seq in self.live:
            assert self.pages.holds(seq, seq.num_computed), f"{seq} reads what isn't its own"

    def _new(self) -> PlainSequence:
        family = self.draw.choice(self.families)
        tokens = family[: self.draw.randint(1, len(family))]
        if self.draw.random() < 0.3:
            tokens[self.draw.randrange(len(tokens))] = 7
        return PlainSequence(next(self.ids), list(tokens), prompt_logprobs=self.draw.random() < 0.1)

    def _release(self, seq: PlainSequence) -> None:
        self.kv.release(seq)
        self.live.remove(seq)
        self.began.discard(seq.id)

    def _begin(self, seq: PlainSequence) -> None:
        limit = 0 if seq.prompt_logprobs else self.draw.choice((len(seq.tokens) - 1, self.draw.randrange(40)))
        found = self.kv.attach(seq, limit)
        assert found <= max(0, min(limit, len(seq.tokens) - 1))
        assert self.pages.holds(seq, found)
        total = self.draw.randint(found + 1, len(seq.tokens))
        before = self.kv.usage(), list(self.kv.table(seq))
        growth = self.kv.grow(seq, total)
        if growth is Growth.READY:
            self.began.add(seq.id)
            seq.num_computed = found
            self._compute(seq, total, 0)
            return
        assert (self.kv.usage(), list(self.kv.table(seq))) == before
        if growth is Growth.LATER:
            assert limit > 0
            assert self.began, "told to wait, but nobody computes"
        else:
            self._release(seq)

    def _go_on(self, seq: PlainSequence) -> None:
        if seq.num_computed == len(seq.tokens):
            if len(seq.tokens) == self.kv.max_sequence_len:
                self._release(seq)
                return
            seq.tokens.append(self.draw.randrange(3))
        total = self.draw.randint(seq.num_computed + 1, len(seq.tokens))
        drafts = 0
        if total == len(seq.tokens):
            drafts = self.draw.randint(0, min(4, self.kv.max_sequence_len - total))
        growth = self.kv.grow(seq, total + drafts)
        assert growth is not Growth.LATER, "a sequence that has computed something can't wait for others"
        if growth is Growth.READY:
            self._compute(seq, total, drafts)
        else:
            self._release(self.draw.choice([other for other in self.live if other.id in self.began]))

    def _compute(self, seq: PlainSequence, total: int, drafts: int) -> None:
        start = seq.num_computed
        guesses = [self.draw.randrange(3) for _ in range(drafts)]
        self._assert_private(seq, start, total + drafts)
        self.pages.write(seq, start, [*seq.tokens[start:total], *guesses])
        accepted = self.draw.randint(0, drafts)
        seq.tokens += guesses[:accepted]
        seq.num_computed = total + accepted
        if drafts:
            self.kv.truncate(seq, seq.num_computed)
        self.kv.publish(seq, seq.num_computed)

    def _assert_private(self, seq: PlainSequence, start: int, stop: int) -> None:
        """What is about to be written lies in no other sequence's blocks."""
        size = self.kv.shape.block_size
        written = set(self.kv.table(seq)[start // size : -(-stop // size)])
        for other in self.live:
            if other is not seq:
                assert not written & set(self.kv.table(other)), f"{seq} writes into blocks of {other}"


def _sequence(number: int, length: int, first: int = 0) -> PlainSequence:
    return PlainSequence(number, list(range(first, first + length)))


def _compute(kv: KVCache, seq: PlainSequence, pages: ModelledPages | None = None) -> None:
    """Compute and publish all that a sequence with blocks still lacks."""
    if pages is not None:
        pages.write(seq, seq.num_computed, seq.tokens[seq.num_computed :])
    seq.num_computed = len(seq.tokens)
    kv.publish(seq, seq.num_computed)


def _run(kv: KVCache, seq: PlainSequence, pages: ModelledPages | None = None) -> None:
    """Attach, grow, compute and publish a whole sequence."""
    seq.num_computed = kv.attach(seq, len(seq.tokens) - 1)
    assert kv.grow(seq, len(seq.tokens)) is Growth.READY
    _compute(kv, seq, pages)
