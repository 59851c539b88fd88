"""What each class's config.json says beyond sizes and rotary positions, as GGUF's keys: a small function for each, in `READERS`.

    hf_config.read_config -> Reading (sizes and rope read) -> READERS[model_type](reading): keys, biases, notes -> the page's ModelConfig

Keys are llama.cpp's. Where it has none and the model would be another without, it is ours (attention.scale of Gemma), and the pages read it; what neither can
say is refused by its field.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from ...engine.architectures.exaone4 import LARGE
from ...engine.architectures.gemma import LARGEST_2, LARGEST_3
from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from . import hf_expert_keys as expert
from . import hf_latent_keys as latent
from . import hf_layer_norm as layer_norm
from . import hf_mamba_keys as mamba
from . import hf_state_keys as states
from .base import Fields
from .hf_gemma4 import gemma4
from .hf_rope import FULL, WINDOWED, HfRope

ATTENTION, GLU = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")


@dataclass
class Reading:
    """A configuration being read. f: its fields, settled. context: the one asked for, else the trained one. rope: of full layers; windowed: of the others,
    where the class has several. layers: layer_types as given, or []. keys: below the architecture's name. biases: parts that have one."""

    f: Fields
    n_layers: int
    dim: int
    n_heads: int
    head_dim: int
    context: int
    layers: list[str]
    rope: HfRope
    windowed: HfRope
    keys: dict[str, Any] = field(default_factory=dict)
    biases: list[str] = field(default_factory=list)
    fused: bool = False
    names: Callable[[str], str | None] = str  # HfModel's
    tensors: set[str] = field(default_factory=set)  # optional ones that there are
    unused: dict[str, str] = field(default_factory=dict)  # pattern of names of tensors that change nothing -> what they are
    notes: list[str] = field(default_factory=list)
    given: Fields | None = None  # as they stand in the file
    factors: dict[str, Any] = field(default_factory=dict)  # HfModel's

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedError(f"{self.f.path}: {message}")

    def flag(self, key: str) -> bool:
        value: bool = self.f.get(key, bool, False)
        return value

    def keys_of_heads(self) -> int:
        """KV heads."""
        heads: int = self.f.integer("num_key_value_heads", 1 << 14, self.n_heads)
        return heads

    def biased(self, key: str, *parts: str) -> None:
        if self.flag(key):
            self.biases += parts

    def activation(self, key: str, *known: str) -> None:
        if (value := self.f.get(key, str, known[0])) not in known:
            self.refuse(f"asks for a feature that llamina lacks: {key} = {quote(value)}, expected {known[0]}")

    def window(self) -> int | None:
        """sliding_window, None if it is null."""
        window: int | None = self.f.integer("sliding_window", 1 << 40, None)
        return window

    def kinds(self, default: Callable[[int], bool]) -> list[bool]:
        """Which layers are windowed: by layer_types, else by the class's own rule."""
        if other := [kind for kind in self.layers if kind not in (FULL, WINDOWED)]:
            self.refuse(f"asks for a feature that llamina lacks: layer_types holds {quote(other[0])}")
        return [kind == WINDOWED for kind in self.layers] or [default(i) for i in range(self.n_layers)]

    def no_windows(self, windowed: list[bool]) -> None:
        """Of classes whose GGUF architecture can't say windows."""
        window = self.window()
        if window is not None and any(windowed) and window < self.context:
            self.refuse(f"needs sliding windows, which GGUF can't say of this architecture: sliding_window = {window} in {sum(windowed)} of {self.n_layers} "
                        f"layers; --context {window} converts it for texts of {window} positions, within which the model is the same")


def plain(r: Reading) -> None:
    r.biased("attention_bias", *ATTENTION)
    r.biased("mlp_bias", *GLU)


def mistral(r: Reading) -> None:
    window = r.window()
    if window is not None and window < r.context:
        said = "" if r.given and "sliding_window" in r.given.values else " (the field is absent, which means that)"
        r.keys["attention.sliding_window"] = window
        r.notes.append(f"sliding_window = {window}{said}: queries see that many positions here, as in transformers; llama.cpp ignores the key in such files")


def qwen2(r: Reading) -> None:
    r.biases += ATTENTION[:3]
    _qwen(r)


def qwen3(r: Reading) -> None:
    r.biased("attention_bias", *ATTENTION)
    _qwen(r)


def _qwen(r: Reading) -> None:
    used, last = r.flag("use_sliding_window") and r.window() is not None, r.f.integer("max_window_layers", 1 << 20, least=0)
    windowed = r.kinds(lambda i: used and i >= last)
    if used:
        r.no_windows(windowed)
    elif any(windowed):
        r.refuse("field 'layer_types' has windowed layers, but use_sliding_window is false")


def smollm3(r: Reading) -> None:
    plain(r)
    every = r.f.integer("no_rope_layer_interval", 1 << 20)
    turned = r.f.get("no_rope_layers", list, [int((i + 1) % every != 0) for i in range(r.n_layers)])  # 1: has positions
    if [bool(x) for x in turned] != [(i + 1) % 4 != 0 for i in range(r.n_layers)]:
        r.refuse(f"has positions in layers {quote(turned)} (no_rope_layers); GGUF can say only that every fourth layer has none")
    used = r.flag("use_sliding_window") and r.window() is not None
    r.no_windows(r.kinds(lambda i: used and not turned[i]))


def seed_oss(r: Reading) -> None:
    if not r.flag("attention_bias"):
        r.refuse("asks for a feature that llamina lacks: attention_bias = False; Seed-OSS's queries, keys and values have biases")
    r.biases += ATTENTION[:3]
    r.biased("attention_out_bias", ATTENTION[3])
    r.biased("mlp_bias", *GLU)


def arcee(r: Reading) -> None:
    r.activation("hidden_act", "relu2")
    r.biased("attention_bias", *ATTENTION)
    r.biased("mlp_bias", "ffn_up", "ffn_down")


def ernie(r: Reading) -> None:
    r.biased("use_bias", *ATTENTION, *GLU)


def gemma(r: Reading) -> None:
    """The first releases said "gelu" and meant its tanh form, as transformers' class did."""
    r.activation("hidden_activation" if r.f.values.get("hidden_activation") else "hidden_act", "gelu_pytorch_tanh", "gelu")
    r.biased("attention_bias", *ATTENTION)
    _causal(r)


def _causal(r: Reading) -> None:
    if r.flag("use_bidirectional_attention"):
        r.refuse("asks for a feature that llamina lacks: use_bidirectional_attention = True")


def _later_gemma(r: Reading, pattern: int, every: int, largest: int) -> None:
    """pattern: GGUF's own; every: the class's rule where layer_types is absent."""
    r.activation("hidden_activation", "gelu_pytorch_tanh")
    r.biased("attention_bias", *ATTENTION)
    scalar = r.f.number("query_pre_attn_scalar")
    if scalar != (r.dim // r.n_heads if r.n_layers == largest else r.head_dim):
        r.keys["attention.scale"] = scalar**-0.5
        r.notes.append(f"query_pre_attn_scalar = {scalar:g} is not what the sizes imply: attention.scale says so; llama.cpp does not read that of Gemma")
    window = r.window()
    windowed = r.kinds(lambda i: every > 0 and (i + 1) % every != 0)
    r.keys["attention.sliding_window"] = window or 0
    if window is None and any(windowed):
        r.refuse("field 'sliding_window' is null, but layer_types has windowed layers")
    if windowed != [(i + 1) % pattern != 0 for i in range(r.n_layers)]:
        r.keys["attention.sliding_window_pattern"] = np.array(windowed)


def gemma2(r: Reading) -> None:
    _causal(r)
    _later_gemma(r, 2, 2, LARGEST_2)
    for key in "attn_logit_softcapping", "final_logit_softcapping":
        r.keys[key] = r.f.number(key, None) or 0.0
        if not r.keys[key]:
            r.notes.append(f"{key} = null: written as 0, which means none here; llama.cpp always caps Gemma 2, and divides by it")


def gemma3(r: Reading) -> None:
    if r.f.values.get("attn_logit_softcapping") is not None:
        r.refuse(f"asks for a feature that llamina lacks: attn_logit_softcapping = {quote(r.f.values['attn_logit_softcapping'])}")
    _later_gemma(r, 6, r.f.integer("sliding_window_pattern", 1 << 20, 6), LARGEST_3)
    if (cap := r.f.number("final_logit_softcapping", None)) is not None:
        r.keys["final_logit_softcapping"] = cap
    r.keys["rope.freq_base_swa"] = _unscaled(r)
    if r.flag("use_bidirectional_attention"):
        r.keys["attention.causal"] = False


def _unscaled(r: Reading) -> float:
    """The base of windowed layers, which GGUF's architectures know unscaled only."""
    if r.windowed.scaling.kind != "none" or r.windowed.tensors or r.windowed.scaling.attn_factor != 1:
        kind = quote(r.windowed.values.get("rope_type"))
        r.refuse(f"scales rotary positions of windowed layers by {kind} (rope_parameters.{WINDOWED}), which GGUF can't say")
    return r.windowed.base


def phi3(r: Reading) -> None:
    r.fused = True
    window = r.window()
    r.keys["attention.sliding_window"] = window if window is not None and window < r.context else 0
    if r.keys["attention.sliding_window"]:
        r.notes.append(f"sliding_window = {window}: queries see that many positions here, as in transformers; llama.cpp does not apply it")
    r.keys["rope.scaling.original_context_length"] = r.f.integer("original_max_position_embeddings", 1 << 24)


def granite(r: Reading) -> None:
    plain(r)
    names = {"attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
             "logit_scale": "logits_scaling"}
    r.keys |= {ours: r.f.number(theirs) for ours, theirs in names.items()}


def minicpm(r: Reading) -> None:
    """modeling_minicpm.py: embeddings times scale_emb, sublayers times scale_depth / sqrt(layers), the last rows divided by width / dim_model_base."""
    r.biased("attention_bias", *ATTENTION)
    r.keys |= {"embedding_scale": r.f.number("scale_emb"), "residual_scale": r.f.number("scale_depth") / math.sqrt(r.n_layers),
               "logit_scale": r.dim / r.f.number("dim_model_base")}


def ministral3(r: Reading) -> None:
    if (window := r.window()) is not None and window < r.context:
        r.refuse(f"needs sliding windows, which GGUF can't say of this architecture: sliding_window = {window}; --context {window} converts it for such texts")
    if (beta := r.rope.values.get("llama_4_scaling_beta")) is not None:
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < 1e6:
            raise FormatError(f"{r.f.path}: field 'rope_parameters.llama_4_scaling_beta' must be a number, found {quote(beta)}")
        if beta and r.rope.scaling.kind != "yarn":
            r.refuse("lets queries grow with their position (llama_4_scaling_beta), but does not scale positions by yarn, whose original context that needs")
        r.keys["attention.temperature_scale"] = float(beta)


def olmo2(r: Reading) -> None:
    r.biased("attention_bias", *ATTENTION)


def olmo3(r: Reading) -> None:
    olmo2(r)
    window, windowed = r.window(), r.kinds(lambda i: (i + 1) % 4 != 0)
    if window is None and any(windowed):
        r.refuse("field 'sliding_window' is null, but layer_types has windowed layers")
    r.keys |= {"attention.sliding_window": window or 0, "attention.sliding_window_pattern": np.array(windowed), "rope.freq_base_swa": _unscaled(r)}


def exaone4(r: Reading) -> None:
    """Where there are windows, layers without have no positions, however long the window is."""
    window = r.window()
    if window is None:
        if any(r.kinds(lambda i: False)):
            r.refuse("field 'sliding_window' is null, but layer_types has windowed layers")
        if r.n_layers == LARGE:  # whose windows a file need not say
            r.keys["attention.sliding_window"] = 0
        return
    pattern = _pattern(r)
    windowed = r.kinds(lambda i: pattern[i % len(pattern)])
    if not any(windowed):
        r.refuse("has a sliding_window, but no layer that is windowed: then none has positions, which GGUF can't say")
    r.keys |= {"attention.sliding_window": window, "attention.sliding_window_pattern": np.array(windowed)}


def _pattern(r: Reading) -> list[bool]:
    """sliding_window_pattern: 4 for three windowed layers and a full one, or a text such as LLLG."""
    every = r.f.values.get("sliding_window_pattern")
    if isinstance(every, str) and every and not set(every) - {"L", "G"}:
        return [c == "L" for c in every]
    if type(every) is int and 0 < every <= 1 << 20:
        return [(i + 1) % every != 0 for i in range(every)]
    if r.layers:
        return []
    raise FormatError(f"{r.f.path}: field 'sliding_window_pattern' must be a number or a text such as LLLG, found {quote(every)}")


def glm4(r: Reading) -> None:
    r.biased("attention_bias", *ATTENTION[:3])


def mixtral(r: Reading) -> None:
    mistral(r)
    expert.experts(r, "num_local_experts")


def qwen2_moe(r: Reading) -> None:
    if r.flag("qkv_bias"):
        r.biases += ATTENTION[:3]
    _qwen(r)
    expert.qwen_moe(r, False)
    expert.shared(r, "shared_expert_intermediate_size")


def qwen3_moe(r: Reading) -> None:
    r.biased("attention_bias", *ATTENTION)
    if r.flag("use_sliding_window") and r.window() is not None:
        r.no_windows([True] * r.n_layers)
    expert.qwen_moe(r, True)


def olmoe(r: Reading) -> None:
    olmo2(r)
    if (clip := r.f.values.get("clip_qkv")) is not None:
        r.refuse(f"asks for a feature that llamina lacks: clip_qkv = {quote(clip)}")
    expert.experts(r, "num_experts")
    expert.normed(r, False)


def granite_moe(r: Reading) -> None:
    granite(r)
    expert.experts(r, "num_local_experts")
    expert.shared(r, "shared_intermediate_size")


def gpt_oss(r: Reading) -> None:
    if not r.flag("attention_bias"):
        r.refuse("has no biases of attention (attention_bias), which gpt-oss's files must have")
    expert.experts(r, "num_local_experts", "intermediate_size")
    expert.windows(r)
    expert.same(r, "swiglu_alpha", 1.702)
    expert.same(r, "swiglu_limit", 7.0)
    r.biases += [*ATTENTION, "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]


def lfm2_moe(r: Reading) -> None:
    states.convolutions(r)
    expert.experts(r, "num_experts", "moe_intermediate_size")
    expert.normed(r, True)
    r.keys |= {"leading_dense_block_count": r.f.integer("num_dense_layers", r.n_layers, least=0), "expert_gating_func": 2}
    if (scale := r.f.number("routed_scaling_factor")) != 1:
        r.keys["expert_weights_scale"] = scale
    if r.flag("use_expert_bias"):
        r.biases.append("exp_probs_b")


def qwen3_5_moe(r: Reading) -> None:
    states.qwen3_5(r)
    expert.experts(r, "num_experts", "moe_intermediate_size")
    expert.shared(r, "shared_expert_intermediate_size")


def qwen3_next(r: Reading) -> None:
    qwen3_5_moe(r)
    expert.normed(r, True)
    expert.every_layer(r)
    r.keys["rope.dimension_sections"] = None


def nothing(r: Reading) -> None:
    """Sizes and rope say it all."""


READERS: dict[str, Callable[[Reading], None]] = {
    "llama": plain, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "smollm3": smollm3, "seed_oss": seed_oss, "arcee": arcee, "hunyuan_v1_dense": olmo2,
    "ernie4_5": ernie, "gemma": gemma, "gemma2": gemma2, "gemma3_text": gemma3, "phi3": phi3, "granite": granite, "ministral3": ministral3, "olmo2": olmo2,
    "olmo3": olmo3, "exaone4": exaone4, "glm4": glm4, "exaone": nothing, "minicpm": minicpm,
    "mixtral": mixtral, "qwen2_moe": qwen2_moe, "qwen3_moe": qwen3_moe, "olmoe": olmoe, "granitemoe": granite_moe, "granitemoeshared": granite_moe,
    "gpt2": layer_norm.gpt2, "gpt_neox": layer_norm.gpt_neox, "phi": layer_norm.phi, "starcoder2": layer_norm.starcoder2,
    "stablelm": layer_norm.stablelm, "cohere": layer_norm.cohere, "cohere2": layer_norm.cohere2,
    "gpt_oss": gpt_oss, "gemma4_text": gemma4, "gemma4_unified_text": gemma4,
    "lfm2": states.lfm2, "qwen3_5_text": states.qwen3_5, "lfm2_moe": lfm2_moe, "qwen3_5_moe_text": qwen3_5_moe, "qwen3_next": qwen3_next,
    "granitemoehybrid": mamba.granite_hybrid, "nemotron_h": mamba.nemotron_h, "falcon_h1": mamba.falcon_h1,
    "deepseek_v2": latent.deepseek_v2, "glm4_moe_lite": latent.glm4_moe_lite,
}
BASES = {"cohere": 5e5, "lfm2": 1e6, "lfm2_moe": 1e6, "smollm3": 2e6, "ernie4_5": 5e5, "gemma3_text": 1e6, "olmo3": 5e5, "mixtral": 1e6, "gpt_oss": 150000.0}
"""rope_theta where nothing says it; 10000 for the others."""
BY_KIND = {"gemma3_text": 1e4, "gemma4_text": 1e4, "gemma4_unified_text": 1e4, "olmo3": 5e5}
"""Classes whose windowed layers have rotary positions of their own, and their base where nothing says it."""
PARTIAL = {"gpt_neox": 0.25, "phi": 0.5, "stablelm": 0.25, "phi3": 1.0, "glm4": 0.5, "qwen3_5_text": 0.25, "qwen3_5_moe_text": 0.25,
           "qwen3_next": 0.25}
"""Classes that turn a part of each head only, and which where nothing says it."""
