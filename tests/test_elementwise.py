"""RMSNorm, SwiGLU, RoPE, residual additions and appending to the KV cache."""
from __future__ import annotations

import attention_calls
import kernel_calls as kernels
import numpy as np
import pytest
from naive_kernels import canonical_rms_norm, canonical_silu_mul, naive_rms_norm, naive_rope, naive_silu_mul

f32 = np.float32


def rng_rows(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(f32)


@pytest.mark.parametrize("n", [1, 8, 16, 31, 32, 172, 256, 1000])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_rms_norm(n, size):
    x, gain = kernels.padded_rows(rng_rows(n, 2, n))
    x *= f32(size)
    out, bad = kernels.rms_norm(x, gain, n, 1e-5)
    assert not bad
    expected = naive_rms_norm(x[:n], gain[:n], float(f32(1e-5)))
    assert np.abs(out[:n] - expected).max() <= 1e-6 * np.abs(expected).max() and (out[n:] == 0).all()
    assert (out.view(np.uint32) == canonical_rms_norm(x, gain, n, 1e-5).view(np.uint32)).all()


def test_rms_norm_of_zeros():
    out, bad = kernels.rms_norm(np.zeros(64, f32), np.ones(64, f32), 64, 1e-6)
    assert not bad and (out == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e19])
@pytest.mark.parametrize("column", [0, 17, 63])
def test_rms_norm_tells_non_finite(value, column):
    """Squares that overflow count as not finite too."""
    x = rng_rows(1, 64)
    assert not kernels.rms_norm(x, x, 64, 1e-5)[1]
    x[column] = value
    assert kernels.rms_norm(x, x, 64, 1e-5)[1]


def test_silu_mul():
    gate = np.concatenate([np.linspace(-30, 30, 224), [0, -0.0, 1e-30, -1e-30, 80, -80, 1e4, -1e4], np.zeros(24)]).astype(f32)
    up = rng_rows(2, len(gate))
    out = kernels.silu_mul(gate, up)
    assert (out.view(np.uint32) == canonical_silu_mul(gate, up).view(np.uint32)).all()
    with np.errstate(over="ignore"):
        expected = naive_silu_mul(gate, up)
    assert (np.abs(out - expected) <= 1e-6 * np.abs(expected) + 1e-30).all()
    assert (out[-24:] == 0).all(), "padding must stay zero"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_silu_mul_keeps_non_finite(value):
    """So that the int8 quantisation behind it can tell."""
    one = np.ones(32, f32)
    gate = one.copy()
    gate[5] = value
    assert not np.isfinite(kernels.silu_mul(gate, one)[5]) or value == -np.inf
    assert not np.isfinite(kernels.silu_mul(one, gate)[5])


def test_add_rows():
    x, y = rng_rows(3, 2, 96)
    assert (kernels.add_rows(x, y) == x + y).all()


@pytest.mark.parametrize("heads, head_dim, rope_dim", [(1, 8, 8), (3, 24, 24), (2, 40, 40), (4, 64, 64), (2, 128, 128), (3, 64, 32), (1, 2, 2)])
def test_rope(heads, head_dim, rope_dim):
    frequencies = 10000.0 ** (-2 * np.arange(rope_dim // 2) / rope_dim)
    table = kernels.rope_table(frequencies, 1100)
    x = rng_rows(4, heads, head_dim)
    for position in (0, 1, 63, 1099):
        out, expected = kernels.rope(x, rope_dim, table[position]), naive_rope(x, position, rope_dim, 10000.0)
        assert np.abs(out - expected).max() < 5e-7 * np.abs(x).max()
        assert (out[:, rope_dim:] == x[:, rope_dim:]).all()
        c, s = table[position, :, 0], table[position, :, 1]
        even, odd = x[:, 0:rope_dim:2], x[:, 1:rope_dim:2]
        assert (out[:, 0:rope_dim:2] == even * c - odd * s).all() and (out[:, 1:rope_dim:2] == even * s + odd * c).all()
    assert (kernels.rope(x, rope_dim, table[0]) == x).all()


def test_rope_table_is_scaled():
    frequencies = np.array([1.0, 0.25])
    plain, scaled = kernels.rope_table(frequencies, 50), kernels.rope_table(frequencies, 50, 1.25)
    angles = np.arange(50)[:, None] * frequencies
    assert np.abs(plain - np.stack([np.cos(angles), np.sin(angles)], axis=2)).max() < 1e-7
    assert np.abs(scaled - 1.25 * plain).max() < 2e-7


@pytest.mark.parametrize("n_kv, head_dim", [(1, 8), (4, 8), (2, 16), (3, 24), (2, 40), (1, 80), (2, 128)])
def test_append_kv(n_kv, head_dim):
    """Every position lands rounded to f16 in its place of the page, and nothing else changes."""
    k, v = rng_rows(5, 2, 130, n_kv, head_dim)
    k[3, 0, 0], v[3, 0, 0] = 1 + 2.0**-11, -1 - 3 * 2.0**-11  # ties
    cache = attention_calls.Cache(k, v)
    for page in range(3):
        n = min(64, 130 - 64 * page)
        keys, values = cache.keys(page), cache.values(page)[:, :, :head_dim]
        here = slice(64 * page, 64 * page + n)
        assert (keys[:, :, :n] == k[here].transpose(1, 2, 0).astype(np.float16)).all() and np.isnan(keys[:, :, n:]).all()
        assert (values[:, :n] == v[here].transpose(1, 0, 2).astype(np.float16)).all() and np.isnan(values[:, n:]).all()
    assert np.isnan(cache.pages[:, [0, 2]]).all(), "wrote into another layer"
