"""Quantising activations to int8: the records as activations.py draws them, extremes, tiny and non-finite blocks."""
from __future__ import annotations

import kernel_calls as kernels
import numpy as np
import pytest
from llamina.kernels.activations import INFINITY_BITS, record_bytes
from naive_kernels import canonical_quantise

f32 = np.float32


def inputs(tokens, columns, seed=0):
    """Blocks of very different size, a huge column, negative extremes, ties and zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)) * 10.0 ** rng.uniform(-6, 6, (tokens, columns // 32)).repeat(32, axis=1)
    x[:, 0] = 1e4
    x[-1, 1:columns:7] = -1e4
    x[:, 32:64] = (np.arange(32) - 16) / 2 * (127 / 8)  # absmax 127: halves are ties
    x[0, -32:] = 0
    return x.astype(f32)


@pytest.mark.parametrize("tokens, columns", [(1, 64), (2, 96), (3, 64), (4, 64), (7, 64), (8, 256), (9, 64), (12, 96), (17, 192)])
def test_records(tokens, columns):
    x = inputs(tokens, columns, tokens)
    expected = canonical_quantise(x)
    records, worst = kernels.quantize(x)
    assert worst == np.abs(x).max().view(np.int32) and sum(group.nbytes for group in records) <= record_bytes(tokens, columns)
    for m in range(tokens):
        r, q = kernels.token_of(records, m), expected.q[m].reshape(-1, 32).astype(int)
        assert (r["q"] == q).all() and (r["d"] == expected.d[m]).all()
        assert (r["ds"] == expected.d[m] * q.sum(axis=1).astype(f32)).all()
        assert (r["zero8"] == -8 * q.sum(axis=1)).all() and (r["zero128"] == -128 * q.sum(axis=1)).all()
        assert (r["zero32"] == -32 * q.reshape(-1, 2, 16).sum(axis=2)).all()
    assert len(records) == -(-tokens // 8)
    for m in range(tokens, 8 * len(records) - 8 + records[-1]["d"].shape[1]):  # lanes of tokens that aren't there stay untouched
        assert (kernels.token_of(records, m)["q"] == 0x5A).all()


def test_error_is_half_a_step():
    x = inputs(5, 256)
    expected = canonical_quantise(x)
    steps = np.repeat(np.abs(x).reshape(5, -1, 32).max(axis=2) / 127.0, 32, axis=1)
    assert (np.abs(expected.values() - x) <= 0.5001 * steps).all()


def test_extremes():
    """The largest magnitude gives 127 or -127 exactly, never -128; the largest float does not overflow."""
    for value in (3.4e38, -3.4e38, 1.0, -1.0, 1e-29, -1e-29, float(np.finfo(f32).max), float(np.nextafter(f32(1), f32(2)))):
        x = np.full((1, 32), value, f32)
        x[0, 5] = -value
        r = kernels.token_of(kernels.quantize(x)[0], 0)
        sign = 1 if value > 0 else -1
        assert r["q"][0, 0] == 127 * sign and r["q"][0, 5] == -127 * sign
        assert np.isfinite(r["ds"]).all() == (abs(value) < 1e30)  # the sum of 32 largest floats isn't one: non-finite, and found, further on
        assert r["d"][0] == abs(f32(value)) / f32(127)
    rng = np.random.default_rng(3)
    x = (rng.choice([-1, 1], (64, 32)) * rng.uniform(0.999999, 1.0, (64, 32))).astype(f32)
    q = np.concatenate([kernels.token_of(kernels.quantize(x)[0], m)["q"] for m in range(64)])
    assert set(np.unique(np.abs(q.astype(int)))) == {127}


def test_one_huge_column_hides_the_others():
    x = np.full((1, 32), 1e-3, f32)
    x[0, 17] = 1e6
    assert kernels.token_of(kernels.quantize(x)[0], 0)["q"][0].tolist() == [127 if i == 17 else 0 for i in range(32)]


def test_tiny_and_zero_blocks_are_zero():
    x = np.zeros((4, 64), f32)
    x[0, :32] = 9.9e-31
    x[1, :32] = -1e-45
    x[2, :32] = -0.0
    x[:, 32:] = 1  # their neighbours are not
    records, _ = kernels.quantize(x)
    for m in range(4):
        r = kernels.token_of(records, m)
        assert (r["q"][0] == 0).all() and r["d"][0] == 0 and r["ds"][0] == 0 and r["zero8"][0] == 0 and r["zero128"][0] == 0 and (r["zero32"][0] == 0).all()
        assert (r["q"][1] == 127).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 15, 16, 31, 32, 63])
def test_non_finite_is_told(value, column):
    """int8 would turn NaN into a plausible number: the returned bits tell."""
    x = inputs(3, 64)
    assert kernels.quantize(x)[1] < INFINITY_BITS
    x[1, column] = value
    assert kernels.quantize(x)[1] >= INFINITY_BITS
