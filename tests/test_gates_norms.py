"""What other families than Llama need between their matrices: gates, norms of heads, LayerNorm, RoPE of halves, soft caps."""
from __future__ import annotations

import math

import kernel_calls as kernels
import numpy as np
import pytest
from llamina.kernels import gates
from naive_kernels import canonical_exp, fma32, tree_sum

f32 = np.float32


def naive_gate(name: str, g: float, u: float) -> float:
    """One element in float64, from the functions' definitions."""
    if name == "silu":
        return g * (1 / (1 + math.exp(-g))) * u
    if name == "gelu_tanh":
        return 0.5 * g * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) * u
    if name == "gelu_erf":
        return g * 0.5 * math.erfc(-g / math.sqrt(2)) * u
    if name == "relu2":
        return max(g, 0.0)**2 * u
    if name == "sigmoid":
        return 1 / (1 + math.exp(-g)) * u
    h, v = min(g, 7.0), min(max(u, -7.0), 7.0)
    return h * (1 / (1 + math.exp(-1.702 * h))) * (v + 1)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    special = [0, -0.0, 1e-30, -1e-30, 30, -30, 80, -80, 1e4, -80, 7, 6.99, 0.5, -0.5, 3e-3, 1]
    gate = np.concatenate([np.linspace(-12, 12, 400), rng.standard_normal(208), special])
    up = np.concatenate([rng.standard_normal(400), 5 * rng.standard_normal(len(gate) - 400)])
    return gate.astype(f32), up.astype(f32)


@pytest.mark.parametrize("name", gates.KINDS)
@pytest.mark.parametrize("gated", [True, False])
def test_gates(name, gated):
    gate, up = inputs()
    assert len(gate) % 16 == 0
    if name == "oai" and not gated:
        pytest.skip("gated only")
    out = kernels.activate(gates.KINDS[name], gate, up if gated else None)
    expected = np.array([naive_gate(name, float(g), float(u) if gated else 1.0) for g, u in zip(gate, up)])
    assert (np.abs(out - expected) <= 3e-6 * np.abs(expected) + 1e-7).all()


def test_gates_bit_for_bit():
    """The operations as gates.py writes them down."""
    g, u = inputs()
    one, zero = f32(1), f32(0)
    t = g * fma32(g * g, f32(0.07135481282553), f32(1.5957691216057308))
    with np.errstate(over="ignore"):
        assert (kernels.activate(gates.GELU_TANH, g, u) == g / (one + canonical_exp(zero - t)) * u).all()
        assert (kernels.activate(gates.RELU2, g, u) == np.maximum(g, zero) * np.maximum(g, zero) * u).all()
    assert (kernels.activate(gates.SIGMOID, g, None) == one / (one + canonical_exp(zero - g))).all()
    h, v = np.minimum(g, f32(7)), np.clip(u, f32(-7), f32(7))
    assert (kernels.activate(gates.OAI, g, u) == h / (one + canonical_exp(zero - h * f32(1.702))) * (v + one)).all()


@pytest.mark.parametrize("name", gates.KINDS)
def test_gates_keep_nan(name):
    for gate, up in ((np.nan, 1.0), (1.0, np.nan)):
        g, u = np.full(16, gate, f32), np.full(16, up, f32)
        assert np.isnan(kernels.activate(gates.KINDS[name], g, u)).all()


@pytest.mark.parametrize("cap", [30.0, 50.0, 1.0])
def test_soft_cap(cap):
    x = np.concatenate([np.linspace(-400, 400, 480), [0, 1e-6, -1e-6, 1e30, -1e30, 0.25, 3e38, -3e38] * 2]).astype(f32)
    out = kernels.soft_cap(x, cap)
    assert np.abs(out - cap * np.tanh(x.astype(np.float64) / cap)).max() <= 2.5e-7 * cap


@pytest.mark.parametrize("n", [1, 7, 8, 16, 24, 40, 64, 96, 128, 200])
@pytest.mark.parametrize("gained", [True, False])
def test_head_norm(n, gained):
    rng = np.random.default_rng(n)
    x, gain = rng.standard_normal(n).astype(f32) * 3, 1 + rng.standard_normal(n).astype(f32) / 3
    out, bad = kernels.head_norm(x, gain if gained else None, 1e-6)
    expected = x.astype(np.float64) / math.sqrt(float((x.astype(np.float64)**2).mean()) + 1e-6) * (gain if gained else 1)
    assert not bad and np.abs(out - expected).max() <= 2e-6 * np.abs(expected).max()
    padded = np.zeros(-(-n // 16) * 16, f32)
    padded[:n] = x
    lanes = np.zeros(16, f32)
    for v in padded.reshape(-1, 16):
        lanes = fma32(v, v, lanes)
    r = f32(1) / np.sqrt(tree_sum(lanes) / f32(n) + f32(1e-6))
    assert (out == x * r * (gain if gained else f32(1))).all()
    for value in (np.nan, np.inf):
        x[n // 2] = value
        assert kernels.head_norm(x, gain, 1e-6)[1]


@pytest.mark.parametrize("n", [1, 8, 31, 32, 172, 1000])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(n, biased):
    rng = np.random.default_rng(n)
    x, gain, bias = kernels.padded_rows((rng.standard_normal((3, n)) * 2 + [[5.0], [1.0], [0.0]]).astype(f32))
    out, bad = kernels.layer_norm(x, gain, bias if biased else None, n, 1e-5)
    y = x[:n].astype(np.float64)
    expected = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * gain[:n] + (bias[:n] if biased else 0)
    assert not bad and (out[n:] == 0).all()
    assert np.abs(out[:n] - expected).max() <= 4e-6 * max(np.abs(expected).max(), np.abs(gain).max())
    lanes, squares = np.zeros(16, f32), np.zeros(16, f32)
    for v in x.reshape(-1, 16):
        lanes = lanes + v
    mean = tree_sum(lanes) / f32(n)
    centred = x - mean
    centred[n:] = 0
    for v in centred.reshape(-1, 16):
        squares = fma32(v, v, squares)
    scaled = (x - mean) * (f32(1) / np.sqrt(tree_sum(squares) / f32(n) + f32(1e-5)))
    assert (out == (fma32(scaled, gain, bias) if biased else scaled * gain)).all()
    x[0] = np.inf
    assert kernels.layer_norm(x, gain, None, n, 1e-5)[1]


@pytest.mark.parametrize("heads, head_dim, rope_dim", [
    (1, 8, 8), (3, 24, 16), (2, 40, 40), (4, 64, 64), (2, 128, 128), (3, 64, 32), (1, 2, 2), (2, 96, 96), (2, 256, 64),
])
def test_rope_halves(heads, head_dim, rope_dim):
    half = rope_dim // 2
    frequencies = 10000.0 ** (-2 * np.arange(half) / rope_dim)
    table = kernels.rope_table(frequencies, 1100, halves=True)
    x = np.random.default_rng(4).standard_normal((heads, head_dim)).astype(f32)
    for position in (0, 1, 63, 1099):
        out = kernels.rope_halves(x, rope_dim, table[position])
        turned = (x[:, :half].astype(np.float64) + 1j * x[:, half:rope_dim]) * np.exp(1j * position * frequencies)
        assert np.abs(out[:, :half] - turned.real).max() < 5e-7 * np.abs(x).max() and np.abs(out[:, half:rope_dim] - turned.imag).max() < 5e-7 * np.abs(x).max()
        assert (out[:, rope_dim:] == x[:, rope_dim:]).all()
        a, b, (c, s) = x[:, :half], x[:, half:rope_dim], table[position]
        assert (out[:, :half] == a * c - b * s).all() and (out[:, half:rope_dim] == b * c + a * s).all()
