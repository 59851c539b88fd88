"""Hunyuan, dense: queries and keys normed head by head after RoPE. Its NTK scaling is part of the base by the time a file is written."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    at = "self_attn."
    attention = k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves"), qk_norm="head", norm_last=True,
                            q_norm=k.norm(i, "attn_q_norm", at + "query_layernorm", dim=k.head_size),
                            k_norm=k.norm(i, "attn_k_norm", at + "key_layernorm", dim=k.head_size))
    return [attention, k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm"))]


PAGE = Page("hunyuan-dense", "Hunyuan dense", layer, hf=("HunYuanDenseV1ForCausalLM",))
