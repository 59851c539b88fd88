"""The low-rank product of an adapter: u = A x, and y += scale * (B u), both in float32, in the one order that docs/exactness.md has.

    x of a token (float row, or int8 records: d * q)  ──`down`──►  u [rank]  ──`up`, by tiles of 16 output rows──►  y of that token, after the base's matmul

A lies as [tile of 16 ranks][column][16], B as [tile of 16 rows][rank][16], lane = rank or row, as float32 or as halves, which are widened as they are read:
same bits. Ranks, rows and columns that are missing (to 16, 16 and 32) are zeros.

    u:  four chains, one for every fourth block of 32 columns: p[b % 4] = fma(a[c], x[c], p[b % 4]);  u = ((p0 + p1) + p2) + p3
    y:  t = fma(b[k], u[k], t) over the ranks in order;  y = fma(scale, t, y)

Four chains, since one would wait for itself where a token is alone; several tokens share what is read of A and B. Neither enters an output's operations.
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
CHAINS = 4
TILES = 4
"""Tiles of ranks that share a token's widened columns."""
CHUNK = 16
"""Blocks of 32 columns that are widened at a time, a multiple of CHAINS: of 8 tokens they stay in a first-level cache."""
_APART = CHUNK * BLOCK + 16
"""Floats from a token's widened columns to the next one's: not the same sets of that cache."""
TOKENS = 8 if TARGET in ("avx512vnni", "avx512") else 4
"""Whose chains the registers hold."""
_KERNEL = f"int64({', '.join(['int64'] * 11)})"
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
def _widen(records, floats, ldx, m, n_rows, blocks, first, n, out):
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


def _some_blocks(load, size: int, M: int, P: int):
    """P of the chains of M tokens go on through n widened blocks, every fourth one from the chain's own on."""
    together, vector = M * P, 16 * size

    @jit
    def go_on(a, n, chain, x, sums):
        acc = stack_vectors(together)
        for i in range(together):
            put_f32(acc, i, load_f32x16(sums + 64 * i))
        b = chain
        while b + P <= n:
            w, v = a + b * BLOCK * vector, x + 4 * BLOCK * b
            for _ in range(BLOCK):
                for p in range(P):
                    column = load(w + p * BLOCK * vector)
                    for m in range(M):
                        i = p * M + m
                        put_f32(acc, i, fma(column, splat_load_f32(v + 4 * (m * _APART + p * BLOCK)), get_f32(acc, i)))
                w += vector
                v += 4
            b += CHAINS
        for p in range(P):
            if b + p < n:
                w, v = a + (b + p) * BLOCK * vector, x + 4 * BLOCK * (b + p)
                for _ in range(BLOCK):
                    column = load(w)
                    for m in range(M):
                        put_f32(acc, p * M + m, fma(column, splat_load_f32(v + 4 * m * _APART), get_f32(acc, p * M + m)))
                    w += vector
                    v += 4
        for i in range(together):
            store_f32x16(sums + 64 * i, get_f32(acc, i))
    return go_on


def _down_some(load, size: int, M: int, P: int):
    """u of M tokens from row m on."""
    go_on, vector = _some_blocks(load, size, M, P), 16 * size
    widened, sums_of_all = M * _APART // 16, TILES * CHAINS * M

    @jit
    def down_some(a, blocks, tiles, records, floats, ldx, m, n_rows, u, ldu):
        x, sums = stack_vectors(widened), stack_vectors(sums_of_all)
        for t0 in range(0, tiles, TILES):
            n_tiles = min(TILES, tiles - t0)
            for i in range(n_tiles * CHAINS * M):
                store_f32x16(sums + 64 * i, splat_f32(0.0))
            for first in range(0, blocks, CHUNK):
                n = min(CHUNK, blocks - first)
                for i in range(M):
                    _widen(records, floats, ldx, m + i, n_rows, blocks, first, n, x + 4 * i * _APART)
                for t in range(n_tiles):
                    here, to = a + ((t0 + t) * blocks + first) * BLOCK * vector, sums + 64 * t * CHAINS * M
                    for chain in range(0, CHAINS, P):
                        go_on(here, n, chain, x, to + 64 * chain * M)
            for t in range(n_tiles):
                for i in range(M):
                    s = sums + 64 * (t * CHAINS * M + i)
                    total = load_f32x16(s)
                    for chain in range(1, CHAINS):
                        total = total + load_f32x16(s + 64 * chain * M)
                    store_f32x16(u + 4 * (i * ldu + 16 * (t0 + t)), total)
    return down_some


def _up_some(load, size: int, M: int, T: int):
    """y of M tokens, T tiles at once."""
    together, vector = M * T, 16 * size

    @jit
    def up_some(b, rank, u, ldu, out, ldo, scale):
        acc = stack_vectors(together)
        for i in range(together):
            put_f32(acc, i, splat_f32(0.0))
        apart = rank * vector
        for _ in range(rank):
            for t in range(T):
                column = load(b + t * apart)
                for m in range(M):
                    put_f32(acc, t * M + m, fma(column, splat_load_f32(u + 4 * m * ldu), get_f32(acc, t * M + m)))
            b += vector
            u += 4
        for t in range(T):
            for m in range(M):
                y = out + 4 * m * ldo + 64 * t
                store_f32x16(y, fma(splat_f32(scale), get_f32(acc, t * M + m), load_f32x16(y)))
    return up_some


@cache
def down(kind: str) -> Compiled:
    """(a, blocks, tiles, records, floats, ldx, m, n_rows, u, ldu, tokens): u, float32 [tokens, ldu], of rows m, m + 1, … of the input: the rows at `floats`,
    float32 [n_rows, ldx], padded with zeros to 32, or, if that is 0, records of n_rows rows. blocks: of 32 columns; tiles: of 16 ranks."""
    dtype, load = KINDS[kind]
    one, two, four, many = (_down_some(load, dtype.itemsize, M, P) for M, P in ((1, 4), (2, 4), (4, 2), (TOKENS, 8 // TOKENS)))

    def low_rank_down(a, blocks, tiles, records, floats, ldx, m, n_rows, u, ldu, tokens):
        done = 0
        while done < tokens:
            left, to = tokens - done, u + 4 * done * ldu
            if left >= TOKENS:
                many(a, blocks, tiles, records, floats, ldx, m + done, n_rows, to, ldu)
                done += TOKENS
            elif left >= 4:
                four(a, blocks, tiles, records, floats, ldx, m + done, n_rows, to, ldu)
                done += 4
            elif left >= 2:
                two(a, blocks, tiles, records, floats, ldx, m + done, n_rows, to, ldu)
                done += 2
            else:
                one(a, blocks, tiles, records, floats, ldx, m + done, n_rows, to, ldu)
                done += 1
        return 0
    low_rank_down.__name__ = low_rank_down.__qualname__ = f"low_rank_down_{kind}"
    return compiled(_KERNEL)(low_rank_down)


@cache
def up(kind: str) -> Compiled:
    """(b, rank, tile0, tile1, u, ldu, out, ldo, tokens, scale, factor): tiles [tile0, tile1) of float32 [tokens, ldo] at `out` grow by scale * factor times
    B u. scale, factor: addresses of float32."""
    dtype, load = KINDS[kind]
    lone, one, four, many = (_up_some(load, dtype.itemsize, M, T) for M, T in ((1, 4), (1, 1), (4, 1), (TOKENS, 1)))
    vector = 16 * dtype.itemsize

    def low_rank_up(b, rank, tile0, tile1, u, ldu, out, ldo, tokens, scale, factor):
        s, t = load_f32(scale) * load_f32(factor), tile0
        while t < tile1:
            here, to, done = b + t * rank * vector, out + 64 * t, 0
            if tokens == 1 and t + 4 <= tile1:
                lone(here, rank, u, ldu, to, ldo, s)
                t += 4
                continue
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
            t += 1
        return 0
    low_rank_up.__name__ = low_rank_up.__qualname__ = f"low_rank_up_{kind}"
    return compiled(_KERNEL)(low_rank_up)
