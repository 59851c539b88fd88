"""LFM2 and LFM2.5 with experts (8B-A1B, 24B): LFM2's layers; after the first, dense ones, experts chosen by sigmoid and a bias, their weights normed."""
from __future__ import annotations

from . import lfm2
from .blocks import Block
from .builder import Builder
from .page import Page


def layer(k: Builder, i: int) -> list[Block]:
    norm = k.norm(i, "ffn_norm", "ffn_norm")
    if i < k.integer("leading_dense_block_count", k.n_layers, 0, least=0):
        return [lfm2.mixer(k, i), k.glu(i, "silu", norm=norm)]
    return [lfm2.mixer(k, i), k.experts(i, "silu", norm=norm, gating="sigmoid", normalise=True,
                                        selection_bias_hf=f"model.layers.{i}.feed_forward.expert_bias")]


PAGE = Page("lfm2moe", "LFM2 8B-A1B, LFM2.5 8B-A1B", layer, hf=("Lfm2MoeForCausalLM",), output=lfm2.output,
            hf_renamed=(("mlp.gate.", "feed_forward.gate."), *lfm2.RENAMED))
