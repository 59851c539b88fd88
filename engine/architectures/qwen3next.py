"""Qwen3-Next (80B-A3B): the layers that Qwen 3.5 took over, with experts and a shared one behind a gate. GGUF keeps Hugging Face's order of value heads, those
of a key head side by side, and one matrix of beta and alpha. Files of the first converter, which left q, k, v and z in one tensor (ssm_in), are refused."""
from __future__ import annotations

from . import qwen35
from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    if k.has(f"blk.{i}.ssm_in.weight"):
        k.refuse(f"tensor 'blk.{i}.ssm_in.weight': an early form of Qwen3-Next's files, which llama.cpp made before December 2025: convert the model again")
    norm = k.norm(i, "post_attention_norm", "post_attention_layernorm")
    return [qwen35.mixer(k, i, True), k.experts(i, "silu", norm=norm, normalise=True, shared="gated", divided=True)]


PAGE = Page("qwen3next", "Qwen3-Next 80B-A3B", layer, hf=("Qwen3NextForCausalLM",), hf_norm_plus_one=True, predictors=True)
