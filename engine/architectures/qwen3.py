"""Qwen 3, dense: queries and keys normed head by head, RoPE on halves, heads of a width of their own (arXiv 2505.09388)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves"), qk_norm="head"),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


PAGE = Page("qwen3", "Qwen 3", layer, hf=("Qwen3ForCausalLM", "Qwen3Model"))
