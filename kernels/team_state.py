"""The thread team's state block, and what its threads do with it in compiled code: wait, pass a barrier, take work. team.py says how it fits together."""
from __future__ import annotations

import time

from .atomics import atomic_add, atomic_load, atomic_store, call_pointer0, call_pointer1, call_pointer2, call_pointer7, compare_and_swap, fence, pause
from .deferred import jit
from .simd import stack_vectors

LINE = 128  # bytes: two x86 lines (they are fetched in pairs), one Apple line
MAX_THREADS = 512
N_COUNTERS = 4  # work counters (slots) that a stage may use

# byte offsets into the state block
RUN = 0 * LINE           # run number << 16 | threads that take part; written by the caller
ENTRY = RUN + 8          # address of the run's function, 0: workers end
ARGS = RUN + 16          # its last argument
FINISHED = 1 * LINE      # workers done with this run
STATUS = FINISHED + 8    # bitwise or of what the threads returned
ARRIVED = 2 * LINE       # threads waiting at the barrier
GENERATION = 3 * LINE    # barriers passed
DECISION = GENERATION + 8  # 1 if the last barrier decided to stop
ABORT = 4 * LINE         # set by abort(), from any thread at any time
CONSTANTS = 5 * LINE     # written before the workers start, then only read:
YIELD_FN, SLEEP_FN, ACQUIRE_FN, RELEASE_FN = CONSTANTS, CONSTANTS + 8, CONSTANTS + 16, CONSTANTS + 24
SLEEP_ARG, SPINS, YIELDS = CONSTANTS + 32, CONSTANTS + 40, CONSTANTS + 48
SYSCALL_FN, FUTEX = CONSTANTS + 56, CONSTANTS + 64  # syscall() and the number of the futex call, 0 where there is none
CLOCK = CONSTANTS + 72   # kernels/clock.py's words but the result, which each thread has for itself
COUNTERS = 6 * LINE      # N_COUNTERS int64 side by side: a stage mostly uses one, and a barrier resets all with one line's traffic
READY = COUNTERS + 8 * N_COUNTERS  # pieces of work that were announced as done in this stage
SLEEPERS = 7 * LINE      # threads that sleep, or are about to, until a word changes
LOST = SLEEPERS + 8      # nanoseconds that threads have waited in vain (waits longer than LATE), over all threads and runs
BUSY = 8 * LINE          # above 0: waits are long, sleep at once; counted down by short ones
WORKERS = 9 * LINE       # a line for each thread:
ASLEEP, LOCK, CLAIMED = 0, 8, 16  # flag; address of its lock; 1 once a thread has taken this place
SHARES = 64              # N_SHARES words: generation << 24 | pieces taken of its share of a list of the stage's work
N_SHARES = 3

ABORTED = 1 << 40  # bit of run()'s result: a barrier decided to stop. Bits below are the entry's own.

SPIN_SECONDS, YIELD_SECONDS = 200e-6, 300e-6
LATE = 500_000  # nanoseconds of sleep at a barrier that only a lost time slice explains
BUSY_WAITS = 200  # short waits in a row before the team is no longer busy
BUSY_SPINS = 40
FUTEX_WAIT, FUTEX_WAKE, EVERYONE = 128, 129, 1 << 30  # both private to the process


CLOCK_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 1)


@jit
def wait_while(team: int, word: int, value: int) -> int:
    """Wait until the word differs from `value`: spin, then sleep until `changed(team, word)`. Returns the new value."""
    busy = atomic_load(team + BUSY)
    for _ in range(min(BUSY_SPINS, atomic_load(team + SPINS)) if busy > 0 else atomic_load(team + SPINS)):
        now = atomic_load(word)
        if now != value:
            if busy > 0:
                atomic_store(team + BUSY, busy - 1)
            return now
        pause()
    start = _nanoseconds(team)
    if atomic_load(team + FUTEX) == 0:
        for _ in range(0 if busy > 0 else atomic_load(team + YIELDS)):
            if atomic_load(word) != value:
                break
            call_pointer0(atomic_load(team + YIELD_FN))
    while True:
        now = atomic_load(word)
        if now != value:
            break
        if atomic_load(team + FUTEX) == 0:
            call_pointer1(atomic_load(team + SLEEP_FN), atomic_load(team + SLEEP_ARG))
            continue
        atomic_add(team + SLEEPERS, 1)
        call_pointer7(atomic_load(team + SYSCALL_FN), atomic_load(team + FUTEX), word, FUTEX_WAIT, value & 0xFFFFFFFF, 0, 0, 0)  # the word's lower half
        atomic_add(team + SLEEPERS, -1)
    waited = _nanoseconds(team) - start
    if waited > LATE:
        atomic_store(team + BUSY, max(busy, BUSY_WAITS))
        atomic_add(team + LOST, waited)
    elif busy > 0:
        atomic_store(team + BUSY, busy - 1)
    return now


@jit
def changed(team: int, word: int) -> None:
    """Wake who sleeps until this word changes; after it has been changed."""
    fence()
    if atomic_load(team + SLEEPERS) != 0:
        call_pointer7(atomic_load(team + SYSCALL_FN), atomic_load(team + FUTEX), word, FUTEX_WAKE, EVERYONE, 0, 0, 0)


@jit
def _nanoseconds(team: int) -> int:
    """Monotonic time; 0 where there is no clock_gettime, where nothing ever counts as late."""
    function = atomic_load(team + CLOCK)
    if function == 0:
        return 0
    result = stack_vectors(1)
    call_pointer2(function, CLOCK_MONOTONIC, result)
    return 1_000_000_000 * atomic_load(result) + atomic_load(result + 8)


@jit
def reset_counters(team: int) -> None:
    for i in range(N_COUNTERS + 1):
        atomic_store(team + COUNTERS + 8 * i, 0)


@jit
def barrier(team: int, n_threads: int) -> bool:
    """Wait for all threads of the run. True: the run was aborted, return now (all threads of this barrier get the same answer).

    Everything written by any thread before it is visible to all after it; all work counters are 0, and all shares whole, after it.
    """
    if n_threads > 1:
        generation = atomic_load(team + GENERATION)
        if atomic_add(team + ARRIVED, 1) != n_threads - 1:
            wait_while(team, team + GENERATION, generation)
            return atomic_load(team + DECISION) != 0
        atomic_store(team + ARRIVED, 0)
        reset_counters(team)
        stop = atomic_load(team + ABORT)
        atomic_store(team + DECISION, stop)
        atomic_store(team + GENERATION, generation + 1)
        changed(team, team + GENERATION)
        return stop != 0
    reset_counters(team)
    atomic_store(team + GENERATION, atomic_load(team + GENERATION) + 1)
    if atomic_load(team + ABORT) != 0:
        atomic_store(team + DECISION, 1)
        return True
    return False


@jit
def announce(team: int, n: int) -> None:
    """This thread has done n pieces of what others of this stage will read: half of a barrier."""
    if n > 0:
        atomic_add(team + READY, n)
        changed(team, team + READY)


@jit
def are_there(team: int, n: int) -> bool:
    """Whether all n pieces of this stage are announced."""
    return atomic_load(team + READY) == n


@jit
def wait_for_pieces(team: int, n: int) -> None:
    """Until all n pieces of this stage are announced: the other half. What was written before is visible. They all come: an abort shows at barriers only.

    It waits for work, not for threads: one that comes late holds nobody up if others have done its share.
    """
    ready = atomic_load(team + READY)
    while ready != n:
        ready = wait_while(team, team + READY, ready)


@jit
def next_tile(team: int, slot: int, count: int) -> int:
    """Take the next `count` tiles of work list `slot` (0 … N_COUNTERS-1); returns the first. All lists start at 0 after a barrier."""
    return atomic_add(team + COUNTERS + 8 * slot, count)


@jit
def next_of_share(team: int, slot: int, owner: int) -> int:
    """Take the next piece of a thread's share of work list `slot` (0 … N_SHARES-1); returns its number, from 0. All shares are whole after a barrier.

    What is out of date needs no reset, which would cost a barrier a line's transfer for each thread: the generation tells.
    """
    word, stage = team + WORKERS + LINE * owner + SHARES + 8 * slot, (atomic_load(team + GENERATION) & (1 << 39) - 1) << 24
    while True:
        before = atomic_load(word)
        taken = before - stage if before >> 24 == stage >> 24 else 0
        if compare_and_swap(word, before, stage + taken + 1) == before:
            return taken
