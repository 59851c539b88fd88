"""LFM2 and LFM2.5, dense: short convolutions, and in some layers attention with normed queries and keys (Liquid AI, LFM2 technical report, 2025).

A layer without KV heads is a convolution. The final norm's name is GGUF's mistake of 2025, and stays."""
from __future__ import annotations

from .blocks import Block, Output
from .builder import Builder
from .keys import MAX_HEADS
from .page import Page
from .spec import Tensor
from .state_blocks import Conv


def short_conv(k: Builder, i: int) -> Conv:
    taps, site = k.integer("shortconv.l_cache", 64, least=2), "ln1.hook_normalized"
    return Conv(i, k.dim, taps, k.norm(i, "attn_norm", "operator_norm"), k.matrix(i, "shortconv.in_proj", 3 * k.dim, k.dim, site, "conv.in_proj"),
                Tensor(f"blk.{i}.shortconv.conv.weight", (k.dim, taps), f"model.layers.{i}.conv.conv.weight", plain=True),
                k.matrix(i, "shortconv.out_proj", k.dim, k.dim, "mixer.hook_z", "conv.out_proj"))


def mixer(k: Builder, i: int) -> Block:
    """A layer's convolution, or its attention."""
    if not k.per_layer("attention.head_count_kv", MAX_HEADS, least=0)[i]:
        return short_conv(k, i)
    return k.attention(i, norm=k.norm(i, "attn_norm", "operator_norm"), rope=k.rope("halves"), qk_norm="head")


def layer(k: Builder, i: int) -> list[Block]:
    return [mixer(k, i), k.glu(i, "silu", norm=k.norm(i, "ffn_norm", "ffn_norm"))]


def output(k: Builder) -> Output:
    return k.output(k.norm(None, "token_embd_norm", "embedding_norm"))


RENAMED = (
    ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2"),
    ("self_attn.q_norm", "self_attn.q_layernorm"), ("self_attn.k_norm", "self_attn.k_layernorm"), ("self_attn.o_proj", "self_attn.out_proj"))
PAGE = Page("lfm2", "LFM2, LFM2.5", layer, hf=("Lfm2ForCausalLM",), output=output, hf_renamed=RENAMED)
