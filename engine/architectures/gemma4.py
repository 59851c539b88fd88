"""Gemma 4 (E2B, E4B, 12B, 31B, 26B-A4B): Gemma 3 with another geometry in its full layers, values without a gain normed, layers that read another's keys
and values, per-layer embeddings (the E models), a scale of the stream at each layer's end, experts
beside the dense block (26B). Full layers turn a quarter of their pairs (rope_freqs)."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from .blocks import Block
from .builder import Builder
from .gemma import capped, stream_scale
from .keys import MAX_EXPERTS, MAX_WIDTH
from .page import Page
from .per_layer_blocks import PerLayer, PerLayerInputs


def kv_layer(k: Builder, i: int, windows: list[int]) -> int:
    """Whose keys and values layer i reads: of the last attention.shared_kv_layers, the last earlier one's of the same kind."""
    own = k.n_layers - k.integer("attention.shared_kv_layers", k.n_layers - 1, 0, least=0)
    if i < own:
        return i
    kind = [j for j in range(own) if bool(windows[j]) == bool(windows[i])]
    if not kind:
        k.fail(f"key '{k.name('attention.shared_kv_layers')}': layer {i} has no keys of its own, and no layer before {own} is of its kind")
    return kind[-1]


def layer(k: Builder, i: int) -> list[Block]:
    windows = k.windows(6)
    window = windows[i]
    size = k.integer("attention.key_length_swa", MAX_WIDTH, k.head_size)
    if size % 2:
        k.fail(f"key '{k.name('attention.key_length_swa')}' is {size}, expected an even number: rotary positions turn pairs")
    if (found := k.integer("attention.value_length_swa", MAX_WIDTH, size)) != size:
        k.refuse(f"key '{k.name('attention.value_length_swa')}' is {found}, but llamina needs it to equal attention.key_length_swa, {size}")
    local = k.rope("halves", base="rope.freq_base_swa", dims="rope.dimension_count_swa", head_dim=size, scaled=False)
    full = k.rope("halves")
    has_values = bool(window) or k.has(f"blk.{i}.attn_v.weight") or k.has(f"blk.{i}.attn_qkv.weight")
    width = k.integer("embedding_length_per_layer_input", MAX_WIDTH, 0, least=0)
    scale = f"blk.{i}.layer_output_scale.weight"
    scale = scale if k.has(scale) else ""
    blocks: list[Block] = [
        k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=local if window else full, window=window, scale=1.0, qk_norm="head",
                    head_dim=size if window else k.head_size, value_norm=True, values_are_keys=not has_values, kv_layer=kv_layer(k, i, windows),
                    post_norm=k.norm(i, "post_attention_norm", "post_attention_layernorm")),
        *feed_forward(k, i, post_norm=k.norm(i, "post_ffw_norm", "post_feedforward_layernorm"), last=not width, stream_scale="" if width else scale),
    ]
    if width:
        blocks.append(per_layer(k, i, width, scale))
        if i == 0:
            blocks.insert(0, per_layer_inputs(k, width))
    return blocks


def feed_forward(k: Builder, i: int, **end: Any) -> list[Block]:
    """The dense block, alone or with the experts that stand beside it. end: fields of the last one."""
    norm = k.norm(i, "ffn_norm", "pre_feedforward_layernorm")
    if not k.integer("expert_count", MAX_EXPERTS, 0, least=0):
        return [k.glu(i, "gelu_tanh", norm=norm, **end)]
    beside = tuple(k.norm(i, f"post_ffw_norm_{n}", f"post_feedforward_layernorm_{n}") for n in (1, 2))
    router_norm = replace(norm, tensor=f"blk.{i}.ffn_gate_inp.scale", hf=f"model.layers.{i}.router.scale", factor=stream_scale(k)**-1)
    experts = k.experts(i, "gelu_tanh", norm=k.norm(i, "pre_ffw_norm_2", "pre_feedforward_layernorm_2"), normalise=True, router_norm=router_norm, beside=beside,
                      expert_scales=f"blk.{i}.ffn_down_exps.scale", **end)
    read = f"blocks.{i}.experts.hook_normalized"
    experts = replace(experts, router=replace(experts.router, site=f"blocks.{i}.router.hook_normalized"), up=replace(experts.up, site=read),
                      gate=replace(experts.gate, site=read) if experts.gate else None,
                      down=replace(experts.down, site=f"blocks.{i}.experts.hook_post"))
    return [k.glu(i, "gelu_tanh", norm=norm, waits=True), experts]


def per_layer_inputs(k: Builder, width: int) -> PerLayerInputs:
    norm = k.norm(None, "per_layer_proj_norm", "per_layer_projection_norm", dim=width)
    projection = k.model_matrix("per_layer_model_proj", k.n_layers * width, k.dim, "blocks.0.hook_embed", "per_layer_model_projection")
    return PerLayerInputs(0, k.dim, width, k.n_layers, k.n_vocab, projection, norm)


def per_layer(k: Builder, i: int, width: int, scale: str) -> PerLayer:
    gate = k.matrix(i, "inp_gate", width, k.dim, "per_layer.hook_in", "per_layer_input_gate")
    projection = k.matrix(i, "proj", k.dim, width, "per_layer.hook_post", "per_layer_projection")
    return PerLayer(i, k.dim, width, "gelu_tanh", gate, projection, k.norm(i, "post_norm", "post_per_layer_input_norm"), scale)


PAGE = Page("gemma4", "Gemma 4 E2B, E4B, 12B, 26B-A4B, 31B", layer, hf_renamed=(("mlp.gate.", "router.proj."),),
            hf=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4UnifiedForCausalLM", "Gemma4UnifiedForConditionalGeneration"),
            output=lambda k: capped(k, 0.0), embedding_scale=stream_scale)
