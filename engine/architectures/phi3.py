"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: fused rows of q, k, v and of gate and up, partial RoPE, long RoPE (arXiv 2404.14219)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves", partial=True), window=k.windows(1)[i]),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm"), fused=True),
    ]


PAGE = Page("phi3", "Phi-3, Phi-3.5, Phi-4, Phi-4-mini", layer, hf=("Phi3ForCausalLM",))
