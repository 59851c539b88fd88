"""The low-rank product of an adapter: u = A x, and y += scale * (B u), both in float32, in the one order that docs/exactness.md has.

    x of some tokens, a part of 256 columns ──`widen`──► float32 ──`down`──► s of that part ──`sum`──► u [rank] ──`up`, by tiles of 16 output rows──►  y

x are float rows, or int8 records: d * q. A lies as [tile of 16 ranks][column][16], B as [tile of 16 rows][rank][16], lane = rank or row, as float32 or as
halves, which are widened as they are read: same bits. Ranks, rows and columns that are missing (to 16, 16 and 32) are zeros.

    s:  of columns [256 i, 256 i + 256), two chains, over the even columns and the odd ones: e = fma(a[c], x[c], e);  s[i] = e + o
    u:  ((0 + s[0]) + s[1]) + …
    y:  t = fma(b[k], u[k], t) over the ranks in order;  y = fma(scale, t, y)

Parts, since a lone token's are divided between the threads; two chains, since one would wait for itself. Several tokens share what is read of A and B. None of
it enters an output's operations.
"""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .activations import BLOCK, GROUP, RECORD, D, group_width, record_size
from .compile_cache import Compiled, compiled
from .deferred import jit
from .half import load_f16x16
from .simd import (
    fma,
    get_f32,
    load_f32,
    load_f32x16,
    load_i8x16_as_i32,
    prefetch,
    put_f32,
    splat_f32,
    splat_load_f32,
    stack_vectors,
    store_f32x16,
    to_f32,
)
from .target import TARGET

KINDS: dict[str, tuple[np.dtype, Any]] = {"F32": (np.dtype(np.float32), load_f32x16), "F16": (np.dtype(np.float16), load_f16x16)}
"""How pairs are kept -> (NumPy's type, what loads 16 of them as float32)."""
ORDER = 2
"""Grows with every change of the sums' order: part of adapters' digests and of what runs are bound to, so that nothing made by another is gone on with."""
PART = 256
"""Columns of a part: of 8 tokens they stay in a first-level cache."""
APART = PART + 16
"""Floats from a token's widened columns to the next one's: not the same sets of that cache."""
TOKENS = 8 if TARGET in ("avx512vnni", "avx512") else 4
"""Whose chains the registers hold."""
AHEAD = 4096
"""Bytes of A that are fetched ahead: at most to `end`, after which this thread reads no more of it."""
_DOWN, _UP = (f"int64({', '.join(['int64'] * n)})" for n in (7, 11))
_record_size = jit(record_size)


def pack_a(a: np.ndarray, to: np.ndarray) -> None:
    """A, [rank, columns], into [tiles of ranks, columns rounded up to 32, 16] of a type of KINDS, whose padding is zero already."""
    rank, columns = a.shape
    for tile in range(len(to)):
        part = a[16 * tile:16 * (tile + 1)]
        to[tile, :columns, :len(part)] = part.T


def pack_b(b: np.ndarray, to: np.ndarray) -> None:
    """B, [rows, rank], into [tiles of rows, rank, 16]."""
    rows, whole = len(b), len(b) // 16
    to[:whole] = b[:16 * whole].reshape(whole, 16, -1).swapaxes(1, 2)
    if rows % 16:
        to[whole, :, :rows % 16] = b[16 * whole:].T


@jit
def widen(records, floats, ldx, m, n_rows, blocks, first, n, out):
    """Blocks [first, first + n) of row m as float32 [n * 32]: of the rows at `floats`, or of the records of n_rows rows."""
    if floats != 0:
        x = floats + 4 * (m * ldx + BLOCK * first)
        for i in range(2 * n):
            store_f32x16(out + 64 * i, load_f32x16(x + 64 * i))
        return
    width, lane = group_width(m, n_rows), m % GROUP
    size = _record_size(width)
    r = records + m // GROUP * blocks * RECORD + first * size
    for _ in range(n):
        d = splat_load_f32(r + width * D + 4 * lane)
        store_f32x16(out, d * to_f32(load_i8x16_as_i32(r + BLOCK * lane)))
        store_f32x16(out + 64, d * to_f32(load_i8x16_as_i32(r + BLOCK * lane + 16)))
        out += 4 * BLOCK
        r += size


def _down_some(load, size: int, M: int):
    """s of M tokens."""
    together, vector, lines = 2 * M, 16 * size, 32 * size // 64

    @jit
    def down_some(a, columns, end, x, s, lds):
        acc = stack_vectors(together)
        for i in range(together):
            put_f32(acc, i, splat_f32(0.0))
        for _ in range(columns // 2):
            for line in range(lines):
                prefetch(min(a + AHEAD, end) + 64 * line)
            for p in range(2):
                column = load(a + p * vector)
                for m in range(M):
                    i = p * M + m
                    put_f32(acc, i, fma(column, splat_load_f32(x + 4 * (m * APART + p)), get_f32(acc, i)))
            a += 2 * vector
            x += 8
        for m in range(M):
            store_f32x16(s + 4 * m * lds, get_f32(acc, m) + get_f32(acc, M + m))
    return down_some


def _up_some(load, size: int, M: int):
    """y of M tokens, one tile. Of several tiles at once a core would read more streams than it fetches well: that cost a token alone twice the time."""
    vector = 16 * size

    @jit
    def up_some(b, rank, u, ldu, out, ldo, scale):
        acc = stack_vectors(M)
        for m in range(M):
            put_f32(acc, m, splat_f32(0.0))
        for _ in range(rank):
            column = load(b)
            for m in range(M):
                put_f32(acc, m, fma(column, splat_load_f32(u + 4 * m * ldu), get_f32(acc, m)))
            b += vector
            u += 4
        for m in range(M):
            y = out + 4 * m * ldo
            store_f32x16(y, fma(splat_f32(scale), get_f32(acc, m), load_f32x16(y)))
    return up_some


@cache
def down(kind: str) -> Compiled:
    """(a, columns, end, x, s, lds, tokens): s, float32 [tokens, lds], of a part's columns and 16 ranks. x: the tokens' widened columns, APART floats apart.
    end: where this thread stops reading A, less 128 bytes."""
    dtype, load = KINDS[kind]
    one, two, four, many = (_down_some(load, dtype.itemsize, M) for M in (1, 2, 4, TOKENS))

    def low_rank_down(a, columns, end, x, s, lds, tokens):
        done = 0
        while done < tokens:
            left, at, to = tokens - done, x + 4 * done * APART, s + 4 * done * lds
            if left >= TOKENS:
                many(a, columns, end, at, to, lds)
                done += TOKENS
            elif left >= 4:
                four(a, columns, end, at, to, lds)
                done += 4
            elif left >= 2:
                two(a, columns, end, at, to, lds)
                done += 2
            else:
                one(a, columns, end, at, to, lds)
                done += 1
        return 0
    low_rank_down.__name__ = low_rank_down.__qualname__ = f"low_rank_down_{kind}"
    return compiled(_DOWN)(low_rank_down)


@cache
def tile_up(kind: str) -> Any:
    """(b, rank, u, ldu, out, ldo, scale): one token's y of one tile, for a kernel that has just computed its base (matmul.py, `beside_kernel`)."""
    dtype, load = KINDS[kind]
    return _up_some(load, dtype.itemsize, 1)


@cache
def up(kind: str) -> Compiled:
    """(b, rank, tile0, tile1, u, ldu, out, ldo, tokens, scale, factor): tiles [tile0, tile1) of float32 [tokens, ldo] at `out` grow by scale * factor times
    B u. scale, factor: addresses of float32."""
    dtype, load = KINDS[kind]
    one, four, many = (_up_some(load, dtype.itemsize, M) for M in (1, 4, TOKENS))
    vector = 16 * dtype.itemsize

    def low_rank_up(b, rank, tile0, tile1, u, ldu, out, ldo, tokens, scale, factor):
        s = load_f32(scale) * load_f32(factor)
        for t in range(tile0, tile1):
            here, to, done = b + t * rank * vector, out + 64 * t, 0
            while done < tokens:
                at, y = u + 4 * done * ldu, to + 4 * done * ldo
                if tokens - done >= TOKENS:
                    many(here, rank, at, ldu, y, ldo, s)
                    done += TOKENS
                elif tokens - done >= 4:
                    four(here, rank, at, ldu, y, ldo, s)
                    done += 4
                else:
                    one(here, rank, at, ldu, y, ldo, s)
                    done += 1
        return 0
    low_rank_up.__name__ = low_rank_up.__qualname__ = f"low_rank_up_{kind}"
    return compiled(_UP)(low_rank_up)
