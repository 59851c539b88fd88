"""Nemotron-H, Nemotron Nano 2 and 3: every layer is one block: Mamba-2, attention without positions, or a feed-forward block with squared ReLU and without a
gate, of which the MoE models have experts, chosen by sigmoid and a bias, beside a shared one (arXiv 2504.03624)."""
from __future__ import annotations

from .blocks import Block
from .builder import Builder
from .keys import MAX_HEADS, MAX_WIDTH
from .mamba_blocks import mamba2
from .page import Page

MOE = "nemotron_h_moe"


def layer(k: Builder, i: int) -> list[Block]:
    norm = k.norm(i, "attn_norm", "norm")
    attends, width = k.per_layer("attention.head_count_kv", MAX_HEADS, least=0)[i], k.per_layer("feed_forward_length", MAX_WIDTH, least=0)[i]
    if not width and not attends:
        return [mamba2(k, i, norm, "mixer")]
    if not width:
        return [k.attention(i, norm=norm, rope=None)]
    if k.architecture != MOE:
        return [k.mlp(i, "relu2", norm=norm)]
    if k.integer("moe_latent_size", MAX_WIDTH, 0, least=0):
        k.refuse(f"has experts in a narrower space ({k.name('moe_latent_size')}), which llamina lacks")
    return [k.experts(i, "relu2", norm=norm, gating="sigmoid", normalise=True, shared="plain", gated=False,
                      selection_bias_hf=f"model.layers.{i}.mixer.gate.e_score_correction_bias")]


def _page(architecture: str, models: str, *hf: str) -> Page:
    renamed = (("self_attn.", "mixer."), ("mlp.shared_expert.", "mixer.shared_experts."), ("mlp.", "mixer."), ("model.embed_tokens", "model.embeddings"),
               ("model.norm.", "model.norm_f."))
    return Page(architecture, models, layer, hf=hf, hf_renamed=renamed, predictors=True)


DENSE = _page("nemotron_h", "Nemotron-H 4B, 8B, 47B, Nemotron Nano 9B v2", "NemotronHForCausalLM")
EXPERTS = _page(MOE, "Nemotron 3 Nano 30B-A3B")
