"""Rotary positions of config.json -> base, scaling and frequency factors, as transformers reads them (modeling_rope_utils.py).

    rope_scaling | rope_parameters (flat, or by kind of layer) | rope_theta, partial_rotary_factor beside them -> read_rope -> HfRope
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from ...engine.architectures.config import MAX_CONTEXT, RopeScaling
from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from .base import Fields

FULL, WINDOWED = "full_attention", "sliding_attention"
USUAL, PHI3, MINICPM = ("default", "linear", "llama3", "yarn"), ("default", "longrope"), ("default", "linear", "longrope")
"""Kinds of scaling that classes have."""


@dataclass
class HfRope:
    """tensors: GGUF's, with what frequencies are divided by. values: the parameters themselves."""

    base: float
    dims: int
    scaling: RopeScaling = RopeScaling()
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def parameters(f: Fields, layers: list[str], by_kind: bool) -> dict[str, dict[str, Any]]:
    """{kind of layers: parameters}. by_kind: the class has several kinds; for others one that stands below the only kind that the file names is read, too.

    transformers: rope_scaling, if it says anything, replaces rope_parameters; what is inside is stronger than rope_theta beside it. Gemma 3 and OLMo 3: it is
    the full layers' only."""
    given = {key: dict(f.get(key, Mapping, {})) for key in ("rope_scaling", "rope_parameters")}  # type: ignore[type-abstract]
    where = "rope_scaling" if given["rope_scaling"] and not by_kind else "rope_parameters"
    found = given[where]
    nested = [key for key, value in found.items() if isinstance(value, Mapping)]
    if by_kind:
        if nested and set(found) - {FULL, WINDOWED}:
            raise FormatError(f"{f.path}: field 'rope_parameters' mixes parameters of one kind of layers and of all: {quote(sorted(found))}")
        kinds = {kind: dict(found.get(kind) or {}) for kind in (FULL, WINDOWED)} if nested else {FULL: found, WINDOWED: {}}
        kinds[FULL] |= given["rope_scaling"]
        return kinds
    if nested:
        if nested == [FULL] == list(found) and layers:
            return {FULL: dict(found[FULL])}
        raise UnsupportedError(f"{f.path}: gives rotary positions by kind of layer ({where}.{quote(nested[0])[1:-1]}); llamina knows one for all layers here")
    return {FULL: found}


def read_rope(f: Fields, values: dict[str, Any], head_dim: int, trained: int, default_base: float, *, partial: float | None,
              known: tuple[str, ...], yarn_multiplier: bool, rounded: bool = True) -> HfRope:
    """One kind of layers' rotary positions. partial: the share of a head that is turned if nothing says so; None: all of it, always. known: kinds of
    scaling that the class has. yarn_multiplier: GGUF keeps mscale_all_dim as it is (mistral3). rounded: yarn's
    corrections are, by the page."""
    where = "rope_scaling" if f.get("rope_scaling", Mapping, {}) else "rope_parameters"  # type: ignore[type-abstract]
    rope = Fields(f.path, {f"{where}.{key}": value for key, value in values.items()})

    def refuse(message: str) -> NoReturn:
        raise UnsupportedError(f"{f.path}: {message}")
    base = rope.number(f"{where}.rope_theta") if "rope_theta" in values else f.number("rope_theta") if "rope_theta" in f.values else default_base
    if base <= 1:
        raise FormatError(f"{f.path}: field 'rope_theta' must be greater than 1, found {base}")
    share = rope.number(f"{where}.partial_rotary_factor", None) or f.number("partial_rotary_factor", partial or 1.0)
    if partial is None and share != 1:
        refuse(f"asks for a feature that llamina lacks: partial_rotary_factor = {quote(share)}")
    dims = int(head_dim * share)
    if not 0 < dims <= head_dim or dims % 2:
        raise FormatError(f"{f.path}: field 'partial_rotary_factor' turns {dims} of {head_dim} dimensions, expected an even number of them")
    kind = values.get("rope_type", values.get("type", "default"))
    kind = "longrope" if kind == "su" or kind == "yarn" and known == PHI3 else kind  # Phi-3's older names
    if not isinstance(kind, str) or kind not in known:
        refuse(f"scales rotary positions by {quote(kind)} (rope_scaling); llamina knows {', '.join(known[1:])} here")
    if kind == "default":
        return HfRope(base, dims, values=values)
    key = "original_max_position_embeddings"  # beside rope_scaling it is stronger than in it
    original = f.integer(key, MAX_CONTEXT, None) or rope.integer(f"{where}.{key}", MAX_CONTEXT, trained)
    if kind == "longrope":
        return _long(f, rope, where, base, dims, trained, original, values)
    if kind == "yarn" and "factor" in values and values["factor"] is None:
        factor = trained / original
    else:
        factor = rope.number(f"{where}.factor")
    if kind == "linear":
        return HfRope(base, dims, RopeScaling("linear", factor) if factor != 1 else RopeScaling(), values=values)
    if kind == "llama3":
        low, high = rope.number(f"{where}.low_freq_factor"), rope.number(f"{where}.high_freq_factor")
        return HfRope(base, dims, RopeScaling(), {"rope_freqs.weight": llama3_factors(dims, base, factor, low, high, original)}, values)
    if values.get("truncate", True) is not rounded:
        refuse(f"asks for a feature that llamina lacks here: rope_scaling.truncate = {quote(values.get('truncate', True))}")
    return HfRope(base, dims, _yarn(f, rope, where, factor, original, yarn_multiplier), values=values)


def _yarn(f: Fields, rope: Fields, where: str, factor: float, original: int, multiplier: bool) -> RopeScaling:
    """GGUF's attention factor is a multiple of yarn's own, 1 + 0.1 ln(factor), over 1 + 0.1 m ln(factor); transformers' replaces it."""
    if factor < 1:
        raise FormatError(f"{f.path}: field 'rope_scaling.factor' must be at least 1 for yarn, found {factor}")

    def optional(key: str, default: float | None) -> Any:
        return rope.number(f"{where}.{key}", default) if rope.values.get(f"{where}.{key}") else default  # 0 is as good as nothing here
    mscale, all_dim = optional("mscale", None), optional("mscale_all_dim", None)
    attention = rope.number(f"{where}.attention_factor", None)
    if attention is None:
        attention = _mscale(factor, mscale) / _mscale(factor, all_dim) if mscale and all_dim else _mscale(factor, 1.0)
    fast, slow = optional("beta_fast", 32.0), optional("beta_slow", 1.0)
    log = float(all_dim or 0.0) if multiplier else 0.0
    relative = attention / _mscale(factor, 1.0) * _mscale(factor, log)
    relative = 1.0 if math.isclose(relative, 1.0, rel_tol=1e-7) else relative
    if factor == 1:
        return RopeScaling(attn_factor=relative)
    return RopeScaling("yarn", factor, original, relative, fast, slow, log)


def _long(f: Fields, rope: Fields, where: str, base: float, dims: int, trained: int, original: int, values: Mapping[str, Any]) -> HfRope:
    """Long RoPE (arXiv 2402.13753): factors for texts within the original context, and for longer ones."""
    tensors = {}
    for name in ("long", "short"):
        found = rope.get(f"{where}.{name}_factor", list)
        if len(found) != dims // 2 or not all(isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < 1e30 for x in found):
            raise FormatError(f"{f.path}: field '{where}.{name}_factor' must be {dims // 2} positive numbers, found {quote(found)}")
        tensors[f"rope_factors_{name}.weight"] = np.asarray(found, np.float32)
    scale = rope.number(f"{where}.factor", None) or trained / original
    attention = rope.number(f"{where}.attention_factor", None)
    if attention is None:
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return HfRope(base, dims, RopeScaling("longrope", 1.0, original, attention), tensors, values)


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
