"""Qwen 3.5 and 3.6 with experts (35B-A3B): Qwen 3.5's layers; softmax over all experts, the chosen ones' weights normed, and a shared one behind a gate."""
from __future__ import annotations

from . import qwen35
from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    norm = k.norm(i, "post_attention_norm", "post_attention_layernorm")
    return [qwen35.mixer(k, i), k.experts(i, "silu", norm=norm, normalise=True, shared="gated", divided=True)]


PAGE = Page("qwen35moe", "Qwen 3.5 35B-A3B, Qwen 3.6 35B-A3B", layer, hf=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
            hf_norm_plus_one=True, predictors=True)
