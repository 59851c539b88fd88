"""Twins of kernels/attention.py: attention as plain loops in float64, and its canonical chains one float32 operation after the other."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from naive_kernels import canonical_exp, canonical_quantise, fma32, tree_sum

Array = np.ndarray[Any, Any]
f32 = np.float32


class Kind(NamedTuple):
    """What a layer's attention may have beside the plain one."""

    window: int = 0
    """Positions a query sees, its own included; 0: all."""
    cap: float = 0.0
    ahead: int = 0
    """Positions after its own that a query sees."""
    sinks: Array | None = None
    """float32 [heads]"""


PLAIN = Kind()


def naive_attention(q: Array, k: Array, v: Array, position: int, scale: float, kind: Kind = PLAIN) -> Array:
    """One token's heads: q [heads, D]; k, v [positions, kv heads, D]; plain softmax over the positions it sees. float64 [heads, D of v]"""
    q, k, v = q.astype(np.float64), k.astype(np.float64), v.astype(np.float64)
    group, out = len(q) // k.shape[1], np.zeros((len(q), v.shape[2]))
    seen = range(max(0, position - kind.window + 1) if kind.window else 0, min(position + kind.ahead + 1, len(k)))
    for h in range(len(q)):
        scores = [scale * float(q[h] @ k[p, h // group]) for p in seen]
        if kind.cap:
            scores = [kind.cap * math.tanh(s / kind.cap) for s in scores]
        extra = [] if kind.sinks is None else [float(kind.sinks[h])]
        top = max(scores + extra)
        weights = [math.exp(s - top) for s in scores + extra]
        total = sum(weights)
        for p, weight in zip(seen, weights):
            out[h] += weight / total * v[p, h // group]
    return out


def merge_parts(parts: list[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """Parts (m [heads], l [heads, 16], o [heads, D]) in order, from -1e30, 0, 0."""
    heads, head_dim = parts[0][2].shape
    top, total, out = np.full(heads, f32(-1e30)), np.zeros((heads, 16), f32), np.zeros((heads, head_dim), f32)
    for m, l, o in parts:
        now = np.maximum(top, m)
        a, b = canonical_exp(top - now), canonical_exp(m - now)
        total = fma32(total, a[:, None], l * b[:, None])
        out = fma32(out, a[:, None], o * b[:, None])
        top = now
    return top, total, out


def page_softmax(s: Array, first: int, kind: Kind) -> tuple[Array, Array, Array]:
    """Scores [heads, n], those before `first` not seen -> m [heads], e [heads, 64] (zeros where not seen), l [heads, 16]"""
    if kind.cap:
        cap, two = f32(kind.cap), f32(2)
        s = cap * (f32(1) - two / (canonical_exp(s * (two / cap)) + f32(1)))
    n, m = s.shape[1], s[:, first:].max(axis=1)
    e = np.zeros((len(s), 64), f32)
    e[:, first:n] = canonical_exp(s[:, first:] - m[:, None])
    return m, e, (e[:, 0:16] + e[:, 16:32]) + (e[:, 32:48] + e[:, 48:64])


def merged(page_part: Callable[[slice, int], tuple[Array, Array, Array]], position: int, kind: Kind, length: int) -> Array:
    """Attention's result [heads, D] from its parts of pages of 64 positions: those of 8 pages are merged first. What no query sees has no part."""
    spans, begin, end = [], max(0, position - kind.window + 1) if kind.window else 0, min(position + kind.ahead + 1, length)
    for s0 in range(0, end, 512):
        pages = [p0 for p0 in range(s0, min(s0 + 512, end), 64) if p0 + 64 > begin]
        if pages:
            spans.append(merge_parts([page_part(slice(p0, min(p0 + 64, end)), max(0, begin - p0)) for p0 in pages]))
    top, total, out = merge_parts(spans)
    if kind.sinks is None:
        return out * (f32(1) / tree_sum(total))[:, None]
    now = np.maximum(top, kind.sinks)
    share = canonical_exp(top - now)
    return out * (share / fma32(tree_sum(total), share, canonical_exp(kind.sinks - now)))[:, None]


def canonical_attention(q: Array, k: Array, v: Array, position: int, scale: Any, kind: Kind = PLAIN) -> Array:
    """The chains of kernels/attention.py: pages of 64 with their own maximum, merged in order. float32 [heads, D of v]"""
    heads, head_dim = q.shape
    group, scale = heads // k.shape[1], f32(scale)

    def page_part(here: slice, first: int) -> tuple[Array, Array, Array]:
        kp, vp = (np.repeat(a[here].astype(f32), group, axis=1) for a in (k, v))  # [n, heads, D]
        s = np.zeros((heads, len(kp)), f32)
        for d in range(head_dim):
            s = fma32(q[:, d, None], kp[:, :, d].T, s)
        m, e, l = page_softmax(s * scale, first, kind)
        o = np.zeros((heads, v.shape[2]), f32)
        for p in range(first, len(vp)):
            o = fma32(e[:, p, None], vp[p], o)
        return m, l, o
    return merged(page_part, position, kind, len(k))


def quantise_row(x: Array) -> tuple[Array, Array]:
    """A KV row's block: float32 [..., n] -> codes int64 [..., n], d float32 [...], rounded to f16."""
    d = (np.abs(x).max(axis=-1) / f32(127)).astype(np.float16).astype(f32)
    inverse = np.where(d > 0, f32(1) / np.where(d > 0, d, f32(1)), f32(0))
    return np.rint(np.clip(x * inverse[..., None], f32(-127), f32(127))).astype(np.int64), d


def canonical_attention_q8_0(q: Array, k: Array, v: Array, position: int, scale: Any, kind: Kind = PLAIN) -> Array:
    """The operations of kernels/kv_q8_0.py. float32 [heads, D]"""
    heads, head_dim = q.shape
    group, scale = heads // k.shape[1], f32(scale)
    blocks = [slice(d, min(d + 32, head_dim)) for d in range(0, head_dim, 32)]
    padded = np.zeros((heads, 32 * len(blocks)), f32)
    padded[:, :head_dim] = q
    qq = canonical_quantise(padded)

    def page_part(here: slice, first: int) -> tuple[Array, Array, Array]:
        kp, vp = (np.repeat(a[here], group, axis=1).transpose(1, 0, 2) for a in (k, v))  # [heads, n, D]
        s = np.zeros(kp.shape[:2], f32)
        for b, dims in enumerate(blocks):
            codes, d = quantise_row(kp[:, :, dims])
            dot = np.einsum("hnd,hd->hn", codes, qq.q[:, dims].astype(np.int64))
            s = fma32(dot.astype(f32), d * qq.d[:, b, None], s)
        m, e, l = page_softmax(s * scale, first, kind)
        codes, d = quantise_row(vp)
        w = e[:, :len(d[0])] * d
        most = w.max(axis=1)
        live = most >= f32(1e-30)
        inverse, step = np.where(live, f32(32639) / np.where(live, most, f32(1)), f32(0)), np.where(live, most / f32(32639), f32(0))
        c = np.rint(w * inverse[:, None]).astype(np.int64)
        return m, l, np.einsum("hn,hnd->hd", c, codes).astype(f32) * step[:, None]
    return merged(page_part, position, kind, len(k))
