"""MiniCPM 1 and 2: Llama with scales of embedding, sublayers and logits, which old files imply (arXiv 2404.06395)."""
from __future__ import annotations

import math

from .blocks import Block, Output
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    factor = k.positive("residual_scale", 1.4 / math.sqrt(k.n_layers))
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("pairs"), factor=factor),
        k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "post_attention_layernorm"), factor=factor),
    ]


def output(k: Builder) -> Output:
    """The key divides; without it logits are multiplied by 256 / width, as the model's authors do."""
    return k.output(k.norm(None, "output_norm", "norm"), factor=1 / k.positive("logit_scale", k.dim / 256))


PAGE = Page("minicpm", "MiniCPM 1 and 2", layer, hf=("MiniCPMForCausalLM",), output=output, embedding_scale=lambda k: k.positive("embedding_scale", 12.0), hf_halves=True)
