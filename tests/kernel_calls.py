"""The kernels on NumPy arrays, for tests: each function here allocates the output, passes addresses to compiled code, and returns the output.

The only place in the tests that knows the kernels' signatures. Outputs are surrounded by guard bytes where a kernel could write too far.
"""
from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llamina.kernels import activations, elementwise, gates, norms, simd64, vecmath
from llamina.kernels.bfloat16 import load_bf16x16, round_bf16
from llamina.kernels.compile_cache import compiled, jit
from llamina.kernels.dot import dot, dot_any
from llamina.kernels.formats import registry
from llamina.kernels.formats.table import FORMATS
from llamina.kernels.half import load_f16, load_f16x16, store_f16x16
from llamina.kernels.simd import (
    from_bits,
    keep_first,
    load_f32x16,
    load_i8x64,
    load_i32x16,
    splat_f32,
    splat_i32,
    store_f32,
    store_f32x16,
    store_i32,
    stream_f32x16,
    vmax_across,
    vmax_across_i32,
    vsum,
    vsum_i32,
)

Array = np.ndarray[Any, Any]
f32 = np.float32
ROWS, PAGE = 16, elementwise.PAGE


def record_type(width: int) -> np.dtype[Any]:
    """A record of activations.py, as its docstring draws it."""
    fields = [("q", "i1", (width, 32)), ("d", "f4", width), ("ds", "f4", width), ("zero8", "i4", width), ("zero128", "i4", width),
              ("zero32", "i4", (2, width))]
    return np.dtype([*fields, ("padding", "u1", -56 * width % 64)])


def at(a: Array) -> int:
    """Address of a contiguous array."""
    assert a.flags.c_contiguous
    return a.ctypes.data


def padded(columns: int) -> int:
    return -(-columns // 32) * 32


def padded_rows(x: Array) -> Array:
    """float32 [n, columns] -> [n, columns rounded up to 32], zeros added."""
    out = np.zeros((len(x), padded(x.shape[1])), np.float32)
    out[:, :x.shape[1]] = x
    return out


# -- simd, half, dot, vecmath -----------------------------------------------------------------------------------------------------------------

@jit()
def _exp(x, out, n):
    for i in range(0, 4 * n, 64):
        store_f32x16(out + i, vecmath.vexp(load_f32x16(x + i)))


@compiled("int64(int64, int64, int64)")
def _stream(x, out, n):
    for i in range(0, 4 * n, 64):
        stream_f32x16(out + i, load_f32x16(x + i))
    return 0


def stream(x: Array, out: Array) -> str:
    """out, float32 [n] on a cache line, becomes x, by stores past the caches -> the machine code, made anew: what is loaded from disk can't be looked at."""
    assert len(x) == len(out) and len(x) % 16 == 0 and at(out) % 64 == 0
    _stream.ctypes(at(x), at(out), len(x))
    return str(numba.cfunc(_stream.signature, **_stream.options)(_stream.__wrapped__)._library.get_asm_str())


@jit()
def _widen(x, out, n):
    for i in range(0, n, 16):
        store_f32x16(out + 4 * i, load_f16x16(x + 2 * i))


@jit()
def _widen_one(x, out, n):
    for i in range(n):
        store_f32(out + 4 * i, load_f16(x + 2 * i))


@jit()
def _widen_bf16(x, out, n):
    for i in range(0, n, 16):
        store_f32x16(out + 4 * i, load_bf16x16(x + 2 * i))


@jit()
def _round_bf16(x, out, n):
    for i in range(0, 4 * n, 64):
        store_f32x16(out + i, round_bf16(load_f32x16(x + i)))


@jit()
def _narrow(x, out, n):
    for i in range(0, n, 16):
        store_f16x16(out + 2 * i, load_f32x16(x + 4 * i))


@jit()
def _dot(u, s, start, out):
    store_f32x16(out, from_bits(dot(splat_i32(start), load_i8x64(u), load_i32x16(s))))


@jit()
def _dot_any(u, s, start, out):
    store_f32x16(out, from_bits(dot_any(splat_i32(start), load_i8x64(u), load_i32x16(s))))


@jit()
def _reductions(f, i, f_out, i_out):
    store_f32(f_out, vsum(load_f32x16(f)))
    store_f32(f_out + 4, vmax_across(load_f32x16(f)))
    store_i32(i_out, vsum_i32(load_i32x16(i)))
    store_i32(i_out + 4, vmax_across_i32(load_i32x16(i)))


@jit()
def _keep_first(x, n, fill, out):
    store_f32x16(out, keep_first(load_f32x16(x), n, fill))


@jit()
def _packed(x, mask, integers, doubles, floats):
    chosen = simd64.load_i64x8(mask)
    return (simd64.store_packed_i64(integers, simd64.load_i64x8(x), chosen), simd64.store_packed_f64(doubles, simd64.load_f64x8(x + 64), chosen),
            simd64.store_packed_f64_as_f32(floats, simd64.load_f64x8(x + 64), chosen))


@jit()
def _round(x, out, n):
    for i in range(0, 4 * n, 64):
        store_f32x16(out + i, from_bits(vecmath.round_to_bits(load_f32x16(x + i))))


@jit()
def _arithmetic(a, b, out):
    x, y = load_f32x16(a), load_f32x16(b)
    store_f32x16(out, x + y)
    store_f32x16(out + 64, x - y)
    store_f32x16(out + 128, x * y)
    store_f32x16(out + 192, x / y)
    store_f32x16(out + 256, x * y + splat_f32(1.0))


@jit()
def _sin_cos(x, out):
    for i in range(x.size):
        out[i, 0], out[i, 1] = vecmath.sin_cos(x[i])


def _map(function: Any, x: Array, dtype: Any, n: int | None = None) -> Array:
    x = np.ascontiguousarray(x)
    assert x.size % 16 == 0
    out = np.zeros(x.shape, dtype)
    function(at(x), at(out), x.size)
    return out


def exp(x: Array) -> Array:
    return _map(_exp, x.astype(np.float32), np.float32)


def widen(halves: Array) -> Array:
    return _map(_widen, halves.view(np.uint16), np.float32)


def widen_one(halves: Array) -> Array:
    return _map(_widen_one, halves.view(np.uint16), np.float32)


def widen_bf16(bits: Array) -> Array:
    return _map(_widen_bf16, bits.view(np.uint16), np.float32)


def rounded_bf16(x: Array) -> Array:
    return _map(_round_bf16, x.astype(np.float32), np.float32)


def narrow(x: Array) -> Array:
    """float32 -> bits of halves, uint16"""
    return _map(_narrow, x.astype(np.float32), np.uint16)


def round_to_bits(x: Array) -> Array:
    return _map(_round, x.astype(np.float32), np.int32)


def byte_dot(u: Array, s: Array, start: int, any_byte: bool) -> Array:
    """u: uint8 [64], s: int8 [64] -> int32 [16] = start + sums of four products"""
    out = np.zeros(16, np.int32)
    (_dot_any if any_byte else _dot)(at(u), at(s), start, at(out))
    return out


def reductions(f: Array, i: Array) -> tuple[np.float32, np.float32, int, int]:
    """(vsum, vmax_across) of float32 [16], (vsum_i32, vmax_across_i32) of int32 [16]"""
    f_out, i_out = np.zeros(2, np.float32), np.zeros(2, np.int32)
    _reductions(at(f), at(i), at(f_out), at(i_out))
    return f_out[0], f_out[1], int(i_out[0]), int(i_out[1])


def keep_first_lanes(x: Array, n: int, fill: float) -> Array:
    out = np.zeros(16, np.float32)
    _keep_first(at(x), n, np.float32(fill), at(out))
    return out


def packed(integers: Array, doubles: Array, chosen: Array) -> list[Array]:
    """The chosen of int64 [8] and float64 [8], those also as float32."""
    both, mask = np.concatenate([integers, doubles.view(np.int64)]), -chosen.astype(np.int64)
    out: list[Array] = [np.zeros(8, np.int64), np.zeros(8), np.zeros(8, np.float32)]
    return [a[:n] for a, n in zip(out, _packed(at(both), at(mask), *(at(a) for a in out)))]


def arithmetic(a: Array, b: Array) -> Array:
    """float32 [16] each -> [5, 16]: a + b, a - b, a * b, a / b, a * b + 1 in two roundings"""
    out = np.zeros((5, 16), np.float32)
    _arithmetic(at(a), at(b), at(out))
    return out


def sin_cos(x: Array) -> Array:
    """float64 [n] -> [n, 2]"""
    out = np.zeros((len(x), 2))
    _sin_cos(x, out)
    return out


# -- activations and matmul -------------------------------------------------------------------------------------------------------------------

@jit()
def _quantize(x, columns, tokens, records):
    worst = 0
    for m in range(tokens):
        worst = max(worst, activations.quantize_row(x + 4 * m * columns, columns, m, tokens, records))
    return worst


def quantize(x: Array) -> tuple[list[Array], int]:
    """float32 [M, C], C a multiple of 32 -> (records: of each group of 8 tokens (the last one has fewer) [C / 32] of its record_type, views of one array;
    largest |x| as float bits)"""
    assert x.dtype == np.float32 and x.shape[1] % 32 == 0
    raw = np.full(activations.record_bytes(len(x), x.shape[1]) + 64, 0x5A, np.uint8)
    worst = _quantize(at(x), x.shape[1], len(x), at(raw))
    assert (raw[-64:] == 0x5A).all()
    groups, start = [], 0
    for first in range(0, len(x), 8):
        kind = record_type(next(width for width in (1, 2, 4, 8) if width >= min(8, len(x) - first)))
        size = kind.itemsize * (x.shape[1] // 32)
        groups.append(raw[start:start + size].view(kind))
        start += size
    assert (raw[start:] == 0x5A).all(), "wrote past the last group's records"
    return groups, worst


def token_of(records: list[Array], m: int) -> dict[str, Array]:
    """One token's numbers in all of its blocks: q [blocks, 32], zero32 [blocks, 2], the others [blocks]."""
    group, lane = records[m // 8], m % 8
    return {name: group[name][:, :, lane] if name == "zero32" else group[name][:, lane] for name in ("q", "d", "ds", "zero8", "zero128", "zero32")}


def n_tiles(rows: int) -> int:
    return -(-rows // ROWS)


def retile(name: str, data: Array, columns: int, pieces: int = 1) -> tuple[Array, int]:
    """uint8 [rows, row bytes] -> (tiles: uint8, first bad row or -1), the tiles made in `pieces` calls."""
    rows, tiles = len(data), n_tiles(len(data))
    size = registry.tiled_bytes(name, rows, columns)
    raw = np.zeros(size + 64, np.uint8)
    raw[size:] = 0x5A
    call, bad = registry.retiler(name).ctypes, -1
    borders = [tiles * i // pieces for i in range(pieces + 1)]
    for t0, t1 in zip(borders, borders[1:]):
        found = call(at(data), data.shape[1], rows, columns // FORMATS[name].columns, t0, t1, at(raw))
        bad = found if bad < 0 else bad
    assert (raw[size:] == 0x5A).all()
    return raw[:size], bad


def matmul(name: str, tiles: Array, rows: int, x: Array, borders: list[int] | None = None, kernel: Any = None) -> Array:
    """out float32 [M, rows]; x: float32 [M, C] with C the matrix's columns. `borders`: tile ranges of separate calls. `kernel`: instead of the format's."""
    tokens, columns = x.shape
    inputs = padded_rows(x)
    ldx, ldo = inputs.shape[1], n_tiles(rows) * ROWS
    if not registry.takes_floats(name):
        inputs = quantize(inputs)[0][0]
    out = np.full((tokens + 1, ldo), np.nan, np.float32)
    borders = borders or [0, n_tiles(rows)]
    for t0, t1 in zip(borders, borders[1:]):
        (kernel or registry.kernel(name)).ctypes(at(tiles), columns, t0, t1, at(inputs), ldx, at(out), ldo, tokens)
    finite = np.abs(x).max(axis=1) < 1e30
    assert np.isnan(out[tokens]).all(), "wrote past the last token"
    assert (out[:tokens, rows:][finite] == 0).all(), "lanes past the last row are not zero"
    return out[:tokens, :rows]


# -- the per-token stages ---------------------------------------------------------------------------------------------------------------------

@jit()
def _rms_norm(x, gain, n, columns, eps, out):
    return elementwise.rms_norm(x, gain, n, columns, eps, out)


@jit()
def _silu_mul(gate, up, columns):
    elementwise.silu_mul(gate, up, columns)


@jit()
def _add_rows(x, y, columns):
    elementwise.add_rows(x, y, columns)


@jit()
def _rope(x, n_heads, head_dim, rope_dim, table):
    for h in range(n_heads):
        elementwise.rope(x + 4 * h * head_dim, head_dim, rope_dim, table)


@jit()
def _fill_rope_table(frequencies, pairs, table, first, last, scale):
    elementwise.fill_rope_table(frequencies, pairs, table, first, last, scale)


@jit()
def _fill_rope_halves(frequencies, pairs, table, first, last, scale):
    elementwise.fill_rope_halves(frequencies, pairs, table, first, last, scale)


@jit()
def _rope_halves(x, n_heads, head_dim, rope_dim, table):
    for h in range(n_heads):
        elementwise.rope_halves(x + 4 * h * head_dim, rope_dim, table)


@jit()
def _head_norm(x, gain, n, eps):
    return norms.head_norm(x, gain, n, eps)


@jit()
def _layer_norm(x, gain, bias, n, columns, eps, out):
    return norms.layer_norm(x, gain, bias, n, columns, eps, out)


@jit()
def _activate(kind, gate, up, columns):
    gates.activate(kind, gate, up, columns)


@jit()
def _soft_cap(x, out, n, cap):
    for i in range(0, 4 * n, 64):
        store_f32x16(out + i, vecmath.soft_cap(load_f32x16(x + i), cap))


def head_norm(x: Array, gain: Array | None, eps: float) -> tuple[Array, bool]:
    """x, gain: float32 [n], any number; what lies behind them is NaN and stays it"""
    n = len(x)
    out, gains = (np.append(a, np.full(16, np.nan, np.float32)) for a in (x, np.ones(n, np.float32) if gain is None else gain))
    bad = _head_norm(at(out), 0 if gain is None else at(gains), n, np.float32(eps))
    assert np.isnan(out[n:]).all()
    return out[:n], bool(bad)


def layer_norm(x: Array, gain: Array, bias: Array | None, n: int, eps: float) -> tuple[Array, bool]:
    """x, gain, bias: float32 [columns], a multiple of 32"""
    out = np.full(len(x) + 16, np.nan, np.float32)
    bad = _layer_norm(at(x), at(gain), 0 if bias is None else at(bias), n, len(x), np.float32(eps), at(out))
    assert np.isnan(out[len(x):]).all()
    return out[:len(x)], bool(bad)


def activate(kind: int, gate: Array, up: Array | None) -> Array:
    out = np.append(gate, np.full(16, np.nan, np.float32))
    _activate(kind, at(out), 0 if up is None else at(up), len(gate))
    assert np.isnan(out[len(gate):]).all()
    return out[:len(gate)]


def soft_cap(x: Array, cap: float) -> Array:
    out = np.zeros_like(x)
    _soft_cap(at(x), at(out), len(x), np.float32(cap))
    return out


def rms_norm(x: Array, gain: Array, n: int, eps: float) -> tuple[Array, bool]:
    """x, gain: float32 [columns], a multiple of 32"""
    out = np.full(len(x) + 16, np.nan, np.float32)
    bad = _rms_norm(at(x), at(gain), n, len(x), np.float32(eps), at(out))
    assert np.isnan(out[len(x):]).all()
    return out[:len(x)], bool(bad)


def silu_mul(gate: Array, up: Array) -> Array:
    out = np.append(gate, np.full(16, np.nan, np.float32))
    _silu_mul(at(out), at(up), len(up))
    assert np.isnan(out[len(gate):]).all()
    return out[:len(gate)]


def add_rows(x: Array, y: Array) -> Array:
    out = x.copy()
    _add_rows(at(out), at(y), len(y))
    return out


def rope_table(frequencies: Array, positions: int, scale: float = 1.0, halves: bool = False) -> Array:
    """float32 [positions, pairs, 2], or with halves [positions, 2, pairs]"""
    table = np.zeros((positions, 2, len(frequencies)) if halves else (positions, len(frequencies), 2), np.float32)
    (_fill_rope_halves if halves else _fill_rope_table)(at(frequencies), len(frequencies), at(table), 0, positions, scale)
    return table


def rope(x: Array, rope_dim: int, row: Array) -> Array:
    """x: float32 [heads, head_dim]; row: float32 [pairs, 2] of the table"""
    out = x.copy()
    _rope(at(out), len(x), x.shape[1], rope_dim, at(row))
    return out


def rope_halves(x: Array, rope_dim: int, row: Array) -> Array:
    """x: float32 [heads, head_dim]; row: float32 [2, pairs] of the table"""
    out = x.copy()
    _rope_halves(at(out), len(x), x.shape[1], rope_dim, at(row))
    return out
