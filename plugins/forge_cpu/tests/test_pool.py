"""The native thread pool: nothing is computed twice or left out, waiting threads never hang, neighbours are noticed."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

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


def test_regions_of_ever_other_numbers_of_workers() -> None:
    pool = make_pool(4)
    for most in np.random.default_rng(0).integers(-1, 6, 2000).tolist():
        assert pool.count_shared(37, 2, shares=4, linger=20, most=most) == [4] * 37
    assert pool.statistics["regions"] == 2000


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


class Neighbourhood:
    """Regions of 5 ms on made-up time; a share of it some thread lacks a core while more than `free` workers run."""

    def __init__(self, threads: int) -> None:
        self.governor = native.Governor()
        self.threads, self.now, self.delay, self.idle = threads, 0, 0, 0
        self.full: list[int] = []
        """When regions ran that all workers took part in."""

    def run(self, milliseconds: float, delayed: float = 0.0, free: int = 1) -> int:
        """So long; how many workers the last region went without."""
        end = self.now + int(milliseconds * MILLISECOND)
        while self.now < end:
            self.idle = self.governor.idle_workers(self.now, self.threads)
            if self.idle == 0:
                self.full.append(self.now)
            self.now += 5 * MILLISECOND
            self.delay += int(5 * MILLISECOND * delayed) if self.threads - self.idle > free else 0
            if self.governor.due(self.now):
                self.governor.report(self.now, self.delay, self.threads - self.idle)
        return self.idle


@pytest.mark.parametrize(("threads", "delayed"), [(2, 0.45), (3, 0.3), (4, 0.2), (64, 0.2)])
def test_all_workers_take_part_while_delays_cost_less_than_a_worker(threads: int, delayed: float) -> None:
    quiet = Neighbourhood(threads)
    quiet.run(5000, delayed)
    assert quiet.now == 5 * MILLISECOND * len(quiet.full)


def test_a_few_time_slices_lost_to_others_change_nothing() -> None:
    machine = Neighbourhood(2)
    for _ in range(50):
        machine.run(10, delayed=0.8)
        machine.run(40)
    assert machine.now == 5 * MILLISECOND * len(machine.full)


def test_a_worker_is_left_out_while_a_neighbour_holds_its_core_and_comes_back_after() -> None:
    machine = Neighbourhood(2)
    assert machine.run(45, delayed=0.9) == 1
    machine.run(10_000, delayed=0.9)
    assert machine.run(2000) == 0


def test_trials_with_all_workers_get_rarer_while_the_neighbour_stays() -> None:
    machine = Neighbourhood(2)
    machine.run(10_000, delayed=0.9)
    in_first_second = sum(1 for t in machine.full if t < 1000 * MILLISECOND)
    in_last_second = sum(1 for t in machine.full if t >= machine.now - 1000 * MILLISECOND)
    assert 0 < in_last_second < in_first_second / 2


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_of_many_workers_only_those_without_a_core_are_left_out(taken: int) -> None:
    machine = Neighbourhood(16)
    machine.run(5000, delayed=0.9, free=16 - taken)
    seen = {machine.run(5, delayed=0.9, free=16 - taken) for _ in range(400)}
    assert seen <= {taken - 1, taken}


def test_delays_of_threads_that_had_nothing_to_do_prove_nothing() -> None:
    machine = Neighbourhood(2)
    for _ in range(50):
        machine.run(5)
        machine.now += 200 * MILLISECOND  # idle
        machine.delay += 190 * MILLISECOND
    assert len(machine.full) == 50


def test_a_trial_isnt_judged_by_the_delays_before_it() -> None:
    machine = Neighbourhood(2)
    machine.run(45, delayed=0.9)
    while machine.idle:
        machine.run(5)
        machine.delay += 3 * MILLISECOND if machine.idle else 0  # of the one worker
    assert machine.run(1000) == 0
    assert machine.now - machine.full[-1] == 5 * MILLISECOND
    assert len([t for t in machine.full if t > 45 * MILLISECOND]) >= 200


def test_it_is_calm_until_delays_come_near_a_workers_worth_and_again_after_two_seconds() -> None:
    machine = Neighbourhood(2)
    machine.run(1000, delayed=0.2)
    assert machine.governor.calm(machine.now)
    machine.run(100, delayed=0.3)
    assert not machine.governor.calm(machine.now)
    machine.run(1800)
    assert not machine.governor.calm(machine.now)
    machine.run(300)
    assert machine.governor.calm(machine.now)


def test_trials_beside_a_neighbour_that_stays_are_never_calm() -> None:
    machine = Neighbourhood(2)
    machine.run(100, delayed=0.9)
    for _ in range(2000):
        machine.run(5, delayed=0.9)
        assert not machine.governor.calm(machine.now)


def test_another_caller_starts_a_new_measurement() -> None:
    machine = Neighbourhood(2)
    for _ in range(50):
        machine.run(25)
        machine.governor.forget()
        machine.delay += 1000 * MILLISECOND  # of that thread's life
    assert machine.run(1000) == 0
    assert machine.now == 5 * MILLISECOND * len(machine.full)


CONFINED = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from forge_cpu import _native as native
pool = native.Pool(2, "portable")
while pool.statistics["reduced_regions"] == 0:
    assert pool.count_shared(1000, 1, shares=30) == [30] * 1000
print(pool.statistics["regions"])
"""


@pytest.mark.skipif(
    not Path("/proc/thread-self/schedstat").exists(), reason="the system doesn't count run-queue delays"
)
def test_two_workers_that_share_a_core_become_one() -> None:
    """The whole way, from the system's counters to a region that goes without a worker."""
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 1
