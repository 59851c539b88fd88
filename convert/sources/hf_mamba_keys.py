"""What config.json says of Mamba-2 hybrids, as GGUF's keys (hf_keys.py has the table): Granite 4 H, Nemotron-H, Falcon-H1.

Source: transformers' configuration_*.py; keys are llama.cpp's."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.architectures.keys import MAX_EXPERTS, MAX_HEADS, MAX_WIDTH
from ...engine.errors import FormatError
from ...engine.gguf.header import quote
from .hf_rope import FULL

if TYPE_CHECKING:
    from .hf_keys import Reading

LINEAR, MLP, MOE = "linear_attention", "mlp", "moe"
_OLD_NAMES = {"mamba": LINEAR, "attention": FULL, "M": LINEAR, "*": FULL, "-": MLP, "E": MOE}


def _kinds(r: Reading, layers: list[Any], *known: str) -> list[str]:
    found = [_OLD_NAMES.get(kind, kind) if isinstance(kind, str) else kind for kind in layers]
    if other := [kind for kind in found if kind not in known]:
        r.refuse(f"asks for a feature that llamina lacks: layer_types holds {quote(other[0])}")
    return found


def _mamba(r: Reading, names: dict[str, str], size: int) -> None:
    """names: the class's own of heads, head_dim, state, groups, taps; size: of a head."""
    f = r.f
    heads = f.integer(names["heads"], MAX_HEADS)
    limit = f.values.get("time_step_limit")
    without = isinstance(limit, list) and len(limit) == 2 and limit[0] == 0 and limit[1] in (math.inf, {"__float__": "Infinity"})
    if limit is not None and not without:
        r.refuse(f"asks for a feature that llamina lacks: time_step_limit = {quote(limit)}, expected from 0 to infinity")
    r.keys |= {"ssm.conv_kernel": f.integer(names["taps"], 64, least=2), "ssm.inner_size": heads * size, "ssm.state_size": f.integer(names["state"], MAX_WIDTH),
               "ssm.time_step_rank": heads, "ssm.group_count": f.integer(names["groups"], MAX_HEADS)}


_USUAL = {"heads": "mamba_n_heads", "state": "mamba_d_state", "groups": "mamba_n_groups", "taps": "mamba_d_conv"}


def _size(r: Reading, inner: int) -> int:
    heads = r.f.integer("mamba_n_heads", MAX_HEADS)
    size = inner // heads if r.f.values.get("mamba_d_head", "auto") == "auto" else r.f.integer("mamba_d_head", MAX_WIDTH)
    if size * heads != inner:
        raise FormatError(f"{r.f.path}: fields 'mamba_n_heads' {heads} and 'mamba_d_head' {size} don't make the inner width, {inner}")
    return size


def _biased(r: Reading, key: str, layers: list[int], *tensors: str) -> None:
    if r.flag(key):
        r.tensors |= {f"blk.{i}.{tensor}.bias" for i in layers for tensor in tensors}


def granite_hybrid(r: Reading) -> None:
    f, names = r.f, {"attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
                     "logit_scale": "logits_scaling"}
    r.keys |= {ours: f.number(theirs) for ours, theirs in names.items()}
    kinds = _kinds(r, r.layers or [LINEAR] * r.n_layers, LINEAR, FULL)
    if FULL not in kinds:
        r.refuse("has no layer that attends (layer_types), which llamina needs of this architecture")
    _mamba(r, _USUAL, _size(r, f.integer("mamba_expand", 64) * r.dim))
    heads = r.keys_of_heads()
    r.keys |= {"attention.head_count_kv": np.array([heads if kind == FULL else 0 for kind in kinds], np.int32),
               "rope.scaling.finetuned": f.values.get("position_embedding_type") == "rope"}
    mamba, attention = ([i for i, kind in enumerate(kinds) if kind == which] for which in (LINEAR, FULL))
    _biased(r, "mamba_conv_bias", mamba, "ssm_conv1d")
    _biased(r, "mamba_proj_bias", mamba, "ssm_in", "ssm_out")
    _biased(r, "attention_bias", attention, "attn_q", "attn_k", "attn_v", "attn_output")
    shared = f.integer("shared_intermediate_size", MAX_WIDTH)
    if n := f.integer("num_local_experts", MAX_EXPERTS, 0, least=0):
        r.keys |= {"expert_count": n, "expert_used_count": f.integer("num_experts_per_tok", n), "expert_shared_feed_forward_length": shared}
    else:
        r.keys["feed_forward_length"] = shared


def nemotron_h(r: Reading) -> None:
    f = r.f
    r.activation("mlp_hidden_act", "relu2")
    r.activation("mamba_hidden_act", "silu")
    kinds = _kinds(r, nemotron_layers(f.values), LINEAR, FULL, MLP, MOE)
    if len(kinds) != r.n_layers or FULL not in kinds or not {MLP, MOE} & set(kinds) or {MLP, MOE} <= set(kinds):
        r.refuse(f"has layers ({quote(kinds)}) that GGUF can't say: one for each of num_hidden_layers, some that attend, some feed-forward, all "
                 "dense or all with experts")
    for key in "use_bias", "moe_latent_size":
        if f.values.get(key):
            r.refuse(f"asks for a feature that llamina lacks: {key} = {quote(f.values[key])}")
    _mamba(r, {"heads": "mamba_num_heads", "state": "ssm_state_size", "groups": "n_groups", "taps": "conv_kernel"}, f.integer("mamba_head_dim", MAX_WIDTH))
    which: dict[str, list[int]] = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in (LINEAR, FULL, MLP, MOE)}
    wide = f.integer("moe_intermediate_size" if MOE in kinds else "intermediate_size", MAX_WIDTH)
    r.keys |= {"attention.head_count_kv": np.array([r.keys_of_heads() if kind == FULL else 0 for kind in kinds], np.int32),
               "feed_forward_length": np.array([wide if kind in (MLP, MOE) else 0 for kind in kinds], np.int32),
               "rope.freq_base": None, "rope.dimension_count": None, "attention.layer_norm_epsilon": f.number("rms_norm_eps")}  # llama.cpp wants both
    if MOE in kinds:
        n = f.integer("n_routed_experts", MAX_EXPERTS)
        if f.integer("n_shared_experts", MAX_EXPERTS, 1, least=0) != 1:
            r.refuse(f"asks for a feature that llamina lacks: n_shared_experts = {quote(f.values['n_shared_experts'])}, expected 1")
        r.keys |= {"expert_count": n, "expert_used_count": f.integer("num_experts_per_tok", n), "expert_feed_forward_length": wide,
                   "expert_shared_feed_forward_length": f.integer("moe_shared_expert_intermediate_size", MAX_WIDTH), "expert_gating_func": 2,
                   "expert_weights_norm": r.flag("norm_topk_prob"), "expert_weights_scale": f.number("routed_scaling_factor"),
                   "expert_group_count": f.integer("n_group", n), "expert_group_used_count": f.integer("topk_group", n)}
        r.biases.append("exp_probs_b")
    _biased(r, "use_conv_bias", which[LINEAR], "ssm_conv1d")
    _biased(r, "mamba_proj_bias", which[LINEAR], "ssm_in", "ssm_out")
    _biased(r, "attention_bias", which[FULL], "attn_q", "attn_k", "attn_v", "attn_output")
    _biased(r, "mlp_bias", which[MLP], "ffn_up", "ffn_down")
    r.names = lambda name: name.replace("backbone.", "model.", 1) if name.startswith("backbone.") else name


def nemotron_layers(values: Mapping[str, Any]) -> list[Any]:
    """Kinds of its layers, as a list or as a text such as M-M*-."""
    found = values.get("layers_block_type") or values.get("hybrid_override_pattern") or [LINEAR, MOE, FULL, MLP]
    return list(found) if isinstance(found, (list, str)) else []


def falcon_h1(r: Reading) -> None:
    """The multipliers become part of the weights, as llama.cpp's converter has it."""
    f = r.f
    inner = f.integer("mamba_d_ssm", MAX_WIDTH, None)
    inner = f.integer("mamba_expand", 64) * r.dim if inner is None else inner
    _mamba(r, _USUAL, _size(r, inner))
    if r.flag("mamba_rms_norm"):
        if r.flag("mamba_norm_before_gate"):
            r.refuse("asks for a feature that llamina lacks: mamba_norm_before_gate = True")
        r.tensors |= {f"blk.{i}.ssm_norm.weight" for i in range(r.n_layers)}
    every = list(range(r.n_layers))
    _biased(r, "mamba_conv_bias", every, "ssm_conv1d")
    _biased(r, "attention_bias", every, "attn_q", "attn_k", "attn_v", "attn_output")
    _biased(r, "mlp_bias", every, "ffn_gate", "ffn_up", "ffn_down")
    for key in "mamba_proj_bias", "projectors_bias":
        if f.values.get(key):
            r.refuse(f"asks for a feature that llamina lacks: {key} = True")
    attention, result, keys = (f.number(f"{name}_multiplier") for name in ("attention_in", "attention_out", "key"))
    gate, down = _numbers(r, "mlp_multipliers", 2)
    groups = r.keys["ssm.group_count"] * r.keys["ssm.state_size"]
    rows = np.repeat(f.number("ssm_in_multiplier") * _numbers(r, "ssm_multipliers", 5), [inner, inner, groups, groups, r.keys["ssm.time_step_rank"]])
    output, embedding = f.number("lm_head_multiplier"), f.number("embedding_multiplier")
    if f.values.get("tie_word_embeddings") and output != embedding:
        r.refuse(f"ties an output of lm_head_multiplier {output:g} to an embedding of embedding_multiplier {embedding:g}, which GGUF can't say")
    r.factors |= {"token_embd.weight": embedding, "output.weight": output}
    for i in every:
        at = f"blk.{i}."
        factors = {"attn_q": attention, "attn_k": attention * keys, "attn_v": attention, "attn_output": result, "ssm_in": rows,
                   "ssm_out": f.number("ssm_out_multiplier"), "ffn_gate": gate, "ffn_down": down}
        r.factors |= {f"{at}{part}.weight": factor for part, factor in factors.items()}
        for part, factor in ("attn_k", keys), ("attn_output", result), ("ffn_gate", gate), ("ffn_down", down):
            r.factors[f"{at}{part}.bias"] = factor


def _numbers(r: Reading, key: str, n: int) -> np.ndarray:
    found = r.f.get(key, list, None) or [1.0] * n
    if len(found) != n or not all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e30 for x in found):
        raise FormatError(f"{r.f.path}: field '{key}' must be {n} numbers, found {quote(found)}")
    return np.array(found, np.float64)
