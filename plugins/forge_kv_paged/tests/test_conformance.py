"""Both caches pass the kit that judges every cache."""

from __future__ import annotations

import pytest
from forge_kv_paged.naive import NaiveKVCache
from forge_kv_paged.options import PagedOptions
from forge_kv_paged.paged import PagedKVCache

from forge.interfaces.kv_cache import CacheShape
from forge.testing.kv_cache import KVCacheConformance, MakeCache


class TestPaged(KVCacheConformance):
    @pytest.fixture
    def make_cache(self) -> MakeCache:
        return lambda num_blocks, block_size: PagedKVCache(CacheShape(num_blocks, block_size))


class TestPagedWithoutReuse(KVCacheConformance):
    @pytest.fixture
    def make_cache(self) -> MakeCache:
        options = PagedOptions(prefix_reuse=False)
        return lambda num_blocks, block_size: PagedKVCache(CacheShape(num_blocks, block_size), options)


class TestPagedWithCollidingHashes(KVCacheConformance):
    """Four hash values for all prefixes: reuse suffers, nothing else may."""

    @pytest.fixture
    def make_cache(self) -> MakeCache:
        return lambda num_blocks, block_size: PagedKVCache(
            CacheShape(num_blocks, block_size), chain=lambda parent, tokens: hash((parent, tokens)) % 4
        )


class TestNaive(KVCacheConformance):
    @pytest.fixture
    def make_cache(self) -> MakeCache:
        return lambda num_blocks, block_size: NaiveKVCache(CacheShape(num_blocks, block_size))
