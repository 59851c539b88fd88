"""A file's row out of its tiles again: the rows of an embedding that is the output matrix, too, need not be kept a second time.

Retiling moves bits; in the formats named here it loses none. Where each bit of a block went is asked of the retiler, not written down once more for every
format: a block of zeros tells which bits are turned over, one block for each digit of the bits' numbers tells which is which, and the same in another lane how
far lanes are apart. Most bytes stay whole, and are copied as such.

    way_back(name) ──► Way: a table of bytes, a table of bits ──► Rows(name, tiles, columns)[numbers]: rows of the file
"""
from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ..addresses import address
from ..compile_cache import compiled
from ..matmul import ROWS
from ..simd import load_i64, load_u8, load_u32, store_u8
from . import registry
from .table import FORMATS

REVERSIBLE = frozenset({"F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ2_0",
                        "MXFP4"})
"""Formats whose tiles hold every bit of the file's rows. (A test tries all formats.)"""
_BY_BITS = 0xFFFFFFFF


class Way(NamedTuple):
    """Where a block's bits lie in a tile."""

    bytes: np.ndarray
    """uint32 [block bytes, 3]: byte of the tile in lane 0 (or _BY_BITS), distance of lanes in bytes, what to flip."""
    bits: np.ndarray
    """uint32 [block bytes, 8, 3]: bit of the tile in lane 0, distance of lanes in bits, what to flip."""
    block_bytes: int
    tile_bytes: int


def _retiled(name: str, lane: int, block: np.ndarray, size: int) -> np.ndarray:
    """The bits of a tile that holds a block in one lane, and zeros in the others."""
    rows, tile = np.zeros((ROWS, len(block)), np.uint8), np.zeros(size, np.uint8)
    rows[lane] = block
    registry.retiler(name).ctypes(rows.ctypes.data, len(block), ROWS, 1, 0, 1, tile.ctypes.data)
    return np.unpackbits(tile, bitorder="little")


def _places(name: str, lane: int, block_bytes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each bit of a block: its bit of the tile, and whether it is turned over there."""
    n = 8 * block_bytes
    zero = _retiled(name, lane, np.zeros(block_bytes, np.uint8), size)
    moved = _retiled(name, lane, np.full(block_bytes, 255, np.uint8), size) != zero
    number = np.zeros(len(zero), np.int64)
    for digit in range(n.bit_length()):
        pattern = np.packbits(np.arange(n) >> digit & 1, bitorder="little")
        number |= (_retiled(name, lane, pattern, size) != zero).astype(np.int64) << digit
    at = np.full(n, -1)
    there = np.flatnonzero(moved & (number < n))
    at[number[there[::-1]]] = there[::-1]  # the first, where a bit lies in several places
    if at.min(initial=0) < 0:
        raise ValueError(f"{name}: a tile doesn't hold all bits of a block")
    return at, zero[at]


@cache
def way_back(name: str) -> Way:
    """ValueError for a format whose tiles lack bits (not all of those are noticed: REVERSIBLE says which are whole)."""
    block_bytes, size = FORMATS[name].bytes, registry.tiled_bytes(name, ROWS, FORMATS[name].columns)
    (at, flip), (next_at, _) = (_places(name, lane, block_bytes, size) for lane in (0, 1))
    bits = np.stack([at, next_at - at, flip], axis=1).reshape(block_bytes, 8, 3)
    whole = (bits[:, :1, 0] % 8 == 0).all(axis=1) & (bits[:, :, 0] - bits[:, :1, 0] == np.arange(8)).all(axis=1) & (bits[:, :, 1] == bits[:, :1, 1]).all(axis=1)
    whole &= bits[:, 0, 1] % 8 == 0
    by_bytes = np.stack([bits[:, 0, 0] // 8, bits[:, 0, 1] // 8, (bits[:, :, 2] << np.arange(8)).sum(axis=1)], axis=1)
    by_bytes[~whole, 0] = _BY_BITS
    return Way(by_bytes.astype(np.uint32), bits.astype(np.uint32), block_bytes, size)


@compiled("void(int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def untile(tiles, blocks, tile_bytes, block_bytes, by_bytes, by_bits, rows, n, out):
    """out: uint8 [n, blocks * block_bytes], the file's bytes of the rows named at `rows` (int64 [n]); tiles: the retiled matrix, `blocks` tiles for 16 rows."""
    for i in range(n):
        row = load_i64(rows + 8 * i)
        lane = np.uint32(row % ROWS)
        for b in range(blocks):
            tile = tiles + (row // ROWS * blocks + b) * tile_bytes
            to = out + (i * blocks + b) * block_bytes
            for j in range(block_bytes):
                entry = by_bytes + 12 * j
                at = load_u32(entry)
                if at != np.uint32(_BY_BITS):
                    store_u8(to + j, load_u8(tile + np.int64(at + load_u32(entry + 4) * lane)) ^ load_u32(entry + 8))
                else:
                    byte = np.uint32(0)
                    for k in range(8):
                        entry = by_bits + 96 * j + 12 * k
                        bit = load_u32(entry) + load_u32(entry + 4) * lane
                        value = (np.uint32(load_u8(tile + np.int64(bit >> np.uint32(3)))) >> (bit & np.uint32(7))) & np.uint32(1)
                        byte |= (value ^ load_u32(entry + 8)) << np.uint32(k)
                    store_u8(to + j, byte)


class Rows:
    """Rows of a retiled matrix, as the file has them. What doesn't change from call to call is kept: a small model's step is some hundred microseconds."""

    def __init__(self, name: str, tiles: int, columns: int):
        """tiles: address of the matrix."""
        way = self._way = way_back(name)
        blocks = columns // FORMATS[name].columns
        self._row_bytes, self._untile = blocks * way.block_bytes, untile.ctypes
        self._fixed = tiles, blocks, way.tile_bytes, way.block_bytes, way.bytes.ctypes.data, way.bits.ctypes.data

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [len(rows), bytes of a row]; rows: int64, contiguous and writable. Their numbers are the caller's to check."""
        n = len(rows)
        out = np.empty((n, self._row_bytes), np.uint8)
        self._untile(*self._fixed, address(rows), n, address(out))
        return out
