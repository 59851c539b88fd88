"""The way back through attention: the very bits of a twin of loops, however many threads divide it and whatever they take first; and its tasks' order, which
must never let a thread read what isn't made yet, or wait for what nobody makes."""
from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from llamina.engine.train import ops as train_ops
from llamina.engine.train.ops import Ops, rows_of
from llamina.kernels.backward import attention
from llamina.kernels.backward import attention_tasks as t
from llamina.kernels.team import Team
from naive_kernels import Array, canonical_exp, fma32, tree_sum

f32 = np.float32
LANES = 16


class Case(NamedTuple):
    lengths: tuple[int, ...]
    heads: int
    n_kv: int
    head_dim: int
    value_dim: int
    window: int = 0
    cap: float = 0.0
    sinks: bool = False


CASES = [Case((1,), 1, 1, 32, 32), Case((33, 2, 70), 3, 1, 16, 16), Case((131,), 6, 3, 64, 64), Case((64, 7, 100), 4, 2, 40, 24, cap=3.0),
         Case((150,), 2, 1, 32, 48, window=20), Case((205, 12), 2, 2, 24, 8, window=65, cap=2.0, sinks=True), Case((97,), 2, 1, 36, 12, sinks=True),
         Case((200, 200), 4, 2, 128, 128, window=1)]


class Numbers:
    """Random rows of a case: q, k, v, z, dz."""

    def __init__(self, case: Case) -> None:
        rng, n = np.random.default_rng(sum(case.lengths)), sum(case.lengths)
        self.case = case
        columns = (case.heads * case.head_dim, case.n_kv * case.head_dim, case.n_kv * case.value_dim, case.heads * case.value_dim, case.heads * case.value_dim)
        self.rows: list[Array] = []
        for width in columns:
            rows = rows_of(n, width)
            rows[:, :width] = rng.standard_normal((n, width)) * 10.0 ** rng.uniform(-1, 0.5, (n, width))
            self.rows.append(rows)
        self.sinks = rng.standard_normal(case.heads).astype(f32) if case.sinks else None
        first = np.cumsum([0, *case.lengths[:-1]])
        self.items = np.ascontiguousarray(np.stack([first, case.lengths], 1).astype(np.int64))

    def made(self, threads: int) -> list[Array]:
        """dq, dk, dv by the kernels."""
        case = self.case
        layout = SimpleNamespace(vector=lambda sinks: 0 if sinks is None else sinks.ctypes.data)
        block = SimpleNamespace(heads=case.heads, kv_heads=case.n_kv, head_dim=case.head_dim, value_dim=case.value_dim, window=case.window, soft_cap=case.cap,
                                sinks=self.sinks, scale=case.head_dim**-0.5)
        out = [rows_of(*rows.shape) for rows in self.rows[:3]]
        with Team(threads) as team:
            runtime: Any = SimpleNamespace(team=team, _layout=layout)
            any_block: Any = block
            Ops(runtime).attention_back(any_block, self.items, *self.rows, *out)
        return out

    def expected(self, heads_turned: bool = False) -> list[Array]:
        """The same, one operation after the other. heads_turned: those of a group from the last to the first, which is wrong."""
        case = self.case
        out, group = [np.zeros_like(rows) for rows in self.rows[:3]], case.heads // case.n_kv
        for first, n in self.items.tolist():
            here = slice(first, first + n)
            for head in range(case.heads) if not heads_turned else reversed(range(case.heads)):
                sink = None if self.sinks is None else self.sinks[head]
                mine, kv = ((slice(i * case.head_dim, (i + 1) * case.head_dim), slice(i * case.value_dim, (i + 1) * case.value_dim))
                            for i in (head, head // group))
                places = mine[0], kv[0], kv[1], mine[1], mine[1], mine[0], kv[0], kv[1]
                one_head(case, sink, *(rows[here, at] for rows, at in zip((*self.rows, *out), places)))
        return out


def lanes_sum(x: Array) -> f32:
    """Tree of 16 chains of additions."""
    sums = np.zeros(LANES, f32)
    for i in range(0, len(x), LANES):
        part = x[i:i + LANES]
        sums[:len(part)] += part
    return f32(tree_sum(sums))


def one_head(case: Case, sink: Any, q: Array, k: Array, v: Array, z: Array, dz: Array, dq: Array, dk: Array, dv: Array) -> None:
    """dq is made; dk and dv go on."""
    n, cap, scale = len(q), f32(case.cap), f32(case.head_dim**-0.5)
    products, dp = np.zeros((n, n), f32), np.zeros((n, n), f32)
    for d in range(case.head_dim):
        products = fma32(q[:, d, None], k[None, :, d], products)
    for d in range(case.value_dim):
        dp = fma32(dz[:, d, None], v[None, :, d], dp)
    logits, ratio = products * scale, f32(2) / (cap or f32(1))
    if case.cap:
        logits = cap * (f32(1) - f32(2) / (canonical_exp(logits * ratio) + f32(1)))
    for m0 in range(0, n, 32):
        low, end = max(0, m0 - case.window + 1) // 64 * 64 if case.window else 0, min(n, m0 + 32)
        p, ds = np.zeros((2, n, n), f32)
        for m in range(m0, end):
            seen = np.arange(max(0, m - case.window + 1) if case.window else 0, m + 1)
            top = logits[m, seen].max() if sink is None else max(logits[m, seen].max(), sink)
            e = np.zeros(n, f32)
            e[seen] = canonical_exp(logits[m, seen] - top)
            total = lanes_sum(e[low:])
            if sink is not None:
                total += canonical_exp(np.full(1, sink - top, f32))[0]
            p[m, seen] = e[seen] * (f32(1) / total)
            lanes = np.zeros(LANES, f32)
            for d in range(0, case.value_dim, LANES):
                a, b = z[m, d:d + LANES], dz[m, d:d + LANES]
                lanes[:len(a)] = fma32(a, b, lanes[:len(a)])
            g = p[m] * (dp[m] - tree_sum(lanes))
            if case.cap:
                r = logits[m] / cap
                g = g * fma32(r, f32(0) - r, np.ones(n, f32))
            ds[m, seen] = (g * scale)[seen]
            acc = np.zeros(case.head_dim, f32)
            for i in range(low, end):
                acc = fma32(ds[m, i], k[i], acc)
            dq[m] = acc
            dv[low:end] = fma32(p[m, low:end, None], dz[m], dv[low:end])
            dk[low:end] = fma32(ds[m, low:end, None], q[m], dk[low:end])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_very_bits(case: Case) -> None:
    """On 1, 2, 3 and 5 threads: units that are taken whole, units that all divide, and both."""
    numbers = Numbers(case)
    expected = numbers.expected()
    for threads in 1, 2, 3, 5:
        for name, ref, comp in zip(("dq", "dk", "dv"), expected, numbers.made(threads)):
            assert (ref.view(np.int32) == comp.view(np.int32)).all(), (name, threads)
    assert case.heads == case.n_kv or any((a != b).any() for a, b in zip(expected[1:], numbers.expected(heads_turned=True)[1:])), "another order is seen"


def test_a_stage_that_comes_too_early_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of a later stage first: other chains of keys' gradients, the same of queries'."""
    numbers = Numbers(CASES[2])
    real = t.divided

    def turned(*args: Any) -> t.Tasks:
        made = real(*args)
        tasks = made.tasks.copy()
        chained = np.flatnonzero((tasks[:, 0] == t.CHAINS) & (tasks[:, t.START // 8] < 128))
        for a, b in pairwise(chained[np.argsort(tasks[chained, t.HEAD // 8], kind="stable")]):
            if tasks[a, t.START // 8] < tasks[b, t.START // 8] and tasks[a, t.HEAD // 8] == tasks[b, t.HEAD // 8]:
                tasks[[a, b]] = tasks[[b, a]]
        return made._replace(tasks=tasks)
    right = numbers.made(1)
    monkeypatch.setattr(train_ops, "divided", turned)
    assert any((a != b).any() for a, b in zip(right, numbers.made(1)))


# -- tasks ----------------------------------------------------------------------------------------------------------------------------------

PLANS = [(lengths, n_kv, group, window, threads) for threads in (1, 2, 3, 8, 32) for lengths, n_kv, group, window in (
    ((512,), 3, 3, 0), ((1,), 1, 1, 0), ((300, 64, 65, 7), 2, 1, 0), ((700,), 1, 4, 100), ((1200,), 8, 1, 1), ((30,) * 9, 1, 2, 0))]


def plan(lengths: tuple[int, ...], n_kv: int, group: int, window: int, threads: int) -> t.Tasks:
    firsts = np.cumsum([0, *lengths[:-1]]).tolist()
    return t.divided(tuple(zip(firsts, lengths)), n_kv, group, window, threads)


def worked_off(made: t.Tasks, threads: int, seed: int) -> Iterator[dict[int, int]]:
    """Tasks, begun and ended in an order that some threads might have: (words of a task, whether it ends). AssertionError if they wait for ever."""
    rng, waiting, counters = random.Random(seed), made.claims.tolist(), [0] * made.counters
    pace = [rng.choice([1, 1, 9]) for _ in range(threads)]
    mine: list[list[list[int]]] = [[] for _ in range(threads)]
    busy: list[list[int] | None] = [None] * threads
    while waiting or any(mine) or any(busy):
        moved = False
        for i in rng.sample(range(threads), threads):
            if rng.randrange(pace[i]):
                moved = True
                continue
            if now := busy[i]:
                yield {-1: i, **{8 * at: word for at, word in enumerate(now)}, -2: True}
                if now[t.COUNTS // 8] >= 0:
                    counters[now[t.COUNTS // 8]] += 1
                busy[i], moved = None, True
                continue
            if not mine[i] and waiting:
                first, n = waiting.pop(0)
                mine[i] = made.tasks[first:first + n].tolist()
            if mine[i] and all(counters[now[a // 8]] >= now[b // 8] for now in mine[i][:1] for a, b in ((t.NEEDS, t.NEEDED), (t.NEEDS_TOO, t.NEEDED_TOO))
                               if now[a // 8] >= 0):
                busy[i], moved = mine[i].pop(0), True
                yield {-1: i, **{8 * at: word for at, word in enumerate(busy[i] or [])}, -2: False}
        assert moved, "all threads wait"


def check(made: t.Tasks, lengths: tuple[int, ...], n_kv: int, group: int, window: int, threads: int, seed: int) -> None:
    """Every number is made once, from what is made, and none is overwritten before its time."""
    firsts = np.cumsum([0, *lengths[:-1]]).tolist()
    turned: dict[tuple[int, int], tuple[int, Any]] = {}  # whose panels are in a room: positions, unit
    slots: dict[tuple[int, int, int], tuple[Any, set[int]]] = {}  # a slot's stage, its queries that are done
    reading: dict[tuple[int, int, int], int] = {}
    progress: dict[tuple[Any, int], list[tuple[int, int]]] = {}  # (unit, positions' first of 32) -> stages that went on
    going: set[tuple[Any, int]] = set()
    rows: set[tuple[Any, int, int]] = set()
    for task in worked_off(made, threads, seed):
        unit = (task[t.FIRST], task[t.N], task[t.KV_HEAD])
        room = (task[t.LANE], task[-1] if task[t.LANE] < 0 else -1)
        slot, stage, ends = (*room, task[t.SLOT]), (unit, task[t.HEAD], task[t.START], task[t.STOP]), task[-2]
        places = range(task[t.FROM], task[t.TO], 32)
        if task[t.KIND] == t.TURN:
            if not ends:
                assert not any(n for at, n in reading.items() if at[:2] == room), "panels are read"
                if room not in turned or turned[room][1] != unit:
                    turned[room] = 0, unit
            else:
                turned[room] = turned[room][0] + task[t.TO] - task[t.FROM], unit
        elif task[t.KIND] == t.ROWS:
            assert turned[room] == (unit[1], unit) and len(places) == 1
            reading[slot] = reading.get(slot, 0) + (-1 if ends else 1)
            if not ends:
                if slot not in slots or slots[slot][0] != stage:
                    if slot in slots:
                        before = slots[slot][0]
                        last = before[3] - 1
                        assert reading[slot] == 1 and progress[before[0], last // 32 * 32][-1] >= before[1:3], "still to be read"
                    slots[slot] = stage, set()
                assert (unit, task[t.HEAD], task[t.FROM]) not in rows
                rows.add((unit, task[t.HEAD], task[t.FROM]))
            else:
                slots[slot][1].add(task[t.FROM])
        else:
            assert slots[slot] == (stage, set(range(task[t.START], task[t.STOP], 32))), "probabilities that chains go on with"
            reading[slot] += -1 if ends else 1
            for p in places:
                if ends:
                    going.discard((unit, p))
                    progress.setdefault((unit, p), []).append((task[t.HEAD], task[t.START]))
                else:
                    assert (unit, p) not in going, "two threads at one chain"
                    going.add((unit, p))
    for first, n in zip(firsts, lengths):
        for kv_head in range(n_kv):
            for p in range(0, n, 32):
                stages = [(head, start) for head in range(kv_head * group, (kv_head + 1) * group) for start in range(0, n, t.STAGE)
                          if t.lowest(start, window) <= p < start + t.STAGE]
                assert progress[(first, n, kv_head), p] == stages
                assert all(((first, n, kv_head), head, p) in rows for head in range(kv_head * group, (kv_head + 1) * group))


@pytest.mark.parametrize("what", PLANS, ids=str)
def test_tasks_in_any_order_of_threads(what: tuple[tuple[int, ...], int, int, int, int]) -> None:
    made = plan(*what)
    for seed in range(3):
        check(made, *what, seed)


@pytest.mark.parametrize("word", [t.NEEDS, t.NEEDS_TOO])
@pytest.mark.parametrize("kind", [t.ROWS, t.CHAINS])
def test_a_need_that_is_forgotten_is_seen(word: int, kind: int) -> None:
    what = ((700,), 1, 2, 0, 8)
    made = plan(*what)
    tasks = made.tasks.copy()
    tasks[tasks[:, 0] == kind, word // 8] = -1
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(20):
            check(made._replace(tasks=tasks), *what, seed)


def test_a_task_before_what_it_needs_is_seen() -> None:
    what = ((700,), 1, 2, 0, 2)
    made = plan(*what)
    with pytest.raises(AssertionError, match="all threads wait"):
        check(made._replace(claims=made.claims[::-1]), *what, 0)


def test_work_is_even() -> None:
    """3 units on 2 threads: one for each, the third for both; 4: two for each; 1: for both."""
    assert [int((plan((512,), n, 1, 0, 2).claims[:, 1] > 1).sum()) for n in (1, 2, 3, 4)] == [0, 2, 2, 4]
    assert plan((512,), 8, 1, 0, 8).lanes == 0 and plan((512,), 8, 1, 0, 16).lanes > 1
    assert plan((2048,), 8, 1, 0, 16).lanes in (4, 8), "as many in each round"


@pytest.mark.parametrize("window", [0, 100])
def test_room_is_no_more_than_what_is_planned(window: int) -> None:
    for threads in 1, 2, 3, 8, 32:
        for lengths in (512,), (4000,), (300, 64, 65, 7), (30,) * 9:
            for n_kv in 1, 3, 8:
                made = plan(lengths, n_kv, 2, window, threads)
                own, lane = (attention.unit_bytes(n, 64, 64, slots) for n, slots in zip(made.longest, (1, made.slots)))
                taken = threads * (attention.scratch_bytes(max(lengths)) + own) + made.lanes * lane
                assert taken <= attention.room_bytes(max(lengths), 64, 64, window, threads), (threads, lengths, n_kv)
    assert attention.room_bytes(8192, 64, 64, 0, 2) < 64 << 20
