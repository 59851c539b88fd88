"""The sampler against naive twins, its ties and borders, what it draws, and that its bits don't depend on NumPy's CPU dispatch."""
from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections import Counter
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest
from llamina.engine.errors import NumericError, OptionError
from llamina.engine.sampling import sampler as sampling
from llamina.engine.sampling.sampler import Sampler, SamplingOptions

OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}


# ---------------------------------------------------------------------------------------------------------------- naive twins

def naive_philox(seed: int, sample_index: int, position: int) -> int:
    """Philox4x64-10, first word, from the paper; NumPy counts before the first block."""
    counter, key, mask = [position + 1, 0, 0, 0], [seed, sample_index], 2**64 - 1
    for _ in range(10):
        product0, product1 = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [product1 >> 64 ^ counter[1] ^ key[0], product1 & mask, product0 >> 64 ^ counter[3] ^ key[1], product0 & mask]
        key = [key[0] + 0x9E3779B97F4A7C15 & mask, key[1] + 0xBB67AE8584CAA73B & mask]
    return counter[0]


def naive_distribution(logits: np.ndarray, o: SamplingOptions, history: list[int]) -> dict[int, float]:
    """{id: probability} of the candidates, by sorting everything, in float64 with math.exp."""
    values = [float(v) for v in logits]
    n = len(history) if o.repeat_last_n < 0 else o.repeat_last_n
    for id in set(history[len(history) - min(n, len(history)):]):
        values[id] = float(np.float32(values[id] / o.repeat_penalty if values[id] > 0 else values[id] * o.repeat_penalty))
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if o.top_k:
        order = order[:o.top_k]

    def probabilities(ids: list[int], temperature: float = 1.0) -> list[float]:
        weights = [math.exp((values[i] - values[ids[0]]) / temperature) for i in ids]
        total = math.fsum(weights)
        return [w / total for w in weights]

    if o.top_p < 1:
        total, kept = 0.0, []
        for id, p in zip(order, probabilities(order)):
            kept.append(id)
            total += p
            if total >= o.top_p:
                break
        order = kept
    likely = probabilities(order)
    order = [id for id, p in zip(order, likely) if p >= o.min_p * likely[0]]
    return dict(zip(order, probabilities(order, o.temperature)))


def naive_draw(distribution: dict[int, float], u: float) -> int:
    total = 0.0
    for id in sorted(distribution):
        total += distribution[id]
        if total > u:
            return id
    return max(distribution)


def random_logits(rng: np.random.Generator, n: int, spread: float = 3.0) -> np.ndarray:
    return (spread * rng.standard_normal(n)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- arithmetic

def test_exp_is_right_to_one_ulp():
    getcontext().prec = 50
    rng = np.random.default_rng(0)
    x = np.concatenate([-700 * rng.random(2000), -rng.random(2000), -np.exp(-40 * rng.random(500)), np.arange(-699, 1) * math.log(2) / 2, [0.0, -0.0, -700.0]])
    comp = sampling.exp(x)
    for one, y in zip(x.tolist(), comp.tolist()):
        if one < -700:
            continue
        ref = Decimal(one).exp()
        assert abs(Decimal(y) - ref) <= Decimal(np.spacing(y).item()), one


def test_exp_at_the_ends():
    assert sampling.exp(np.array([0.0, -0.0])).tolist() == [1.0, 1.0]
    assert sampling.exp(np.array([-700.0000001, -1e300, -np.inf])).tolist() == [0.0, 0.0, 0.0]
    assert sampling.exp(np.array([-700.0]))[0] > 0


@pytest.mark.parametrize("seed, sample_index, position", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 - 1, 2**64 - 1, 2**40), (7, 3, 511)])
def test_uniform_is_philox(seed, sample_index, position):
    raw = naive_philox(seed, sample_index, position)
    assert sampling.uniform(seed, sample_index, position) == (raw >> 11) / 2**53


def test_philox_known_answer():
    """Random123's kat_vectors: counter 0, key 0 (NumPy's first block has counter 1, so our twin is asked for position -1)."""
    assert naive_philox(0, 0, -1) == 0x16554D9ECA36314C


# ---------------------------------------------------------------------------------------------------------------- stages

@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 49, 50, 51, 1000])
def test_top_k_ties_go_to_the_lowest_ids(k):
    rng = np.random.default_rng(k)
    for _ in range(50):
        logits = rng.integers(-3, 3, 50).astype(np.float32)
        logits[logits == 0] *= rng.choice([-1, 1])  # zeros of both signs are equal
        ref = sorted(sorted(range(50), key=lambda i: (-logits[i], i))[:k or 50])
        assert sampling.top_k(logits, k).tolist() == ref


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.95, 0.999999, 1.0])
@pytest.mark.parametrize("n, spread", [(1, 1), (40, 2), (5000, 0.5), (5000, 5)])
def test_top_p_is_the_naive_one(p, n, spread):
    scores = random_logits(np.random.default_rng(n), n, spread).astype(np.float64)
    scores -= scores.max()
    ref = naive_distribution(scores, SamplingOptions(**{**OFF, "top_p": p}), [])
    assert sampling.top_p(scores, p).tolist() == sorted(ref)


def test_top_p_ties_and_exact_sums():
    scores = np.zeros(8)
    assert sampling.top_p(scores, 0.5).tolist() == [0, 1, 2, 3]  # four eighths are exactly a half
    assert sampling.top_p(scores, 0.500001).tolist() == [0, 1, 2, 3, 4]
    assert sampling.top_p(scores, 1e-300).tolist() == [0]


def test_min_p_keeps_what_is_as_likely():
    scores = np.array([0.0, math.log(0.5) + 1e-12, math.log(0.5) - 1e-9, -50.0])
    assert sampling.min_p(scores, 0.5).tolist() == [0, 1]
    assert sampling.min_p(scores, 1.0).tolist() == [0]
    assert sampling.min_p(scores, 0.0).tolist() == [0, 1, 2, 3]


def test_penalty_formula():
    logits = np.array([2.0, -2.0, 0.0, 3.0], np.float32)
    comp = sampling.penalize(logits, [0, 1, 1, 2, 0], 1.5)  # once each, however often they occurred
    assert comp.tolist() == [np.float32(2 / 1.5), -3.0, 0.0, 3.0]
    assert logits.tolist() == [2.0, -2.0, 0.0, 3.0]


@pytest.mark.parametrize("last_n, expected", [(-1, [5, 6, 7]), (0, []), (2, [6, 7]), (3, [5, 6, 7]), (9, [5, 6, 7])])
def test_recent(last_n, expected):
    assert sampling.recent([5, 6, 7], last_n) == expected


def test_draw_borders():
    weights = np.array([0.0, 1.0, 0.0, 3.0, 0.0])
    assert [sampling.draw(weights, u) for u in (0.0, 0.2499999, 0.25, 1 - 2**-53)] == [1, 1, 3, 3]
    rng = np.random.default_rng(0)
    for _ in range(200):  # the greatest u stays inside, whatever the sum
        assert sampling.draw(rng.random(rng.integers(1, 40)) + 1e-9, 1 - 2**-53) < 40


# ---------------------------------------------------------------------------------------------------------------- the whole sampler

CASES: list[dict[str, Any]] = [
    {}, OFF, {"top_k": 0}, {"top_k": 5}, {"top_k": 0, "top_p": 0.5}, {"top_k": 0, "top_p": 1.0, "min_p": 0.1}, {"temperature": 0.01}, {"temperature": 100.0},
    {"repeat_penalty": 1.3}, {"repeat_penalty": 0.5, "repeat_last_n": -1}, {"repeat_penalty": 1.3, "repeat_last_n": 3},
    {"temperature": 1.7, "top_k": 100, "top_p": 0.99, "min_p": 0.02, "repeat_penalty": 1.1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sample_is_the_naive_one(case):
    rng = np.random.default_rng(1)
    for position in range(60):
        logits = random_logits(rng, 700)
        history = rng.integers(0, 700, position).tolist()
        o = SamplingOptions(seed=9, **case)
        ref = naive_draw(naive_distribution(logits, o, history), (naive_philox(9, 2, position) >> 11) / 2**53)
        assert Sampler(o, sample_index=2).sample(logits, position, history) == ref


def test_frequencies():
    """Draws at 4,000 positions occur as often as their probabilities say (chi-square, 99.9 % bound for 5 degrees of freedom: 20.5)."""
    logits = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])).astype(np.float32)
    sampler = Sampler(SamplingOptions(seed=3, **OFF))
    counts = Counter(sampler.sample(logits, position, []) for position in range(4000))
    expected = 4000 * np.exp(logits.astype(float))
    assert sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected)) < 20.5


def test_pure_and_keyed():
    logits = random_logits(np.random.default_rng(2), 1000)
    flat = SamplingOptions(seed=5, **OFF)
    before = logits.copy()
    draws = [Sampler(flat).sample(logits, p, []) for p in range(30)]
    assert draws == [Sampler(flat).sample(logits, p, []) for p in range(30)]
    assert np.array_equal(before, logits)
    assert len(set(draws)) > 10
    assert draws != [Sampler(flat, sample_index=1).sample(logits, p, []) for p in range(30)]
    assert draws != [Sampler(SamplingOptions(seed=6, **OFF)).sample(logits, p, []) for p in range(30)]


@pytest.mark.parametrize("case", [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-300}, {"top_p": 1e-12}, {"min_p": 1.0}], ids=str)
def test_greedy_in_all_its_forms(case):
    rng = np.random.default_rng(4)
    for position in range(20):
        logits = random_logits(rng, 300)
        assert Sampler(SamplingOptions(seed=position, **case)).sample(logits, position, []) == int(np.argmax(logits))


def test_greedy_ties_go_to_the_lowest_id():
    logits = np.zeros(100, np.float32)
    logits[[40, 41, 90]] = 1
    assert Sampler(SamplingOptions(temperature=0)).sample(logits, 0, []) == 40
    assert Sampler(SamplingOptions(top_k=1, seed=1)).sample(logits, 0, []) == 40


def test_repeat_penalty_applies_to_greedy():
    assert Sampler(SamplingOptions(temperature=0, repeat_penalty=2.0)).sample(np.array([1.0, 0.9], np.float32), 0, [0]) == 1


def test_extreme_temperatures_and_logits():
    logits = np.array([3e38, -3e38, 0], np.float32)
    for t in 1e-308, 1e-30, 1.0, 1e308:
        assert Sampler(SamplingOptions(temperature=t, seed=1)).sample(logits, 0, []) in (0, 1, 2)
    assert Sampler(SamplingOptions(temperature=1.0, seed=1)).sample(logits, 0, []) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_are_refused(bad, temperature):
    logits = np.zeros(10, np.float32)
    logits[7] = bad
    with pytest.raises(NumericError, match="position 3: token 7"):
        Sampler(SamplingOptions(temperature=temperature)).sample(logits, 3, [])


def test_random_seed_is_told_and_repeats():
    logits = random_logits(np.random.default_rng(5), 1000)
    one = Sampler(SamplingOptions(**OFF))
    assert Sampler(SamplingOptions(**OFF)).seed != one.seed
    again = Sampler(SamplingOptions(seed=one.seed, **OFF))
    assert [one.sample(logits, p, []) for p in range(9)] == [again.sample(logits, p, []) for p in range(9)]


@pytest.mark.parametrize("options, message", [
    ({"temperature": math.nan}, "temperature must be a finite number, found nan"),
    ({"temperature": math.inf}, "temperature must be a finite number"),
    ({"temperature": -0.1}, "temperature must be 0 or more, found -0.1"),
    ({"temperature": "hot"}, "temperature must be a finite number, found 'hot'"),
    ({"temperature": None}, "temperature must be a finite number, found None"),
    ({"temperature": True}, "temperature must be a finite number, found True"),
    ({"top_k": -1}, "top_k must be 0"),
    ({"top_k": 1.5}, "top_k must be a whole number, found 1.5"),
    ({"top_k": True}, "top_k must be a whole number"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
    ({"top_p": 1.01}, "top_p must be"),
    ({"top_p": math.nan}, "top_p must be a finite number"),
    ({"min_p": -0.1}, "min_p must be from 0"),
    ({"min_p": 1.1}, "min_p must be from 0"),
    ({"repeat_penalty": 0}, "repeat_penalty must be above 0"),
    ({"repeat_penalty": -1}, "repeat_penalty must be above 0"),
    ({"repeat_last_n": -2}, "repeat_last_n must be -1"),
    ({"seed": -1}, "seed must be from 0"),
    ({"seed": 2**64}, "seed must be from 0"),
    ({"seed": 1.0}, "seed must be a whole number"),
], ids=str)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError) as error:
        SamplingOptions(**options)
    assert message in str(error.value)


def test_numpy_scalars_are_numbers():
    options: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint64(2**64 - 1)}
    o = SamplingOptions(**options)
    assert (o.temperature, o.top_k, o.seed) == (0.5, 3, 2**64 - 1)
    assert type(o.top_k) is int and type(o.temperature) is float


# ---------------------------------------------------------------------------------------------------------------- the same bits on every CPU

def draws_digest() -> str:
    """Of many draws, and of the bits of exp."""
    rng = np.random.Philox(key=1)
    raw = rng.random_raw(200 * 2000).astype(np.uint64) >> np.uint64(40)
    logits = (raw.astype(np.float32).reshape(200, 2000) - np.float32(2**23)) * np.float32(2**-20)  # integers scaled: exact anywhere
    digest = hashlib.sha256(sampling.exp(np.minimum(logits.astype(np.float64) * 40, 0.0)).tobytes())
    for i, case in enumerate(CASES):
        sampler = Sampler(SamplingOptions(seed=i, **case))
        digest.update(bytes(str([sampler.sample(row, p, [p, p + 1]) for p, row in enumerate(logits)]), "ascii"))
    return digest.hexdigest()


def test_numpy_dispatch_does_not_matter():
    from llamina.engine.selftest import _numpy_dispatch
    code = (f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_sampling; from llamina.engine.selftest import _numpy_dispatch; "
            "print(len(_numpy_dispatch()), test_sampling.draws_digest())")
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(_numpy_dispatch())}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    n_features, digest = process.stdout.split()
    assert int(n_features) == 0 or sys.platform == "darwin"
    assert digest == draws_digest()
