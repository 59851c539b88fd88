"""What classes with experts say beyond others: the same kind of readers as hf_keys.py, which lists them."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.gguf.header import quote

if TYPE_CHECKING:
    from .hf_keys import Reading

MOST = 1 << 12


def experts(r: Reading, count: str, width: str | None = None) -> None:
    """count: the field that says how many there are; width: of an expert, where it is not intermediate_size."""
    n = r.f.integer(count, MOST)
    r.keys |= {"expert_count": n, "expert_used_count": r.f.integer("num_experts_per_tok", n)}
    if width:
        r.keys["expert_feed_forward_length"] = r.f.integer(width, 1 << 20)


def normed(r: Reading, default: bool) -> None:
    """norm_topk_prob, said in the file only where it is not what its architecture means without."""
    if (value := r.flag("norm_topk_prob")) != default:
        r.keys["expert_weights_norm"] = value
        r.notes.append(f"norm_topk_prob = {str(value).lower()}: weights of experts are {'' if value else 'not '}normed here, as in transformers; "
                       "llama.cpp does not read the key in such files")


def every_layer(r: Reading) -> None:
    dense = r.f.get("mlp_only_layers", list, []) or []
    if dense or r.f.integer("decoder_sparse_step", 1 << 20) != 1:
        r.refuse(f"has layers without experts, which GGUF can't say of this architecture: mlp_only_layers = {quote(dense)}, decoder_sparse_step = "
                 f"{quote(r.f.values.get('decoder_sparse_step'))}")


def shared(r: Reading, field: str) -> None:
    if width := r.f.integer(field, 1 << 20, 0, least=0):
        r.keys["expert_shared_feed_forward_length"] = width


def qwen_moe(r: Reading, default: bool) -> None:
    experts(r, "num_experts", "moe_intermediate_size")
    normed(r, default)
    every_layer(r)


def windows(r: Reading) -> None:
    """gpt-oss: the first of two layers is windowed, unless layer_types says otherwise."""
    window, usual = r.window(), [i % 2 == 0 for i in range(r.n_layers)]
    windowed = r.kinds(lambda i: usual[i])
    if window is None and any(windowed):
        r.refuse("field 'sliding_window' is null, but layer_types has windowed layers")
    r.keys["attention.sliding_window"] = window or 0
    if windowed != usual:
        r.keys["attention.sliding_window_pattern"] = np.array(windowed)


def same(r: Reading, field: str, expected: Any) -> None:
    """A number that is part of the architecture."""
    if (value := r.f.values.get(field, expected)) != expected:
        r.refuse(f"asks for a feature that llamina lacks: {field} = {quote(value)}, expected {expected}")
