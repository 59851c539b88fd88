"""The optimiser: PyTorch's formula in plain numbers, and the same bits however its arrays are cut."""
from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from llamina.engine.train import optimiser, schedule
from llamina.kernels.team import Team


def arrays(seed: int, sizes: dict[str, tuple[int, ...]], scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * scale).astype(np.float32) for name, shape in sizes.items()}


SIZES = {"b": (3, 5), "a": (optimiser.PIECE + 3,)}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_by_plain_numbers(decay: float) -> None:
    """Python's floats, one element after the other; three steps, the second clipped."""
    weights = arrays(1, SIZES)
    twin = {name: w.copy() for name, w in weights.items()}
    m, v = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    some = {name: sorted({0, w.size - 1, *np.random.default_rng(7).integers(0, w.size, 300).tolist()}) for name, w in weights.items()}
    adam = optimiser.make("adamw", weights, weight_decay=decay)
    for step, factor in enumerate((1.0, 0.3, 1.0), 1):
        g = arrays(10 + step, SIZES, 0.1)
        adam.step(g, 0.01, factor)
        c1, c2 = 1.0 - optimiser.power(0.9, step), 1.0 - optimiser.power(0.999, step)
        for name, w in twin.items():
            for at in some[name]:
                x, gradient = float(w.flat[at]), float(g[name].flat[at]) * factor
                first = float(m[name].flat[at]) * 0.9 + gradient * (1.0 - 0.9)
                second = float(v[name].flat[at]) * 0.999 + gradient * gradient * (1.0 - 0.999)
                x = x * (1.0 - 0.01 * decay) if decay else x
                x -= first * (0.01 / c1) / (math.sqrt(second) / math.sqrt(c2) + 1e-8)
                m[name].flat[at], v[name].flat[at], w.flat[at] = first, second, x
                assert weights[name].flat[at] == w.flat[at]
                assert adam.moments[f"{name}.v"].flat[at] == v[name].flat[at]
    assert adam.steps == 3


def test_kernels_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of long arrays: every element and the norm, where squares are subnormal or large, moments 0 and the last few are left over, too."""
    sizes, found, team = {"a": (optimiser.PIECE + 13,), "b": (3, 1000), "c": (5,)}, [], Team(2)
    for many, run in (1 << 60, None), (8, None), (8, team.run):
        monkeypatch.setattr(optimiser, "MANY", many)
        weights = arrays(1, sizes)
        adam, norms = optimiser.make("adamw", weights, weight_decay=0.1, plain={"b"}, run=run), []
        for step, scale in enumerate((0.1, 1e-30, 1e18)):
            g = arrays(10 + step, sizes, scale)
            g["a"][5:20] = 0
            norms.append(optimiser.gradient_norm(g))
            assert adam.step(g, 0.01, 0.3 if step == 1 else 1.0)
        found.append((norms, {name: array.view(np.uint32).tolist() for name, array in {**weights, **adam.moments}.items()}))
        assert math.isnan(optimiser.gradient_norm({"a": np.array([1, np.nan] * 8, np.float32)}))
        for name, at, wrong in ("a", optimiser.PIECE + 3, np.inf), ("a", -1, np.nan), ("b", 2999, 1e30), ("c", 2, np.inf):  # 1e30: its square isn't finite
            g = arrays(20, sizes)
            g[name].flat[at] = wrong
            assert not optimiser.make("adamw", arrays(1, sizes), run=run).step(g, 0.01), (name, wrong)
    team.close()
    assert found[0] == found[1] == found[2]


def test_sgd() -> None:
    weights = {"w": np.array([1.0, -2.0], np.float32)}
    optimiser.make("sgd", weights, weight_decay=0.5).step({"w": np.array([0.25, 0.5], np.float32)}, 0.125)
    assert weights["w"].tolist() == [1.0 - (0.25 + 0.5) * 0.125, -2.0 - (0.5 - 1.0) * 0.125]


def test_norm_is_one_chain_in_name_order() -> None:
    gradients = arrays(5, SIZES, 1e3)
    total = 0.0
    for name in ("a", "b"):
        for g in gradients[name].reshape(-1).tolist():
            total += g * g
    assert optimiser.gradient_norm(gradients) == math.sqrt(total)
    assert optimiser.gradient_norm(dict(reversed(gradients.items()))) == math.sqrt(total)
    assert math.isnan(optimiser.gradient_norm({"a": np.array([1, np.nan], np.float32)}))
    assert optimiser.clip_factor(4.0, 1.0) == 0.25 and optimiser.clip_factor(0.5, 1.0) == 1.0 == optimiser.clip_factor(9.0, 0.0)


def test_a_changed_order_of_the_norm_would_be_seen() -> None:
    """What the test above compares with tells orders apart."""
    g = arrays(5, SIZES, 1e3)["a"].astype(np.float64)
    chain = float(np.add.accumulate(g * g)[-1])
    assert chain != float(np.add.accumulate((g * g)[::-1])[-1])


def test_powers() -> None:
    assert [optimiser.power(0.5, n) for n in range(5)] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert optimiser.power(0.999, 12345) == pytest.approx(0.999 ** 12345, rel=1e-12)


def test_half_cosine() -> None:
    for x in (Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), Fraction(997, 1000)):
        assert schedule.half_cosine(x) == pytest.approx((1 + math.cos(math.pi * x)) / 2, rel=1e-11, abs=1e-17)
    assert schedule.half_cosine(Fraction(0)) == 1.0 and schedule.half_cosine(Fraction(1, 2)) == 0.5 and schedule.half_cosine(Fraction(2, 3)) == 0.25


def test_schedules() -> None:
    assert schedule.warmup_steps(0.03, 100) == 3 and schedule.warmup_steps(0.03, 10) == 1 and schedule.warmup_steps(5, 3) == 3 \
        and schedule.warmup_steps(0.0, 9) == 0
    of = [schedule.rate("cosine", 1.0, s, 10, 2) for s in range(10)]
    assert of[:3] == [1 / 3, 2 / 3, 1.0] and of == sorted(of[:3]) + sorted(of[3:], reverse=True) and 0 < of[-1] < 0.05
    assert [schedule.rate("linear", 1.0, s, 4, 0) for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert {schedule.rate("constant", 0.5, s, 4, 0) for s in range(4)} == {0.5}
