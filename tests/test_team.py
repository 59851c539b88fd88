"""The thread team: barriers, work counters, abort, sleep and wake, float environment, fork, Ctrl-C, shutdown. Hangs are caught by timeouts."""
from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import platform
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from llamina.kernels.atomics import (
    DEFAULT_FPCR,
    DEFAULT_MXCSR,
    atomic_add,
    atomic_exchange,
    atomic_load,
    atomic_store,
    get_float_env,
    set_float_env,
)
from llamina.kernels.compile_cache import compiled, jit
from llamina.kernels.team import ABORTED, MAX_THREADS, Team, announce, barrier, next_of_share, next_tile, wait_for_pieces

ENTRY = "int64(int64, int64, int64, int64)"
TILES = 97


@compiled(ENTRY)
def stages(tid: int, n_threads: int, team: int, args: int) -> int:
    """args: int64 [n_stages, (TILES,) cells]: every stage adds 1 to each cell, tile by tile, not atomically. Every third hands tiles out by shares."""
    for i in range(atomic_load(args)):
        by_share = i % 3 == 2
        for turn in range(n_threads if by_share else 1):
            owner = (tid + turn) % n_threads
            first, last = (owner * TILES // n_threads, (owner + 1) * TILES // n_threads) if by_share else (0, TILES)
            while True:
                tile = first + (next_of_share(team, i % 2, owner) if by_share else next_tile(team, i % 4, 1))
                if tile >= last:
                    break
                cell = args + 8 + 8 * ((tile + i) % TILES)
                atomic_store(cell, atomic_load(cell) + 1)
        if barrier(team, n_threads):
            return 1
    return 0


@compiled(ENTRY)
def mail(tid: int, n_threads: int, team: int, args: int) -> int:
    """args: int64 [rounds, errors, letters of each thread…]: everybody reads everybody's letter of this round: half a barrier, then a whole one."""
    for i in range(atomic_load(args)):
        atomic_store(args + 16 + 8 * tid, i)
        odd = i % 2 and n_threads > 1  # pieces count, not threads: one does two, the last none, and nobody waits for him
        announce(team, 1 if not odd else 2 if tid == 0 else 1 if tid < n_threads - 1 else 0)
        wait_for_pieces(team, n_threads)
        if odd:
            barrier(team, n_threads)
        for other in range(n_threads):
            if atomic_load(args + 16 + 8 * other) != i:
                atomic_add(args + 8, 1)
        barrier(team, n_threads)
    return 1 << tid


@compiled(ENTRY)
def until_aborted(tid: int, n_threads: int, team: int, args: int) -> int:
    """args: int64 [rounds of each thread…]."""
    while True:
        atomic_add(args + 8 * tid, 1)
        if barrier(team, n_threads):
            return 1 << tid


@compiled(ENTRY)
def halve(tid: int, n_threads: int, team: int, args: int) -> int:
    """args: int64 [environment, float64 bits / 2 as they come out, …] for each thread; the number to halve is a denormal's bits."""
    atomic_store(args + 16 * tid, get_float_env())
    atomic_store(args + 16 * tid + 8, half_bits(args + 16 * n_threads))
    barrier(team, n_threads)
    return 0


@jit()
def half_bits(address: int) -> int:
    """Bits of half the float64 at an address: 0 where denormals are flushed."""
    number = np.int64(atomic_load(address)).view(np.float64)
    return int(np.float64(number * 0.5).view(np.int64))


@jit()
def read_env() -> int:
    return get_float_env()


@jit()
def write_env(value: int) -> None:
    set_float_env(value)


@pytest.fixture(scope="module")
def terminal(request: pytest.FixtureRequest) -> int:
    """The real stderr, as pytest captures file descriptor 2."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        return os.dup(2)


@pytest.fixture(autouse=True)
def no_hang(terminal: int) -> Iterator[None]:
    """A deadlock in compiled code must not stop the whole suite without a word: show where all threads are, and end."""
    faulthandler.dump_traceback_later(100, exit=True, file=terminal)
    yield
    faulthandler.cancel_dump_traceback_later()


def run_script(body: str, timeout: float = 60) -> str:
    """Run Python source in a process of its own, with the entries of this file at hand; its stdout. A hang or a crash fails."""
    preamble = f"""
    import os, random, signal, sys, threading, time
    import importlib.util
    spec = importlib.util.spec_from_file_location("entries", {__file__!r})
    entries = importlib.util.module_from_spec(spec); spec.loader.exec_module(entries)
    from llamina.kernels.team import Team, ABORTED, SPINS, YIELDS
    import numpy as np
    """
    source = textwrap.dedent(preamble) + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.returncode is None:  # hangs: end its forked children too
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"
    return out


def check_stages(team: Team, n_stages: int) -> None:
    cells = np.zeros(1 + TILES, np.int64)
    cells[0] = n_stages
    status = team.run(stages.address, cells.ctypes.data)
    assert status == 0 and cells[1:].tolist() == [n_stages] * TILES


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_ten_thousand_barriers_hand_out_every_tile_once(n_threads: int) -> None:
    with Team(n_threads) as team:
        check_stages(team, 10_000)
        check_stages(team, 1)  # a run starts with fresh counters, also when the last one ended after its barrier


@pytest.mark.parametrize("n_threads", [2, 3])
def test_a_barrier_publishes_what_was_written_before_it(n_threads: int) -> None:
    letters = np.zeros(2 + n_threads, np.int64)
    letters[0] = 5_000
    with Team(n_threads) as team:
        assert team.run(mail.address, letters.ctypes.data) == (1 << n_threads) - 1
    assert letters[1] == 0


def test_the_tests_above_notice_a_missing_barrier() -> None:
    @compiled(ENTRY)
    def without_barrier(tid: int, n_threads: int, team: int, args: int) -> int:
        for i in range(20_000):
            atomic_store(args + 16 + 8 * tid, i)
            for other in range(n_threads):
                if atomic_load(args + 16 + 8 * other) != i:
                    atomic_add(args + 8, 1)
        return 0

    letters = np.zeros(4, np.int64)
    with Team(2) as team:
        team.run(without_barrier.address, letters.ctypes.data)
    assert letters[1] > 0


def abort_when_running(team: Team, rounds: np.ndarray) -> None:
    while rounds[0] < 2:
        time.sleep(0.001)
    team.abort()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_abort_stops_all_threads_at_the_same_barrier(n_threads: int) -> None:
    with Team(n_threads) as team:
        for _ in range(20):
            rounds = np.zeros(n_threads, np.int64)
            threading.Thread(target=abort_when_running, args=(team, rounds)).start()
            status = team.run(until_aborted.address, rounds.ctypes.data)
            assert status == ABORTED | ((1 << n_threads) - 1)
            assert len(set(rounds.tolist())) == 1 and rounds[0] > 1
        check_stages(team, 10)  # served: the next run isn't touched
        team.abort()
        cells = np.zeros(1 + TILES, np.int64)
        cells[0] = 10
        assert team.run(stages.address, cells.ctypes.data) & ABORTED and cells[1:].tolist() == [1] * TILES
        team.abort()
        team.clear_abort()
        check_stages(team, 10)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64"), reason="no float environment known")
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_every_thread_keeps_denormals_though_the_caller_flushes_them(n_threads: int) -> None:
    numbers = np.zeros(2 * n_threads + 1, np.int64)
    numbers[-1] = 1 << 40  # a denormal
    assert halve.address and half_bits(numbers[-1:].ctypes.data) == 1 << 39
    before, x86 = read_env(), platform.machine().lower() in ("x86_64", "amd64")
    default, flush = (DEFAULT_MXCSR, before | 0x8040) if x86 else (DEFAULT_FPCR, before | 1 << 24)
    status = 0x3F if x86 else 0  # which exceptions happened so far: changes by itself
    with Team(n_threads) as team:
        try:
            write_env(flush)
            assert half_bits(numbers[-1:].ctypes.data) == 0, "flush-to-zero could not be planted"
            team.run(halve.address, numbers.ctypes.data)  # its workers start here and inherit the flushing
            assert read_env() | status == flush | status, "the caller's environment must come back"
        finally:
            write_env(before)
    assert numbers[:-1].reshape(-1, 2).tolist() == [[default, 1 << 39]] * n_threads


def test_an_idle_team_burns_no_cpu_and_wakes_again() -> None:
    with Team(3) as team:
        check_stages(team, 10)
        time.sleep(0.05)
        used = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - used < 0.25, "an idle team must sleep; two workers that spin use a second"
        check_stages(team, 10)


def test_no_wake_up_is_lost() -> None:
    run_script("""
    nothing = np.zeros(1, np.int64)
    entry, args = entries.stages.address, nothing.ctypes.data
    for n_threads in (2, 3):
        with Team(n_threads) as team:
            team.run(entry, args)
            team._words[YIELDS // 8] = 0
            for i in range(20_000):
                # The worker falls asleep about when the next run is published, now a little before, now a little after.
                team._words[SPINS // 8] = random.randrange(120)
                team.run(entry, args)
            entries.check_stages(team, 10)
    """)


def test_runs_from_several_python_threads_are_serialised() -> None:
    @compiled(ENTRY)
    def alone(tid: int, n_threads: int, team: int, args: int) -> int:
        if tid == 0 and atomic_exchange(args, 1) != 0:
            return 1  # another run is inside
        for _ in range(20):
            barrier(team, n_threads)
        if tid == 0:
            atomic_store(args, 0)
        return 0

    inside = np.zeros(1, np.int64)
    alone.address  # noqa: B018
    bad: list[int] = []
    with Team(2) as team:
        def caller() -> None:
            bad.extend(status for status in (team.run(alone.address, inside.ctypes.data) for _ in range(300)) if status)
        callers = [threading.Thread(target=caller) for _ in range(4)]
        for thread in callers: thread.start()
        for thread in callers: thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in callers) and not bad


def test_more_threads_than_cores_beside_busy_processes_finish() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        with Team(3) as team:
            start = time.perf_counter()
            check_stages(team, 500)
            assert time.perf_counter() - start < 60
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_fork_gives_the_child_its_own_workers_and_leaves_the_parent_alone() -> None:
    out = run_script("""
    def child(then=lambda: None):
        pid = os.fork()
        if pid == 0:
            try:
                entries.check_stages(team, 200)
                inner = Team(2); entries.check_stages(inner, 50); inner.close()
                team.close()
                os._exit(0)
            except BaseException as e:
                print("child:", repr(e), flush=True)
                os._exit(1)
        then()
        assert os.waitpid(pid, 0)[1] == 0

    team = Team(3)
    child()                                                            # before the first run
    entries.check_stages(team, 200)
    child(lambda: entries.check_stages(team, 200))                     # both at once
    time.sleep(0.01)
    child()                                                            # workers asleep
    rounds = np.zeros(3, np.int64)
    other = threading.Thread(target=lambda: team.run(entries.until_aborted.address, rounds.ctypes.data))
    other.start()
    while rounds[0] < 10: pass
    child()                                                            # another thread is inside a run and holds the team's lock
    team.abort(); other.join()
    entries.check_stages(team, 200)
    team.close()
    print("done")
    """)
    assert out == "done\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no interval timer")
def test_ctrl_c_at_any_moment_leaves_the_team_consistent() -> None:
    out = run_script("""
    def interrupt(*_):
        global fired
        fired = True                                                   # should a destructor swallow the exception
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, interrupt)
    entries.stages.address
    random.seed(1)
    hits = 0
    team = Team(3)
    while hits < 300:
        if hits % 10 == 0:
            team = Team(3)                                             # the interrupt falls into its start, or into the end of the old one
        fired = False
        try:
            signal.setitimer(signal.ITIMER_REAL, random.choice((2e-5, 2e-4, 1e-3, 3e-3)) * random.random() + 1e-6)
            while not fired:
                entries.check_stages(team, 3)
        except KeyboardInterrupt: pass
        hits += 1
        entries.check_stages(team, 3)
        if random.random() < 0.3:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.random() * 3e-4 + 1e-6)
                team.close()
                time.sleep(0.001)
            except KeyboardInterrupt: pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            team.close()
            try: team.run(entries.stages.address)
            except RuntimeError: pass
            else: raise AssertionError("a closed team ran")
            team = Team(3)
    team.close()
    import gc; gc.collect()
    def left(): return [t.name for t in threading.enumerate() if t.name.startswith("llamina") and t.ident]
    end = time.monotonic() + 5
    while left() and time.monotonic() < end: time.sleep(0.01)
    print("done", left())
    """)
    assert out == "done []\n"


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("llamina-")]


def test_close_ends_the_workers_and_later_runs_are_refused() -> None:
    before = len(workers())
    team, other = Team(3), Team(2)
    check_stages(team, 5)
    check_stages(other, 5)
    assert len(workers()) == before + 3
    team.close()
    team.close()
    assert len(workers()) == before + 1
    check_stages(other, 5)
    with pytest.raises(RuntimeError, match="closed"):
        team.run(stages.address)
    other.close()
    unused = Team(2)
    unused.close()
    with pytest.raises(RuntimeError, match="closed"):
        unused.run(stages.address)


def test_a_forgotten_team_ends_its_workers() -> None:
    before = len(workers())
    team = Team(3)
    check_stages(team, 5)
    del team
    gc.collect()
    assert len(workers()) == before


def test_closing_while_another_thread_runs_aborts_that_run() -> None:
    rounds, results = np.zeros(2, np.int64), []
    team = Team(2)
    thread = threading.Thread(target=lambda: results.append(team.run(until_aborted.address, rounds.ctypes.data)))
    thread.start()
    while rounds[0] < 10:
        time.sleep(0.001)
    team.close()
    thread.join(timeout=10)
    assert results == [ABORTED | 3]


def test_a_process_ends_cleanly_with_a_team_left_open_or_running() -> None:
    assert run_script("team = Team(3); entries.check_stages(team, 5); print('end')") == "end\n"
    assert run_script("""
    team = Team(2); rounds = np.zeros(2, np.int64)
    threading.Thread(target=lambda: team.run(entries.until_aborted.address, rounds.ctypes.data), daemon=True).start()
    while rounds[0] < 10: pass
    print('end')
    """) == "end\n"


def test_one_thread_needs_no_workers() -> None:
    before = len(workers())
    with Team(1) as team:
        check_stages(team, 5)
        assert len(workers()) == before
        cells = np.zeros(1, np.int64)
        for _ in range(1000):
            team.run(stages.address, cells.ctypes.data)
        assert len(workers()) == before


@pytest.mark.parametrize("n_threads", [0, -1, MAX_THREADS + 1])
def test_impossible_sizes_are_refused(n_threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        Team(n_threads)


def test_address_zero_is_refused() -> None:
    with Team(2) as team, pytest.raises(ValueError, match="address"):
        team.run(0)
