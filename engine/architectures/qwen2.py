"""Qwen 2 and 2.5, their coders, DeepSeek-R1's distilled Qwens: Llama with biases of q, k and v and RoPE on halves (arXiv 2407.10671)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves"), biases=("q", "k", "v")),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


PAGE = Page("qwen2", "Qwen 2, Qwen 2.5, DeepSeek-R1-Distill-Qwen", layer, hf=("Qwen2ForCausalLM",))
