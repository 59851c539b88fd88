"""Recipes: which tensor gets which format. A recipe has the name that llama.cpp gives the mix, and makes the same choice for every tensor.

    choose(Shape, [(name, shape, dtype)], "q4_k_m", overrides) -> [Choice(name, format, wanted, why)]

Source of the rules: llama.cpp, src/llama-quant.cpp, `llama_tensor_get_type`, for architectures with and without experts: the output matrix, and the value and
down projections of some layers, whose errors cost most, get more bits. Vectors (norms, RoPE factors) stay F32. A row that is no whole number of the format's
blocks takes the next format that fits, and the choice says so.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..engine.errors import OptionError
from ..kernels.formats.table import FORMATS


class Recipe(NamedTuple):
    """The format of most matrices, and llama.h's number for general.file_type (enum llama_ftype)."""

    base: str
    file_type: int


RECIPES = {
    "f32": Recipe("F32", 0), "f16": Recipe("F16", 1), "bf16": Recipe("BF16", 32), "q8_0": Recipe("Q8_0", 7),
    "q6_k": Recipe("Q6_K", 18), "q5_k_m": Recipe("Q5_K", 17), "q5_k_s": Recipe("Q5_K", 16), "q5_1": Recipe("Q5_1", 9), "q5_0": Recipe("Q5_0", 8),
    "q4_k_m": Recipe("Q4_K", 15), "q4_k_s": Recipe("Q4_K", 14), "iq4_nl": Recipe("IQ4_NL", 25), "iq4_xs": Recipe("IQ4_XS", 30),
    "q4_1": Recipe("Q4_1", 3), "q4_0": Recipe("Q4_0", 2), "q3_k_l": Recipe("Q3_K", 13), "q3_k_m": Recipe("Q3_K", 12), "q3_k_s": Recipe("Q3_K", 11),
    "q2_k": Recipe("Q2_K", 10),
}
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
KEEP = "keep"
"""Not a mix: every matrix keeps the format that it has in the source (F32 where that is no GGUF format with an encoder), to merge, split or copy files."""
ENCODABLE = frozenset(recipe.base for recipe in RECIPES.values())
"""Formats with an encoder; a test compares it with the encoder table."""
FLOATS = ("F32", "F16", "BF16")
FALLBACKS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""256-column format -> what stands in for it where 256 does not divide the columns; where 32 does not either, F16."""


@dataclass(frozen=True)
class Sizes:
    """What the rules ask of a model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_output: bool  # an output matrix of its own, not tied to the embedding
    importance: bool = False  # an importance matrix will weigh the errors
    n_experts: int = 0

    @property
    def gqa(self) -> int:
        return self.n_heads // self.n_kv_heads

    @property
    def is_70b(self) -> bool:
        """llama.cpp's name for 80 layers with grouped queries."""
        return self.n_layers == 80 and self.n_heads != self.n_kv_heads


class Choice(NamedTuple):
    """A tensor's format; `wanted` is what recipe or override asked for, if it does not fit the tensor's columns."""

    name: str
    format: str
    wanted: str | None = None


def fallbacks(choices: Iterable[Choice], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line for each kind of fallback: format, stand-in, number of columns."""
    kinds: dict[tuple[str, str, int], list[str]] = {}
    for c in choices:
        if c.wanted:
            kinds.setdefault((c.wanted, c.format, shapes[c.name][-1]), []).append(c.name)
    return [f"{wanted} does not fit {cols} columns, {format} instead: {len(names)} {'matrix' if len(names) == 1 else 'matrices'}, such as {names[0]}"
            for (wanted, format, cols), names in kinds.items()]


def recipe_name(name: str) -> str:
    """A recipe's name as users write it (any case) -> a key of RECIPES, or KEEP. OptionError."""
    key = name.lower()
    key = ALIASES.get(key, key)
    if key != KEEP and key not in RECIPES:
        raise OptionError(f"unknown type {name!r}: choose from {', '.join(RECIPES)}, or {KEEP}")
    return key


def format_name(name: str) -> str:
    """A format's name as users write it -> a key of FORMATS that has an encoder. OptionError."""
    key = name.upper()
    if key not in ENCODABLE:
        raise OptionError(f"unknown format {name!r}: choose from {', '.join(f.lower() for f in FORMATS if f in ENCODABLE)}")
    return key


def parse_overrides(texts: Iterable[str]) -> list[tuple[re.Pattern[str], str]]:
    """`REGEX=FORMAT` each -> (pattern, format). OptionError."""
    overrides = []
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            raise OptionError(f"--tensor wants REGEX=FORMAT such as 'ffn_down=q6_k', found {text!r}")
        try:
            overrides.append((re.compile(pattern), format_name(name)))
        except re.error as error:
            raise OptionError(f"--tensor {text!r}: {pattern!r} is no regular expression ({error})") from None
    return overrides


def more_bits(layer: int, n_layers: int) -> bool:
    """llama.cpp's use_more_bits: the first and the last eighth of the layers, and every third between."""
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2


def _attn_v(recipe: str, base: str, i: int, s: Sizes) -> str:
    if s.n_experts == 8:
        return "Q8_0"
    format = base
    if recipe == "q2_k":
        format = "Q4_K" if s.gqa >= 4 else "Q3_K"
    elif recipe == "q3_k_m":
        format = "Q5_K" if i < 2 else "Q4_K"
    elif recipe == "q3_k_l" or recipe in ("iq4_nl", "iq4_xs") and s.gqa >= 4:
        format = "Q5_K"
    elif recipe in ("q4_k_m", "q5_k_m") and more_bits(i, s.n_layers):
        format = "Q6_K"
    elif recipe == "q4_k_s" and i < 4:
        format = "Q5_K"
    return "Q5_K" if s.is_70b and format in ("Q3_K", "Q4_K") else format


def _attn_k(recipe: str, base: str, i: int, s: Sizes) -> str:
    return "Q8_0" if s.n_experts == 8 else base


def _attn_qkv(recipe: str, base: str, i: int, s: Sizes) -> str:
    return {"q3_k_m": "Q4_K", "q3_k_l": "Q4_K", "q4_k_m": "Q5_K", "q5_k_m": "Q6_K"}.get(recipe, base)


def _attn_output(recipe: str, base: str, i: int, s: Sizes) -> str:
    if s.n_experts == 8:
        return "Q5_K" if recipe in ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs") else base
    return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(recipe, base)


def _ffn_down(recipe: str, base: str, i: int, s: Sizes) -> str:
    first = i < s.n_layers // 8
    if recipe == "q2_k":
        return "Q3_K"
    if recipe == "q3_k_m":
        return "Q5_K" if i < s.n_layers // 16 else "Q4_K"
    if recipe == "q3_k_l":
        return "Q5_K"
    if recipe in ("q4_k_m", "q5_k_m") and more_bits(i, s.n_layers):
        return "Q6_K"
    if recipe == "q4_k_s" and first or recipe in ("iq4_nl", "iq4_xs") and first and not s.importance:
        return "Q5_K"
    if recipe in ("q4_0", "q5_0") and first and s.importance:  # these two go astray there with an importance matrix, llama.cpp found
        return {"q4_0": "Q4_1", "q5_0": "Q5_1"}[recipe]
    return base


_RULES: dict[str, Callable[[str, str, int, Sizes], str]] = {
    "attn_v": _attn_v, "attn_k": _attn_k, "attn_qkv": _attn_qkv, "attn_output": _attn_output, "ffn_down": _ffn_down, "ffn_down_exps": _ffn_down,
    "ffn_down_shexp": _ffn_down}


def recipe_format(recipe: str, name: str, sizes: Sizes) -> str:
    """What a recipe (a key of RECIPES) wants for a matrix, before asking whether it fits."""
    base = RECIPES[recipe].base
    if base in FLOATS:
        return base
    if name == "output.weight" or name in ("token_embd.weight", "per_layer_token_embd.weight") and not sizes.has_output:
        return "Q8_0" if base == "Q8_0" else "Q6_K"
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        rule = _RULES.get(match[2])
        return rule(recipe, base, int(match[1]), sizes) if rule else base
    return base


_KERNEL = re.compile(r"blk\.\d+\.((shortconv\.conv|ssm_conv1d|ssm_norm|attn_[qk]_norm)\.weight|ssm_[ad])")
"""Convolutions' kernels (a few numbers a channel), gains of each head or group, decays: kept in F32 as vectors are."""
_ADDED = ("position_embd.weight", "token_types.weight")
"""Rows that are added to the embedding's, not multiplied: small, and llama.cpp takes them in F32 alone."""


def fitting(format: str, cols: int) -> str:
    """The format itself, or what stands in for it where its blocks do not divide the columns."""
    for f in (format, FALLBACKS.get(format, "F16")):
        if cols % FORMATS[f].columns == 0:
            return f
    return "F16"


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor has a choice of formats; the others are F32. Routers of experts and kernels of
    convolutions are small, and routers' choices no matter of degree."""
    return len(shape) > 1 and name not in _ADDED and not name.endswith(".bias") and "ffn_gate_inp" not in name and not _KERNEL.fullmatch(name)


def choose(
    sizes: Sizes, tensors: Sequence[tuple[str, tuple[int, ...], str]], recipe: str, overrides: Sequence[tuple[re.Pattern[str], str]] = (),
    output_type: str | None = None, embedding_type: str | None = None, formats: Mapping[str, str] | None = None,
) -> list[Choice]:
    """Formats of all tensors, given as (name, NumPy shape, format in the source), in their order.

    recipe: a key of RECIPES, or KEEP. Stronger than the recipe, in rising order: `formats` (tensor name -> format, a whole plan), `embedding_type`,
    `output_type` (of the tied embedding, too), `overrides` (pattern searched in the name; the last one that matches counts).
    OptionError: an override that matches no matrix, or a plan for a tensor that is not there.
    """
    formats = formats or {}
    names = {name for name, _, _ in tensors}
    if missing := [name for name in formats if name not in names]:
        raise OptionError(f"a format is planned for tensor {missing[0]!r}, which the model does not have")
    used: set[int] = set()
    choices = []
    for name, shape, dtype in tensors:
        if not is_matrix(name, shape):
            choices.append(Choice(name, "F32"))
            continue
        is_output = name == "output.weight" or name == "token_embd.weight" and not sizes.has_output
        if recipe == KEEP:
            want = dtype if dtype in FORMATS and dtype not in ("F64", "I8") else "F32"
        else:
            want = recipe_format(recipe, name, sizes)
            if name == "per_layer_model_proj.weight" and want not in FLOATS:  # kept by llama.cpp, too
                want = dtype if dtype in FLOATS else "F16"
            if dtype == "MXFP4" and len(shape) == 3 and want not in FLOATS:  # experts that were trained so
                want = dtype
        want = formats.get(name, want)
        if embedding_type and name == "token_embd.weight":
            want = embedding_type
        if output_type and is_output:
            want = output_type
        for i, (pattern, format) in enumerate(overrides):
            if pattern.search(name):
                want = format
                used.add(i)
        fits = fitting(want, shape[-1])
        choices.append(Choice(name, fits, want if fits != want else None))
    for i, (pattern, format) in enumerate(overrides):
        if i not in used:
            raise OptionError(f"--tensor '{pattern.pattern}={format.lower()}' matches no matrix: their names are such as blk.0.attn_q.weight, output.weight")
    return choices
