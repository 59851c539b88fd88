"""Attention over pages against a plain softmax in float64, and bit for bit against its canonical chains."""
from __future__ import annotations

import attention_calls as kernels
import kernel_calls
import numpy as np
import pytest
from llamina.kernels.attention import block_tokens
from llamina.kernels.elementwise import HALVES, NO_ROPE, PAIRS
from naive_attention import Kind, canonical_attention, canonical_attention_q8_0, naive_attention

f32 = np.float32
SHAPES = [  # query heads, KV heads, head_dim: groups of 1, 2, 3, 8
    (4, 4, 8), (6, 2, 16), (2, 1, 24), (8, 1, 40), (4, 2, 64), (3, 1, 80), (1, 1, 128), (8, 8, 8), (3, 1, 24),
]
POSITIONS = 201


def problem(heads, n_kv, head_dim, positions=POSITIONS, seed=0, size=1.0):
    """q, k, v: float32 [positions, heads, head_dim]; scale 1 / sqrt(head_dim)"""
    rng = np.random.default_rng(seed + head_dim)
    q = rng.standard_normal((positions, heads, head_dim)).astype(f32) * f32(2 * size)
    k, v = (rng.standard_normal((positions, n_kv, head_dim)).astype(f32) for _ in range(2))
    return q, k, v, head_dim**-0.5


def equal(a, b):
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize("heads, n_kv, head_dim", SHAPES)
def test_attention(heads, n_kv, head_dim):
    """All positions in one go, compared at the borders of pages and some between."""
    q, k, v, scale = problem(heads, n_kv, head_dim)
    out = kernels.attend(q, kernels.Cache(k, v), 0, scale)
    kh, vh = k.astype(np.float16), v.astype(np.float16)
    for position in (0, 1, 15, 16, 31, 62, 63, 64, 65, 100, 127, 128, 191, 192, 200):
        expected = naive_attention(q[position], kh, vh, position, scale)
        assert np.abs(out[position] - expected).max() <= 3e-6 * np.abs(vh[:position + 1]).max(), position
    for position in (0, 63, 64, 200):
        assert equal(out[position], canonical_attention(q[position], kh, vh, position, scale)), position


@pytest.mark.parametrize("heads, n_kv, head_dim", SHAPES)
def test_attention_q8_0(heads, n_kv, head_dim):
    """8-bit keys and values: bit for bit, and near to what they were made from."""
    q, k, v, scale = problem(heads, n_kv, head_dim)
    out = kernels.attend(q, kernels.Cache(k, v, kv="q8_0"), 0, scale)
    for position in (0, 1, 62, 63, 64, 100, 128, 200):
        assert equal(out[position], canonical_attention_q8_0(q[position], k, v, position, scale)), position
        assert np.abs(out[position] - naive_attention(q[position], k, v, position, scale)).max() <= 0.06 * np.abs(v[:position + 1]).max(), position


def test_attention_f32():
    q, k, v, scale = problem(4, 2, 24)
    out = kernels.attend(q, kernels.Cache(k, v, kv="f32"), 0, scale)
    for position in (0, 63, 64, 200):
        assert equal(out[position], canonical_attention(q[position], k, v, position, scale)), position


@pytest.mark.parametrize("kv, canonical", [("f16", canonical_attention), ("q8_0", canonical_attention_q8_0)])
def test_spans(kv, canonical):
    """More pages than a span has: merged span by span, and the same bits whether one piece of work has all spans or each its own, in any order."""
    q, k, v, scale = problem(4, 2, 16, 1200)
    cache = kernels.Cache(k, v, kv=kv)
    k, v = (a.astype(np.float16) if kv == "f16" else a for a in (k, v))
    for start, n in ((1199, 1), (1020, 8), (511, 1), (505, 16)):  # spans of 512 positions begin at 512 and 1024: some blocks straddle
        tokens = q[start:start + n]
        whole = kernels.attend(tokens, cache, start, scale, [0, n])
        assert equal(kernels.attend(tokens, cache, start, scale, [0, n], split=True), whole)
        assert equal(kernels.attend(tokens, cache, start, scale, list(range(n + 1)), split=True), whole)
        assert equal(whole[n // 2], canonical(tokens[n // 2], k, v, start + n // 2, scale))


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("heads, n_kv, head_dim", SHAPES)
def test_same_bits_for_any_block(heads, n_kv, head_dim, kv):
    """One token at a time, blocks of 2, 7 and of the largest size, a chunk that starts in the middle: equal bits."""
    q, k, v, scale = problem(heads, n_kv, head_dim)
    cache, most = kernels.Cache(k, v, kv=kv), block_tokens(heads, n_kv)
    whole = kernels.attend(q, cache, 0, scale)
    assert np.isfinite(whole).all()
    for step in (1, 2, 7):
        assert equal(kernels.attend(q, cache, 0, scale, [*range(0, POSITIONS, step), POSITIONS]), whole), step
    for start in (1, 63, 64, 190):
        assert equal(kernels.attend(q[start:], cache, start, scale), whole[start:]), start
    for start, n in ((60, 8), (61, 3), (128, min(most, 32))):
        assert equal(kernels.attend(q[start:start + n], cache, start, scale, [0, n]), whole[start:start + n])


@pytest.mark.parametrize("heads, n_kv, head_dim", [(6, 2, 16), (2, 1, 24), (8, 8, 8)])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 65504.0, -65504.0])
def test_unused_places_do_not_matter(heads, n_kv, head_dim, garbage, kv):
    """The tail of the last page, the lanes that pad a value row, other layers: never read into a result."""
    q, k, v, scale = problem(heads, n_kv, head_dim, 71)
    clean = kernels.attend(q, kernels.Cache(k, v, 0.0, kv=kv), 0, scale)
    dirty = kernels.Cache(k, v, garbage, kv=kv)
    assert np.isfinite(clean).all() and equal(kernels.attend(q, dirty, 0, scale), clean)
    assert equal(kernels.attend(q, dirty, 0, scale, list(range(72))), clean)


@pytest.mark.parametrize("heads, n_kv, head_dim", [(2, 1, 24), (8, 1, 40)])
def test_later_positions_do_not_matter(heads, n_kv, head_dim):
    """Keys and values that a token may not see, however large, change nothing."""
    q, k, v, scale = problem(heads, n_kv, head_dim)
    before = kernels.attend(q[:90], kernels.Cache(k, v), 0, scale)
    k[90:], v[90:] = 6e4, -6e4
    assert equal(kernels.attend(q[:90], kernels.Cache(k, v), 0, scale), before)


def test_extreme_scores():
    """One key that outweighs all others, in either page; scores that are all alike; scores far below zero."""
    q, k, v, scale = problem(2, 1, 16, 130)
    kh, vh = k.astype(np.float16), v.astype(np.float16)
    for position in (5, 63, 64, 129):
        k2 = kh.copy()
        k2[position] = 1000 * np.sign(q[129, 0]) / np.abs(q[129, 0]).sum() * 16
        out = kernels.attend(q[129:], kernels.Cache(k2.astype(f32), v), 129, scale)[0]
        assert np.abs(out[0] - vh[position, 0]).max() < 1e-6
        assert np.abs(out - naive_attention(q[129], k2, vh, 129, scale)).max() < 1e-4
    zeros = np.zeros_like(q)
    out = kernels.attend(zeros, kernels.Cache(k, v), 0, scale)
    assert np.abs(out[129] - vh[:130, 0].astype(np.float64).mean(axis=0)).max() < 1e-6
    down = -np.abs(k) * 60
    down16 = down.astype(np.float16)
    big = np.abs(q) * 60
    out = kernels.attend(big, kernels.Cache(down, v), 0, scale)
    for position in (0, 70, 129):
        assert np.abs(out[position] - naive_attention(big[position], down16, vh, position, scale)).max() < 2e-3
        assert equal(out[position], canonical_attention(big[position], down16, vh, position, scale))


KINDS = {
    "window of less than a page": Kind(window=5), "window of a page": Kind(window=64), "window over pages": Kind(window=150), "one position": Kind(window=1),
    "cap": Kind(cap=2.5), "sinks": Kind(sinks=np.array([3.0, -2.0, 0.5, 20.0], f32)),
    "all": Kind(window=70, cap=5.0, sinks=np.array([-30.0, 1.0, 2.0, 6.0], f32)),
}


@pytest.mark.parametrize("kv", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("name", KINDS)
def test_kinds(name, kv):
    """Windows, soft caps and sinks: near to plain loops, equal to the chains, and the same bits one token at a time, in blocks, and span by span."""
    kind, (q, k, v, scale) = KINDS[name], problem(4, 2, 24, 1100)
    words = {"WINDOW": kind.window, "SOFT_CAP": kind.cap} | ({} if kind.sinks is None else {"SINKS": kind.sinks})
    cache = kernels.Cache(k, v, kv=kv)
    out = kernels.attend(q, cache, 0, scale, **words)
    kh, vh = (a.astype(np.float16) if kv == "f16" else a for a in (k, v))
    canonical = canonical_attention_q8_0 if kv == "q8_0" else canonical_attention
    for position in (0, 4, 5, 63, 64, 65, 127, 133, 134, 213, 511, 512, 575, 600, 1099):
        expected = naive_attention(q[position], kh, vh, position, scale, kind)
        assert np.abs(out[position] - expected).max() <= (0.06 if kv == "q8_0" else 1e-5) * np.abs(vh[:position + 1]).max(), position
        assert equal(out[position], canonical(q[position], kh, vh, position, scale, kind)), position
    assert equal(kernels.attend(q[:300], cache, 0, scale, list(range(301)), **words), out[:300])
    for start, n in ((1099, 1), (1020, 8), (511, 1), (505, 16), (570, 30)):
        assert equal(kernels.attend(q[start:start + n], cache, start, scale, [0, n], split=True, **words), out[start:start + n]), start


def test_pages_out_of_sight_may_be_gone():
    """Pages that no query of a block sees any more are not even touched."""
    q, k, v, scale = problem(4, 2, 16, 1100)
    cache = kernels.Cache(k, v)
    whole = kernels.attend(q, cache, 0, scale, WINDOW=100)
    cache.table[:(1090 - 100 + 1) // 64] = 8  # no address that can be read
    for split in (False, True):
        assert equal(kernels.attend(q[1090:], cache, 1090, scale, [0, 10], split=split, WINDOW=100), whole[1090:])


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_values_of_another_width(kv):
    q, k, _, scale = problem(4, 2, 40)
    v = np.random.default_rng(9).standard_normal((POSITIONS, 2, 24)).astype(f32)
    out, canonical = kernels.attend(q, kernels.Cache(k, v, kv=kv), 0, scale), canonical_attention if kv == "f16" else canonical_attention_q8_0
    kh, vh = (a.astype(np.float16) if kv == "f16" else a for a in (k, v))
    assert out.shape == (POSITIONS, 4, 24)
    for position in (0, 63, 64, 200):
        assert equal(out[position], canonical(q[position], kh, vh, position, scale)), position


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("head_dim, rope_dim, kind", [(64, 64, PAIRS), (24, 16, HALVES), (40, 40, HALVES), (16, 16, NO_ROPE), (8, 4, HALVES)])
def test_norm_and_turn(head_dim, rope_dim, kind, last):
    """Queries and keys are normed and turned as asked: as if they had been before."""
    q, k, v, scale = problem(4, 2, head_dim, 90)
    rng = np.random.default_rng(3)
    q_gain, k_gain, by = (1 + rng.standard_normal(n).astype(f32) / 4 for n in (head_dim, head_dim, 90))
    frequencies = 10000.0 ** (-2 * np.arange(rope_dim // 2) / rope_dim)
    table = kernel_calls.rope_table(frequencies, 90, halves=kind == HALVES)
    words = {"ROPE_DIM": rope_dim, "ROPE_KIND": kind, "ROPE_TABLE": table, "NORM_EPS": 1e-6, "NORM_LAST": last}

    def ready(x, gain):
        x = x.copy()
        for i, row in enumerate(x):
            for step in (("turn", "norm") if last else ("norm", "turn")):
                if step == "norm":
                    row[:] = np.array([kernel_calls.head_norm(head, gain, 1e-6)[0] for head in row])
                elif kind == HALVES:
                    row[:] = kernel_calls.rope_halves(row, rope_dim, table[i])
                elif kind == PAIRS:
                    row[:] = kernel_calls.rope(row, rope_dim, table[i])
        return x
    plain = kernels.attend(ready(q, q_gain) * by[:, None, None], kernels.Cache(ready(k, k_gain), v), 0, scale)
    out = kernels.attend(q, kernels.Cache(k, v, K_NORM=k_gain, **words), 0, scale, Q_NORM=q_gain, Q_SCALES=by, **words)
    assert equal(out, plain)


@pytest.mark.parametrize("window, ahead", [(0, 1 << 40), (0, 5), (41, 40), (1, 0), (300, 299), (70, 69)])
@pytest.mark.parametrize("kv, canonical", [("f16", canonical_attention), ("f32", canonical_attention), ("q8_0", canonical_attention_q8_0)])
def test_ahead(window, ahead, kv, canonical):
    """Positions after a query's own, all of them or so many, with windows to both sides: bit for bit, in any blocks and with spans apart."""
    q, k, v, scale = problem(4, 2, 16, 1100)
    cache, kind = kernels.Cache(k, v, kv=kv), Kind(window=window, ahead=ahead)
    k16, v16 = (a.astype(np.float16) if kv == "f16" else a for a in (k, v))
    whole = kernels.attend(q, cache, 0, scale, WINDOW=window, AHEAD=ahead)
    for position in (0, 1, 40, 63, 64, 500, 511, 512, 1023, 1024, 1098, 1099):
        assert equal(whole[position], canonical(q[position], k16, v16, position, scale, kind)), position
    assert equal(kernels.attend(q, cache, 0, scale, list(range(0, 1101, 20)), split=True, WINDOW=window, AHEAD=ahead), whole)
    for position in (0, 511, 1099):
        expected = naive_attention(q[position], k16, v16, position, scale, kind)
        assert np.abs(whole[position] - expected).max() <= (0.06 if kv == "q8_0" else 3e-6) * np.abs(v).max()
