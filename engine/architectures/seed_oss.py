"""Seed-OSS: Qwen 2's shape with a head size of its own. Its `post_attention_norm` is the norm before the feed-forward block."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves"), biases=("q", "k", "v")),
        k.glu(i, "silu", norm=k.norm(i, "post_attention_norm", "post_attention_layernorm")),
    ]


PAGE = Page("seed_oss", "Seed-OSS", layer, hf=("SeedOssForCausalLM",))
