"""What every kernel computes, twice, in NumPy loops to be checked by eye. Shares no code with the kernels.

- The *meaning*, in float64 (`naive_...`): what a textbook says; kernels come within a few float32 roundings of it.
- The *canonical sequence* of float32 operations (`canonical_...`), as docs/exactness.md and the kernels' docstrings write it down: kernels must give
  these very bits, on every target. An fma is exact product, exact sum, one rounding (`fma32`).

Shapes: tokens M, rows R, columns C; block formats by their GGUF name; positions p; queries are [heads, head_dim].
"""
from __future__ import annotations

import math
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import dequantize

Array = np.ndarray[Any, Any]
f32 = np.float32


# -- one rounding -----------------------------------------------------------------------------------------------------------------------------

def fma32(a: Any, b: Any, c: Any) -> Array:
    """float32 a * b + c with one rounding: exact product in float64, sum rounded to odd, then to nearest (Boldo and Melquiond 2008)."""
    p = np.asarray(a, np.float64) * np.asarray(b, np.float64)  # 24 + 24 bits: exact
    c = np.asarray(c, np.float64)
    s = np.atleast_1d(p + c)
    back = s - p
    error = (p - (s - back)) + (c - back)  # Knuth's TwoSum
    bits = s.view(np.int64)
    toward = np.where((error > 0) == (s > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + toward, bits).view(np.float64)
    return odd.astype(f32).reshape(np.shape(p + c))


def tree_sum(lanes: Array) -> Array:
    """16 partial sums to one: lower half + upper half, 16 -> 8 -> 4 -> 2 -> 1. [..., 16] -> [...]"""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


# -- scalar functions -------------------------------------------------------------------------------------------------------------------------

def naive_half(x: float) -> int:
    """float32 to the bits of the nearest half, ties to even; from the definition: the multiple of the half's last place nearest to x."""
    sign = 0x8000 if math.copysign(1.0, x) < 0 else 0
    x = abs(x)
    if math.isnan(x):
        return sign | 0x7E00
    if x == math.inf:
        return sign | 0x7C00
    exponent = max(-14, math.frexp(x)[1] - 1) if x else -14
    n = round(math.ldexp(x, 10 - exponent))  # Python rounds ties to even; exact: x has 24 bits
    if n == 2048:
        n, exponent = 1024, exponent + 1
    if exponent > 15:
        return sign | 0x7C00
    return sign | (n if n < 1024 else (exponent + 15) << 10 | (n - 1024))


def canonical_exp(x: Array) -> Array:
    """vecmath.vexp's operations on float32 of any shape."""
    x = np.minimum(np.maximum(x, f32(-87)), f32(88))
    magic = f32(12582912)
    shifted = fma32(x, f32(1.44269504088896341), magic)
    n = shifted - magic
    r = fma32(n, f32(2.12194440e-4), fma32(n, f32(-0.693359375), x))
    p = np.full_like(r, f32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma32(p, r, f32(c))
    p = fma32(r * r, p, r + f32(1))
    return p * np.ldexp(f32(1), n.astype(np.int32))


# -- activations ------------------------------------------------------------------------------------------------------------------------------

class Quantised(NamedTuple):
    """int8 activations: q int8 [M, C], d float32 [M, C / 32]; x is about q * d."""

    q: Array
    d: Array

    def values(self) -> Array:
        """float64 [M, C]"""
        return self.q * np.repeat(self.d.astype(np.float64), 32, axis=1)


def canonical_quantise(x: Array) -> Quantised:
    """float32 [M, C], C a multiple of 32: round(x * (127 / absmax)) per 32 columns; blocks below 1e-30 are zero."""
    blocks = x.reshape(len(x), -1, 32)
    absmax = np.abs(blocks).max(axis=2)
    live = absmax >= f32(1e-30)
    inverse = np.where(live, f32(127) / np.where(live, absmax, f32(1)), f32(0))
    q = np.rint(blocks * inverse[:, :, None]).astype(np.int8).reshape(x.shape)
    return Quantised(q, np.where(live, absmax / f32(127), f32(0)))


# -- weights ----------------------------------------------------------------------------------------------------------------------------------

HALVES = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_M": (), "MXFP4": (),
}
"""Byte offsets of a block's f16 numbers: d, and the minimum or dmin."""
UNIT = {"IQ1_S": 1 / 8, "IQ1_M": 1 / 8, "IQ2_XXS": 1 / 8, "IQ2_XS": 1 / 8, "IQ2_S": 1 / 8, "IQ3_XXS": 1 / 4}
"""d times this, times an integer, is a weight; 1 for the others that have no minimum."""
ITEM = {"F32": 4, "F16": 2, "BF16": 2}


def block_shape(name: str) -> tuple[int, int]:
    """(columns, bytes) of a block, from the gguf package."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


def random_rows(name: str, rows: int, columns: int, rng: np.random.Generator, codes: int | None = None, scale: float = 0.01) -> Array:
    """Valid rows of a format: uint8 [rows, row bytes]. `codes`: every byte but the f16 scales has this value, instead of random bits."""
    if name in ITEM:
        w = (rng.standard_normal((rows, columns)) * scale).astype(f32)
        if codes is not None:  # the format's largest and smallest magnitudes, either sign
            largest = {"F32": 1e30, "F16": 65504, "BF16": 1e30}[name]
            w = (np.where(rng.integers(0, 2, w.shape), 1, -1) * (largest if codes & 1 else 1e-7)).astype(f32)
        if name == "F32":
            return w.view(np.uint8)
        return (w.astype(np.float16) if name == "F16" else (w.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    per_block, size = block_shape(name)
    blocks = rng.integers(0, 256, (rows * columns // per_block, size), dtype=np.uint8)
    if codes is not None:
        blocks[:] = codes
    for at in HALVES[name]:
        halves = (rng.standard_normal(len(blocks)) * scale).astype(np.float16)
        blocks[:, at:at + 2] = halves[:, None].view(np.uint8)
    if name == "IQ1_M":  # d's upper 4 bits, in the last scale's
        blocks[:, 55] = blocks[:, 55] & 0x0F | 0x20
    if name == "MXFP4":  # a power of two, 2 ** (e - 127)
        blocks[:, 0] = rng.integers(116, 124, len(blocks))
    return blocks.reshape(rows, -1)


def reference(name: str, data: Array) -> Array:
    """float32 [R, C] as the gguf package decodes the rows."""
    return np.asarray(dequantize(data, gguf.GGMLQuantizationType[name])).reshape(len(data), -1)


class Codes(NamedTuple):
    """A block format's integers and float scales, for the canonical chain. Sub-blocks of 32 columns, S = C / 32.

    code: int [R, C], zero point taken off, and multiplied by the integer scale where a format has one per 16 columns; scale: float32 [R, S];
    least: float32 [R, S] or None; minimums: int [R, 2 S] (per 16 columns, in units of -32 * least) or None.
    """

    code: Array
    scale: Array
    least: Array | None = None
    minimums: Array | None = None


def codes_of(name: str, data: Array) -> Codes:
    """Formats with a minimum are unpacked column by column from ggml's structs; elsewhere a weight is an exact multiple of its block's unit."""
    columns, size = block_shape(name)
    rows, blocks = len(data), data.reshape(-1, size)
    b = blocks.astype(np.int64)

    def half(at: int) -> Array:
        return np.ascontiguousarray(blocks[:, at:at + 2]).view(np.float16).astype(f32)
    if len(HALVES[name]) < 2:
        if name == "MXFP4":
            unit = np.ldexp(f32(1), b[:, :1].astype(np.int32) - 128)
        elif name == "IQ1_M":
            unit = np.asarray(sum(b[:, 49 + 2 * i:50 + 2 * i] >> 4 << 4 * i for i in range(4))).astype(np.uint16).view(np.float16).astype(f32)
        else:
            unit = half(HALVES[name][0])
        unit = np.repeat(unit * f32(UNIT.get(name, 1)), columns // 32, axis=0).reshape(rows, -1)
        if name == "IQ4_XS":  # its scale per 32 columns goes with d
            ls = np.stack([(b[:, 4 + j // 2] >> 4 * (j % 2) & 15 | (b[:, 2 + j // 4] >> 2 * (j % 4) & 3) << 4) - 32 for j in range(8)], axis=1)
            unit = unit * ls.reshape(rows, -1).astype(f32)
        exact = reference(name, data).reshape(rows, -1, 32) / np.where(unit == 0, f32(1), unit).astype(np.float64)[:, :, None]
        assert (exact == np.rint(exact)).all()
        return Codes(exact.astype(np.int64).reshape(rows, -1), unit)
    code = np.zeros((len(blocks), columns), np.int64)
    scale, least, minimums = half(HALVES[name][0]), half(HALVES[name][1]), None
    if name in ("Q4_1", "Q5_1"):
        qs = 8 if name == "Q5_1" else 4
        for c in range(32):
            code[:, c] = b[:, qs + c % 16] >> 4 * (c // 16) & 15
            if name == "Q5_1":
                code[:, c] += (b[:, 4 + c // 8] >> c % 8 & 1) << 4
    elif name in ("Q4_K", "Q5_K"):
        s, qs = b[:, 4:16], 48 if name == "Q5_K" else 16
        sc = np.stack([s[:, j] & 63 if j < 4 else (s[:, j + 4] & 15) | s[:, j - 4] >> 6 << 4 for j in range(8)], axis=1)
        m = np.stack([s[:, j + 4] & 63 if j < 4 else s[:, j + 4] >> 4 | s[:, j] >> 6 << 4 for j in range(8)], axis=1)
        scale, least = scale * sc.astype(f32), -(least * m.astype(f32))
        for c in range(256):
            j, l = divmod(c, 32)
            code[:, c] = b[:, qs + 32 * (j // 2) + l] >> 4 * (j % 2) & 15
            if name == "Q5_K":
                code[:, c] += (b[:, 16 + l] >> j & 1) << 4
    else:
        assert name == "Q2_K"
        for c in range(256):
            code[:, c] = (b[:, 16 + 32 * (c // 128) + c % 32] >> 2 * (c % 128 // 32) & 3) * (b[:, c // 16] & 15)
        minimums = (b[:, :16] >> 4).reshape(rows, -1)
        scale, least = np.repeat(scale, 8, axis=1), np.repeat(least / f32(32), 8, axis=1)
    return Codes(code.reshape(rows, -1), scale.reshape(rows, -1), least.reshape(rows, -1), minimums)


# -- matmul -----------------------------------------------------------------------------------------------------------------------------------

def naive_matmul(w: Array, x: Array) -> tuple[Array, Array]:
    """float64 (sums, bounds), each [M, R]: sum over columns of w * x, and what rounding errors are measured by: the sum of magnitudes.

    A weight counts with the largest magnitude of its 32 columns, since a format with a minimum may cancel inside a block.
    """
    w, x = w.astype(np.float64), x.astype(np.float64)
    sums, bounds = np.zeros((len(x), len(w))), np.zeros((len(x), len(w)))
    for c0 in range(0, w.shape[1], 32):
        part, xs = w[:, c0:c0 + 32], x[:, c0:c0 + 32]
        for i in range(part.shape[1]):
            sums += xs[:, i, None] * part[:, i]
        bounds += np.abs(xs).sum(axis=1)[:, None] * np.abs(part).max(axis=1)
    return sums, bounds


def canonical_matmul(w: Codes, x: Quantised) -> Array:
    """acc = fma(float(dot_b), d_w * d_x, acc), then acc = fma(least_w, d_x * sum_x, acc), over sub-blocks b of 32 columns. float32 [M, R]

    With minimums per 16 columns (Q2_K), the latter is acc = fma(float(m_0 * -32 sum_0 + m_1 * -32 sum_1), least_w * d_x, acc).
    """
    q = x.q.astype(np.int64)
    acc = np.zeros((len(q), len(w.code)), f32)
    for b in range(q.shape[1] // 32):
        columns, d = slice(32 * b, 32 * b + 32), x.d[:, b, None]
        dot = q[:, columns] @ w.code[:, columns].T
        assert np.abs(dot).max() < 1 << 24, "int32 to float32 would round"
        acc = fma32(dot.astype(f32), w.scale[:, b] * d, acc)
        if w.minimums is not None and w.least is not None:
            sums = -32 * q[:, columns].reshape(-1, 2, 16).sum(axis=2)
            acc = fma32((sums @ w.minimums[:, 2 * b:2 * b + 2].T).astype(f32), w.least[:, b] * d, acc)
        elif w.least is not None:
            acc = fma32(w.least[:, b], d * q[:, columns].sum(axis=1)[:, None].astype(f32), acc)
    return acc


def naive_bf16(x: Array) -> Array:
    """float32 to the nearest bfloat16 value, which has 8 significant bits, ties to even, as float32; zero below 2**-55."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    with np.errstate(over="ignore"):  # beyond the largest: infinity
        rounded = np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(f32)
    return np.where(np.abs(x) < 2.0**-55, f32(0), rounded)


def canonical_float_matmul(name: str, w: Array, x: Array) -> Array:
    """acc = fma(w[r, c], x[m, c], acc) over the columns; for BF16, x rounded to bfloat16, and weights below 2**-55 zero. float32 [M, R]"""
    if name == "BF16":
        w, x = np.where(np.abs(w) < 2.0**-55, f32(0), w), naive_bf16(x)
    acc = np.zeros((len(x), len(w)), f32)
    for c in range(w.shape[1]):
        acc = fma32(w[:, c], x[:, c, None], acc)
    return acc


# -- the per-token stages ---------------------------------------------------------------------------------------------------------------------

def naive_rms_norm(x: Array, gain: Array, eps: float) -> Array:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean() + eps) * gain


def canonical_rms_norm(x: Array, gain: Array, n: int, eps: float) -> Array:
    """x, gain: float32 padded with zeros to a multiple of 32; n: columns that count."""
    lanes = np.zeros(16, f32)
    for i in range(0, len(x), 16):
        lanes = fma32(x[i:i + 16], x[i:i + 16], lanes)
    return x * (f32(1) / np.sqrt(tree_sum(lanes) / f32(n) + f32(eps))) * gain


def naive_silu_mul(gate: Array, up: Array) -> Array:
    g = gate.astype(np.float64)
    return g / (1 + np.exp(-g)) * up


def canonical_silu_mul(gate: Array, up: Array) -> Array:
    return gate / (f32(1) + canonical_exp(f32(0) - gate)) * up


def naive_rope(x: Array, position: int, rope_dim: int, base: float) -> Array:
    """x: [heads, head_dim]; pairs (2i, 2i + 1) turned by position * base ** (-2i / rope_dim), as complex numbers."""
    y = x.astype(np.float64)
    for i in range(rope_dim // 2):
        angle = position * base ** (-2 * i / rope_dim)
        turned = (y[:, 2 * i] + 1j * y[:, 2 * i + 1]) * complex(math.cos(angle), math.sin(angle))
        y[:, 2 * i], y[:, 2 * i + 1] = turned.real, turned.imag
    return y
