"""Granite 4 H (350M to 32B-A9B): Granite's scales; most layers are Mamba-2, those with KV heads attend, without positions unless rope.scaling.finetuned says
otherwise; a dense feed-forward block, or experts and a shared one."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .granite import output
from .keys import MAX_EXPERTS, MAX_HEADS
from .mamba_blocks import mamba2
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    factor, norm = k.positive("residual_scale", 1.0), k.norm(i, "attn_norm", "input_layernorm")
    attends = k.per_layer("attention.head_count_kv", MAX_HEADS, least=0)[i]
    scale = k.positive("attention.scale", 0.0) if k.number("attention.scale", 0.0) else k.head_size**-0.5
    turned = k.rope("pairs")
    rope = turned if k.flag("rope.scaling.finetuned", True) else None
    mixer = k.attention(i, norm=norm, rope=rope, scale=scale, factor=factor) if attends else mamba2(k, i, norm, factor=factor)
    norm = k.norm(i, "ffn_norm", "post_attention_layernorm")
    if k.integer("expert_count", MAX_EXPERTS, 0, least=0):
        return [mixer, k.experts(i, "silu", norm=norm, normalise=True, shared="optional", factor=factor)]
    k.given("expert_shared_feed_forward_length")  # dense files have it, too: the dense block is the shared one of no experts
    return [mixer, k.glu(i, "silu", norm=norm, factor=factor)]


PAGE = Page("granitehybrid", "Granite 4 H 350M, 1B, Micro, Tiny, Small", layer, hf=("GraniteMoeHybridForCausalLM",), output=output,
            embedding_scale=lambda k: k.positive("embedding_scale", 1.0), hf_halves=True, hf_renamed=(("mlp.gate.", "block_sparse_moe.router.layer."),))
