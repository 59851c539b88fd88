"""The stages beyond the plain ones against naive float64 twins, their order, mirostat's state, log-probabilities, banned texts, options."""
from __future__ import annotations

import math
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest
from fake_model import EOS, fake_model
from llamina.engine.errors import NumericError, OptionError
from llamina.engine.sampling import arithmetic, filters
from llamina.engine.sampling import sampler as sampling
from llamina.engine.sampling.banned import BannedTexts
from llamina.engine.sampling.options import STAGES
from llamina.engine.sampling.penalties import DRY_MOST, dry_penalties, penalize
from llamina.engine.sampling.sampler import Sampler, SamplingOptions, token_logprob

OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 11}


def some_scores(seed: int, n: int = 60, spread: float = 2.0, ties: bool = False) -> np.ndarray:
    scores = spread * np.random.default_rng(seed).standard_normal(n)
    scores = np.round(scores) if ties else scores
    return scores - scores.max()


def softmax(scores: np.ndarray) -> list[float]:
    weights = [math.exp(s) for s in scores.tolist()]
    return [w / math.fsum(weights) for w in weights]


# ---------------------------------------------------------------------------------------------------------------- arithmetic

def test_log_is_right_to_one_ulp():
    getcontext().prec = 50
    rng = np.random.default_rng(0)
    xs = [*rng.random(2000).tolist(), *np.exp(600 * rng.standard_normal(300).clip(-1, 1)).tolist(), *(1 + 1e-3 * rng.standard_normal(500)).tolist(),
          math.sqrt(0.5), 1 - 2**-53, 1 + 2**-52, 2.0, 1e-300]
    for x in xs:
        assert abs(Decimal(arithmetic.log(x)) - Decimal(x).ln()) <= Decimal(math.ulp(arithmetic.log(x))), x
    assert (arithmetic.log(1.0), arithmetic.log(0.0)) == (0.0, -math.inf)


@pytest.mark.parametrize("x, y", [(0.3, 0.5), (0.99, 3.0), (1e-5, 2.0), (0.0, 1.5), (0.0, 0.0), (1.0, 7.0), (0.5, 0.0)])
def test_power(x, y):
    assert math.isclose(arithmetic.power(x, y), x**y, rel_tol=1e-14)


# ---------------------------------------------------------------------------------------------------------------- filters

@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_typical(p, seed):
    scores = some_scores(seed)
    q = softmax(scores)
    entropy = math.fsum(-x * math.log(x) for x in q)
    order = sorted(range(len(q)), key=lambda i: (abs(-math.log(q[i]) - entropy), i))
    kept, mass = [], 0.0
    for i in order:
        if mass >= p - 1e-12:
            break
        kept.append(i)
        mass += q[i]
    assert filters.typical(scores, p).tolist() == sorted(kept)


@pytest.mark.parametrize("n", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(5))
def test_top_n_sigma(n, seed):
    scores = some_scores(seed)
    assert filters.top_n_sigma(scores, n).tolist() == [i for i, s in enumerate(scores) if s >= -n * np.std(scores)]
    assert filters.top_n_sigma(np.zeros(4), n).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_xtc(threshold, ties, seed):
    scores = some_scores(seed, ties=ties)
    q = softmax(scores)
    ranked = [i for i in sorted(range(len(q)), key=lambda i: (-scores[i], i)) if q[i] >= threshold]
    assert filters.xtc(scores, threshold).tolist() == [i for i in range(len(q)) if i not in ranked[:-1]]


def test_xtc_acts_as_often_as_asked():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    sampler = Sampler(SamplingOptions(**{**OFF, "temperature": 1e-3}, xtc_probability=0.3, xtc_threshold=0.1))
    drawn = [sampler.sample(logits, p, []) for p in range(2000)]
    assert set(drawn) == {0, 2}  # the most likely of what is left
    assert 0.26 < drawn.count(2) / 2000 < 0.34


@pytest.mark.parametrize("seed", range(5))
def test_dynamic_temperature(seed):
    scores = some_scores(seed)
    entropy = math.fsum(-x * math.log(x) for x in softmax(scores)) / math.log(len(scores))
    assert math.isclose(filters.dynamic_temperature(scores, 0.8, 0.5, 1.7), 0.3 + 1.0 * entropy**1.7, rel_tol=1e-12)
    assert math.isclose(filters.dynamic_temperature(np.zeros(9), 0.8, 2.0, 1.0), 2.8)
    assert filters.dynamic_temperature(np.zeros(1), 0.8, 2.0, 1.0) == 1e-300  # one candidate, no entropy: as cold as can be


def test_top_k_of_a_large_vocabulary():
    rng = np.random.default_rng(1)
    for k in 1, 40, 1000:
        for logits in rng.standard_normal(30_001).astype(np.float32), rng.integers(-9, 9, 30_001).astype(np.float32):
            ref = sorted(np.lexsort((np.arange(30_001), -logits))[:k].tolist())
            assert filters.top_k(logits, k).tolist() == ref


# ---------------------------------------------------------------------------------------------------------------- penalties

def test_presence_and_frequency():
    logits = np.array([2.0, -2.0, 0.5, 3.0], np.float32)
    assert penalize(logits, [0, 1, 1, 2, 0], 2.0, presence=0.25, frequency=0.5).tolist() == [-0.25, -5.25, -0.5, 3.0]
    some = penalize(logits[[1, 3]], [0, 1, 1, 2, 0], 2.0, 0.25, 0.5, ids=np.array([1, 3]))  # candidates that a filter left
    assert some.tolist() == [-5.25, 3.0]


def naive_dry(history: list[int], multiplier: float, base: float, allowed: int, breakers: set[int]) -> dict[int, float]:
    found: dict[int, float] = {}
    n = len(history)
    for i in range(n - 1):
        m = 0
        while m <= i and history[i - m] == history[n - 1 - m] and history[n - 1 - m] not in breakers:
            m += 1
        if m >= allowed:
            found[history[i + 1]] = max(found.get(history[i + 1], 0.0), min(multiplier * base ** (m - allowed), DRY_MOST))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_dry(seed):
    rng = np.random.default_rng(seed)
    history = rng.integers(0, 2 + seed % 4, seed * 3).tolist()
    breakers = {1} if seed % 3 == 0 else set()
    allowed, base = 1 + seed % 3, (1.75, 1.0, 3.0)[seed % 3]
    comp = dry_penalties(np.array(history, np.int64), 0.8, base, allowed, np.isin(np.arange(9), list(breakers)))
    ref = naive_dry(history, 0.8, base, allowed, breakers)
    assert comp == {token: pytest.approx(penalty, rel=1e-12) for token, penalty in ref.items()}


def test_dry_of_a_long_repetition_is_finite():
    found = dry_penalties(np.zeros(5000, np.int64), 1.0, 1.75, 2)
    assert found == {0: DRY_MOST}
    logits = np.array([9.0, 1.0], np.float32)
    assert Sampler(SamplingOptions(temperature=0, dry_multiplier=1.0)).sample(logits, 5000, [0] * 5000) == 1


def test_logit_bias():
    logits = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    greedy: dict[str, Any] = {"temperature": 0.0}
    assert Sampler(SamplingOptions(**greedy, logit_bias={3: -1.5})).sample(logits, 0, []) == 2
    assert Sampler(SamplingOptions(**greedy, logit_bias={3: -math.inf, 2: -math.inf})).sample(logits, 0, []) == 1
    assert Sampler(SamplingOptions(**greedy, logit_bias=[(0, 2.0), (0, 2.0)])).sample(logits, 0, []) == 0
    assert {Sampler(SamplingOptions(**OFF, logit_bias={3: -math.inf, 1: -math.inf})).sample(logits, p, []) for p in range(60)} == {0, 2}
    with pytest.raises(OptionError, match="every token is forbidden"):
        Sampler(SamplingOptions(logit_bias=dict.fromkeys(range(4), -math.inf))).sample(logits, 0, [])
    with pytest.raises(NumericError, match="token 1 has inf"):
        Sampler(SamplingOptions(logit_bias={1: 1e39})).sample(logits, 0, [])


def test_logit_bias_of_a_text_and_of_a_wrong_id():
    model = fake_model("abc", after="x")
    assert model.generate("x", temperature=0.0, max_tokens=1, logit_bias={"a": -99}).text() == "\0"  # all others fall with the id
    with pytest.raises(OptionError, match="token id 260 is outside the vocabulary of 260"):
        model.generate("x", logit_bias={260: 1.0})
    with pytest.raises(OptionError, match="needs a tokenizer"):
        Sampler(SamplingOptions(logit_bias={"a": 1.0}))


# ---------------------------------------------------------------------------------------------------------------- order

def test_order_decides():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    flat = {**OFF, "temperature": 3.0, "top_p": 0.7}
    usual = {Sampler(SamplingOptions(**flat)).sample(logits, p, []) for p in range(200)}
    tempered = {Sampler(SamplingOptions(**flat, order="temperature;top_p")).sample(logits, p, []) for p in range(200)}
    assert (usual, tempered) == ({0, 1}, {0, 1, 2})
    assert {Sampler(SamplingOptions(**flat, order=["temperature"])).sample(logits, p, []) for p in range(200)} == {0, 1, 2, 3}  # top_p is left out
    penalized: dict[str, Any] = {"temperature": 1.0, "top_k": 1, "repeat_penalty": 100.0, "seed": 1}
    assert Sampler(SamplingOptions(**penalized)).sample(np.array([2.0, 1.0], np.float32), 1, [0]) == 1
    assert Sampler(SamplingOptions(**penalized, order="top_k;penalties")).sample(np.array([2.0, 1.0], np.float32), 1, [0]) == 0


@pytest.mark.parametrize("n", [6, 3000])  # few and many candidates
@pytest.mark.parametrize("order", ["temperature;penalties", "temperature;bias;penalties", "top_k;temperature;penalties", "temperature;min_p;penalties",
                                   "temperature;top_p;bias;penalties", "penalties;temperature", "temperature;penalties;min_p"])
@pytest.mark.parametrize("dynatemp", [0.0, 0.4])
def test_penalties_know_the_sign_of_a_tempered_logit(n, order, dynatemp):
    """At any place of the order: what the model said, divided by the temperature, is divided if positive and multiplied if not, as in llama.cpp."""
    rng = np.random.default_rng(n)
    logits = (rng.standard_normal(n) * 3 + rng.choice([-4.0, 0.0, 4.0])).astype(np.float32)
    history = [int(i) for i in np.argsort(-logits)[:4]] + [0, 1, 1]
    options = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repeat_penalty": 1.7, "frequency_penalty": 0.2, "presence_penalty": 0.1,
               "logit_bias": {0: 1.5, 2: -1.0}, "dynatemp_range": dynatemp, "seed": 1}
    x = {i: float(v) for i, v in enumerate(logits)}

    def shares() -> dict[int, float]:
        top = max(x.values())
        whole = sum(math.exp(v - top) for v in x.values())
        return {i: math.exp(v - top) / whole for i, v in x.items()}
    for stage in order.split(";"):
        q = shares()
        if stage == "temperature":
            spread = -sum(p * math.log(p) for p in q.values() if p) / math.log(len(q))
            t = 0.7 - dynatemp + 2 * dynatemp * spread if dynatemp else 0.7
            x = {i: v / t for i, v in x.items()}
        elif stage == "penalties":
            x = {i: (v / 1.7 if v > 0 else v * 1.7) - 0.2 * history.count(i) - 0.1 if i in history else v for i, v in x.items()}
        elif stage == "bias":
            x = {i: v + {0: 1.5, 2: -1.0}.get(i, 0.0) for i, v in x.items()}
        elif stage == "min_p":
            x = {i: v for i, v in x.items() if q[i] >= 0.02 * max(q.values())}
        else:
            ranked = sorted(x, key=lambda i: -x[i])
            kept = ranked[:50] if stage == "top_k" else ranked[:next(k for k in range(1, n + 1) if sum(q[i] for i in ranked[:k]) >= 0.9)]
            x = {i: x[i] for i in kept}
    found = Sampler(SamplingOptions(**options, order=order)).distribution(logits, 9, history)
    assert found == pytest.approx(shares(), abs=1e-6)


def test_the_usual_order_said_out_loud():
    rng = np.random.default_rng(3)
    options: dict[str, Any] = {"temperature": 1.4, "top_k": 50, "typical_p": 0.9, "min_p": 0.01, "xtc_probability": 0.5, "repeat_penalty": 1.2,
                               "dry_multiplier": 0.5, "top_n_sigma": 3.0, "dynatemp_range": 0.4, "seed": 5, "logit_bias": {7: 3.0}}
    for position in range(40):
        logits = (3 * rng.standard_normal(500)).astype(np.float32)
        history = rng.integers(0, 9, position).tolist()
        ids = [Sampler(SamplingOptions(**options, order=order)).sample(logits, position, history) for order in (None, ";".join(STAGES), STAGES)]
        assert len(set(ids)) == 1


# ---------------------------------------------------------------------------------------------------------------- mirostat

def test_mirostat_is_the_naive_one():
    rng = np.random.default_rng(4)
    tau, eta = 2.0, 0.3
    sampler = Sampler(SamplingOptions(temperature=0.9, mirostat=2, mirostat_tau=tau, mirostat_eta=eta, seed=8))
    mu = 2 * tau
    for position in range(10, 80):
        logits = (3 * rng.standard_normal(200)).astype(np.float32)
        scores = (logits.astype(np.float64) - logits.max()) / 0.9
        q = softmax(scores)
        kept = [i for i in range(200) if -math.log2(q[i]) <= mu] or [int(np.argmax(q))]
        total, u = math.fsum(q[i] for i in kept), sampling.uniform(8, 0, position)
        ref = kept[min(int(np.searchsorted(np.cumsum([q[i] for i in kept]), u * total, side="right")), len(kept) - 1)]
        assert sampler.state(position) == {"mu": pytest.approx(mu, rel=1e-12)}
        assert sampler.sample(logits, position, []) == ref
        mu -= eta * (-math.log2(q[ref] / total) - tau)


def test_mirostat_can_be_rewound_and_restored():
    rows = (3 * np.random.default_rng(5).standard_normal((30, 200))).astype(np.float32)
    options = SamplingOptions(mirostat=2, mirostat_tau=3.0, mirostat_eta=0.5, seed=2)
    sampler = Sampler(options)
    once = [sampler.sample(row, p, []) for p, row in enumerate(rows)]
    assert [sampler.sample(row, p, []) for p, row in enumerate(rows[10:], 10)] == once[10:]  # back to 10, and on
    [sampler.sample(row, p, []) for p, row in enumerate(rows[::-1][:9], 10)]  # other logits (a rejected branch) ...
    assert [sampler.sample(row, p, []) for p, row in enumerate(rows[10:], 10)] == once[10:]  # ... leave nothing behind
    resumed = Sampler(options)
    resumed.restore(10, sampler.state(10))
    assert [resumed.sample(row, p, []) for p, row in enumerate(rows[10:], 10)] == once[10:]
    assert [Sampler(options).sample(row, p, []) for p, row in enumerate(rows[10:], 10)] != once[10:]


# ---------------------------------------------------------------------------------------------------------------- log-probabilities

def test_token_logprob():
    logits = np.array([1.0, 3.0, 3.0, -2.0], np.float32)
    ref = np.log(softmax(logits.astype(np.float64)))
    comp = token_logprob(logits, 3, 3)
    assert (comp.id, [i for i, _ in comp.top]) == (3, [1, 2, 0])
    np.testing.assert_allclose([comp.logprob, *(x for _, x in comp.top)], ref[[3, 1, 2, 0]], rtol=1e-14)


def test_logprobs_of_an_answer_and_of_a_text():
    model = fake_model("hello", after="ab")
    g = model.generate("ab", temperature=0.0, logprobs=2)
    g.text()
    assert [entry.id for entry in g.logprobs] == g.ids
    again = model.logprobs(g.history, 2)
    assert again[2:] == g.logprobs and len(again) == len(g.history) - 1
    with pytest.raises(OptionError, match="logprobs must be"):
        model.generate("ab", logprobs=-1)


# ---------------------------------------------------------------------------------------------------------------- banned texts

def test_banned_texts_are_avoided_and_nothing_is_taken_back():
    """The script says "badger", and where "bad" or "bud" is forbidden to begin, the next best: the least id."""
    def say(ids: list[int]) -> int:
        text = bytes(i for i in ids[3:] if i < 256)
        script = b"a badger.\xff"
        if len(text) == 12 or text == script[:-1]:
            return EOS
        return script[len(text)] if script.startswith(text) else ord("x")
    for banned, expected in ([], "a badger."), (["bad"], "a \0xxxxxxxxx"), (["zzz"], "a badger."), (["er."], "a badg\0xxxxx"), (["xx", "bad"], None):
        g = fake_model(say).generate("ab", temperature=0.0, max_tokens=30, banned=banned)
        pieces = list(g)
        assert expected is None or "".join(pieces) == expected
        assert not any(b in "".join(pieces) for b in banned)
        assert g.ids == list("".join(pieces).encode()) and g.finish_reason == "eos"


def test_banned_texts_across_tokens():
    watch = BannedTexts(["bad wolf"])
    assert [watch.push(t) for t in ("the", " b", "ig", " bad", " w", "all")] == [("the", 0), ("", 0), (" big", 0), ("", 0), ("", 0), (" bad wall", 0)]
    assert [watch.push(t) for t in ("a bad", " ", "wolf")] == [("", 0), ("", 0), ("", 3)]
    assert [watch.push(t) for t in ("one ", "bad", " wolf!")] == [("one ", 0), ("", 0), ("", 2)]
    watch.forbid(7, 1)
    watch.forbid(9, 2)
    watch.forbid(7, 3)
    assert (set(watch.at(7)), set(watch.at(9)), set(watch.at(8))) == ({1, 3}, set(), set())


# ---------------------------------------------------------------------------------------------------------------- options

@pytest.mark.parametrize("options, message", [
    ({"typical_p": 0.0}, "typical_p must be above 0"), ({"top_n_sigma": -1.0}, "top_n_sigma must be 0"), ({"xtc_probability": 1.1}, "xtc_probability must be"),
    ({"xtc_threshold": -0.1}, "xtc_threshold must be"), ({"dynatemp_range": -1}, "dynatemp_range must be"), ({"dry_base": 0.5}, "dry_base must be 1 or more"),
    ({"dry_allowed_length": 0}, "dry_allowed_length must be 1"), ({"mirostat": 1}, "mirostat must be 0 (off) or 2"), ({"mirostat_tau": -1}, "mirostat_tau"),
    ({"mirostat_eta": 2}, "mirostat_eta"), ({"presence_penalty": math.nan}, "presence_penalty must be a finite number"), ({"banned": [""]}, "banned must be"),
    ({"dry_breakers": 5}, "dry_breakers must be"), ({"logit_bias": {1: "x"}}, "logit_bias must be a finite number"), ({"logit_bias": {1: math.inf}}, "finite"),
    ({"logit_bias": [3]}, "logit_bias must map"), ({"logit_bias": {"": 1.0}}, "logit_bias must map"), ({"order": "top_k;top_q"}, "found 'top_q'"),
    ({"order": "top_k;top_k"}, "twice"), ({"order": "mirostat;top_k"}, "mirostat at its end"),
], ids=str)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError) as error:
        SamplingOptions(**options)
    assert message in str(error.value)


def test_exp_of_many_is_exp_of_few():
    """Compiled and NumPy's, bit for bit."""
    rng = np.random.default_rng(3)
    x = np.concatenate([-np.abs(rng.standard_normal(20_000)) * 10.0 ** rng.integers(-8, 4, 20_000), [0.0, -0.0, -700.0, -700.0000001, -np.inf, -5e-324]])
    many = arithmetic.exp(x)
    few = np.concatenate([arithmetic.exp(part) for part in np.array_split(x, 50)])
    assert many.tobytes() == few.tobytes()
