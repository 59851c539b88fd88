"""Who does what on the way back through attention (attention.py): pieces of work in an order that never makes a thread wait for what nobody has begun.

    units (a sequence and a KV head), the largest first:  as many as threads can do alone are taken whole
                                                          all threads divide each of the others: TURN, then for QUERIES of a head: ROWS, then CHAINS

A task may need two counters to have come far enough, and counts one up when it is done. What it needs stands before it in the list, and claims are taken in
the order of the list, so whoever waits, waits for a thread that works. Between what makes and what needs it other tasks stand: a stage's ROWS come before the
CHAINS of the one before, and where there are many threads the units of several lanes take turns. A stage is LONG queries of a head.
"""
from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

QUERIES, PAGE, STAGE, SLOTS = 32, 64, 64, 3
"""Queries of a ROWS task; positions of a page; queries of a stage; of how many stages a lane has the probabilities at once."""
TURNED, KEYS = 128, 64
"""Positions of a TURN and of a CHAINS task, at least."""
TURN, ROWS, CHAINS = range(3)
KIND, FIRST, N, KV_HEAD, HEAD, FROM, TO, START, STOP, LANE, SLOT, NEEDS, NEEDED, NEEDS_TOO, NEEDED_TOO, COUNTS = range(0, 128, 8)
"""Words of a task. FIRST, N: the sequence's first row, how many it has. HEAD: of all. FROM, TO: positions (ROWS: queries) of this task. START, STOP: the stage's
queries. LANE: whose room, -1: the thread's own. SLOT: which part of it. NEEDS, NEEDS_TOO: counters that must be at least NEEDED, NEEDED_TOO; COUNTS: which goes
up; -1: none."""
TASK_WORDS = 16


class Tasks(NamedTuple):
    tasks: np.ndarray
    """int64 [tasks, TASK_WORDS]"""
    claims: np.ndarray
    """int64 [claims, 2]: first task, how many; what a thread takes at once."""
    counters: int
    lanes: int


def lowest(query: int, window: int) -> int:
    """First position of the page in which the window of a query begins."""
    return max(0, query - window + 1) // PAGE * PAGE if window else 0


def most_lanes(threads: int) -> int:
    """Of how many units the threads divide the work at the same time, at most."""
    return threads if threads > 1 else 0


def _alone(sizes: list[int], threads: int) -> int:
    """How many of these units, the largest first, are taken whole: as many as leave enough for those who are done before the last."""
    loads, left, found = [0] * threads, sum(sizes), 0
    for i, size in enumerate(sizes):
        at = loads.index(min(loads))
        loads[at] += size
        left -= size
        if max(loads) * threads - sum(loads) <= left:
            found = i + 1
    return found


class _Unit:
    """One unit's tasks."""

    def __init__(self, first: int, n: int, kv_head: int, group: int, window: int, lane: int, counters: int, keys: int, waits: tuple[int, int]) -> None:
        self._head = [first, n, kv_head]
        self._n, self._window, self._lane, self._keys, self.counters = n, window, lane, keys, counters
        self._turned = (-1, 0)
        self._waits = waits
        self._stages = [(head, start) for head in range(kv_head * group, (kv_head + 1) * group) for start in range(0, n, STAGE)]
        self._rows: list[tuple[int, int]] = []
        self.done: list[tuple[int, int]] = []

    def _task(self, kind: int, head: int, at: tuple[int, int], stage: tuple[int, int], slot: int, needs: tuple[int, int], too: tuple[int, int], counts: int,
              ) -> list[int]:
        return [kind, *self._head[:3], head, *at, *stage, self._lane, slot, *needs, *too, counts]

    def _counter(self) -> int:
        if self._lane < 0:
            return -1
        self.counters += 1
        return self.counters - 1

    def rounds(self) -> Iterator[list[list[int]]]:
        """Tasks in parts that those of other lanes may come between."""
        n, counter = self._n, self._counter()
        size = n if self._lane < 0 else TURNED
        turns = [self._task(TURN, 0, (at, min(n, at + size)), (0, 0), 0, self._waits, (-1, 0), counter) for at in range(0, n, size)]
        self._turned = (counter, len(turns))
        yield turns
        for i in range(len(self._stages) + 1):
            made = self._stage_rows(i) if i < len(self._stages) else []
            if self._lane < 0:
                yield made + (self._stage_chains(i) if i < len(self._stages) else [])
            else:
                yield made + (self._stage_chains(i - 1) if i else [])

    def _stage_rows(self, i: int) -> list[list[int]]:
        head, start = self._stages[i]
        stop, counter, slot = min(self._n, start + STAGE), self._counter(), 0 if self._lane < 0 else i % SLOTS
        free = self.done[i - SLOTS] if i >= SLOTS and self._lane >= 0 else (-1, 0)
        made = [self._task(ROWS, head, (at, min(stop, at + QUERIES)), (start, stop), slot, self._turned, free, counter) for at in range(start, stop, QUERIES)]
        self._rows.append((counter, len(made)))
        return made

    def _stage_chains(self, i: int) -> list[list[int]]:
        head, start = self._stages[i]
        stop, counter, slot = min(self._n, start + STAGE), self._counter(), 0 if self._lane < 0 else i % SLOTS
        low, size = lowest(start, self._window), self._n if self._lane < 0 else self._keys
        before = self.done[i - 1] if i else (-1, 0)
        made = [self._task(CHAINS, head, (at, min(stop, at + size)), (start, stop), slot, self._rows[i], before, counter) for at in range(low, stop, size)]
        self.done.append((counter, len(made)))
        return made


@lru_cache(maxsize=8)
def divided(items: tuple[tuple[int, int], ...], n_kv: int, group: int, window: int, threads: int) -> Tasks:
    """items: sequences' first rows and how many they have."""
    def size(n: int) -> int:
        return sum(min(32, n - m) * (min(n, m + 32) - lowest(m, window)) for m in range(0, n, QUERIES))
    sizes = {n: size(n) for n in {n for _, n in items}}
    units = sorted(((first, n, kv_head) for first, n in items if n for kv_head in range(n_kv)), key=lambda unit: -sizes[unit[1]])
    alone = _alone([sizes[n] for _, n, _ in units], threads)
    tasks: list[list[int]] = []
    claims: list[tuple[int, int]] = []
    for first, n, kv_head in units[:alone]:
        before = len(tasks)
        for part in _Unit(first, n, kv_head, group, window, -1, 0, 0, (-1, 0)).rounds():
            tasks += part
        claims.append((before, len(tasks) - before))
    counters, waiting, lanes = 0, units[alone:], 0
    if waiting:
        pieces = STAGE // QUERIES + max(1, min(8, waiting[0][1] // (2 * KEYS)))
        lanes = min(len(waiting), most_lanes(threads), -(-4 * threads // pieces))
        running: list[tuple[_Unit, Iterator[list[list[int]]]] | None] = [None] * lanes
        last: list[tuple[int, int]] = [(-1, 0)] * lanes
        while waiting or any(running):
            for lane in range(lanes):
                if running[lane] is None and waiting:
                    first, n, kv_head = waiting.pop(0)
                    keys = max(KEYS, -(-n // (8 * PAGE)) * PAGE)
                    unit = _Unit(first, n, kv_head, group, window, lane, counters, keys, last[lane])
                    running[lane] = unit, unit.rounds()
                if (now := running[lane]) is None:
                    continue
                now[0].counters = counters
                part = next(now[1], None)
                counters = now[0].counters
                if part is None:
                    last[lane], running[lane] = now[0].done[-1], None
                    continue
                claims += [(len(tasks) + i, 1) for i in range(len(part))]
                tasks += part
    return Tasks(np.array(tasks, np.int64).reshape(-1, TASK_WORDS), np.array(claims, np.int64).reshape(-1, 2), counters, lanes)
