"""Names of a Llama model's tensors in every kind of checkpoint, and the order of the rows of q and k.

    HF "model.layers.3.self_attn.q_proj.weight", Meta and llama2.c "layers.3.attention.wq.weight" -> GGUF "blk.3.attn_q.weight"

**RoPE pairs.** Rotary positions turn pairs of a head's dimensions. Meta's release, llama2.c and GGUF's llama convention pair neighbours,
(0, 1), (2, 3), ...; Hugging Face pairs dimension i with i + head_dim/2. The angles are the same, so only the order of the rows of the query and key
matrices differs: HF has, in each head, first the even rows of Meta's order, then the odd ones. `interleaved_order` undoes that. Scores are dot products of q
and k, which do not care how both are ordered; v and the rest have no pairs, and stay.
"""
from __future__ import annotations

import re

import numpy as np

_HF_TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
_HF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight", "self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight", "self_attn.o_proj.weight": "attn_output.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight",
}
_META_TOP = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "output.weight": "output.weight"}
_META_LAYER = {
    "attention_norm.weight": "attn_norm.weight", "attention.wq.weight": "attn_q.weight", "attention.wk.weight": "attn_k.weight",
    "attention.wv.weight": "attn_v.weight", "attention.wo.weight": "attn_output.weight", "ffn_norm.weight": "ffn_norm.weight",
    "feed_forward.w1.weight": "ffn_gate.weight", "feed_forward.w3.weight": "ffn_up.weight", "feed_forward.w2.weight": "ffn_down.weight",
}
META_SPLIT_AXIS = {
    "attn_q.weight": 0, "attn_k.weight": 0, "attn_v.weight": 0, "ffn_gate.weight": 0, "ffn_up.weight": 0, "output.weight": 0,
    "attn_output.weight": 1, "ffn_down.weight": 1,
}
"""Along which axis Meta's model-parallel shards cut a matrix (fairscale's ColumnParallelLinear cuts rows of the weight, RowParallelLinear columns).
tok_embeddings is cut along columns in Llama 1 and 2, along rows in Llama 3: meta.py looks at the shapes. Norms are in every shard."""

_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,5})\.(.+)")
_WITHOUT_EFFECT = re.compile(r"(model\.)?(layers\.\d+\.(self_attn|attention)\.)?(rotary_emb\.inv_freq|rope\.freqs|inner_attention\.rope\.freqs)|"
                             r"freqs_cos|freqs_sin|layers\.\d+\.attention\.mask")
"""Buffers that checkpoints hold beside the weights: RoPE frequencies and masks, which follow from the configuration."""


def without_effect(name: str) -> bool:
    return _WITHOUT_EFFECT.fullmatch(name) is not None


def from_hf(name: str) -> str | None:
    """GGUF's name of a tensor in Hugging Face's naming; None if it has none."""
    return _from(name, _HF_TOP, _HF_LAYER, "model.")


def to_hf(name: str) -> str:
    """Hugging Face's name of a tensor that a Llama model has under this name in GGUF; others stay."""
    return _to(name, _HF_TOP, _HF_LAYER, "model.")


def from_meta(name: str) -> str | None:
    """GGUF's name of a tensor in Meta's naming, which llama2.c shares; None if it has none."""
    return _from(name, _META_TOP, _META_LAYER, "")


def to_meta(name: str) -> str:
    """As `to_hf`, for Meta's naming."""
    return _to(name, _META_TOP, _META_LAYER, "")


def _from(name: str, top: dict[str, str], layer: dict[str, str], prefix: str) -> str | None:
    if name in top:
        return top[name]
    match = _LAYER.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    part = layer.get(match[2]) if match else None
    return f"blk.{match[1]}.{part}" if match and part else None


def _to(name: str, top: dict[str, str], layer: dict[str, str], prefix: str) -> str:
    for theirs, ours in top.items():
        if ours == name:
            return theirs
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    return next((f"{prefix}layers.{match[1]}.{theirs}" for theirs, ours in layer.items() if match and ours == match[2]), name)  # type: ignore[index]


def interleaved_order(n_heads: int, head_dim: int) -> np.ndarray:
    """int64 [n_heads * head_dim]: the row of HF's query or key matrix that each row of GGUF's is, row h * head_dim + 2i + j being
    h * head_dim + j * head_dim/2 + i."""
    return np.arange(n_heads * head_dim).reshape(n_heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)
