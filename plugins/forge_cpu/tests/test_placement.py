"""Where the pool's threads run: each on a core of its own where there are as many, and never against someone's will."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from forge_cpu.native import extension

native = extension()
assert native is not None, "the tests need the compiled kernels"

if sys.platform != "linux":
    pytest.skip("threads are bound on Linux only", allow_module_level=True)

CORES = os.sched_getaffinity(0)

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


def tasks() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


class Bound:
    """A pool and its threads."""

    def __init__(self, threads: int) -> None:
        before = tasks()
        self.pool = native.Pool(threads, "portable")
        self.workers = sorted(tasks() - before)

    def region(self) -> list[set[int]]:
        """Run one; the cores of each worker but the caller."""
        assert self.pool.count_shared(100, 1) == [1] * 100
        return [os.sched_getaffinity(worker) for worker in self.workers]


@pytest.fixture(autouse=True)
def own_affinity() -> Iterator[None]:
    yield
    os.sched_setaffinity(0, CORES)


def test_each_worker_has_a_core_of_its_own_where_there_are_as_many_as_threads() -> None:
    masks = Bound(len(CORES)).region()
    assert all(len(mask) == 1 for mask in masks)
    assert len(set.union(*masks)) == len(CORES) - 1


@pytest.mark.parametrize("threads", [len(CORES) - 1, len(CORES) + 1])
def test_with_fewer_or_more_threads_than_cores_the_scheduler_decides(threads: int) -> None:
    assert all(mask == CORES for mask in Bound(threads).region())


def test_the_caller_isnt_bound() -> None:
    Bound(len(CORES)).region()
    assert os.sched_getaffinity(0) == CORES


def test_a_worker_gives_way_to_the_caller() -> None:
    bound = Bound(len(CORES))
    before = bound.region()
    os.sched_setaffinity(0, before[0])
    after = bound.region()
    assert after[0] == CORES - set.union(*before)
    assert after[1:] == before[1:]


def test_what_somebody_else_has_set_is_left_alone() -> None:
    bound = Bound(len(CORES))
    before = bound.region()
    os.sched_setaffinity(bound.workers[0], CORES)
    os.sched_setaffinity(0, before[0])
    for _ in range(50):
        assert bound.region() == [CORES, *before[1:]]


def test_where_the_process_may_use_fewer_cores_than_threads_nobody_is_bound() -> None:
    one = {min(CORES)}
    os.sched_setaffinity(0, one)
    assert all(mask == one for mask in Bound(2).region())
