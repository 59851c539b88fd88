"""Arcee's AFM 4.5B: Llama whose feed-forward block has no gate and squares the ReLU."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("pairs")),
        k.mlp(i, "relu2", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


PAGE = Page("arcee", "Arcee AFM", layer, hf=("ArceeForCausalLM",), hf_halves=True)
