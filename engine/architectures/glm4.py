"""GLM-4 9B and 32B (0414), GLM-Z1: norms before and after the sublayers, RoPE on neighbouring pairs of half a head, fused rows of gate and up."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("pairs", partial=True),
                    post_norm=k.norm(i, "post_attention_norm", "post_self_attn_layernorm")),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm"), fused=True, post_norm=k.norm(i, "post_ffw_norm", "post_mlp_layernorm")),
    ]


PAGE = Page("glm4", "GLM-4 0414, GLM-Z1", layer, hf=("Glm4ForCausalLM",), predictors=True)
