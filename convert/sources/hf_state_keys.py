"""What config.json says of recurrent layers, as GGUF's keys (hf_keys.py has the table)."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...engine.errors import FormatError
from ...engine.gguf.header import quote
from .base import Fields
from .hf_rope import FULL

if TYPE_CHECKING:
    from .hf_keys import Reading

CONV, LINEAR = "conv", "linear_attention"


def lfm2(r: Reading) -> None:
    """The width of the feed-forward blocks by Lfm2MLP's own rule."""
    f = r.f
    width = f.integer("block_ff_dim", 1 << 20, f.integer("intermediate_size", 1 << 20))
    if r.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        if (factor := f.number("block_ffn_dim_multiplier", None)) is not None:
            step = f.integer("block_multiple_of", 1 << 20)
            width = (int(factor * width) + step - 1) // step * step
    r.keys["feed_forward_length"] = width
    convolutions(r)


def convolutions(r: Reading) -> None:
    """Which layers are short convolutions, and how long."""
    f = r.f
    if r.flag("conv_bias"):
        r.refuse("asks for a feature that llamina lacks: conv_bias = True, which GGUF can't say")
    attention = f.get("full_attn_idxs", list, list(range(r.n_layers)))
    kinds = r.layers or [FULL if i in attention else CONV for i in range(r.n_layers)]
    if other := [kind for kind in kinds if kind not in (FULL, CONV)]:
        r.refuse(f"asks for a feature that llamina lacks: layer_types holds {quote(other[0])}")
    heads = f.integer("num_key_value_heads", 1 << 14, r.n_heads)
    r.keys |= {"shortconv.l_cache": f.integer("conv_L_cache", 64, least=2),
               "attention.head_count_kv": np.array([heads if kind == FULL else 0 for kind in kinds], np.int32)}


def qwen3_5(r: Reading) -> None:
    f = r.f
    if r.flag("attention_bias"):
        r.refuse("asks for a feature that llamina lacks: attention_bias = True")
    every = f.integer("full_attention_interval", 1 << 20, 4)
    kinds = r.layers or [FULL if (i + 1) % every == 0 else LINEAR for i in range(r.n_layers)]
    if other := [kind for kind in kinds if kind not in (FULL, LINEAR)]:
        r.refuse(f"asks for a feature that llamina lacks: layer_types holds {quote(other[0])}")
    keys, values = f.integer("linear_num_key_heads", 1 << 14), f.integer("linear_num_value_heads", 1 << 14)
    size, value_size = f.integer("linear_key_head_dim", 1 << 14), f.integer("linear_value_head_dim", 1 << 14)
    if size != value_size:
        r.refuse(f"has keys of {size} and values of {value_size} numbers (linear_key_head_dim), which GGUF can't say")
    if values % keys:
        raise FormatError(f"{f.path}: field 'linear_num_value_heads' is {values}, no multiple of 'linear_num_key_heads', {keys}")
    sections = Fields(f.path, {"mrope_section": r.rope.values.get("mrope_section")}).get("mrope_section", list, [11, 11, 10])
    r.keys |= {
        "ssm.conv_kernel": f.integer("linear_conv_kernel_dim", 64, least=2), "ssm.state_size": size, "ssm.group_count": keys, "ssm.time_step_rank": values,
        "ssm.inner_size": values * value_size, "full_attention_interval": every, "rope.dimension_sections": np.array([*sections, 0][:4], np.int32),
        "attention.recurrent_layers": np.array([kind == LINEAR for kind in kinds])}
