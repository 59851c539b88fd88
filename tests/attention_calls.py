"""Attention and its pages on NumPy arrays, for tests: a cache that is filled token by token, and the kernel on it in any blocks."""
from __future__ import annotations

from typing import Any

import numpy as np
from kernel_calls import at, f32, padded, padded_rows
from llamina.kernels import attention, kv_float, kv_q8_0
from llamina.kernels.elementwise import PAGE

Array = np.ndarray[Any, Any]

KV = {kv.name: kv for kv in (kv_float.F16, kv_float.F32, kv_q8_0.Q8_0)}


def append(kv: str, k: Array, v: Array, position: int, table: Array, offset: int, **words: Any) -> int:
    """k, v: float32 [kv heads, head_dim] and [kv heads, value_dim], stored at a position of a sequence, not turned unless `words` say so -> whether a
    number was too large for the type."""
    n_kv, head_dim = k.shape
    rows = [np.append(padded_rows(a.reshape(1, -1)), np.full(32, np.nan, f32)) for a in (k, v)]  # read past the last head
    geometry = geometry_of(KV[kv], n_kv, n_kv, head_dim, v.shape[1])
    kept = keep_words(geometry, words)
    positions, tables = np.array([position]), np.array([at(table)])
    for word, value in ((attention.LD_KV, len(rows[0]) - 32), (attention.LD_V, len(rows[1]) - 32), (attention.K, at(rows[0])),
                        (attention.V, at(rows[1])), (attention.POSITIONS, at(positions)),
                        (attention.PAGE_TABLES, at(tables))):
        geometry[word // 8] = value
    kernel = attention.append_kernel(KV[kv]).ctypes
    bad = max(kernel(at(geometry), is_value, head, offset, 1) for is_value in (0, 1) for head in range(n_kv))
    del kept
    return bad


def geometry_of(kv: attention.KVType, heads: int, n_kv: int, head_dim: int, value_dim: int | None = None) -> Array:
    value_dim, geometry = value_dim or head_dim, np.zeros(attention.GEOMETRY_WORDS, np.int64)
    for word, value in ((attention.N_HEADS, heads), (attention.N_KV_HEADS, n_kv), (attention.HEAD_DIM, head_dim), (attention.V_DIM, attention.v_dim(value_dim)),
                        (attention.VALUE_DIM, value_dim), (attention.QUERY_BYTES, kv.query_bytes(head_dim))):
        geometry[word // 8] = value
    return geometry


def keep_words(geometry: Array, words: dict[str, Any]) -> list[Array]:
    """Write words by their names: an int as it is, a float as float32, an array's address. -> what must be kept alive"""
    kept = []
    for name, value in words.items():
        word = getattr(attention, name) // 8
        if isinstance(value, float):
            geometry.view(f32)[2 * word] = value
        elif isinstance(value, np.ndarray):
            kept.append(np.append(value.astype(f32).reshape(-1), np.full(16, np.nan, f32)))
            geometry[word] = at(kept[-1])
        else:
            geometry[word] = value
    return kept


class Cache:
    """One layer of one sequence's KV cache, filled by append. Unused places hold f16 NaN, or the bits of `garbage`.

    k, v: float32 [positions, kv heads, head_dim]. `layer` of three: the others stay untouched.
    """

    def __init__(self, k: Array, v: Array, garbage: float = float("nan"), layer: int = 1, kv: str = "f16", **words: Any):
        positions, self.n_kv, self.head_dim = k.shape
        self.value_dim = v.shape[2]
        self.kv, self.v_dim = KV[kv], attention.v_dim(self.value_dim)
        self.layer_bytes = self.kv.layer_bytes(self.n_kv, self.head_dim, self.value_dim)
        assert self.layer_bytes % 64 == 0
        self.offset = self.layer_bytes * layer
        self.pages = np.full((-(-positions // PAGE), 3, self.layer_bytes // 2), garbage, np.float16)
        self.table = np.array([at(page) for page in self.pages])
        for p in range(positions):
            assert append(kv, k[p], v[p], p, self.table, self.offset, **words) == 0

    def layer(self, page: int) -> Array:
        """uint8 [layer_bytes]"""
        return self.pages[page, self.offset // self.layer_bytes].view(np.uint8)

    def keys(self, page: int) -> Array:
        """Of f16: [kv heads, head_dim, 64]"""
        return self.layer(page).view(np.float16)[:self.n_kv * self.head_dim * PAGE].reshape(self.n_kv, self.head_dim, PAGE)

    def values(self, page: int) -> Array:
        """Of f16: [kv heads, 64, v_dim]"""
        return self.layer(page).view(np.float16)[self.n_kv * self.head_dim * PAGE:].reshape(self.n_kv, PAGE, self.v_dim)


def attend(q: Array, cache: Cache, position0: int, scale: float, borders: list[int] | None = None, split: bool = False, **words: Any) -> Array:
    """q: float32 [M, heads, head_dim], token m at position0 + m -> float32 [M, heads, value_dim]. `words`: further words of the geometry by
    name. `borders`: blocks of tokens [0, ..., M]; split: each span is a piece of work of its own, last one first."""
    tokens, heads, head_dim = q.shape
    stride, ld_q = padded(heads * cache.value_dim), padded(heads * head_dim)
    rows = np.append(padded_rows(q.reshape(tokens, -1)), np.full((1, ld_q), np.nan, f32), axis=0)  # read past the last head
    out = np.full((tokens, stride), 7.0, f32)
    most = attention.block_tokens(heads, cache.n_kv)
    borders = borders or [*range(0, tokens, most), tokens]
    size = attention.scratch_bytes(cache.kv, heads, cache.n_kv, head_dim, cache.value_dim)
    scratch = np.full(size + 128, 0xFF, np.uint8)  # NaN, wherever it is read before it is written
    aligned = at(scratch) + -at(scratch) % 64
    geometry = geometry_of(cache.kv, heads, cache.n_kv, head_dim, cache.value_dim)
    for word, value in ((attention.LD_ATT, stride), (attention.LD_Q, ld_q), (attention.Q, at(rows)), (attention.ATT, at(out))):
        geometry[word // 8] = value
    geometry.view(f32)[attention.SCALE // 4] = scale
    kept = keep_words(geometry, words)
    kernel, done = attention.attention_kernel(cache.kv).ctypes, np.zeros(cache.n_kv, np.int64)
    for m0, m1 in zip(borders, borders[1:]):
        assert 0 < m1 - m0 <= most
        pages = -(-min(position0 + m1 + words.get("AHEAD", 0), position0 + tokens) // PAGE)
        spans = -(-pages // attention.SPAN) if split else 1
        size = spans * (m1 - m0) * heads * attention.part_bytes(cache.value_dim)
        parts = np.full(size + 128, 0xFF, np.uint8)
        for span in reversed(range(spans)):
            item = np.array([m0, m1, position0 + m0, at(cache.table), span * attention.SPAN if split else 0,
                             min(pages, (span + 1) * attention.SPAN) if split else pages, (at(parts) + -at(parts) % 64) if split else 0, at(done), spans,
                             position0 + tokens])
            for kv_head in reversed(range(cache.n_kv)):  # so that a head that writes too far spoils one that is done
                assert kernel(at(geometry), at(item), cache.offset, kv_head, aligned) == 0
        assert not done.any() and (parts[-64:] == 0xFF).all()
    del kept
    assert (out[:, heads * cache.value_dim:] == 7).all() and (scratch[-64:] == 0xFF).all()
    return out[:, :heads * cache.value_dim].reshape(tokens, heads, cache.value_dim)
