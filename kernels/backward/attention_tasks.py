"""Who does what on the way back through attention (attention.py): pieces of work in an order that never makes a thread wait for what nobody has begun.

    units (a sequence and a KV head), the largest first:  as many as the threads can do alone, one each, are taken whole
                                                          all threads divide each of the others

A unit is TURN, and then for each stage (STAGE queries of a head, heads in order) ROWS, 32 queries each, and CHAINS, KEYS positions or more each. A task may
need two counters to have come far enough, and counts one up when it is done. What it needs stands before it in the list, and threads take from the list in
order, so who waits, waits for one that works. It is seldom: other tasks stand between what makes and what needs (ROWS of some stages are ahead of CHAINS), and
where there are many threads, units of several lanes take turns.
"""
from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count, repeat
from typing import NamedTuple

import numpy as np

QUERIES, PAGE, STAGE = 32, 64, 64
"""Queries of a ROWS task; positions of a page, in whose first one 32 queries begin to look; queries of a stage."""
TURNED, KEYS = 128, 64
"""Positions of a TURN task, of a CHAINS task at least."""
TURN, ROWS, CHAINS = range(3)
KIND, FIRST, N, KV_HEAD, HEAD, FROM, TO, START, STOP, LANE, SLOT, NEEDS, NEEDED, NEEDS_TOO, NEEDED_TOO, COUNTS = range(0, 128, 8)
"""Words of a task. FIRST, N: the sequence's first row, how many it has. HEAD: of all. FROM, TO: positions (ROWS: queries) of this task. START, STOP: the
stage's queries. LANE: whose room, -1: the thread's own. SLOT: which part of it. NEEDS, NEEDS_TOO: counters that must be NEEDED, NEEDED_TOO at least; COUNTS:
which goes up; -1: none."""
TASK_WORDS = 16
_Need = tuple[int, int]
_NOTHING: _Need = (-1, 0)


class Tasks(NamedTuple):
    tasks: np.ndarray
    """int64 [tasks, TASK_WORDS]"""
    claims: np.ndarray
    """int64 [claims, 2]: the first task, how many; what a thread takes at once."""
    counters: int
    lanes: int
    slots: int
    """Of each lane; a thread's own room has one."""
    longest: tuple[int, int]
    """Most positions of a unit that is taken whole, and of one in a lane."""


def lowest(query: int, window: int) -> int:
    """First position of the page in which the window of a query begins."""
    return max(0, query - window + 1) // PAGE * PAGE if window else 0


def _seen(n: int, window: int) -> int:
    """About how many positions a stage goes over."""
    return min(n, window + STAGE) if window else n


def most_lanes(n: int, window: int, threads: int) -> int:
    """For units of n positions: as many as keep all threads busy."""
    pieces = STAGE // QUERIES + min(8, max(1, _seen(n, window) // (2 * KEYS)))
    return min(threads, -(-4 * threads // pieces)) if threads > 1 else 0


def _ahead(lanes: int, threads: int) -> int:
    """Stages whose ROWS come before the CHAINS of one."""
    return max(1, -(-threads // (2 * lanes)))


def most_slots(n: int, window: int, threads: int) -> int:
    """Of all lanes together."""
    return max((lanes * (_ahead(lanes, threads) + 2) for lanes in range(1, most_lanes(n, window, threads) + 1)), default=0)


def _whole(sizes: list[int], threads: int) -> int:
    """How many of these units, the largest first, are taken whole: as many as leave enough for the threads that have nothing to do before the last is done."""
    loads, left, found = [0] * threads, sum(sizes), 0
    for i, size in enumerate(sizes):
        at = loads.index(min(loads))
        loads[at] += size
        left -= size
        if max(loads) * threads - sum(loads) <= left:
            found = i + 1
    return found


class _Unit:
    """waits: what its first tasks need; keys: positions of a CHAINS task; counters: whose next number is a counter that is free."""

    def __init__(self, unit: tuple[int, int, int], group: int, window: int, lane: int, ahead: int, waits: _Need, counters: Iterator[int]) -> None:
        self._unit, self._window, self._lane, self._ahead, self._waits, self._counters = unit, window, lane, ahead, waits, counters
        n, kv_head = unit[1:]
        self._keys = n if lane < 0 else max(KEYS, -(-_seen(n, window) // (8 * PAGE)) * PAGE)
        self._stages = [(head, start, min(n, start + STAGE)) for head in range(kv_head * group, (kv_head + 1) * group) for start in range(0, n, STAGE)]
        self._turned = _NOTHING
        self._rows: list[_Need] = []
        self.chains: list[_Need] = []
        """What says that a stage is done."""

    def parts(self) -> Iterator[list[list[int]]]:
        """Its tasks, some at a time."""
        n, size, stages, ahead = self._unit[1], self._unit[1] if self._lane < 0 else TURNED, len(self._stages), self._ahead
        made, self._turned = self._tasks(TURN, (0, 0, 0), 0, range(0, n, size), n, (self._waits, _NOTHING))
        yield made
        for i in range(-ahead, stages):
            made = []
            if i + ahead < stages:
                stage = self._stages[i + ahead]
                free = self.chains[i - 2] if i >= 2 and ahead else _NOTHING
                made, done = self._tasks(ROWS, stage, (i + ahead) % (ahead + 2), range(stage[1], stage[2], QUERIES), stage[2], (self._turned, free))
                self._rows.append(done)
            if i >= 0:
                stage = self._stages[i]
                places = range(lowest(stage[1], self._window), stage[2], self._keys)
                more, done = self._tasks(CHAINS, stage, i % (ahead + 2), places, stage[2], (self._rows[i], self.chains[-1] if i else _NOTHING))
                self.chains.append(done)
                made += more
            yield made

    def _tasks(self, kind: int, stage: tuple[int, int, int], slot: int, places: range, end: int, needs: tuple[_Need, _Need]) -> tuple[list[list[int]], _Need]:
        counter, (head, start, stop) = next(self._counters), stage
        made = [[kind, *self._unit, head, at, min(end, at + places.step), start, stop, self._lane, slot if self._ahead else 0, *needs[0], *needs[1], counter]
                for at in places]
        return made, (counter, len(made))


@lru_cache(maxsize=8)
def divided(items: tuple[tuple[int, int], ...], n_kv: int, group: int, window: int, threads: int) -> Tasks:
    """items: sequences' first rows and how many they have."""
    sizes = {n: sum(min(QUERIES, n - m) * (min(n, m + QUERIES) - lowest(m, window)) for m in range(0, n, QUERIES)) for _, n in items}
    units = sorted(((first, n, kv_head) for first, n in items if n for kv_head in range(n_kv)), key=lambda unit: -sizes[unit[1]])
    whole = _whole([sizes[n] for _, n, _ in units], threads)
    tasks: list[list[int]] = []
    claims: list[tuple[int, int]] = []
    for unit in units[:whole]:
        made = [task for part in _Unit(unit, group, window, -1, 0, _NOTHING, repeat(-1)).parts() for task in part]
        claims.append((len(tasks), len(made)))
        tasks += made
    left, counters = units[whole:], count()
    lanes = 0
    if left:
        rounds = -(-len(left) // most_lanes(left[0][1], window, threads))
        lanes = -(-len(left) // rounds)
    ahead, turn, waiting = _ahead(lanes, threads) if lanes else 0, [_NOTHING] * lanes, iter(left)
    running: dict[int, tuple[_Unit, Iterator[list[list[int]]]]] = {}
    going = True
    while going:
        going = False
        for lane in range(lanes):
            part = next(running[lane][1], None) if lane in running else None
            if part is None:
                if lane in running:
                    turn[lane] = running.pop(lane)[0].chains[-1]
                if (unit_left := next(waiting, None)) is None:
                    continue
                one = _Unit(unit_left, group, window, lane, ahead, turn[lane], counters)
                running[lane] = one, one.parts()
                part = next(running[lane][1])
            going = True
            claims += [(len(tasks) + i, 1) for i in range(len(part))]
            tasks += part
    return Tasks(np.array(tasks, np.int64).reshape(-1, TASK_WORDS), np.array(claims, np.int64).reshape(-1, 2), next(counters), lanes, ahead + 2,
                 (units[0][1] if whole else 0, left[0][1] if left else 0))
