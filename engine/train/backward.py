"""The way back through a layer: from the gradient of the stream after it to that of the stream before it, and the pairs' gradients on the way.

Of matrices that read the same rows, the gradient of these is one chain: over the rows of q, then k, then v (gate, then up; beside attention, all of them), then
over the ranks of their pairs, in the same order.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..architectures.blocks import Attention, Mlp
from .factors import FactorsOf, Parts, of_tensors
from .forward import Batch, Kept
from .ops import Ops, padded, rows_of

if TYPE_CHECKING:
    from ..architectures.spec import Addend


class Backward:
    """Through the layers of one micro-batch. kv: the type that keys and values are kept as."""

    def __init__(self, ops: Ops, batch: Batch, factors: FactorsOf, kv: str) -> None:
        self._ops, self._batch, self._factors, self._half = ops, batch, factors, kv == "f16"

    def layer(self, blocks: tuple[object, ...], kept: Kept, stream: np.ndarray, d: np.ndarray, below: bool) -> None:
        """stream: before the layer. d: the gradient of the stream after it becomes, in place, that of the one before it. below: whether that is wanted at all:
        if not, only the pairs' gradients are computed."""
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
        after = padded(d)
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

    def _join(self, norm: object, x: np.ndarray, dn: np.ndarray, d: np.ndarray) -> None:
        """The gradient of normed rows joins that of the stream they were made of."""
        if norm is None:
            d += dn
        else:
            self._ops.norm_back(norm, x, dn, d)  # type: ignore[arg-type]

    def _left(self, addend: Addend, made: np.ndarray | None, d: np.ndarray) -> np.ndarray:
        """The gradient of what a block made, from that of the stream it has joined."""
        if addend.factor != 1:
            d = _scaled(d, addend.factor)
        if addend.norm is None:
            return d
        assert made is not None
        out = rows_of(*made.shape)
        self._ops.norm_back(addend.norm, made, d, out)
        return out

    def _feed_forward(self, mlp: Mlp, kept: Kept, normed: np.ndarray, d: np.ndarray, dn: np.ndarray | None) -> np.ndarray:
        """-> the gradient of the normed rows; dn goes on if it is given."""
        made, gate = self._left(mlp.leaves, kept.get("hook_mlp_out"), d), kept["mlp.hook_pre"]
        dact = rows_of(len(d), mlp.width)
        self._matrices([(mlp.down, made)], kept["mlp.hook_post"], dact)
        up = kept["mlp.hook_pre_linear"] if mlp.gate else None
        self._ops.gate_back(mlp.activation, gate, up, dact)
        dn = rows_of(len(d), mlp.dim) if dn is None else dn
        parts: Parts = [(mlp.gate, gate), (mlp.up, up)] if mlp.gate and up is not None else [(mlp.up, gate)]
        self._matrices(parts, normed, dn)
        return dn

    def _attention(self, a: Attention, kept: Kept, d: np.ndarray, below: bool) -> np.ndarray:
        """-> the gradient of the normed rows (below: else zeros)."""
        assert a.k and a.v
        n, ops, batch = len(d), self._ops, self._batch
        made = self._left(a.leaves, kept.get("hook_attn_out"), d)
        dz = rows_of(n, a.heads * a.value_dim)
        self._matrices([(a.output, made)], kept["attn.hook_z"], dz)
        k, v = kept["attn.hook_rot_k"], kept["attn.hook_v"]
        if self._half:
            k[:], v[:] = k.astype(np.float16), v.astype(np.float16)
        q = kept["attn.hook_rot_q"]
        dq, dk, dv = rows_of(*q.shape), rows_of(*k.shape), rows_of(*v.shape)
        ops.attention_back(a, batch.items, q, k, v, kept["attn.hook_z"], dz, dq, dk, dv)
        ops.heads_back(a, True, kept.get("attn.hook_q"), dq, batch.positions)
        ops.heads_back(a, False, kept.get("attn.hook_k"), dk, batch.positions)
        dn = rows_of(n, a.dim)
        self._matrices([(a.q, dq), (a.k, dk), (a.v, dv)], kept["ln1.hook_normalized"], dn if below else None)
        return dn

    def _matrices(self, parts: Parts, x: np.ndarray, dx: np.ndarray | None) -> None:
        """Matrices that read x: dx goes on, the pairs' gradients too."""
        if dx is not None:
            for matrix, dy in parts:
                self._ops.through_weights(matrix, dy, dx)
        for tensor, its in of_tensors(parts).items():
            if factors := self._factors(tensor):
                factors.backward(x, its, dx)


def _scaled(d: np.ndarray, factor: float) -> np.ndarray:
    out = rows_of(*d.shape)
    np.multiply(d, np.float32(factor), out=out)
    return out
