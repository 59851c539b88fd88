"""Qwen 3 with experts (30B-A3B, Coder): Qwen 3's attention; softmax over all experts, the chosen ones' weights normed (arXiv 2505.09388)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves"), qk_norm="head"),
        k.experts(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm"), normalise=True, divided=True),
    ]


PAGE = Page("qwen3moe", "Qwen 3 30B-A3B, Qwen 3 Coder 30B-A3B", layer, hf=("Qwen3MoeForCausalLM",))
