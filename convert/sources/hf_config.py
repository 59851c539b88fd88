"""config.json of a Llama or Mistral model -> ModelConfig, and Llama 3's RoPE factors. What llamina would not compute is refused by its field's name.

Source: transformers' configuration_llama.py, modeling_rope_utils.py.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from ...engine.architectures.config import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, ModelConfig, RopeScaling, llama_config
from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from .base import Fields

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "LLaMAForCausalLM")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1, 1.0), "num_local_experts": (0, 1),
    "num_experts": (0, 1), "n_routed_experts": (0,), "use_qk_norm": (False,), "qk_norm": (False,), "attn_logit_softcapping": (), "final_logit_softcapping": (),
    "embedding_multiplier": (1, 1.0), "residual_multiplier": (1, 1.0), "attention_multiplier": (), "logits_scaling": (1, 1.0), "logit_scale": (1, 1.0),
    "clip_qkv": (), "no_rope_layers": ([],), "use_bias": (False,), "bias": (False,), "is_decoder": (True, False), "add_cross_attention": (False,),
    "cross_attention_layers": ([],), "is_encoder_decoder": (False,), "position_embedding_type": ("rope", "rotary"), "alibi": (False,), "mup": (False,),
    "scale_attn_weights": (True,), "use_parallel_residual": (False,), "parallel_attn": (False,),
    "num_nextn_predict_layers": (0,), "tie_encoder_decoder": (False,),
}
"""Fields of features that llamina lacks -> the values that turn them off (null and absence do too)."""


def read_config(fields: Fields, name: str) -> tuple[ModelConfig, np.ndarray | None]:
    """The configuration, and Llama 3's frequency factors, float32 [head_dim / 2], or None.
    FormatError: a field is missing or impossible. UnsupportedError: an architecture or a feature that llamina lacks."""
    return _Config(fields, name).read()


class _Config:
    def __init__(self, fields: Fields, name: str) -> None:
        self.fields, self.name = fields, name

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedError(f"{self.fields.path}: {message}")

    def read(self) -> tuple[ModelConfig, np.ndarray | None]:
        f = self.fields
        self.check_kind()
        dim, n_heads = f.integer("hidden_size", MAX_WIDTH), f.integer("num_attention_heads", MAX_HEADS)
        n_kv_heads = f.integer("num_key_value_heads", MAX_HEADS, n_heads)
        if n_heads % n_kv_heads:
            raise FormatError(f"{f.path}: field 'num_attention_heads' is {n_heads}, no multiple of 'num_key_value_heads', {n_kv_heads}")
        head_dim = f.integer("head_dim", MAX_WIDTH, None)
        if head_dim is None:
            if dim % n_heads:
                raise FormatError(f"{f.path}: field 'hidden_size' is {dim}, no multiple of 'num_attention_heads', {n_heads}")
            head_dim = dim // n_heads
        if head_dim % 2:
            self.refuse(f"heads have {head_dim} dimensions; rotary positions turn pairs")
        context = f.integer("max_position_embeddings", MAX_CONTEXT, 2048)
        self.check_window(context)
        scaling, base, factors = self.rope(context, head_dim)
        tied = f.get("tie_word_embeddings", bool, False)
        return llama_config(
            name=self.name, n_layers=f.integer("num_hidden_layers", MAX_LAYERS), dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
            ffn_dim=f.integer("intermediate_size", MAX_WIDTH), n_vocab=f.integer("vocab_size", 1 << 30), context_length=context,
            rms_eps=f.number("rms_norm_eps", 1e-6), rope_dim=head_dim, rope_base=base, rope_scaling=scaling, rope_freq_factors=factors is not None,
            tied_output=tied), factors

    def check_kind(self) -> None:
        f = self.fields
        names = f.get("architectures", list, [])
        kind = f.get("model_type", str, "llama")
        if names and (len(names) != 1 or names[0] not in ARCHITECTURES) or not names and kind not in ("llama", "mistral"):
            self.refuse(f"is of architecture {quote(names[0] if names else kind)}; llamina converts {ARCHITECTURES[0]} and {ARCHITECTURES[1]} only")
        for key, off in _NEUTRAL.items():
            value = f.values.get(key)
            if value is not None and value not in off:
                self.refuse(f"asks for a feature that llamina lacks: {key} = {quote(value)}")
        layers = f.get("layer_types", list, [])
        if other := [kind for kind in layers if kind != "full_attention"]:
            self.refuse(f"asks for a feature that llamina lacks: layer_types holds {quote(other[0])}")

    def check_window(self, context: int) -> None:
        f = self.fields
        window = f.integer("sliding_window", 1 << 40, None)
        if window is not None and window < context and f.values.get("use_sliding_window") is not False:
            self.refuse(f"needs sliding windows, which llamina lacks: sliding_window = {window} of max_position_embeddings = {context}; "
                        f"with both set to {window}, the model is the same within {window} positions")

    def rope(self, context: int, head_dim: int) -> tuple[RopeScaling, float, np.ndarray | None]:
        f = self.fields
        values: dict[str, Any] = {**f.get("rope_scaling", Mapping, {}), **f.get("rope_parameters", Mapping, {})}  # type: ignore[type-abstract]
        rope = Fields(f.path, {f"rope_scaling.{key}": value for key, value in values.items()})
        base = rope.number("rope_scaling.rope_theta", f.number("rope_theta", 10000.0))
        if base <= 1:
            raise FormatError(f"{f.path}: field 'rope_theta' must be greater than 1, found {base}")
        if values.get("partial_rotary_factor") not in (None, 1, 1.0):
            self.refuse(f"asks for a feature that llamina lacks: partial_rotary_factor = {quote(values['partial_rotary_factor'])}")
        kind = values.get("rope_type", values.get("type", "default"))
        if kind == "mrope" or not isinstance(kind, str) or kind not in ("default", "linear", "llama3", "yarn"):
            self.refuse(f"scales rotary positions by {quote(kind)} (rope_scaling); llamina knows linear, llama3 and yarn")
        if kind == "default":
            return RopeScaling(), base, None
        factor = rope.number("rope_scaling.factor")
        if kind == "linear":
            return (RopeScaling("linear", factor) if factor != 1 else RopeScaling()), base, None
        original = rope.integer("rope_scaling.original_max_position_embeddings", MAX_CONTEXT, context)
        if kind == "llama3":
            low, high = rope.number("rope_scaling.low_freq_factor", 1.0), rope.number("rope_scaling.high_freq_factor", 4.0)
            return RopeScaling(), base, llama3_factors(head_dim, base, factor, low, high, original)
        if values.get("truncate") is False:
            self.refuse("asks for a feature that llamina lacks: rope_scaling.truncate = False")
        if factor < 1:
            raise FormatError(f"{f.path}: field 'rope_scaling.factor' must be at least 1 for yarn, found {factor}")
        # GGUF's attention factor is a multiple of yarn's own, 1 + 0.1 ln(factor); transformers' replaces it
        attention = rope.number("rope_scaling.attention_factor", None)
        if attention is None:
            mscale, all_dim = rope.number("rope_scaling.mscale", None), rope.number("rope_scaling.mscale_all_dim", None)
            both = mscale is not None and all_dim is not None
            attention = _mscale(factor, mscale) / _mscale(factor, all_dim) if both else _mscale(factor, 1.0)
        beta_fast, beta_slow = rope.number("rope_scaling.beta_fast", 32.0), rope.number("rope_scaling.beta_slow", 1.0)
        relative = attention / _mscale(factor, 1.0)
        relative = 1.0 if math.isclose(relative, 1.0, rel_tol=1e-7) else relative
        if factor == 1:
            return RopeScaling(attn_factor=relative), base, None
        return RopeScaling("yarn", factor, original, relative, beta_fast, beta_slow), base, None


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1


def llama3_factors(head_dim: int, base: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """What Llama 3.1 divides its rotary frequencies by, float32 [head_dim / 2]: 1 for short wavelengths (less than original / high positions), `factor`
    for long ones (more than original / low), and in between so that the frequency is interpolated linearly in original / wavelength.
    Source: meta-llama/llama-models, models/llama3/reference_impl/model.py, apply_scaling; llama.cpp stores it as rope_freqs.weight."""
    frequency = base ** (-np.arange(0, head_dim, 2) / head_dim)
    wavelength = 2 * np.pi / frequency
    if high <= low:
        raise FormatError(f"rope_scaling.high_freq_factor is {high}, expected more than low_freq_factor, {low}")
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
