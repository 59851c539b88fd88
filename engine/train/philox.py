"""Random numbers of training: Philox4x32-10, so that each is a function of where it is used and of nothing that was drawn before.

    (seed, step, site) and a place -> 4 words of 32 bits           site: what it is for, a name ("shuffle", "blk.0.attn_q.weight")

The key is the seed (64 bits); the counter is [place, index, step, CRC-32 of the site's name]. All is integer arithmetic and, of floats, single operations that
round correctly: the same bits everywhere. The sampler has another one (Philox4x64, engine/sampling/arithmetic.py).
"""
from __future__ import annotations

import zlib

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_PIECE = 1 << 16  # counters at once: their words stay in the cache


def philox4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds: uint32 [n, 4], two words of key -> uint32 [n, 4]. Random123's philox4x32-10."""
    x0, x1, x2, x3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = x0 * _M0, x2 * _M1
        x0, x1, x2, x3 = (p1 >> _SHIFT) ^ x1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _SHIFT) ^ x3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=1).astype(np.uint32)


def words(seed: int, step: int, site: str, index: int, n: int) -> np.ndarray:
    """The first n words of row `index` at a site in a step: uint32 [n]. seed below 2**64; step, index below 2**32."""
    return rows_of_words(seed, step, site, index, 1, n)[0]


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """In which order an epoch takes n rows: int64 [n]. Sorted by 64 random bits each, ties by number."""
    drawn = words(seed, epoch, "shuffle", 0, 2 * n).reshape(n, 2).astype(np.uint64)
    return np.argsort(drawn[:, 0] << _SHIFT | drawn[:, 1], kind="stable")


def initial_a(seed: int, site: str, rank: int, n_in: int) -> np.ndarray:
    """The A of a new pair, float32 [rank, n_in]: uniform within 1 / sqrt(n_in), as PEFT draws it (Kaiming's with a = sqrt(5)). Of float64, rounded once."""
    drawn = rows_of_words(seed, 0, site, 0, rank, n_in).astype(np.float64)
    bound = np.float64(1.0) / np.sqrt(np.float64(n_in))
    return (((drawn + 0.5) * 2.0 ** -31 - 1.0) * bound).astype(np.float32)


def dropout_mask(seed: int, step: int, site: str, first_token: int, n_tokens: int, width: int, p: float) -> np.ndarray:
    """What the inputs of a site are multiplied with: float32 [n_tokens, width], 0 with probability p, else 1 / (1 - p).

    A token's row depends on its number (first_token + i, counted through the whole optimiser step), never on what it is computed with. 0 <= p < 1.
    """
    drawn = rows_of_words(seed, step, site, first_token, n_tokens, width)
    kept = np.float32(1.0 / (1.0 - p))
    return np.where(drawn < np.uint64(int(p * 4294967296.0)), np.float32(0.0), kept)


def rows_of_words(seed: int, step: int, site: str, first: int, n: int, width: int) -> np.ndarray:
    """uint32 [n, width]: row i is of index first + i; its words are those of places 0, 1, …, four each."""
    assert 0 <= seed < 1 << 64 and 0 <= step < 1 << 32 and first >= 0 and first + n <= 1 << 32
    places = -(-width // 4)
    out = np.empty((n * places, 4), np.uint32)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    name = zlib.crc32(site.encode())
    for start in range(0, n * places, _PIECE):
        at = np.arange(start, min(start + _PIECE, n * places), dtype=np.int64)
        counters = np.empty((len(at), 4), np.uint32)
        counters[:, 0], counters[:, 1], counters[:, 2], counters[:, 3] = at % places, first + at // places, step, name
        out[start:start + len(at)] = philox4x32(counters, key)
    return out.reshape(n, places * 4)[:, :width]
