"""How many threads a run uses beside busy neighbours, on simulated clocks; and runs of a part of a team."""
from __future__ import annotations

import ctypes

import numpy as np
import pytest
from llamina.kernels.atomics import atomic_add, atomic_load, call_pointer1
from llamina.kernels.compile_cache import compiled
from llamina.kernels.pace import COUNTED, IGNORED, LAST_INTERVAL, Pace
from llamina.kernels.team import BUSY, Team, barrier


def drive(pace: Pace, runs: int, seconds: dict[int, float], lost: float = 0.9, kind: int = 1) -> list[int]:
    used = []
    for _ in range(runs):
        threads = pace.threads(kind)
        pace.note(kind, threads, seconds[threads], lost)
        used.append(threads)
    return used


@pytest.mark.parametrize("n", [1, 2, 4])
def test_all_threads_while_nobody_is_late(n: int) -> None:
    assert drive(Pace(n), 50, {n: 1.0}, lost=0.4 / n) == [n] * 50


def test_a_single_disturbance_changes_nothing() -> None:
    pace = Pace(2)
    assert drive(pace, 10, {2: 1.0}, lost=0.01) == [2] * 10
    assert drive(pace, 1, {2: 9.0}, lost=1.0) + drive(pace, 50, {2: 1.0}, lost=0.01) == [2] * 51


@pytest.mark.parametrize("n, seconds, best", [(2, {2: 2.0, 1: 1.4}, 1), (2, {2: 1.0, 1: 1.4}, 2), (8, {8: 3.0, 7: 1.0, 6: 1.1, 4: 1.6, 1: 6.0}, 7)])
def test_the_fastest_is_found_and_kept(n: int, seconds: dict[int, float], best: int) -> None:
    pace = Pace(n)
    drive(pace, 3 + len(seconds) * (IGNORED + COUNTED), seconds)
    used = drive(pace, 1000, seconds)
    assert used.count(best) > 0.85 * len(used)


def test_the_neighbours_leave_and_all_threads_come_back() -> None:
    pace = Pace(2)
    assert drive(pace, 30, {2: 2.0, 1: 1.4})[-1] == 1
    used = drive(pace, 2 * LAST_INTERVAL, {2: 1.0, 1: 1.4}, lost=0.01)
    assert used[-1] == 2
    assert drive(pace, 2 * LAST_INTERVAL, {2: 1.0, 1: 1.4}, lost=0.01).count(1) <= IGNORED + COUNTED
    assert drive(pace, 1000, {2: 1.0}, lost=0.01) == [2] * 1000


def test_kinds_of_runs_decide_apart() -> None:
    pace = Pace(2)
    drive(pace, 30, {2: 2.0, 1: 1.4}, kind=1)
    drive(pace, 30, {2: 1.0, 1: 1.4}, kind=16)
    assert (pace.threads(1), pace.threads(16)) == (1, 2)


def test_a_run_of_some_threads_is_taken_by_these_and_no_others() -> None:
    @compiled("int64(int64, int64, int64, int64)")
    def entry(tid: int, n_threads: int, team: int, args: int) -> int:
        atomic_add(args + 8 * tid, 1)
        for _ in range(3):
            barrier(team, n_threads)
        return 1 << n_threads

    counts, expected = np.zeros(4, np.int64), np.zeros(4, np.int64)
    with Team(4) as team:
        for i in range(400):
            threads = 1 + i * 7 % 4
            assert team.run(entry.address, counts.ctypes.data, threads) == 1 << threads
            expected[:threads] += 1
        assert (counts == expected).all()
        team.run(entry.address, counts.ctypes.data)
        assert (counts == expected + 1).all()


def test_busy_is_what_the_word_says() -> None:
    with Team(1) as team:
        assert not team.busy
        team._words[BUSY // 8] = 5
        assert team.busy


def test_time_lost_to_a_late_thread_is_counted() -> None:
    @compiled("int64(int64, int64, int64, int64)")
    def entry(tid: int, n_threads: int, team: int, args: int) -> int:
        if tid == 1:
            call_pointer1(atomic_load(args), 20_000)  # usleep
        barrier(team, n_threads)
        return 0

    sleep = np.array([ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value], np.int64)
    with Team(2) as team:
        team.run(entry.address, sleep.ctypes.data)
        before = team.lost_seconds
        for _ in range(5):
            team.run(entry.address, sleep.ctypes.data)
        assert 0.09 < team.lost_seconds - before < 5
