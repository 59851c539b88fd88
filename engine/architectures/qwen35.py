"""Qwen 3.5, 3.6 and 3.8, dense: three layers of four keep the state of a gated delta rule, every fourth attends, its result gated (Qwen team, 2026).

Positions of text turn a quarter of each head; the sections of rope.dimension_sections are for pictures, and for text all the same."""
from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import Block
from .builder import Builder
from .keys import MAX_HEADS, MAX_WIDTH
from .page import Page
from .spec import Tensor
from .state_blocks import Delta


def recurrent(k: Builder) -> list[int]:
    """Which layers keep a state."""
    every = k.integer("full_attention_interval", 1 << 20, 4)
    return k.per_layer("attention.recurrent_layers", 1, [int((i + 1) % every != 0) for i in range(k.n_layers)], least=0)


def sections(k: Builder) -> None:
    """Of the turned pairs: by time, height and width. Text has one position for all three."""
    if k.given("rope.dimension_sections"):
        found = k.file.get(k.name("rope.dimension_sections"), np.ndarray)
        if found.dtype.kind not in "iu" or len(found) > 4:
            k.fail(f"key '{k.name('rope.dimension_sections')}' must be up to 4 whole numbers, found {len(found)} of {found.dtype}")


def delta(k: Builder, i: int, together: bool) -> Delta:
    """together: one matrix of beta and alpha, and value heads in groups."""
    key_heads, heads = k.integer("ssm.group_count", MAX_HEADS), k.integer("ssm.time_step_rank", MAX_HEADS)
    size, inner, taps = k.integer("ssm.state_size", MAX_WIDTH), k.integer("ssm.inner_size", MAX_WIDTH), k.integer("ssm.conv_kernel", 64, least=2)
    if heads % key_heads or inner != heads * size:
        k.fail(f"keys '{k.name('ssm.inner_size')}' {inner}, '{k.name('ssm.time_step_rank')}' {heads}, '{k.name('ssm.group_count')}' {key_heads} and "
               f"'{k.name('ssm.state_size')}' {size} contradict each other")
    channels, here, theirs, site = 2 * key_heads * size + inner, f"blk.{i}.", f"model.layers.{i}.linear_attn.", "ln1.hook_normalized"
    gates: dict[str, Any] = {"gates": k.matrix(i, "ssm_ba", 2 * heads, k.dim, site, "linear_attn.in_proj_ba"), "grouped": True} if together else {}
    alpha, beta = (None if together else k.matrix(i, f"ssm_{name}", heads, k.dim, site, f"linear_attn.in_proj_{name[0]}") for name in ("alpha", "beta"))
    return Delta(
        i, k.dim, key_heads, heads, size, size, taps, k.norm(i, "attn_norm", "input_layernorm"),
        k.matrix(i, "attn_qkv", channels, k.dim, site, "linear_attn.in_proj_qkv"), k.matrix(i, "attn_gate", inner, k.dim, site, "linear_attn.in_proj_z"),
        alpha, beta,
        Tensor(here + "ssm_conv1d.weight", (channels, taps), theirs + "conv1d.weight", plain=True),
        Tensor(here + "ssm_dt.bias", (heads,), theirs + "dt_bias"), Tensor(here + "ssm_a", (heads,), theirs + "A_log"),
        k.norm(i, "ssm_norm", "linear_attn.norm", dim=size), k.matrix(i, "ssm_out", k.dim, inner, "mixer.hook_z", "linear_attn.out_proj"), **gates)


def mixer(k: Builder, i: int, together: bool = False) -> Block:
    """A layer's delta rule, or its attention. together: of `delta`."""
    sections(k)
    if recurrent(k)[i]:
        return delta(k, i, together)
    return k.attention(i, norm=k.norm(i, "attn_norm", "input_layernorm"), rope=k.rope("halves", partial=True), qk_norm="head", gated=True)


def layer(k: Builder, i: int) -> list[Block]:
    return [mixer(k, i), k.glu(i, "silu", norm=k.norm(i, "post_attention_norm", "post_attention_layernorm"))]


PAGE = Page("qwen35", "Qwen 3.5, 3.6, 3.8", layer, hf=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"), hf_norm_plus_one=True, predictors=True)
