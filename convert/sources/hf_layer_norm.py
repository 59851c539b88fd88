"""What the LayerNorm families' config.json say beyond sizes and rotary positions, as GGUF's keys: GPT-2, GPT-NeoX, Phi 1 to 2, StarCoder 2, StableLM, Cohere.

Source: transformers' configuration_*.py; keys are llama.cpp's."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...engine.gguf.header import quote

if TYPE_CHECKING:
    from .hf_keys import Reading

ATTENTION, MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_up", "ffn_down")


def _norms(r: Reading, biases: bool = True) -> None:
    """LayerNorm's epsilon instead of RMSNorm's, and the biases that its norms have."""
    r.keys |= {"attention.layer_norm_epsilon": r.f.number("rms_norm_eps"), "attention.layer_norm_rms_epsilon": None}
    if biases:
        r.tensors |= {"output_norm.bias"}


def _activation(r: Reading, *known: str) -> None:
    r.activation("hidden_act", *known)


def _no_positions(r: Reading) -> None:
    r.keys |= {"rope.dimension_count": None, "rope.freq_base": None, "rope.scaling.type": None}


def _head_norms(r: Reading) -> None:
    """LayerNorms of each head's queries and keys."""
    r.tensors |= {f"blk.{i}.attn_{x}_norm.weight" for i in range(r.n_layers) for x in "qk"}


def gpt2(r: Reading) -> None:
    _norms(r)
    _activation(r, "gelu_new", "gelu_pytorch_tanh")
    for key, value in ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False):
        if (found := r.f.values.get(key, value)) is not value:
            r.refuse(f"asks for a feature that llamina lacks: {key} = {quote(found)}")
    _no_positions(r)
    r.fused = True
    r.biases += ["attn_norm", "ffn_norm", "attn_qkv", "attn_output", *MLP]
    r.unused[r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"] = "of causal masks"
    r.names = lambda name: name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"  # the first releases hold the bare model


def gpt_neox(r: Reading) -> None:
    _norms(r)
    _activation(r, "gelu")
    if not r.flag("attention_bias"):
        r.refuse("asks for a feature that llamina lacks: attention_bias = False; GPT-NeoX's matrices have biases")
    r.keys["use_parallel_residual"] = r.flag("use_parallel_residual")
    r.fused = True
    r.biases += ["attn_norm", "ffn_norm", "attn_qkv", "attn_output", *MLP]
    r.unused[r"gpt_neox\.layers\.\d+\.attention\.(masked_)?bias"] = "of causal masks"
    r.unused[r"gpt_neox\.layers\.\d+\.attention\.rotary_emb\.inv_freq"] = "of rotary frequencies"


def phi(r: Reading) -> None:
    _norms(r)
    _activation(r, "gelu_new", "gelu_pytorch_tanh")
    if r.flag("qk_layernorm"):
        r.refuse("asks for a feature that llamina lacks: qk_layernorm = True")
    r.tensors.add("output.bias")
    r.biases += ["attn_norm", *ATTENTION, *MLP]


def starcoder2(r: Reading) -> None:
    _norms(r)
    _activation(r, "gelu_pytorch_tanh", "gelu_new")
    r.biases += ["attn_norm", "ffn_norm"]
    r.biased("use_bias", *ATTENTION, *MLP)
    if (window := r.window()) is not None and window < r.context:
        r.keys["attention.sliding_window"] = window
        r.notes.append(f"sliding_window = {window}: queries see that many positions here, as in transformers; llama.cpp ignores the key in such files")


def stablelm(r: Reading) -> None:
    _norms(r)
    if r.flag("qk_layernorm"):
        _head_norms(r)
    parallel = r.flag("use_parallel_residual")
    r.keys["use_parallel_residual"] = parallel
    r.biases += ["attn_norm", *([] if parallel else ["ffn_norm"])]
    r.biased("use_qkv_bias", *ATTENTION[:3])


def cohere(r: Reading) -> None:
    _norms(r, False)
    if r.f.values.get("use_qk_norm"):
        _head_norms(r)
    r.biased("attention_bias", *ATTENTION)
    r.keys["logit_scale"] = r.f.number("logit_scale")


def cohere2(r: Reading) -> None:
    cohere(r)
    window, windowed = r.window(), r.kinds(lambda i: (i + 1) % 4 != 0)
    if window is None and any(windowed):
        r.refuse("field 'sliding_window' is null, but layer_types has windowed layers")
    r.keys["attention.sliding_window"] = window or 0
    if windowed != [(i + 1) % 4 != 0 for i in range(r.n_layers)]:
        r.keys["attention.sliding_window_pattern"] = np.array(windowed)
        r.notes.append("layer_types are not three windowed layers and a full one by turns: attention.sliding_window_pattern says so; "
                       "llama.cpp does not read it here")
