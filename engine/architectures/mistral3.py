"""Ministral 3 and newer Mistral files: Llama with YaRN and queries that grow with their position."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .keys import MAX_CONTEXT
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    rope, beta = k.rope("pairs"), k.number("attention.temperature_scale", 0.0)
    length = rope.scaling.original_context or k.integer("attention.temperature_length", MAX_CONTEXT, k.context_length)
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=rope, temperature=(beta, length) if beta else None),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


PAGE = Page("mistral3", "Ministral 3, Mistral Small 3.2", layer, hf=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"), hf_halves=True)
