"""EXAONE 4: norms only after the sublayers; where some layers are windowed (32B), the others have no positions (arXiv 2507.11407)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .page import Page

LARGE = 64
"""Layers of the 32B, whose window and pattern files need not say."""


def layer(k: Builder, i: int) -> list[Block]:
    large = k.n_layers + k.skipped_layers == LARGE
    windows = k.windows(4, default=4096 if large else 0)
    rope = None if any(windows) and not windows[i] else k.rope("halves")
    return [
        k.attention(i, norm=None, rope=rope, window=windows[i], qk_norm="head", post_norm=k.norm(i, "post_attention_norm", "post_attention_layernorm")),
        k.glu(i, "silu", norm=None, post_norm=k.norm(i, "post_ffw_norm", "post_feedforward_layernorm")),
    ]


PAGE = Page("exaone4", "EXAONE 4", layer, hf=("Exaone4ForCausalLM",), predictors=True)
