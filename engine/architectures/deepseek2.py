"""DeepSeek V2 Lite, GLM-4.7-Flash and their kin (Moonlight, Kanana 2, Youtu): latent attention; after some dense layers experts, by softmax or by sigmoid and a
bias, with shared ones (arXiv 2405.04434). YaRN's factor is in the scores' scale, not in the cosines."""
from __future__ import annotations

import math
from dataclasses import replace

from .blocks import Block
from .builder import Builder
from .keys import MAX_EXPERTS, MAX_WIDTH
from .latent_blocks import latent_attention
from .page import Page
from .spec import Rope


def positions(k: Builder) -> tuple[Rope, float]:
    """Rotary positions, and what they make of the scores' scale. The file's yarn_log_multiplier is a tenth of mscale_all_dim."""
    rope = k.rope("pairs", head_dim=k.integer("rope.dimension_count", MAX_WIDTH))
    scaling = rope.scaling
    if scaling.kind != "yarn":
        return rope, 1.0
    grown = scaling.attn_factor * (1 + scaling.log_multiplier * math.log(scaling.factor))
    return replace(rope, scaling=replace(scaling, log_multiplier=1.0)), grown * grown


def layer(k: Builder, i: int) -> list[Block]:
    rope, grown = positions(k)
    attention = latent_attention(k, i, k.norm(i, "attn_norm", "input_layernorm"), rope, grown)
    norm = k.norm(i, "ffn_norm", "post_attention_layernorm")
    experts, dense = k.integer("expert_count", MAX_EXPERTS, 0, least=0), k.integer("leading_dense_block_count", k.n_layers + k.skipped_layers, 0, least=0)
    shared, width = k.integer("expert_shared_count", MAX_EXPERTS, 0, least=0), k.integer("expert_feed_forward_length", MAX_WIDTH, 0, least=0)
    if not experts or i < dense:
        return [attention, k.glu(i, "silu", norm=norm)]
    return [attention, k.experts(i, "silu", norm=norm, shared="plain" if shared else "", shared_width=shared * width,
                                 selection_bias_hf=f"model.layers.{i}.mlp.gate.e_score_correction_bias")]


PAGE = Page("deepseek2", "GLM-4.7-Flash, DeepSeek V2 Lite, Moonlight 16B-A3B", layer, hf=("DeepseekV2ForCausalLM", "Glm4MoeLiteForCausalLM"),
            hf_renamed=(("mlp.shared_expert.", "mlp.shared_experts."),), predictors=True)
