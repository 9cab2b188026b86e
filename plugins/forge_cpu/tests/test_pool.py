"""The native thread pool: nothing is computed twice or left out, waiting threads never hang, neighbours are noticed."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest
from forge_cpu.native import extension

native = extension()
assert native is not None, "the tests need the compiled kernels"

MILLISECOND = 1_000_000


def make_pool(threads: int) -> object:
    return native.Pool(threads, "portable")


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("total", "grain"), [(0, 1), (1, 1), (7, 3), (1000, 1), (1000, 64), (999, 10_000), (100, 0)])
def test_every_index_is_shared_out_exactly_once(threads: int, total: int, grain: int) -> None:
    assert make_pool(threads).count_shared(total, grain, shares=20) == [20] * total


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_work_of_a_slow_worker_is_stolen_once(threads: int) -> None:
    assert make_pool(threads).count_shared(200, 1, shares=200, linger=2000) == [200] * 200


def test_more_chunks_than_a_range_can_count() -> None:
    counts = np.asarray(make_pool(2).count_shared(3_000_000, 1, shares=2))
    assert (counts == 2).all()


@pytest.mark.parametrize("threads", [2, 4])
def test_many_small_regions(threads: int) -> None:
    pool = make_pool(threads)
    for _ in range(3000):
        assert pool.count_shared(5, 1) == [1] * 5
    assert pool.statistics["regions"] == 3000


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_what_was_written_before_a_barrier_is_visible_behind_it(threads: int) -> None:
    assert make_pool(threads).count_barrier_errors(2000) == 0


def test_more_threads_than_cores_make_progress() -> None:
    pool = make_pool(16)
    assert pool.count_barrier_errors(50) == 0
    assert pool.count_shared(500, 1, shares=10, linger=500) == [10] * 500


def test_a_region_inside_a_region_is_refused_and_the_pool_lives_on() -> None:
    pool = make_pool(2)
    assert pool.refuses_nesting()
    assert pool.count_shared(10, 1) == [1] * 10


def test_python_threads_may_share_a_pool() -> None:
    pool = make_pool(2)
    failures: list[object] = []

    def use() -> None:
        for _ in range(200):
            if pool.count_shared(50, 4, shares=3) != [3] * 50:
                failures.append("an index was missed or taken twice")

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not failures


def test_pools_come_and_go() -> None:
    before = threading.active_count()
    for threads in (1, 2, 5) * 20:
        pool = make_pool(threads)
        assert (pool.threads, pool.isa) == (threads, "portable")
        pool.count_shared(3, 1)
        del pool
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [0, -1, 257, 1 << 20])
def test_impossible_thread_counts_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="1 to 256 threads"):
        make_pool(threads)


def test_an_unknown_instruction_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'sse9' can't run here; there are: .*portable"):
        native.Pool(1, "sse9")


def _use_after_fork(pool: object, answers: object) -> None:
    try:
        pool.count_shared(1, 1)
    except RuntimeError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_gets_an_error_instead_of_hanging() -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_use_after_fork, args=(make_pool(2), answers))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert "fork" in answers.get()


def test_subnormals_are_flushed_inside_and_come_back_outside() -> None:
    native.Pool(2, native.isas()[0]).count_shared(10, 1)
    tiny = np.full(4, 1e-40, np.float32)
    assert (tiny * np.float32(0.5) > 0).all()


def run_regions(governor: object, start: int, count: int, threads: int, lost_share: float) -> tuple[int, int]:
    """Regions of 5 ms, each losing that share of its time if several workers run: (end, workers left out)."""
    idle = 0
    for _ in range(count):
        idle = governor.idle_workers(start, threads)
        active = threads - idle
        lost = int(5 * MILLISECOND * lost_share) if active > 1 else 0
        governor.report(start, start + 5 * MILLISECOND, active, lost)
        start += 5 * MILLISECOND
    return start, idle


def test_all_workers_take_part_on_a_quiet_machine() -> None:
    assert run_regions(native.Governor(), 0, 1000, 4, lost_share=0.1)[1] == 0


def test_one_disturbed_region_changes_nothing() -> None:
    governor = native.Governor()
    governor.report(0, 5 * MILLISECOND, 2, 4 * MILLISECOND)
    assert run_regions(governor, 5 * MILLISECOND, 50, 2, lost_share=0.0)[1] == 0


def test_a_worker_is_left_out_while_a_neighbour_holds_its_core_and_comes_back_after() -> None:
    governor = native.Governor()
    end, idle = run_regions(governor, 0, 12, 2, lost_share=0.6)
    assert idle == 1
    end, _ = run_regions(governor, end, 2000, 2, lost_share=0.6)
    assert run_regions(governor, end, 400, 2, lost_share=0.0)[1] == 0


def test_trials_with_all_workers_get_rarer_while_the_neighbour_stays() -> None:
    governor = native.Governor()
    now, trials = 0, []
    for _ in range(2000):
        if governor.idle_workers(now, 2) == 0:
            trials.append(now)
            governor.report(now, now + 5 * MILLISECOND, 2, 3 * MILLISECOND)
        now += 5 * MILLISECOND
    in_first_second = sum(1 for t in trials if t < 1000 * MILLISECOND)
    in_last_second = sum(1 for t in trials if t >= now - 1000 * MILLISECOND)
    assert in_last_second < in_first_second / 2


def test_of_many_workers_only_those_without_a_core_are_left_out() -> None:
    governor = native.Governor()
    now = 0
    for _ in range(200):
        idle = governor.idle_workers(now, 16)
        lost = 40 * MILLISECOND if idle < 2 else 0  # two cores are taken: fourteen workers run undisturbed
        governor.report(now, now + 5 * MILLISECOND, 16 - idle, lost)
        now += 5 * MILLISECOND
    assert governor.idle_workers(now, 16) in (1, 2)
