"""The thread team: n threads that run one compiled function together, with barriers, work counters and a way to stop.

    caller (thread 0)                        workers (1 … n-1, daemon threads that live in compiled code, without the GIL)
    team.run(entry, args)                    wait for a new run number: spin ~200 µs, then sleep on a lock
      write entry, args; run number + 1
      wake those that sleep         ──────►  status |= entry(tid, n, team, args)
      status |= entry(0, n, team, args)      finished + 1
      wait for finished == n - 1    ◄──────  wait …

All of run() is one call into compiled code, so a signal is handled by Python before or after a run, never between its parts: the
threads can't get out of step. Waking needs a system call only for workers that really sleep; an idle team uses no CPU.

State is one 128-byte aligned block of int64 words (team_state.py); each word that threads write at different times has its own line. Memory ordering:
- entry and args are written before the run number (release) and read after it (acquire).
- sleep: a worker sets its ASLEEP flag, fence, looks at the run number again; the caller sets the run number, fence, looks at the flags.
  So at least one of them sees the other. Whoever swaps the flag back to 0 owns the wake-up: the caller that does releases the
  worker's lock exactly once, and that worker acquires it exactly once.
- barrier: arrive with an atomic add; the last one resets the counters, copies the abort flag to the decision word, and raises the
  generation (release); the others wait for that (acquire). No thread can reach the next barrier's end before all have read the decision.
- half barriers: `announce` adds to a counter that a barrier resets, `wait_for_pieces` waits for it, after other work: mostly all are done by then.

What a thread sleeps on is CPython's own lock (PyThread_*_lock: part of its stable C interface, needs no GIL, on every system). Addresses
of these, sched_yield and usleep stand in the state block, never in compiled code, which is kept on disk.

Compiled entries don't raise: they return status bits. A busy machine: who waits in vain for longer than any division of work explains
(LATE) marks the team as busy, and from then on waiting threads sleep almost at once (Linux: on the word itself, by futex), so that their CPU takes over the
thread they wait for; a core that spins or yields would be kept from it. Waits that stay short clear the mark. More threads than usable CPUs count as busy
for ever. Fork: the child has no workers; its copy of the state is cleared and
its next run starts new ones. Exit: an atexit hook ends all workers before Python frees the machine code they run.
"""
from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import platform
import sys
import threading
import time
import weakref
from typing import Any

import numpy as np

from .atomics import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    atomic_or,
    atomic_store,
    call_pointer0,
    call_pointer1,
    call_pointer2,
    call_pointer4,
    compare_and_swap,
    default_float_env,
    fence,
    get_float_env,
    pause,
    set_float_env,
)
from .compile_cache import compiled
from .deferred import jit
from .team_state import (
    ABORT,
    ABORTED,
    ACQUIRE_FN,
    ARGS,
    ASLEEP,
    BUSY,
    BUSY_SPINS,
    CLAIMED,
    CLOCK,
    DECISION,
    ENTRY,
    FINISHED,
    FUTEX,
    GENERATION,
    LINE,
    LOCK,
    LOST,
    MAX_THREADS,
    RELEASE_FN,
    RUN,
    SLEEP_ARG,
    SLEEP_FN,
    SPIN_SECONDS,
    SPINS,
    STATUS,
    SYSCALL_FN,
    WORKERS,
    YIELD_FN,
    YIELD_SECONDS,
    YIELDS,
    announce,
    are_there,
    barrier,
    changed,
    next_of_share,
    next_tile,
    reset_counters,
    wait_for_pieces,
    wait_while,
)
from .threads import usable_threads

__all__ = ["ABORTED", "BUSY", "GENERATION", "MAX_THREADS", "SPINS", "YIELDS", "Team", "announce", "are_there", "barrier", "next_of_share", "next_tile",
           "wait_for_pieces"]


@jit
def _call_entry(tid: int, n_threads: int, team: int) -> None:
    """Run the entry under the default float environment, whatever this thread had (new threads inherit flush-to-zero)."""
    before = get_float_env()
    set_float_env(default_float_env())
    status = call_pointer4(atomic_load(team + ENTRY), tid, n_threads, team, atomic_load(team + ARGS))
    set_float_env(before)
    if status != 0:
        atomic_or(team + STATUS, status)


@jit
def _publish(team: int, n_threads: int, entry: int, args: int) -> None:
    """Start a run and wake the workers that sleep and are to take part."""
    atomic_store(team + ENTRY, entry)
    atomic_store(team + ARGS, args)
    atomic_store(team + RUN, (atomic_load(team + RUN) >> 16) + 1 << 16 | n_threads)
    fence()
    for tid in range(1, n_threads):
        worker = team + WORKERS + LINE * tid
        if atomic_load(worker + ASLEEP) != 0 and atomic_exchange(worker + ASLEEP, 0) != 0:
            call_pointer1(atomic_load(team + RELEASE_FN), atomic_load(worker + LOCK))


@compiled("int64(int64, int64, int64, int64)")
def _run(team: int, n_threads: int, entry: int, args: int) -> int:
    """One run of the first n_threads threads, as thread 0. entry 0 ends the workers instead, and is for all of them."""
    if entry == 0:
        _publish(team, n_threads, entry, args)
        return 0
    atomic_store(team + STATUS, 0)
    atomic_store(team + DECISION, 0)
    atomic_store(team + FINISHED, 0)
    reset_counters(team)
    atomic_store(team + GENERATION, atomic_load(team + GENERATION) + 1)
    _publish(team, n_threads, entry, args)
    _call_entry(0, n_threads, team)
    finished = atomic_load(team + FINISHED)
    while finished != n_threads - 1:
        finished = wait_while(team, team + FINISHED, finished)
    status = atomic_load(team + STATUS)
    if atomic_load(team + DECISION) != 0:  # this abort has been served
        atomic_store(team + ABORT, 0)
        status |= ABORTED
    return status


@compiled("int64(int64, int64)")
def _worker(team: int, tid: int) -> int:
    """A worker's whole life. Returns the number of the last run."""
    me = team + WORKERS + LINE * tid
    if compare_and_swap(me + CLAIMED, 0, 1) != 0:
        return -1  # started twice, by a start that Ctrl-C interrupted
    seen = 0
    while True:
        run, rounds, spins, yields = atomic_load(team + RUN), 0, atomic_load(team + SPINS), atomic_load(team + YIELDS)
        if atomic_load(team + BUSY) > 0:
            spins, yields = min(BUSY_SPINS, spins), 0
        while run == seen and rounds < spins + yields:
            if rounds < spins:
                pause()
            else:
                call_pointer0(atomic_load(team + YIELD_FN))
            rounds += 1
            run = atomic_load(team + RUN)
        if run == seen:
            atomic_exchange(me + ASLEEP, 1)
            fence()
            if atomic_load(team + RUN) == seen or atomic_exchange(me + ASLEEP, 0) == 0:
                call_pointer2(atomic_load(team + ACQUIRE_FN), atomic_load(me + LOCK), 1)
            continue
        seen = run
        n_threads = run & 0xFFFF
        if tid >= n_threads:
            continue  # not for us; the caller won't wait, so ENTRY may be another run's by now
        if atomic_load(team + ENTRY) == 0:
            return seen >> 16
        _call_entry(tid, n_threads, team)
        atomic_add(team + FINISHED, 1)
        changed(team, team + FINISHED)


@compiled("int64(int64, int64, int64)")
def _rounds(team: int, n: int, give_away: int) -> int:
    """n rounds of a waiting loop, for calibration."""
    unchanged = 0
    for _ in range(n):
        unchanged += atomic_load(team + RUN)
        if give_away:
            call_pointer0(atomic_load(team + YIELD_FN))
        else:
            pause()
    return unchanged


def _system_functions() -> dict[int, int]:
    """State offset -> address, for the functions that waiting threads call, and usleep's argument."""
    def address(library: Any, name: str) -> int:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0

    words = {ACQUIRE_FN: address(ctypes.pythonapi, "PyThread_acquire_lock"), RELEASE_FN: address(ctypes.pythonapi, "PyThread_release_lock")}
    if os.name == "nt":
        kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
        return {**words, YIELD_FN: address(kernel32, "SwitchToThread"), SLEEP_FN: address(kernel32, "Sleep"), SLEEP_ARG: 1}  # milliseconds
    libc = ctypes.CDLL(None)
    words |= {YIELD_FN: address(libc, "sched_yield"), SLEEP_FN: address(libc, "usleep"), SLEEP_ARG: 100, CLOCK: address(libc, "clock_gettime")}  # µs
    futex = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine(), 0) if sys.platform == "linux" and sys.byteorder == "little" else 0
    return {**words, SYSCALL_FN: address(libc, "syscall"), FUTEX: futex}


def _new_lock() -> int:
    """The address of a fresh CPython lock, already taken: the next to acquire it sleeps until somebody releases it."""
    allocate, acquire = ctypes.pythonapi.PyThread_allocate_lock, ctypes.pythonapi.PyThread_acquire_lock
    allocate.restype, allocate.argtypes = ctypes.c_void_p, []
    acquire.restype, acquire.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]
    lock = allocate()
    if not lock:
        raise MemoryError("no memory for a thread lock")
    acquire(lock, 1)
    return lock


def _compile() -> None:
    """Compile (or load) what threads call, on one thread, before any starts."""
    for function in _run, _worker, _rounds:
        function.ctypes  # noqa: B018


_measured: list[tuple[int, int]] = []  # rounds of (spinning, yielding), once per process


def _calibrate(team: int) -> tuple[int, int]:
    """How many rounds of spinning and of yielding fill their times on this machine (a pause is 10 to 50 ns, a yield 0.3 µs and up)."""
    def rounds(seconds: float, n: int, give_away: bool) -> int:
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            _rounds.ctypes(team, n, give_away)
            best = min(best, time.perf_counter() - start)
        return int(min(max(seconds * n / max(best, 1e-9), 20), 50_000))

    if not _measured:
        _measured.append((rounds(SPIN_SECONDS, 500, False), rounds(YIELD_SECONDS, 50, True)))
    return _measured[0]


_teams: weakref.WeakSet[Team] = weakref.WeakSet()


class Team:
    """n_threads threads (the caller is one of them). Workers start with the first run; `close()` ends them, so does garbage collection.

    A team may be used from any thread: runs are serialised. After os.fork the child's copy starts its own workers at its next run.
    """

    def __init__(self, n_threads: int):
        if not 1 <= n_threads <= MAX_THREADS:
            raise ValueError(f"a team has 1 to {MAX_THREADS} threads, not {n_threads}")
        self.n_threads = n_threads
        size = WORKERS + LINE * n_threads
        self._block = np.zeros((size + LINE) // 8, np.int64)
        offset = -self._block.ctypes.data % LINE // 8
        self._words = self._block[offset:offset + size // 8]
        self.address: int = self._words.ctypes.data
        """Of the state block: what barrier() and next_tile() take. The same for the team's life, also after a fork."""
        self._forget_workers()
        self._closed = False
        _teams.add(self)

    def _forget_workers(self) -> None:
        """A state without workers: at the beginning, and in a forked child, where the parent's don't exist."""
        self._mutex = threading.RLock()  # reentrant: a signal handler that closes the team may find this thread inside run()
        self._threads: list[threading.Thread] = []
        self._started = False
        self._words[:] = 0

    def run(self, entry: int, args: int = 0, threads: int | None = None) -> int:
        """Call the compiled `entry(tid, n_threads, team_address, args) -> int64` on all threads, or the first `threads`; returns when all have returned.

        entry: address of a C function of four int64 (`@compiled("int64(int64, int64, int64, int64)")` … `.address`); args: passed on,
        usually the address of an argument block, which must stay alive. Every thread has the default float environment meanwhile.
        Returns the bitwise or of the threads' results (which must be bits below ABORTED), with ABORTED if a barrier answered True.
        Raises RuntimeError after close(), ValueError for entry 0.
        """
        if not entry:
            raise ValueError("a run needs the address of a compiled function, not 0")
        with self._mutex:
            if not self._started:
                self._start()
            return _run.ctypes(self.address, min(threads or self.n_threads, self.n_threads), entry, args)

    @property
    def busy(self) -> bool:
        """Whether threads of the last runs were late at barriers for long: other processes want our CPUs."""
        return bool(self._words[BUSY // 8] > 0)

    @property
    def lost_seconds(self) -> float:
        """Time that threads have waited for others that were late, over all threads and runs so far."""
        return float(self._words[LOST // 8]) * 1e-9

    def abort(self) -> None:
        """Make all threads of the present run stop at the next barrier. Callable from any thread or signal handler.

        Stays set until a run ends by it (also one that starts later) or clear_abort().
        """
        self._words[ABORT // 8] = 1

    def clear_abort(self) -> None:
        """Take back an abort() that no run has met: at the start of a new piece of work."""
        self._words[ABORT // 8] = 0

    def _start(self) -> None:
        """Start the workers that are missing. If interrupted, the next call goes on: a place that two threads claim, one gets."""
        if self._closed:
            raise RuntimeError("this thread team is closed")
        _compile()
        for offset, value in _system_functions().items():
            self._words[offset // 8] = value
        spins, yields = _calibrate(self.address)  # calls them
        if self.n_threads > usable_threads():
            spins = 20  # whom we wait for may need this very core
            self._words[BUSY // 8] = 1 << 62
        self._words[SPINS // 8], self._words[YIELDS // 8] = spins, yields
        for tid in range(1, self.n_threads):
            line = (WORKERS + LINE * tid) // 8
            if not self._words[line + LOCK // 8]:
                self._words[line + LOCK // 8] = _new_lock()
            if not self._words[line + CLAIMED // 8]:
                # The arguments keep the state block alive, but not the team: it can be collected.
                arguments = (self._block, self.address, tid)
                thread = threading.Thread(target=_live, args=arguments, name=f"llamina-{tid}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._started = True

    def close(self) -> None:
        """End the workers and wait for them. A run in another thread is aborted first. Harmless twice; run() raises afterwards."""
        self._closed = True
        if not self._threads:
            self._started = False
            return
        self.abort()
        with self._mutex:
            self._started = False  # first: whatever interrupts us, run() must not wait for workers that are gone
            if self._threads:
                _run.ctypes(self.address, self.n_threads, 0, 0)
                for thread in self._threads:
                    with contextlib.suppress(RuntimeError):  # never started, or we are it
                        thread.join(timeout=10)
                self._threads = []

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            try:
                self.close()
            except KeyboardInterrupt:  # Python prints and forgets what a destructor raises; there is no other time to end the workers
                self.close()
                raise
        except Exception:  # at the interpreter's end modules may be gone, contextlib among them
            pass

    def __repr__(self) -> str:
        return f"<Team of {self.n_threads} threads{', closed' if self._closed else ''}>"


def _live(block: np.ndarray, address: int, tid: int) -> None:
    _worker.ctypes(address, tid)


@atexit.register
def _close_all() -> None:
    """Workers must be gone before Python frees the machine code that they run."""
    for team in list(_teams):
        team.close()


def _after_fork_in_child() -> None:
    for team in list(_teams):
        team._forget_workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
