"""config.json of a Llama or Mistral model -> ModelConfig, and Llama 3's RoPE factors. What llamina would not compute is refused by its field's name
(hf_fields.py says which field means what, absent or not).

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
from .hf_fields import class_of, settled


def read_config(fields: Fields, name: str, context: int | None = None) -> tuple[ModelConfig, np.ndarray | None, list[str]]:
    """The configuration, Llama 3's frequency factors, float32 [head_dim / 2], or None, and remarks.

    context: instead of the trained one; a model with sliding windows is the same without them within one window.
    FormatError: a field is missing or impossible. UnsupportedError: an architecture or a feature that llamina lacks."""
    return _Config(fields, name, context).read()


class _Config:
    def __init__(self, fields: Fields, name: str, context: int | None) -> None:
        self.cls, remark = class_of(fields)
        self.given = fields
        self.fields, self.name, self.context = settled(fields, self.cls), name, context
        self.notes = [remark] if remark else []

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedError(f"{self.fields.path}: {message}")

    def read(self) -> tuple[ModelConfig, np.ndarray | None, list[str]]:
        f = self.fields
        dim, n_heads = f.integer("hidden_size", MAX_WIDTH), f.integer("num_attention_heads", MAX_HEADS)
        n_kv_heads = f.integer("num_key_value_heads", MAX_HEADS, n_heads)
        n_layers = f.integer("num_hidden_layers", MAX_LAYERS)
        if n_heads % n_kv_heads:
            raise FormatError(f"{f.path}: field 'num_attention_heads' is {n_heads}, no multiple of 'num_key_value_heads', {n_kv_heads}")
        head_dim = f.integer("head_dim", MAX_WIDTH, None)
        if head_dim is None:
            if dim % n_heads:
                raise FormatError(f"{f.path}: field 'hidden_size' is {dim}, no multiple of 'num_attention_heads', {n_heads}")
            head_dim = dim // n_heads
        if head_dim % 2:
            self.refuse(f"heads have {head_dim} dimensions; rotary positions turn pairs")
        trained = f.integer("max_position_embeddings", MAX_CONTEXT)
        layers = self.layers(n_layers)
        self.check_window(trained)
        if f.get("auto_map", Mapping, {}):  # type: ignore[type-abstract]
            self.notes.append(f"config.json names code of its own (auto_map), which llamina does not run: read as {self.cls.architectures[0]}")
        scaling, base, factors = self.rope(trained, head_dim, layers)
        return llama_config(
            name=self.name, n_layers=n_layers, dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
            ffn_dim=f.integer("intermediate_size", MAX_WIDTH), n_vocab=f.integer("vocab_size", 1 << 30), context_length=trained,
            rms_eps=f.number("rms_norm_eps"), rope_dim=head_dim, rope_base=base, rope_scaling=scaling, rope_freq_factors=factors is not None,
            tied_output=f.get("tie_word_embeddings", bool)), factors, self.notes

    def layers(self, n_layers: int) -> list[str]:
        """layer_types, which must be full attention everywhere; [] if the file does not say."""
        layers = self.fields.get("layer_types", list, [])
        if layers and len(layers) != n_layers:
            raise FormatError(f"{self.fields.path}: field 'layer_types' has {len(layers)} entries, 'num_hidden_layers' is {n_layers}")
        if other := [kind for kind in layers if kind != "full_attention"]:
            self.refuse(f"asks for a feature that llamina lacks: layer_types holds {quote(other[0])}")
        return layers

    def check_window(self, trained: int) -> None:
        """Mistral's sliding window must not be smaller than the context (the one asked for, else the trained one)."""
        f = self.fields
        window = f.integer("sliding_window", 1 << 40, None)
        if window is None or window >= (self.context or trained):
            return
        if "sliding_window" not in self.cls.defaults and f.values.get("use_sliding_window") is False:  # a field of neither class
            self.notes.append(f"sliding_window left out: {self.cls.architectures[0]} has no windows, and config.json says use_sliding_window = false")
            return
        said = "" if "sliding_window" in self.given.values else " (the field is absent, which means that)"
        self.refuse(f"needs sliding windows, which llamina lacks: sliding_window = {window}{said} of max_position_embeddings = {trained}; "
                    f"--context {window} converts it for texts of {window} positions, within which the model is the same")

    def rope(self, trained: int, head_dim: int, layers: list[str]) -> tuple[RopeScaling, float, np.ndarray | None]:
        f = self.fields
        # transformers: rope_scaling, if it says anything, replaces rope_parameters; what is inside is stronger than rope_theta beside it
        given = {key: dict(f.get(key, Mapping, {})) for key in ("rope_scaling", "rope_parameters")}  # type: ignore[type-abstract]
        where = "rope_scaling" if given["rope_scaling"] else "rope_parameters"
        values = self.one_for_all(where, given[where], layers)
        rope = Fields(f.path, {f"{where}.{key}": value for key, value in values.items()})
        base = rope.number(f"{where}.rope_theta") if "rope_theta" in values else f.number("rope_theta") if "rope_theta" in f.values else 10000.0
        if base <= 1:
            raise FormatError(f"{f.path}: field 'rope_theta' must be greater than 1, found {base}")
        if values.get("partial_rotary_factor") not in (None, 1, 1.0):
            self.refuse(f"asks for a feature that llamina lacks: partial_rotary_factor = {quote(values['partial_rotary_factor'])}")
        kind = values.get("rope_type", values.get("type", "default"))
        if not isinstance(kind, str) or kind not in ("default", "linear", "llama3", "yarn"):
            self.refuse(f"scales rotary positions by {quote(kind)} (rope_scaling); llamina knows linear, llama3 and yarn")
        if kind == "default":
            return RopeScaling(), base, None
        key = "original_max_position_embeddings"  # beside rope_scaling it is stronger than in it
        original = f.integer(key, MAX_CONTEXT, None) or rope.integer(f"{where}.{key}", MAX_CONTEXT, trained)
        if kind == "yarn" and "factor" in values and values["factor"] is None:
            factor = trained / original
        else:
            factor = rope.number(f"{where}.factor")
        if kind == "linear":
            return (RopeScaling("linear", factor) if factor != 1 else RopeScaling()), base, None
        if kind == "llama3":
            low, high = rope.number(f"{where}.low_freq_factor"), rope.number(f"{where}.high_freq_factor")
            return RopeScaling(), base, llama3_factors(head_dim, base, factor, low, high, original)
        if values.get("truncate") is False:
            self.refuse("asks for a feature that llamina lacks: rope_scaling.truncate = False")
        if factor < 1:
            raise FormatError(f"{f.path}: field 'rope_scaling.factor' must be at least 1 for yarn, found {factor}")
        # GGUF's attention factor is a multiple of yarn's own, 1 + 0.1 ln(factor); transformers' replaces it
        attention = rope.number(f"{where}.attention_factor", None)
        if attention is None:
            mscale, all_dim = (values.get(key) and rope.number(f"{where}.{key}") for key in ("mscale", "mscale_all_dim"))
            attention = _mscale(factor, mscale) / _mscale(factor, all_dim) if mscale and all_dim else _mscale(factor, 1.0)
        beta_fast, beta_slow = (values.get(key) and rope.number(f"{where}.{key}") or default for key, default in (("beta_fast", 32.0),
                                                                                                                       ("beta_slow", 1.0)))
        relative = attention / _mscale(factor, 1.0)
        relative = 1.0 if math.isclose(relative, 1.0, rel_tol=1e-7) else relative
        if factor == 1:
            return RopeScaling(attn_factor=relative), base, None
        return RopeScaling("yarn", factor, original, relative, beta_fast, beta_slow), base, None

    def one_for_all(self, where: str, found: dict[str, Any], layers: list[str]) -> dict[str, Any]:
        """RoPE's parameters, which may stand below a kind of layers, if there is but one kind, and the file says that all layers are of it."""
        nested = [key for key, value in found.items() if isinstance(value, Mapping)]
        if not nested:
            return found
        if nested == ["full_attention"] == list(found) and layers:
            return dict(found["full_attention"])
        self.refuse(f"gives rotary positions by kind of layer ({where}.{quote(nested[0])[1:-1]}); llamina knows one for all layers")


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
