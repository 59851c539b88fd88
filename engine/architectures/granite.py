"""Granite 3 and 4: Llama with scales of embedding, scores, sublayers and logits. MiniCPM 1 and 2 are the same with scales of their own; granitemoe's
feed-forward blocks are experts, beside which one may be shared."""
from __future__ import annotations

from .blocks import Block, Output
from .builder import Builder
from .page import Page

MOE = "granitemoe"


def layer(k: Builder, i: int) -> list[Block]:
    factor = k.positive("residual_scale", 1.0)
    scale = k.positive("attention.scale", 0.0) if k.number("attention.scale", 0.0) else k.head_size**-0.5
    norm = k.norm(i, "ffn_norm", "post_attention_layernorm")
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("pairs"), scale=scale, factor=factor),
        k.experts(i, "silu", norm=norm, normalise=True, shared="optional", factor=factor) if k.architecture == MOE else
        k.glu(i, "silu", norm=norm, factor=factor),
    ]


def output(k: Builder) -> Output:
    return k.output(k.norm(None, "output_norm", "norm"), factor=1 / k.positive("logit_scale"))


PAGE = Page("granite", "Granite 3, Granite 4", layer, hf=("GraniteForCausalLM",), output=output, embedding_scale=lambda k: k.positive("embedding_scale", 1.0),
            hf_halves=True)
GRANITE_MOE = Page(MOE, "Granite 3 1B-A400M, 3B-A800M", layer, hf=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"), output=output,
                   embedding_scale=lambda k: k.positive("embedding_scale", 1.0), hf_halves=True,
                   hf_renamed=(("mlp.gate.", "block_sparse_moe.router.layer."),))
