"""OLMoE: norms of whole projections; softmax over all experts, weights as they are (arXiv 2409.02060)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves"), qk_norm="whole"),
        k.experts(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


PAGE = Page("olmoe", "OLMoE 7B-A1B", layer, hf=("OlmoeForCausalLM",))
