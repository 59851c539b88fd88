"""The kernels of kernels/backward on NumPy arrays, run by a runtime's team of threads.

Rows are float32 [tokens, columns rounded up to 32], zeros past the columns, with room behind the last for what vectors read too far (`rows_of`). Threads divide
elements, never sums, so their number never shows.
"""
from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...kernels.backward import attention, chains, gates, loss, norms, weight_pairs, weights
from ...kernels.backward import halves as halves_of
from ...kernels.backward.attention_tasks import divided
from ...kernels.backward.unpack import unpacker
from ...kernels.target import HAS_BF16_DOT
from ..architectures.blocks import Attention
from ..architectures.spec import Matrix, Norm, round_up
from ..run.ops.common import COLUMNS, WEIGHTS
from ..run.rope import query_scales

if TYPE_CHECKING:
    from ..run.runtime import Runtime


class Product(NamedTuple):
    """out[i, n] goes on over k of a[i, k] × w[k, n], and is multiplied with `scale` then. a_i, a_k: bytes between a's elements; w, out: two-dimensional, rows
    contiguous; rows of w can be read up to a whole number of 16 columns."""

    a: np.ndarray
    a_i: int
    a_k: int
    w: np.ndarray
    out: np.ndarray
    rows: int
    columns: int
    depth: int
    scale: float = 1.0


SPARE = 32
"""Numbers behind the last row that vectors may read."""


def flat_rows(size: int) -> np.ndarray:
    """Zeros, float32 [size], 64-byte aligned."""
    flat = np.zeros(size + 16, np.float32)
    first = -flat.ctypes.data % 64 // 4
    return flat[first:first + size]


def rows_of(n: int, columns: int) -> np.ndarray:
    """Zeros, float32 [n, columns rounded up to 32], 64-byte aligned."""
    ld = round_up(columns)
    return flat_rows(n * ld + SPARE)[:n * ld].reshape(n, ld)


def padded(rows: np.ndarray) -> np.ndarray:
    """A copy as `rows_of` lays rows out."""
    out = rows_of(*rows.shape)
    out[:, :rows.shape[1]] = rows
    return out


def _bits(number: float) -> int:
    """Of a float32."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])


def _words(n: int, numbers: dict[int, int], floats: dict[int, float] | None = None) -> np.ndarray:
    words = np.zeros(n, np.int64)
    for at, value in numbers.items():
        words[at // 8] = value
    for at, number in (floats or {}).items():
        words.view(np.float32)[at // 4] = number
    return words


EXACT_FORMATS = ("F32", "F16")
"""Whose matrices the forward pass multiplies with float32, too: their gradients are never rounded."""


class Ops:
    """Of one runtime. threads: how many take part, None: as many as the runtime has. rounded: whether gradients go through matrices of other formats than
    EXACT_FORMATS with both factors rounded to bfloat16."""

    def __init__(self, runtime: Runtime, threads: int | None = None, rounded: bool = False) -> None:
        self.runtime, self.rounded = runtime, rounded
        self.threads = min(threads or runtime.team.n_threads, runtime.team.n_threads)
        self._room = np.zeros(0, np.uint8)

    @cached_property
    def _multiply(self) -> int:
        return int(chains.multiply.address)

    def _run(self, op: int, words: np.ndarray) -> None:
        self.runtime.team.run(op, words.ctypes.data, self.threads)

    def _room_for(self, size: int) -> int:
        """Address of so many bytes, 64-byte aligned, until the next call."""
        if len(self._room) < size + 64:
            self._room = np.zeros(size + 64, np.uint8)
        return self._room.ctypes.data + -self._room.ctypes.data % 64

    def product(self, a: np.ndarray, a_i: int, a_k: int, w: np.ndarray, out: np.ndarray, rows: int, columns: int, depth: int) -> None:
        """One Product."""
        one = [Product(a, a_i, a_k, w, out, rows, columns, depth)]
        if rows >= 48:
            self.products([one], [])
        else:
            self.products([], [one])

    def products(self, by_rows: Iterable[list[Product]], by_columns: Iterable[list[Product]]) -> None:
        """Products that are divided by rows, or by columns, of which all of one list have as many. One may go on with what those before it in its list made, or
        (by rows) read it as `a`; nothing else that is made here is read here."""
        c, several = chains, 2 * self.threads
        words: list[tuple[int, ...]] = []
        for rows, lists in (False, by_columns), (True, by_rows):
            step, most = (6 if c.PACKED else 8, 96) if rows else (16, 128)
            for products in lists:
                whole, together = products[0].rows if rows else products[0].columns, len(products)
                piece = min(48 if rows and together > 1 and not c.PACKED else most, (whole // several // step + 1) * step)
                for p in products:
                    assert whole == (p.rows if rows else p.columns)
                    words.append((self._multiply, p.a.ctypes.data, p.a_i, p.a_k, p.w.ctypes.data, p.w.strides[0], p.out.ctypes.data, p.out.strides[0],
                                  p.rows, p.columns, p.depth, _bits(p.scale), together, rows, piece))
        if words:
            self._run(c.products.address, np.array([len(words), *chain.from_iterable(words)], np.int64))

    def ready(self, zeros: Sequence[np.ndarray], halves: Sequence[np.ndarray] = ()) -> None:
        """Rows, contiguous, whose numbers become zeros, and those that are rounded to halves."""
        words = [(rows.ctypes.data, rows.size, which) for some, which in ((zeros, 1), (halves, 0)) for rows in some]
        self._run(halves_of.ready.address, np.array([len(words), *chain.from_iterable(words)], np.int64))

    def sums(self, rows: np.ndarray, out: np.ndarray) -> None:
        """out[c] goes on over i of rows[i, c], one chain of additions. out: float32 [columns]."""
        ones, rows = np.ones(len(rows), np.float32), rows if rows.shape[1] % 32 == 0 else padded(rows)
        self.product(ones, 0, 4, rows, out[None, :], 1, len(out), len(rows))

    def through_weights(self, matrix: Matrix, dy: np.ndarray, dx: np.ndarray) -> None:
        """dx goes on over the matrix's rows r of dy[m, r] × W[r, c]."""
        t, descriptor = weights, self.runtime._layout.matrix(matrix)
        kind = self.runtime.gguf.tensors[matrix.tensor].format.name
        op = t.through_weights
        if self.rounded and kind not in EXACT_FORMATS:
            op = weight_pairs.through_weight_pairs if HAS_BF16_DOT else t.through_rounded_weights
        self._run(op.address, _words(t.WORDS, {
            t.MULTIPLY: self._multiply, t.UNPACK: unpacker(kind).address, t.WEIGHTS: int(descriptor[WEIGHTS // 8]),
            t.MATRIX_COLUMNS: int(descriptor[COLUMNS // 8]), t.MATRIX_ROWS: matrix.rows, t.DY: dy.ctypes.data, t.LD_DY: dy.strides[0],
            t.DY_COLUMNS: dy.shape[1] // 16 * 16, t.DX: dx.ctypes.data, t.LD_DX: dx.strides[0], t.N_TOKENS: len(dy),
            t.ROOM: self._room_for(t.SCRATCH * self.threads)}))

    def norm_back(self, norm: Norm, x: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> None:
        """dx += the gradient of the norm's input x; all [tokens, ld] of one width."""
        n = norms
        self._run(n.norm_back.address, _words(n.WORDS, {
            n.X: x.ctypes.data, n.GAIN: self.runtime._layout.gain(norm), n.LAYER_NORM: norm.kind == "layer", n.DIM: norm.dim, n.LD: x.shape[1],
            n.DY: dy.ctypes.data, n.DX: dx.ctypes.data, n.N_TOKENS: len(x)}, {n.EPS: norm.eps}))

    def normed(self, norm: Norm, x: np.ndarray, out: np.ndarray) -> None:
        """Rows after a norm, as in the forward pass; both [tokens, ld] of one width."""
        n, layout = norms, self.runtime._layout
        self._run(n.norm_again.address, _words(n.WORDS, {
            n.AGAIN_X: x.ctypes.data, n.AGAIN_GAIN: layout.gain(norm), n.AGAIN_BIAS: layout.bias(norm), n.AGAIN_LAYER_NORM: norm.kind == "layer",
            n.AGAIN_DIM: norm.dim, n.AGAIN_LD: x.shape[1], n.AGAIN_OUT: out.ctypes.data, n.AGAIN_TOKENS: len(x)}, {n.AGAIN_EPS: norm.eps}))

    def activated(self, activation: str, gate: np.ndarray, up: np.ndarray | None, out: np.ndarray) -> None:
        """act(gate) × up, or act(gate), as in the forward pass."""
        g = gates
        self._run(g.gate_again(activation).address, _words(g.WORDS, {
            g.GATE: gate.ctypes.data, g.UP: up.ctypes.data if up is not None else 0, g.LD: gate.shape[1], g.N_TOKENS: len(gate), g.OUT: out.ctypes.data}))

    def heads_back(self, a: Attention, query: bool, before: np.ndarray | None, d: np.ndarray, positions: np.ndarray, normed: bool = True) -> None:
        """d, gradients of a layer's queries (or keys) as attention reads them, become those of the projection's rows, which are `before` if there are norms.
        normed: if not, only position factor and RoPE are undone."""
        n, layout = norms, self.runtime._layout
        norm = (a.q_norm if query else a.k_norm) if normed else None
        whole = a.qk_norm == "whole" and norm is not None
        self._run(n.heads_back.address, _words(n.HEADS_WORDS, {
            n.GEOMETRY: layout.geometry_of(a), n.HEADS_X: before.ctypes.data if before is not None else 0, n.HEADS_GAIN: layout.gain(norm),
            n.HEADS: a.heads if query else a.kv_heads, n.HEADS_LD: d.shape[1], n.HEADS_D: d.ctypes.data, n.HEADS_TOKENS: len(d),
            n.HEADS_POSITIONS: positions.ctypes.data, n.IS_QUERY: query, n.HEADS_ROOM: self._room_for((4 * a.head_dim + 128) * self.threads),
            n.WHOLE: norm.dim if whole and norm else 0}, {n.WHOLE_EPS: norm.eps if norm else 0.0}))

    def turned(self, a: Attention, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Queries' or keys' rows after RoPE."""
        out, n = padded(rows), len(rows)
        if a.rope:
            half, used = a.rope.dims // 2, rows.shape[1] // a.head_dim * a.head_dim
            table = self.runtime._layout.tables[a.rope].rows[positions]
            first, second, cosine, sine = ((slice(0, half), slice(half, 2 * half), slice(0, half), slice(half, 2 * half)) if a.rope.kind == "halves" else
                                           (slice(0, 2 * half, 2), slice(1, 2 * half, 2), slice(0, 2 * half, 2), slice(1, 2 * half, 2)))
            angles, heads = table.reshape(n, 1, -1), rows[:, :used].reshape(n, -1, a.head_dim)
            x, y, c, s = heads[:, :, first], heads[:, :, second], angles[:, :, cosine], angles[:, :, sine]
            whole = heads.copy()
            whole[:, :, first], whole[:, :, second] = x * c - y * s, x * s + y * c
            out[:, :used] = whole.reshape(n, used)
        return out

    def of_position(self, a: Attention, query: bool, d: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Gradients of queries (or keys) before they are multiplied by what their positions ask for (Attention.temperature)."""
        if not query or not a.temperature:
            return padded(d)
        out = padded(d)
        out *= query_scales(*a.temperature, self.runtime.context)[positions, None]
        return out

    def gate_back(self, activation: str, gate: np.ndarray, up: np.ndarray | None, d: np.ndarray) -> None:
        """gate and up become their gradients."""
        g = gates
        self._run(g.gate_back(activation).address, _words(g.WORDS, {
            g.GATE: gate.ctypes.data, g.UP: up.ctypes.data if up is not None else 0, g.D: d.ctypes.data, g.LD: d.shape[1], g.N_TOKENS: len(d)}))

    def attention_back(self, a: Attention, items: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, z: np.ndarray, dz: np.ndarray, dq: np.ndarray,
                       dk: np.ndarray, dv: np.ndarray) -> None:
        """items: int64 [sequences, 2], first row and how many. dq, dk, dv are zeros before."""
        t, layout = attention, self.runtime._layout
        made = divided(tuple(map(tuple, items.tolist())), a.kv_heads, a.heads // a.kv_heads, a.window, self.threads)
        scratch, counters = t.scratch_bytes(int(items[:, 1].max())), np.zeros(made.counters, np.int64)
        own, lane = (t.unit_bytes(n, a.head_dim, a.value_dim, slots) for n, slots in zip(made.longest, (1, made.slots)))
        room = self._room_for(self.threads * (scratch + own) + made.lanes * lane)
        self._run(t.attention_back.address, _words(t.WORDS, {
            t.MULTIPLY: self._multiply, t.Q: q.ctypes.data, t.K: k.ctypes.data, t.V: v.ctypes.data, t.Z: z.ctypes.data, t.DZ: dz.ctypes.data,
            t.DQ: dq.ctypes.data, t.DK: dk.ctypes.data, t.DV: dv.ctypes.data, t.LD_Q: q.shape[1], t.LD_K: k.shape[1], t.LD_V: v.shape[1],
            t.LD_Z: z.shape[1], t.HEADS: a.heads, t.N_KV: a.kv_heads, t.HEAD_DIM: a.head_dim, t.VALUE_DIM: a.value_dim, t.WINDOW: a.window,
            t.SINKS: layout.vector(a.sinks), t.TASKS: made.tasks.ctypes.data, t.CLAIMS: made.claims.ctypes.data, t.N_CLAIMS: len(made.claims),
            t.COUNTERS: counters.ctypes.data, t.SCRATCH: room, t.SCRATCH_BYTES: scratch, t.OWN: room + self.threads * scratch, t.OWN_BYTES: own,
            t.LANES: room + self.threads * (scratch + own), t.LANE_BYTES: lane}, {t.SCALE: a.scale, t.SOFT_CAP: a.soft_cap}))

    def cross_entropy(self, logits: np.ndarray, targets: np.ndarray, n_vocab: int, divisor: float, soft_cap: float, factor: float) -> np.ndarray:
        """logits, float32 [n, at least n_vocab], become the gradients of what the output matrix made, unless the divisor is 0 -> float32 [n, 4]: kernels'."""
        n, numbers = loss, np.zeros((len(logits), 4), np.float32)
        self._run(n.cross_entropy_back.address, _words(n.WORDS, {
            n.LOGITS: logits.ctypes.data, n.TARGETS: targets.ctypes.data, n.N_ROWS: len(logits), n.N_VOCAB: n_vocab, n.LD: logits.strides[0] // 4,
            n.NUMBERS: numbers.ctypes.data}, {n.DIVISOR: divisor, n.SOFT_CAP: soft_cap, n.FACTOR: factor}))
        return numbers
