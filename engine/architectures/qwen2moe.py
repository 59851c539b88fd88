"""Qwen 1.5 and 2 with experts: Qwen 2's attention; softmax over all experts, weights as they are, and an expert that every token shares, behind a gate."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves")),
        k.experts(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm"), shared="gated", divided=True),
    ]


PAGE = Page("qwen2moe", "Qwen 1.5 MoE A2.7B, Qwen 2 57B-A14B", layer, hf=("Qwen2MoeForCausalLM",))
