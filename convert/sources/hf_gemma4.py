"""Gemma 4's config.json as GGUF's keys: full layers have heads of their own (global_head_dim, num_global_key_value_heads, or per_layer_config), the last layers
share others' keys, the E models have per-layer embeddings. Source: transformers' configuration_gemma4.py and llama.cpp's keys."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.architectures.keys import MAX_EXPERTS, MAX_HEADS, MAX_WIDTH
from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from .base import Fields
from .hf_rope import FULL, HfRope

if TYPE_CHECKING:
    from .hf_keys import Reading

_NOT_TURNED = 1e30
"""llama.cpp's divisor of the frequencies of pairs that are not turned."""


def proportional(f: Fields, values: Mapping[str, Any], head_dim: int) -> HfRope:
    """Full layers' positions: the first pairs of a share are turned by the frequencies of the whole head (modeling_rope_utils.py)."""
    where = f"rope_parameters.{FULL}"
    rope = Fields(f.path, {f"{where}.{key}": value for key, value in values.items()})
    base = rope.number(f"{where}.rope_theta", 1e6)
    if base <= 1:
        raise FormatError(f"{f.path}: field '{where}.rope_theta' must be greater than 1, found {base}")
    kind, factor = values.get("rope_type", "proportional"), rope.number(f"{where}.factor", 1.0)
    share = rope.number(f"{where}.partial_rotary_factor", None)
    if kind not in ("proportional", "default") or factor != 1:
        raise UnsupportedError(f"{f.path}: scales rotary positions of full layers by {quote(kind)} with factor {factor:g} ({where}); llamina knows "
                               "proportional, unscaled, here")
    share = (0.25 if not values else 1.0) if share is None or kind == "default" else share
    turned = int(share * head_dim // 2)
    if not 0 <= turned <= head_dim // 2:
        raise FormatError(f"{f.path}: field '{where}.partial_rotary_factor' must be from 0 to 1, found {share:g}")
    factors = np.where(np.arange(head_dim // 2) < turned, 1.0, _NOT_TURNED).astype(np.float32)
    return HfRope(base, head_dim, tensors={"rope_freqs.weight": factors}, values=values)


def full_layers(f: Fields, layers: list[str]) -> tuple[int, int | None]:
    """(head_dim, KV heads or None for the others' number) of layers that see everything."""
    given = f.get("per_layer_config", Mapping, None)  # type: ignore[type-abstract]
    if given is None:
        heads = f.integer("num_global_key_value_heads", MAX_HEADS, None) if f.get("attention_k_eq_v", bool, False) else None
        return f.integer("global_head_dim", MAX_WIDTH, 512), heads
    full = {str(i) for i, kind in enumerate(layers) if kind == FULL}
    values = [value for key, value in given.items() if str(key) in full]
    if set(map(str, given)) - full or len(values) not in (0, len(full)) or any(value != values[0] for value in values) \
            or any(set(value) - {"head_dim", "num_key_value_heads"} for value in values if isinstance(value, Mapping)):
        raise UnsupportedError(f"{f.path}: field 'per_layer_config' is {quote(given)}: llamina knows one head_dim and num_key_value_heads for all full layers")
    own = Fields(f.path, {f"per_layer_config.{key}": value for key, value in (values[0] if values else {}).items()})
    return (own.integer("per_layer_config.head_dim", MAX_WIDTH, f.integer("head_dim", MAX_WIDTH)),
            own.integer("per_layer_config.num_key_value_heads", MAX_HEADS, None))


def kinds(f: Fields, layers: list[str], n_layers: int) -> list[str]:
    """layer_types as the class settles them: five windowed ones and a full one by turns, the last one always full."""
    found = list(layers) or ["sliding_attention" if (i + 1) % 6 else FULL for i in range(n_layers)]
    return [*found[:-1], FULL]


def gemma4(r: Reading) -> None:
    f, n = r.f, r.n_layers
    r.activation("hidden_activation", "gelu_pytorch_tanh")
    if r.flag("attention_bias"):
        r.refuse("asks for a feature that llamina lacks: attention_bias = True")
    if f.values.get("use_bidirectional_attention") not in (None, "vision"):  # "vision": between the parts of a picture, and text has none
        r.refuse(f"asks for a feature that llamina lacks: use_bidirectional_attention = {quote(f.values['use_bidirectional_attention'])}")
    if f.values.get("enable_moe_block"):
        experts = f.integer("num_experts", MAX_EXPERTS)
        r.keys |= {"expert_count": experts, "expert_used_count": f.integer("top_k_experts", experts),
                   "expert_feed_forward_length": f.integer("moe_intermediate_size", MAX_WIDTH)}
    r.layers = kinds(f, r.layers, n)
    windowed = r.kinds(lambda i: False)
    size, kv_heads = full_layers(f, r.layers)
    own_heads = f.integer("num_key_value_heads", MAX_HEADS)
    shared = f.integer("num_kv_shared_layers", n - 1, least=0)
    for i in range(n - shared):
        if windowed[i] or not r.flag("attention_k_eq_v"):
            r.tensors.add(f"blk.{i}.attn_v.weight")
    r.tensors |= {f"blk.{i}.layer_output_scale.weight" for i in range(n)}
    width = f.integer("hidden_size_per_layer_input", MAX_WIDTH, 0, least=0) if "hidden_size_per_layer_input" in f.values else 0
    rows, vocab = f.integer("vocab_size_per_layer_input", 1 << 30, 0, least=0) if width else 0, f.integer("vocab_size", 1 << 30)
    if width and rows != vocab:
        r.refuse(f"field 'vocab_size_per_layer_input' is {rows}, but 'vocab_size' {vocab}: llamina needs them equal")
    wide = f.integer("intermediate_size", MAX_WIDTH)
    double = r.flag("use_double_wide_mlp") and shared > 0
    r.keys |= {
        "attention.key_length": size, "attention.value_length": size, "attention.key_length_swa": r.head_dim, "attention.value_length_swa": r.head_dim,
        "rope.dimension_count": size, "rope.dimension_count_swa": r.windowed.dims, "rope.freq_base_swa": r.windowed.base,
        "attention.head_count_kv": own_heads if kv_heads is None else np.array([own_heads if w else kv_heads for w in windowed], np.int32),
        "attention.sliding_window": f.integer("sliding_window", 1 << 40), "attention.sliding_window_pattern": np.array(windowed),
        "attention.shared_kv_layers": shared, "embedding_length_per_layer_input": width,
    }
    if double:
        r.keys["feed_forward_length"] = np.array([wide * (1 if i < n - shared else 2) for i in range(n)], np.int32)
    r.keys["final_logit_softcapping"] = f.number("final_logit_softcapping", None) or 0.0  # 0: none; where the key is absent llama.cpp caps at 30
    if shared:
        r.unused[rf"model\.layers\.({'|'.join(str(i) for i in range(n - shared, n))})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight"] = \
            "of layers that read another's keys and values"
