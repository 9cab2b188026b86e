"""What the naive cache does in its own way, and how the distribution registers both."""

from __future__ import annotations

from importlib import import_module

import forge_kv_paged
import pytest
from forge_kv_paged.naive import NaiveKVCache
from forge_kv_paged.options import NaiveOptions

from forge.errors import ConfigError
from forge.interfaces.kv_cache import CacheLimits, CacheShape, Growth, KVCache
from forge.testing.kv_cache import PlainSequence

LIMITS = CacheLimits(free_bytes=1_000_000, bytes_per_token=100, max_model_len=1000, max_batch_size=256)


def test_a_sequence_has_one_block_for_its_whole_life() -> None:
    kv = NaiveKVCache(CacheShape(num_blocks=2, block_size=100))
    first, second, third = (PlainSequence(number, [1, 2, 3]) for number in range(3))
    assert kv.grow(first, 1) is Growth.READY
    table = list(kv.table(first))
    assert kv.grow(first, 100) is Growth.READY
    assert list(kv.table(first)) == table
    assert kv.grow(second, 100) is Growth.READY
    assert kv.grow(third, 1) is Growth.FULL
    kv.release(first)
    assert kv.grow(third, 1) is Growth.READY
    assert list(kv.table(third)) == table
    kv.check()


def test_nothing_is_reused() -> None:
    kv = NaiveKVCache(CacheShape(num_blocks=2, block_size=100))
    first = PlainSequence(1, list(range(50)))
    assert kv.grow(first, 50) is Growth.READY
    kv.publish(first, 50)
    assert kv.attach(PlainSequence(2, list(range(50))), 49) == 0
    assert kv.usage().cached == 0


@pytest.mark.parametrize(
    ("options", "blocks"),
    [(NaiveOptions(), 5), (NaiveOptions(memory_fraction=1.0), 10), (NaiveOptions(num_blocks=3), 3)],
)
def test_plan(options: NaiveOptions, blocks: int) -> None:
    assert NaiveKVCache.plan(LIMITS, options) == CacheShape(blocks, 1000)


def test_plan_makes_no_more_blocks_than_a_batch_has_sequences() -> None:
    limits = CacheLimits(free_bytes=10**12, bytes_per_token=100, max_model_len=1000, max_batch_size=7)
    assert NaiveKVCache.plan(limits).num_blocks == 7


def test_plan_that_does_not_fit_names_the_figures() -> None:
    limits = CacheLimits(free_bytes=199_999, bytes_per_token=100, max_model_len=1000, max_batch_size=7)
    with pytest.raises(ConfigError, match=r"1,000 positions takes 100,000 bytes.*199,999 free"):
        NaiveKVCache.plan(limits)


def test_both_caches_are_registered_under_their_names() -> None:
    components = {component.name: component for component in forge_kv_paged.forge_kv_caches()}
    assert set(components) == {"paged", "naive"}
    for component in components.values():
        module, name = component.factory.split(":")
        factory = getattr(import_module(module), name)
        assert issubclass(factory, KVCache)
        assert component.options is not None
        shape = factory.plan(LIMITS, component.options())
        assert factory(shape, options=component.options()).usage().free == shape.num_blocks
