"""Tensors of Hugging Face's checkpoints that hold several of ours, or parts of one, other than experts (hf_experts.py).

    Qwen3-Next   in_proj_qkvz: for each key head its rows of q, k, v and z      -> attn_qkv [q of all | k of all | v of all], attn_gate
    Granite 4 H  shared_mlp.input_linear: rows of gate, then of up, without experts -> ffn_gate, ffn_up
    DeepSeek V2  kv_b_proj: for each head its rows of keys, then of values   -> attn_k_b (transposed), attn_v_b
    StableLM     q_layernorm.norms.3: the gain of one head                     -> attn_q_norm [heads, head_dim]
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...engine.architectures.blocks import Mlp
from ...engine.architectures.config import ModelConfig
from ...engine.architectures.latent_blocks import Latent
from ...engine.architectures.state_blocks import Delta
from .base import Rows, Stored
from .hf_experts import Part, Picked, of_shape


def fused_parts(config: ModelConfig) -> dict[str, list[Part]]:
    """Hugging Face's name -> what it is of our tensors."""
    found: dict[str, list[Part]] = {}
    for a in config.attentions():
        for name, norm in ("q", a.q_norm), ("k", a.k_norm):
            for head in range(norm.heads if norm else 0):
                assert norm
                found[f"model.layers.{a.layer}.self_attn.{name}_layernorm.norms.{head}.weight"] = [Part(norm.tensor, head, _row(norm.dim))]
        if isinstance(a, Latent):
            found[f"model.layers.{a.layer}.self_attn.kv_b_proj.weight"] = _latent(a)
    for r in config.recurrents():
        if isinstance(r, Delta) and r.gates:
            found[f"model.layers.{r.layer}.linear_attn.in_proj_qkvz.weight"] = _qkvz(r)
    for block in config.blocks():
        if isinstance(block, Mlp) and config.architecture == "granitehybrid":  # its dense blocks are called the shared ones of no experts
            at = f"model.layers.{block.layer}.shared_mlp."
            gate, up = np.split(np.arange(2 * block.width), 2)
            assert block.gate
            found[at + "input_linear.weight"] = [Part(block.gate.tensor, -1, _picked(gate, 2 * block.width, block.dim)),
                                                 Part(block.up.tensor, -1, _picked(up, 2 * block.width, block.dim))]
            found[at + "output_linear.weight"] = [Part(block.down.tensor, -1, lambda stored: stored)]
    return found


@dataclass(frozen=True)
class Turned:
    """Of each head's rows [first, first + rows) of `size`, the transpose."""

    base: Stored
    heads: int
    size: int
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.heads, self.base.shape[1], self.rows

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def read(self, index: np.ndarray) -> np.ndarray:
        heads, columns = np.divmod(index, self.base.shape[1])
        values = np.empty((len(index), self.rows), np.float32)
        for head in np.unique(heads):
            whole = self.base.read(head * self.size + np.arange(self.rows))
            values[heads == head] = whole.T[columns[heads == head]]
        return values


def _latent(a: Latent) -> list[Part]:
    """kv_b_proj: of each head its rows of keys, which GGUF has transposed, then those of values."""
    to, from_ = a.stacks
    size = to.columns + from_.rows
    values = (size * np.arange(a.heads)[:, None] + to.columns + np.arange(from_.rows)).reshape(-1)

    def keys(stored: Stored) -> Rows:
        return Turned(of_shape(stored, (a.heads * size, to.rows)), a.heads, size, to.columns)

    def rest(stored: Stored) -> Rows:
        return Picked(of_shape(stored, (a.heads * size, to.rows)), values, (a.heads, from_.rows, from_.columns))
    return [Part(to.tensor, -1, keys), Part(from_.tensor, -1, rest)]


def _picked(order: np.ndarray, rows: int, columns: int) -> Callable[[Stored], Rows]:
    def make(stored: Stored) -> Rows:
        return Picked(of_shape(stored, (rows, columns)), order, (len(order), columns))
    return make


def _row(n: int) -> Callable[[Stored], Rows]:
    def make(stored: Stored) -> Rows:
        return replace(of_shape(stored, (n,)), shape=(1, n))
    return make


def _qkvz(r: Delta) -> list[Part]:
    value = r.values // r.key_heads
    rows = np.arange(2 * (r.keys + r.values)).reshape(r.key_heads, -1)
    q, k, v, z = (part.reshape(-1) for part in np.split(rows, np.cumsum([r.key_dim, r.key_dim, value]), axis=1))
    return [Part(r.qkv.tensor, -1, _picked(np.concatenate([q, k, v]), rows.size, r.dim)), Part(r.z.tensor, -1, _picked(z, rows.size, r.dim))]
