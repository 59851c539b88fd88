"""SmolLM 3: Llama whose every fourth layer has no positions (NoPE: arXiv 2501.18795)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page

NO_ROPE_EVERY = 4
"""The file has no key for it; llama.cpp and the published model agree on this."""


def layer(k: Builder, i: int) -> list[Block]:
    rope = None if (i + 1) % NO_ROPE_EVERY == 0 else k.rope("pairs")
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=rope),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


PAGE = Page("smollm3", "SmolLM 3", layer, hf=("SmolLM3ForCausalLM",), hf_halves=True)
