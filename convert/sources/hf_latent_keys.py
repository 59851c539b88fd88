"""What config.json says of models with latent attention, as GGUF's keys (hf_keys.py has the table): DeepSeek V2, GLM-4.7-Flash.

Source: transformers' configuration_deepseek_v2.py and configuration_glm4_moe_lite.py; keys are llama.cpp's."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ...engine.architectures.keys import MAX_EXPERTS, MAX_WIDTH
from ...engine.gguf.header import quote

if TYPE_CHECKING:
    from .hf_keys import Reading


def _latent(r: Reading) -> None:
    f = r.f
    for key in "attention_bias", "mlp_bias":
        if f.values.get(key):
            r.refuse(f"asks for a feature that llamina lacks: {key} = True")
    turned, plain = f.integer("qk_rope_head_dim", MAX_WIDTH), f.integer("qk_nope_head_dim", MAX_WIDTH)
    latent, value = f.integer("kv_lora_rank", MAX_WIDTH), f.integer("v_head_dim", MAX_WIDTH)
    r.keys |= {"attention.head_count_kv": 1, "attention.key_length": latent + turned, "attention.value_length": latent, "attention.kv_lora_rank": latent,
               "attention.key_length_mla": plain + turned, "attention.value_length_mla": value, "rope.dimension_count": turned}
    if rank := f.integer("q_lora_rank", MAX_WIDTH, None):
        r.keys["attention.q_lora_rank"] = rank
    mscale, every = (r.rope.values.get(key) or 0 for key in ("mscale", "mscale_all_dim"))
    if mscale != every:
        r.refuse(f"scales cosines of positions by mscale {mscale} over mscale_all_dim {every}, which GGUF can't say of this architecture")
    if r.rope.scaling.kind == "yarn":
        r.keys |= {"rope.scaling.yarn_log_multiplier": 0.1 * every, "rope.scaling.attn_factor": None}


def _experts(r: Reading, gating: int) -> None:
    f = r.f
    n = f.integer("n_routed_experts", MAX_EXPERTS)
    r.keys |= {"expert_count": n, "expert_used_count": f.integer("num_experts_per_tok", n),
               "expert_feed_forward_length": f.integer("moe_intermediate_size", MAX_WIDTH),
               "expert_shared_count": f.integer("n_shared_experts", MAX_EXPERTS, 0, least=0), "expert_weights_scale": f.number("routed_scaling_factor"),
               "expert_weights_norm": r.flag("norm_topk_prob"), "expert_gating_func": gating}


def deepseek_v2(r: Reading) -> None:
    """Its router never norms the weights, whatever norm_topk_prob says, as in transformers' class."""
    _latent(r)
    _experts(r, 1)
    if r.f.values.get("topk_method") not in (None, "greedy"):
        r.refuse(f"chooses experts by {quote(r.f.values['topk_method'])} (topk_method), which takes a group's best expert for the group: llamina lacks that")
    r.keys |= {"leading_dense_block_count": r.f.integer("first_k_dense_replace", r.n_layers, 0, least=0), "expert_weights_norm": False}


def glm4_moe_lite(r: Reading) -> None:
    _latent(r)
    _experts(r, 2)
    if r.f.values.get("rope_interleave") is False:
        r.refuse("asks for a feature that llamina lacks: rope_interleave = False")
    kinds = r.f.get("mlp_layer_types", list, None) or ["dense", *["sparse"] * (r.n_layers - 1)]
    dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    if kinds != ["dense"] * dense + ["sparse"] * (r.n_layers - dense):
        r.refuse(f"has dense layers after such with experts, which GGUF can't say: mlp_layer_types = {quote(kinds)}")
    groups = r.f.integer("n_group", MAX_EXPERTS, 1)
    r.keys |= {"leading_dense_block_count": dense, "expert_group_count": groups, "expert_group_used_count": r.f.integer("topk_group", groups, 1)}
    r.biases += ["exp_probs_b"]
