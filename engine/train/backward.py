"""The way back through a layer: from the gradient of the stream after it to that of the stream before it, and the gradients of what is trained on the way.

Of matrices that read the same rows, the gradient of these is one chain: over the rows of q, then k, then v (gate, then up; beside attention, all of them), then
over the ranks of their pairs, in the same order.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..architectures.blocks import Attention, Mlp
from .factors import Parts, of_tensors
from .forward import Batch, Kept
from .ops import Ops, padded
from .store import Store

if TYPE_CHECKING:
    from ..architectures.spec import Addend, Norm


Learned = Callable[[dict[str, Parts], np.ndarray, "np.ndarray | None"], None]
"""(tensors' matrices that read the same rows, with the gradients of what they made; these rows; the rows' gradient, to which what is trained beside adds)."""


def own_columns(blocks: tuple[object, ...]) -> dict[str, int]:
    """Columns of the rows that a layer's way back has of its own, by name."""
    found: dict[str, int] = {}
    for block in blocks:
        assert isinstance(block, (Attention, Mlp))
        found |= {"dn": block.dim}
        if isinstance(block, Attention):
            found |= {"dz": block.heads * block.value_dim, "dq": block.heads * block.head_dim, "dk": block.kv_heads * block.head_dim,
                      "dv": block.kv_heads * block.value_dim}
        else:
            found["dact"] = block.width
        found |= {name: block.dim for name, has in (("after", block.parallel), ("scaled", block.factor != 1), ("left", block.post_norm)) if has}
    return found


def _nothing(norm: Norm, x: np.ndarray, dy: np.ndarray) -> None:
    pass


class Backward:
    """Through the layers of one micro-batch. learned: called with what may be trained; gains: called with each norm of rows, what it read and the gradient of
    what it made. kv: the type that keys and values are kept as. store: for rows of its own."""

    def __init__(self, ops: Ops, batch: Batch, learned: Learned | None, kv: str,
                 gains: Callable[[Norm, np.ndarray, np.ndarray], None] | None = None, store: Store | None = None) -> None:
        self._store = store or Store(0)
        self._ops, self._batch, self._learned, self._half, self._gains, self._of_heads = ops, batch, learned, kv == "f16", gains or _nothing, gains is not None

    def layer(self, blocks: tuple[object, ...], kept: Kept, stream: np.ndarray, d: np.ndarray, below: bool) -> None:
        """stream: before the layer. d: the gradient of the stream after it becomes, in place, that of the one before it. below: whether that is wanted at all:
        if not, only those of what is trained are computed."""
        attention, mlp = blocks
        assert isinstance(attention, Attention) and isinstance(mlp, Mlp)
        if attention.parallel:
            self._side_by_side(attention, mlp, kept, stream, d, below)
            return
        middle = kept["hook_resid_mid"]
        dn = self._feed_forward(mlp, kept, kept["ln2.hook_normalized"], d, None)
        self._join(mlp.norm, middle, dn, d)
        dn = self._attention(attention, kept, d, below)
        if below:
            self._join(attention.norm, stream, dn, d)

    def _side_by_side(self, attention: Attention, mlp: Mlp, kept: Kept, stream: np.ndarray, d: np.ndarray, below: bool) -> None:
        """Both blocks read the same stream, or the same normed rows."""
        after = self._store.rows("after", *d.shape)
        after[:] = d
        if mlp.norm is None:
            dn = self._attention(attention, kept, after, True)
            self._feed_forward(mlp, kept, kept["ln1.hook_normalized"], after, dn)
            if below:
                self._join(attention.norm, stream, dn, d)
            return
        dn = self._attention(attention, kept, after, below)
        if below:
            self._join(attention.norm, stream, dn, d)
        dn = self._feed_forward(mlp, kept, kept["ln2.hook_normalized"], after, None)
        if below:
            self._join(mlp.norm, stream, dn, d)

    def _join(self, norm: Norm | None, x: np.ndarray, dn: np.ndarray, d: np.ndarray) -> None:
        """The gradient of normed rows joins that of the stream they were made of."""
        if norm is None:
            d += dn
        else:
            self._gains(norm, x, dn)
            self._ops.norm_back(norm, x, dn, d)

    def _left(self, addend: Addend, made: np.ndarray | None, d: np.ndarray) -> np.ndarray:
        """The gradient of what a block made, from that of the stream it has joined."""
        if addend.factor != 1:
            d = np.multiply(d, np.float32(addend.factor), out=self._store.rows("scaled", *d.shape))
        if addend.norm is None:
            return d
        assert made is not None
        self._gains(addend.norm, made, d)
        out = self._store.rows("left", *made.shape)
        self._ops.ready([out])
        self._ops.norm_back(addend.norm, made, d, out)
        return out

    def _feed_forward(self, mlp: Mlp, kept: Kept, normed: np.ndarray, d: np.ndarray, dn: np.ndarray | None) -> np.ndarray:
        """-> the gradient of the normed rows; dn goes on if it is given."""
        made, gate = self._left(mlp.leaves, kept.get("hook_mlp_out"), d), kept["mlp.hook_pre"]
        dact, fresh = self._store.rows("dact", len(d), mlp.width), dn is None
        dn = self._store.rows("dn", len(d), mlp.dim) if dn is None else dn
        self._ops.ready([dact, dn] if fresh else [dact])
        self._matrices([(mlp.down, made)], kept["mlp.hook_post"], dact)
        up = kept["mlp.hook_pre_linear"] if mlp.gate else None
        self._ops.gate_back(mlp.activation, gate, up, dact)
        parts: Parts = [(mlp.gate, gate), (mlp.up, up)] if mlp.gate and up is not None else [(mlp.up, gate)]
        self._matrices(parts, normed, dn)
        return dn

    def _attention(self, a: Attention, kept: Kept, d: np.ndarray, below: bool) -> np.ndarray:
        """-> the gradient of the normed rows (below: else zeros)."""
        assert a.k and a.v
        n, ops, batch = len(d), self._ops, self._batch
        made = self._left(a.leaves, kept.get("hook_attn_out"), d)
        q, k, v = kept["attn.hook_rot_q"], kept["attn.hook_rot_k"], kept["attn.hook_v"]
        dz, dn = self._store.rows("dz", n, a.heads * a.value_dim), self._store.rows("dn", n, a.dim)
        dq, dk, dv = (self._store.rows(name, *rows.shape) for name, rows in (("dq", q), ("dk", k), ("dv", v)))
        ops.ready([dz, dn, dq, dk, dv], [k, v] if self._half else [])
        self._matrices([(a.output, made)], kept["attn.hook_z"], dz)
        ops.attention_back(a, batch.items, q, k, v, kept["attn.hook_z"], dz, dq, dk, dv)
        for query, name, dx in (True, "attn.hook_q", dq), (False, "attn.hook_k", dk):
            if self._of_heads and a.qk_norm:
                self._head_gains(a, query, kept[name], dx)
            ops.heads_back(a, query, kept.get(name), dx, batch.positions)
        self._matrices([(a.q, dq), (a.k, dk), (a.v, dv)], kept["ln1.hook_normalized"], dn if below else None)
        return dn

    def _head_gains(self, a: Attention, query: bool, x: np.ndarray, d: np.ndarray) -> None:
        """Of the norm of a layer's queries or keys: x, the projection's rows; d, the gradient of what attention reads."""
        norm, batch = a.q_norm if query else a.k_norm, self._batch
        assert norm is not None
        if a.norm_last:
            x, dy = self._ops.turned(a, x, batch.positions), self._ops.of_position(a, query, d, batch.positions)
        else:
            dy = padded(d)
            self._ops.heads_back(a, query, None, dy, batch.positions, normed=False)
        heads = (a.heads if query else a.kv_heads) if a.qk_norm == "head" else 1
        if heads > 1:  # a token's heads one after the other
            x, dy = (padded(rows[:, :heads * norm.dim].reshape(-1, norm.dim)) for rows in (x, dy))
        self._gains(norm, x, dy)

    def _matrices(self, parts: Parts, x: np.ndarray, dx: np.ndarray | None) -> None:
        """Matrices that read x: dx goes on, the gradients of what is trained of them, too."""
        if dx is not None:
            for matrix, dy in parts:
                self._ops.through_weights(matrix, dy, dx)
        if self._learned:
            self._learned(of_tensors(parts), x, dx)
