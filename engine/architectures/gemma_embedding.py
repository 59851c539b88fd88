"""EmbeddingGemma: Gemma 3 as an encoder; windows are to both sides, and what is pooled goes through two more matrices (arXiv 2509.20354)."""
from __future__ import annotations

from .blocks import Block, Output
from .builder import Builder
from .gemma import sandwich, stream_scale
from .page import Page

NEVER = 0
"""No size scales its scores by the stream's width."""


def layer(k: Builder, i: int) -> list[Block]:
    k.encoder()
    sees = k.symmetric_windows(6)[i]
    rope = k.rope("halves", base="rope.freq_base_swa", scaled=False) if "window" in sees else k.rope("halves")
    return sandwich(k, i, sees.get("window", 0), NEVER, rope, qk_norm="head", ahead=sees["ahead"])


def output(k: Builder) -> Output:
    return k.rows(k.norm(None, "output_norm", "norm"))


PAGE = Page("gemma-embedding", "EmbeddingGemma", layer, hf=("Gemma3TextModel",), output=output, embedding_scale=stream_scale, hf_norm_plus_one=True)
