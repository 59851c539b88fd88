"""ERNIE 4.5, dense: Llama's layers; Hugging Face's rows pair neighbours already."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("pairs")),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


PAGE = Page("ernie4_5", "ERNIE 4.5", layer, hf=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"))
