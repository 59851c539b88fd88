"""Gemma 1, 2 and 3: a stream scaled by the root of its width, GELU gates, and from Gemma 2 on norms after the sublayers, too, and sliding windows
(arXiv 2403.08295, 2408.00118, 2503.19786)."""
from __future__ import annotations

import math
from typing import Any

from .blocks import Attention, Block, Output
from .builder import Builder
from .page import Page
from .spec import Rope

LARGEST_2, LARGEST_3 = 46, 62
"""Layers of Gemma 2 27B and Gemma 3 27B, whose scores are scaled by the stream's width and not the head's: no key says so."""


def stream_scale(k: Builder) -> float:
    return math.sqrt(k.dim)


def score_scale(k: Builder, largest: int) -> float:
    """attention.scale, which llamina's converter writes where it isn't what the size implies; else by the head's width."""
    width = k.dim // k.n_heads if k.n_layers + k.skipped_layers == largest else k.head_size
    return k.positive("attention.scale", 1 / math.sqrt(width))


def gemma_layer(k: Builder, i: int) -> list[Block]:
    return [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves")),
        k.glu(i, "gelu_tanh", norm=k.norm(i, "ffn_norm", "post_attention_layernorm")),
    ]


def sandwich(k: Builder, i: int, window: int, largest: int, rope: Rope, **options: Any) -> list[Block]:
    """Norms before and after both sublayers."""
    attention: Attention = k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=rope, window=window, scale=score_scale(k, largest),
                                       post_norm=k.norm(i, "post_attention_norm", "post_attention_layernorm"), **options)
    return [attention, k.glu(i, "gelu_tanh", norm=k.norm(i, "ffn_norm", "pre_feedforward_layernorm"),
                             post_norm=k.norm(i, "post_ffw_norm", "post_feedforward_layernorm"))]


def gemma2_layer(k: Builder, i: int) -> list[Block]:
    return sandwich(k, i, k.windows(2, default=4096)[i], LARGEST_2, k.rope("halves"), soft_cap=k.number("attn_logit_softcapping", 50.0))


def gemma3_layer(k: Builder, i: int) -> list[Block]:
    """Windowed layers turn by a base of their own and without scaling."""
    window = k.windows(6)[i]
    rope = k.rope("halves", base="rope.freq_base_swa", scaled=False) if window else k.rope("halves")
    return sandwich(k, i, window, LARGEST_3, rope, qk_norm="head")


def capped(k: Builder, default: float) -> Output:
    return k.output(k.norm(None, "output_norm", "norm"), soft_cap=k.number("final_logit_softcapping", default))


GEMMA = Page("gemma", "Gemma 1", gemma_layer, hf=("GemmaForCausalLM",), embedding_scale=stream_scale, hf_norm_plus_one=True)
GEMMA2 = Page("gemma2", "Gemma 2", gemma2_layer, hf=("Gemma2ForCausalLM",), output=lambda k: capped(k, 30.0), embedding_scale=stream_scale,
              hf_norm_plus_one=True)
GEMMA3 = Page("gemma3", "Gemma 3, MedGemma, Rnj-1", gemma3_layer, hf=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
              output=lambda k: capped(k, 0.0), embedding_scale=stream_scale, hf_norm_plus_one=True)
