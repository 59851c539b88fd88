"""Falcon-H1 (0.5B to 34B): in each layer attention and Mamba-2 side by side, from the same normed rows; SwiGLU. The multipliers of its checkpoints are in the
weights of GGUF's files (arXiv 2507.22448)."""
from __future__ import annotations

from dataclasses import replace

from .blocks import Block
from .builder import Builder
from .mamba_blocks import mamba2
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    mixer = mamba2(k, i, None, normed=k.has(f"blk.{i}.ssm_norm.weight"), parallel=True)
    attention = k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves"), parallel=True, beside=mixer.readers())
    norm = replace(k.norm(i, "ffn_norm", "pre_ff_layernorm"), tensor=f"blk.{i}.ffn_norm")  # without .weight: llama.cpp's mistake of 2025, which stays
    return [attention, mixer, k.glu(i, "silu", norm=norm)]


PAGE = Page("falcon-h1", "Falcon-H1 0.5B, 1.5B, 3B, 7B, 34B", layer, hf=("FalconH1ForCausalLM",),
            hf_renamed=(("mlp.", "feed_forward."), ("model.norm.", "model.final_layernorm.")))
