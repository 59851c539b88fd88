"""Sampling from large vocabularies goes through compiled code: the same candidates, bits and tokens as the twin in NumPy, whatever the logits are."""
from __future__ import annotations

import threading
from typing import Any

import naive_sampling as naive
import numpy as np
import pytest
from llamina.engine.sampling import candidates, filters
from llamina.engine.sampling.candidates import TINY, Candidates, Room, Scores
from llamina.engine.sampling.sampler import Sampler, SamplingOptions, token_logprob
from llamina.kernels import estimate
from llamina.kernels import sampling as kernels
from llamina.kernels.compile_cache import jit

OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 11}
SIZES = [1, 2, 31, 32_000, 128_256]
KINDS = ["random", "peaked", "flat", "equal", "tied", "huge", "far"]


def some_logits(kind: str, n: int) -> np.ndarray:
    """float32 [n]"""
    rng = np.random.default_rng(n)
    normal = rng.standard_normal(n)
    if kind == "peaked":
        normal[n // 3] += 12
    scale = {"random": 3.0, "peaked": 2.0, "flat": 0.003, "equal": 0.0, "tied": 2.5, "huge": 6e37, "far": 150.0}[kind]
    logits = (np.round(scale * normal) if kind == "tied" else scale * normal).astype(np.float32)
    return logits


@jit()
def add_up(values, n, total):
    for first in range(0, n, kernels.BLOCK):
        total = kernels._add(values + 8 * first, min(kernels.BLOCK, n - first), total)
    return total


HARD_TO_ADD = {
    "weights": lambda rng: np.exp(-9 * rng.random(5000)), "small ones": lambda rng: np.exp(-60 * rng.random(5000)),
    "ties": lambda rng: 1 + rng.integers(0, 4, 5000) * 2.0**-44, "halves": lambda rng: np.concatenate([[2.0**52], rng.integers(0, 5, 4999) / 2]),
    "growing": lambda rng: 2.0 ** np.linspace(-600, 600, 5000), "falling": lambda rng: 2.0 ** np.linspace(600, -600, 5000),
    "zeros": lambda rng: np.where(rng.random(5000) < 0.99, 0.0, rng.random(5000)), "nothing": lambda rng: np.zeros(5000),
    "subnormal": lambda rng: rng.random(5000) * 1e-310, "smallest": lambda rng: np.full(5000, 5e-324), "giants": lambda rng: rng.random(5000) * 1e304,
    "beyond": lambda rng: np.full(5000, 1e305), "jumps": lambda rng: rng.random(5000) * 10.0 ** rng.integers(-30, 30, 5000),
    "just below": lambda rng: np.concatenate([[2 - 2.0**-40], np.full(4999, 2.0**-52)]), "integers": lambda rng: np.ones(5000),
    "leaps whose steps add up to 2**64": lambda rng: np.concatenate([[1.0], np.zeros(255), np.full(4744, 65535.0)]),
}


@pytest.mark.parametrize("name", HARD_TO_ADD)
def test_a_sum_in_any_order_is_the_running_sum(name: str) -> None:
    for seed in range(6):
        values = HARD_TO_ADD[name](np.random.default_rng(seed))
        for n in (1, 255, 256, 257, 5000):
            with np.errstate(over="ignore"):
                ref = naive.total(values[:n])
            assert float(add_up(values.ctypes.data, n, 0.0)).hex() == ref.hex()


@pytest.mark.parametrize("n", [2048, 2049, 2303, 2304, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_sums(kind: str, n: int) -> None:
    """Bit for bit, of float32 and of float64 logits, with and without a divisor; the last vector and block are partial ones."""
    for logits in some_logits(kind, n), some_logits(kind, n).astype(np.float64) * 0.7:
        for divisor in 1.0, 0.8, 37.0:
            ref = naive.relative(logits) / divisor
            weights, scores = np.zeros(n + 8), Scores(logits, divisor)
            whole = scores.weigh(weights)
            assert weights[:n].tobytes() == naive.exp(ref).tobytes() and whole == naive.total(naive.exp(ref))
            assert scores.surprise(3.25) == naive.total(naive.exp(ref) * (3.25 - ref))
            assert np.float64(-1) * kernels.moment.ctypes(*scores._all, 1, 0.0) == naive.total(ref)
            off = ref - naive.total(ref) / n
            assert scores.deviation() == np.sqrt(naive.total(off * off) / n)
            assert [scores[i] for i in range(0, n, 97)] == ref[::97].tolist()
            sums = np.add.accumulate(naive.exp(ref))
            for u in (0.0, 1e-9, 0.25, 0.5, 0.999, 1 - 2**-53):
                assert scores.draw(u) == np.searchsorted(sums, u * sums[-1], side="right")


@pytest.mark.parametrize("n", [2048, 2303, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_as_good_as_they_say(kind: str, n: int) -> None:
    for logits in some_logits(kind, n), some_logits(kind, n).astype(np.float64) * 0.7:
        for divisor in 1.0, 0.8, 37.0:
            ref, comp, scores = naive.exp(naive.relative(logits) / divisor), np.zeros(n + 16), Scores(logits, divisor)
            whole = scores.estimate(comp)
            assert (np.abs(comp[:n] - ref) <= 0.5 * estimate.DOUBT * ref + TINY / n).all() and abs(whole - ref.sum()) <= scores.doubt / 2 * whole
            assert scores.estimated_deviation() == pytest.approx(scores.deviation(), rel=1e-10, abs=0)


def test_a_draw_at_the_border_of_two_candidates_is_left_to_the_exact_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    draw = Scores._draw

    def watched(self: Scores, u: float, doubt: float) -> tuple[int, bool]:
        if not doubt:
            asked.append(u)
        return draw(self, u, doubt)
    monkeypatch.setattr(Scores, "_draw", watched)
    for kind in "random", "peaked", "equal", "tied":
        scores = Scores(some_logits(kind, 5000))
        sums = np.add.accumulate(naive.exp(naive.relative(scores.logits)))
        for i in (0, 700, 2500, 4998):
            for u in np.nextafter(sums[i] / sums[-1], [0.0, 1.0]).tolist() + [float(sums[i] / sums[-1])]:
                before = len(asked)
                assert scores.draw(u) == np.searchsorted(sums, u * sums[-1], side="right")
                assert len(asked) == before + 1
        before = len(asked)
        for u in np.random.default_rng(1).random(300).tolist():
            assert scores.draw(u) == np.searchsorted(sums, u * sums[-1], side="right")
        assert len(asked) == before


CASES: list[dict[str, Any]] = [
    {}, {"temperature": 0.7}, {"temperature": 1e-300}, {"temperature": 50.0}, {"top_p": 0.95}, {"top_p": 0.3}, {"top_p": 1 - 1e-12}, {"typical_p": 0.9},
    {"typical_p": 0.2}, {"min_p": 0.05}, {"min_p": 1e-30}, {"min_p": 1.0}, {"top_n_sigma": 1.0}, {"top_n_sigma": 1e300},
    {"xtc_probability": 1.0, "xtc_threshold": 1e-4},
    {"xtc_probability": 1.0, "xtc_threshold": 0.0}, {"dynatemp_range": 0.5, "dynatemp_exponent": 1.5}, {"mirostat": 2}, {"mirostat": 2, "mirostat_tau": 0.0},
    {"mirostat": 2, "temperature": 0.6, "mirostat_tau": 8.0}, {"top_k": 5000, "top_p": 0.9, "temperature": 0.8},
    {"top_n_sigma": 3.0, "typical_p": 0.99, "top_p": 0.98, "min_p": 1e-4, "xtc_probability": 1.0, "xtc_threshold": 1e-3, "temperature": 1.3,
     "dynatemp_range": 0.2},
    {"order": "temperature;top_p;typical", "temperature": 0.9, "top_p": 0.97, "typical_p": 0.95}, {"order": "typical;temperature;xtc;min_p;top_n_sigma;top_k",
     "temperature": 1.1, "typical_p": 0.99, "xtc_probability": 1.0, "xtc_threshold": 1e-4, "min_p": 1e-3, "top_n_sigma": 2.5, "top_k": 3000},
    {"order": "temperature;typical;top_p", "temperature": 1.0, "top_p": 0.9, "typical_p": 0.6},
]


@pytest.mark.parametrize("n, doubt", [*((n, None) for n in SIZES), (5000, 0.5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_leaves_what_the_twin_leaves(kind: str, n: int, doubt: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same candidates with the same logits to the last bit, the same token, the same mu; also if estimates are never believed."""
    if doubt:
        monkeypatch.setattr(estimate, "DOUBT", doubt)
    logits = some_logits(kind, n)
    for case in CASES:
        o = SamplingOptions(**{**OFF, **case})
        sampler = Sampler(o)
        ids, left = naive.candidates(logits, o, 2 * o.mirostat_tau)
        c = sampler._candidates(logits, 5, [])
        assert (np.arange(n) if c.ids is None else c.ids).tolist() == ids.tolist(), case
        assert c.logits.dtype == left.dtype and (c.logits == left).all(), case
        c.give_back()
        id, mu = naive.choose(logits, o, 5, 2 * o.mirostat_tau)
        assert sampler.sample(logits, 5, []) == id, case
        assert not o.mirostat or sampler.state(6) == {"mu": mu}


@pytest.mark.parametrize("kind", ["random", "flat", "tied"])
def test_forbidden_tokens_and_penalties_before_and_after_the_temperature(kind: str) -> None:
    """-inf among the logits; float64 logits, which penalties after the temperature make."""
    n = 32_000
    logits, banned, allowed = some_logits(kind, n), [3, 17, n - 1], np.random.default_rng(1).random(n) < 0.7
    for case in CASES:
        o = SamplingOptions(**{**OFF, **case})
        ids = np.array([i for i in np.flatnonzero(allowed).tolist() if i not in banned])
        assert Sampler(o).sample(logits, 9, [], banned, allowed) == naive.choose(logits[ids], o, 9, 2 * o.mirostat_tau, ids)[0], case
    o = SamplingOptions(**{**OFF, "temperature": 0.7, "top_p": 0.9, "presence_penalty": 1.5, "repeat_last_n": -1, "order": "temperature;penalties;top_p"})
    tempered = naive.relative(logits) / 0.7
    tempered[[5, 9]] -= 1.5
    later = SamplingOptions(**{**OFF, "top_p": 0.9, "order": "top_p"})
    assert [Sampler(o).sample(logits, p, [5, 9, 5]) for p in range(20)] == [naive.choose(tempered, later, p, 0.0)[0] for p in range(20)]


def test_log_probabilities() -> None:
    for kind in KINDS:
        logits = some_logits(kind, 128_256)
        scores = naive.relative(logits)
        whole = naive.log(naive.total(naive.exp(scores)))
        best = np.argsort(-logits, kind="stable")[:4].tolist()
        assert token_logprob(logits, 77, 4) == (77, float(scores[77] - whole), [(i, float(scores[i] - whole)) for i in best])


@pytest.mark.parametrize("kind, decided", [("random", True), ("peaked", True), ("flat", True), ("equal", False)])
def test_when_a_sorted_sum_is_needed(kind: str, decided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly ever; but where a sum of equal weights reaches its target exactly, sums in another order could be taken in by their last bits."""
    n = 32_000
    sorted_by: list[int] = []

    def top_p(scores: np.ndarray, p: float) -> np.ndarray:
        sorted_by.append(len(scores))
        return naive.top_p(scores, p)
    monkeypatch.setattr(filters, "top_p", top_p)
    for p in 0.25, 0.5, 0.75:
        logits = some_logits(kind, n)
        c = Sampler(SamplingOptions(**{**OFF, "top_p": p}))._candidates(logits, 0, [])
        assert len(c) == len(naive.top_p(naive.relative(logits), p))
    assert sorted_by == ([] if decided else [n] * 3)


def test_a_cut_among_equals_and_outliers() -> None:
    """Buckets that have to be looked at again and again: keys of very different size, and many equal ones around the cut."""
    rng = np.random.default_rng(2)
    many = np.concatenate([-np.exp(rng.uniform(-60, 5, 9000)), np.full(5000, -1.25), -1.25 - 1e-9 * rng.random(3000), -40 * rng.random(3000), [0.0]])
    few = np.repeat(np.append(-5 * rng.random(1000), 0.0), 5)
    decided = 0
    for i, p in enumerate(np.linspace(0.001, 0.999, 120).tolist()):
        scores = rng.permutation((many, few)[i % 2])
        s, room, weights = Scores(scores), np.zeros(2 * len(scores) + 16), np.zeros(len(scores) + 8)
        target = p * s.weigh(weights)
        cut = s.cut(target, room)
        if cut:
            decided += 1
            kept = np.flatnonzero((-scores < cut.limit) | ((-scores == cut.limit) & (np.arange(len(scores)) <= cut.last)))
            assert kept.tolist() == naive.smallest(-scores, weights[:len(scores)], target).tolist()
    assert decided == 120


def test_candidates_at_the_limit_itself() -> None:
    """Half the logits 2 below the others: their deviation is 1, and 2 deviations are exactly how far they are off."""
    logits = np.tile(np.array([3.0, 5.0], np.float32), 2000)
    for n_sigma, left in (2.0, 4000), (np.nextafter(2.0, 0), 2000):
        assert len(Sampler(SamplingOptions(**{**OFF, "top_n_sigma": float(n_sigma)}))._candidates(logits, 0, [])) == left
    c = Candidates(logits, 0, [])
    assert c.keep_within(candidates.Cut(2.0), 1e-12) is None and len(c) == 4000
    assert c.keep_within(candidates.Cut(1.9), 1e-12) == 2000 == len(c)


def test_threads_do_not_share_rooms() -> None:
    rows = [some_logits("random", n) for n in (30_000, 31_000, 32_000, 33_000)]
    o = SamplingOptions(**{**OFF, "typical_p": 0.9, "xtc_probability": 1.0, "xtc_threshold": 1e-4})
    ref = [[naive.choose(row, o, p, 0.0)[0] for p in range(8)] for row in rows]
    found: list[list[int]] = [[] for _ in rows]

    def run(row: np.ndarray, out: list[int]) -> None:
        sampler = Sampler(o)
        out += [sampler.sample(row, p % 8, []) for p in range(80)]
    threads = [threading.Thread(target=run, args=pair) for pair in zip(rows, found)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [one * 10 for one in ref]
    assert len(Room._free) <= candidates._KEPT_ROOMS


def test_few_candidates_need_no_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default options choose among 40: nothing is loaded for them, whatever the vocabulary."""
    monkeypatch.setattr(candidates, "Scores", None)
    monkeypatch.setattr(Candidates, "room", None)
    assert Sampler(SamplingOptions(seed=1)).sample(some_logits("random", 128_256), 0, []) >= 0
