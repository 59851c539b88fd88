"""A Llama model's configuration, read with types and bounds from a GGUF file's metadata, and the tensors that it implies, checked by name.

    open_gguf(path) -> ModelConfig.from_gguf(gguf) -> check_tensors(gguf, config) -> the weights may be loaded

Supported is what llama.cpp calls architecture `llama`: Llama 1, 2, 3, Code Llama, TinyLlama, Mistral. What llamina does not compute
(experts, biases, sliding windows, other architectures, ...) is refused by name, never ignored. The keys are described in
github.com/ggml-org/ggml, docs/gguf.md; defaults are llama.cpp's.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ...kernels.formats.table import FORMATS, RUNNABLE
from ..errors import FormatError, UnsupportedError
from ..gguf.file import REQUIRED, GGUFFile
from ..gguf.header import quote

MAX_LAYERS, MAX_CONTEXT, MAX_WIDTH, MAX_HEADS = 1 << 12, 1 << 24, 1 << 20, 1 << 14
"""Far above any known model (Llama 3.1 405B: 126 layers, width 53,248, 128 heads; the longest contexts known are 10 million)."""

_VECTOR_FORMATS = ("F32", "F16", "BF16")
_NEUTRAL = {
    "expert_count": 0, "use_parallel_residual": False, "logit_scale": 1, "residual_scale": 1, "embedding_scale": 1,
    "attn_logit_softcapping": 0, "final_logit_softcapping": 0, "pooling_type": 0, "attention.scale": 0, "attention.output_scale": 1,
    "attention.clamp_kqv": 0, "attention.max_alibi_bias": 0, "attention.causal": True, "attention.temperature_scale": 0,
    "rope.scaling.alpha": 0, "rope.scaling.yarn_log_multiplier": 0,
}
"""Keys (after `llama.`) of features that llamina does not have -> the value that turns the feature off. Zero turns any of them off too."""

_BLOCK_TENSOR = re.compile(r"blk\.(\d{1,5})\.(.+)")
_IGNORED = {"rope.freqs", "attn_rot_embd", "attn_rot_embd.weight"}
"""Inverse RoPE frequencies that old converters copied from checkpoints; nobody reads them."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are stretched beyond the trained context: the angle of pair i is position * f_i, where f_i is, with
    w_i = rope_base^(-2i/rope_dim),

        none:   w_i                linear: w_i / factor
        yarn:   w_i / factor * (1 - r_i) + w_i * r_i,  r_i = 1 - clamp((i - low) / max(0.001, high - low), 0, 1)
                low, high = floor, ceil of rope_dim * ln(original_context / (beta * 2 pi)) / (2 ln rope_base), beta = beta_fast, beta_slow

    with low >= 0 and high <= rope_dim - 1. Cosine and sine are multiplied by attn_factor and, for yarn, by 1 + 0.1 ln(factor) as well.
    Llama 3's scaling is apart from this: the w_i are first divided by the elements of rope_freqs.weight (`rope_freq_factors`).
    Source: Peng et al., "YaRN" (arXiv 2309.00071), as in llama.cpp's ggml_rope_ext.
    """

    kind: str = "none"  # "none", "linear" or "yarn"
    factor: float = 1.0  # > 0; 1 if kind is "none"; > 1 if "yarn"
    original_context: int = 0  # positions; used by yarn only
    attn_factor: float = 1.0  # > 0, for any kind
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """The numbers that define a Llama model's shape and arithmetic."""

    name: str  # general.name, "" if there is none
    n_layers: int
    dim: int  # width of the residual stream
    n_heads: int  # query heads
    n_kv_heads: int  # divides n_heads
    head_dim: int  # even; n_heads * head_dim need not be dim
    ffn_dim: int
    n_vocab: int  # rows of token_embd.weight
    context_length: int  # positions, as trained
    rms_eps: float
    rope_dim: int  # rotated dimensions of a head: all of them
    rope_base: float
    rope_scaling: RopeScaling
    rope_freq_factors: bool  # rope_freqs.weight [rope_dim / 2] is there
    tied_output: bool  # no output.weight: token_embd.weight is used
    float32_kv: bool = False  # every matrix is F32: keys and values are kept in float32 as well, so that the file's precision is not lost there

    @staticmethod
    def from_gguf(gguf: GGUFFile) -> ModelConfig:
        """UnsupportedError: another architecture, a feature that llamina lacks, or a file without weights. FormatError: a key is missing,
        of the wrong type or out of range, or keys contradict each other or the file's vocabulary."""
        return _Reader(gguf).config()

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    def tensor_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of each tensor that the model must have, in order of use."""
        yield "token_embd.weight", (self.n_vocab, self.dim)
        for i in range(self.n_layers):
            yield f"blk.{i}.attn_norm.weight", (self.dim,)
            yield f"blk.{i}.attn_q.weight", (self.q_dim, self.dim)
            yield f"blk.{i}.attn_k.weight", (self.kv_dim, self.dim)
            yield f"blk.{i}.attn_v.weight", (self.kv_dim, self.dim)
            yield f"blk.{i}.attn_output.weight", (self.dim, self.q_dim)
            yield f"blk.{i}.ffn_norm.weight", (self.dim,)
            yield f"blk.{i}.ffn_gate.weight", (self.ffn_dim, self.dim)
            yield f"blk.{i}.ffn_up.weight", (self.ffn_dim, self.dim)
            yield f"blk.{i}.ffn_down.weight", (self.dim, self.ffn_dim)
        yield "output_norm.weight", (self.dim,)
        if not self.tied_output:
            yield "output.weight", (self.n_vocab, self.dim)
        if self.rope_freq_factors:
            yield "rope_freqs.weight", (self.rope_dim // 2,)


class _Reader:
    """Typed, bounded look-ups of the keys below `llama.`, with errors that name file and key."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.gguf.path}: {message}")

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedError(f"{self.gguf.path}: {message}")

    def config(self) -> ModelConfig:
        gguf = self.gguf
        self._check_kind()
        n_layers = self.integer("block_count", MAX_LAYERS)
        dim = self.integer("embedding_length", MAX_WIDTH)
        n_heads = self.integer("attention.head_count", MAX_HEADS, layers=n_layers)
        n_kv_heads = self.integer("attention.head_count_kv", MAX_HEADS, n_heads, layers=n_layers)
        if n_heads % n_kv_heads:
            self.fail(f"key 'llama.attention.head_count' is {n_heads}, no multiple of 'llama.attention.head_count_kv', {n_kv_heads}")
        head_dim = self._head_dim(dim, n_heads)
        context_length = self.integer("context_length", MAX_CONTEXT)
        window = self.integer("attention.sliding_window", 1 << 64, context_length, least=0)
        if 0 < window < context_length:
            self.refuse(f"needs sliding windows, which llamina lacks: llama.attention.sliding_window = {window} of {context_length}")
        rope_base = self.positive("rope.freq_base", 10000.0)
        if rope_base <= 1:
            self.fail(f"key 'llama.rope.freq_base' must be greater than 1, found {rope_base}")
        return ModelConfig(
            name=gguf.get("general.name", str, ""), n_layers=n_layers, dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
            ffn_dim=self.integer("feed_forward_length", MAX_WIDTH, layers=n_layers), n_vocab=self._n_vocab(), context_length=context_length,
            rms_eps=self.positive("attention.layer_norm_rms_epsilon"), rope_dim=head_dim, rope_base=rope_base,
            rope_scaling=self._rope_scaling(context_length), rope_freq_factors="rope_freqs.weight" in gguf.tensors,
            tied_output="output.weight" not in gguf.tensors,
            float32_kv=all(t.format.name == "F32" for t in gguf.tensors.values() if len(t.shape) == 2),
        )

    def _check_kind(self) -> None:
        """Refuse what is not a Llama model that llamina computes in full."""
        gguf = self.gguf
        kind = gguf.get("general.type", str, "model")
        if kind != "model":
            self.refuse(f"holds a {quote(kind)} (general.type), not a model: expected a whole model's .gguf")
        architecture = gguf.get("general.architecture", str)
        if architecture != "llama":
            self.refuse(f"is of architecture {quote(architecture)}; llamina runs 'llama' (Llama 1-3, Code Llama, TinyLlama, Mistral)")
        if not gguf.tensors:
            self.refuse("holds only a vocabulary (no tensors): it can be used to tokenise, but not to generate")
        for key, off in _NEUTRAL.items():
            value = gguf.metadata.get("llama." + key, off)
            if isinstance(value, (list, np.ndarray)) or value != off and value != 0 or off is True and not value:
                self.refuse(f"asks for a feature that llamina lacks: llama.{key} = {quote(value)}")

    def _head_dim(self, dim: int, n_heads: int) -> int:
        if "llama.attention.key_length" not in self.gguf.metadata and dim % n_heads:
            self.fail(f"key 'llama.embedding_length' is {dim}, which is not a multiple of 'llama.attention.head_count', {n_heads}")
        head_dim = self.integer("attention.key_length", MAX_WIDTH, dim // n_heads)
        if head_dim % 2:
            self.fail(f"heads have {head_dim} dimensions, expected an even number: rotary positions turn pairs")
        for key in "attention.value_length", "rope.dimension_count":
            if (found := self.integer(key, MAX_WIDTH, head_dim)) != head_dim:
                self.refuse(f"key 'llama.{key}' is {found}, but llamina needs it to equal the head size, {head_dim}")
        return head_dim

    def _n_vocab(self) -> int:
        gguf = self.gguf
        if "token_embd.weight" not in gguf.tensors:
            self.fail("tensor 'token_embd.weight' is missing: the file is not a whole Llama model")
        rows = gguf.tensors["token_embd.weight"].rows
        tokens = gguf.metadata.array_length("tokenizer.ggml.tokens")
        if tokens is not None and tokens != rows:
            self.fail(f"tensor 'token_embd.weight' has {rows} rows, but key 'tokenizer.ggml.tokens' {tokens} tokens: they must be as many")
        if tokens is None and (size := self.integer("vocab_size", 1 << 64, rows)) != rows:
            self.fail(f"tensor 'token_embd.weight' has {rows} rows, but key 'llama.vocab_size' is {size}: they must be equal")
        return rows

    def _rope_scaling(self, context_length: int) -> RopeScaling:
        kind = self.gguf.get("llama.rope.scaling.type", str, "linear")
        if kind not in ("none", "linear", "yarn"):
            self.refuse(f"scales rotary positions by {quote(kind)} (llama.rope.scaling.type); llamina knows none, linear and yarn")
        # 0 stands for "not set", as in llama.cpp; scale_linear is the key's name of 2023
        factor = self.number("rope.scaling.factor", 0.0) or self.number("rope.scale_linear", 0.0) or 1.0
        if not 1e-6 <= factor <= 1e6:
            self.fail(f"key 'llama.rope.scaling.factor' must be positive, and at most a million, found {factor}")
        attn_factor = self.positive("rope.scaling.attn_factor", 1.0) * self.positive("rope.scaling.yarn_attn_factor", 1.0)
        if kind == "none" or factor == 1.0:
            return RopeScaling(attn_factor=attn_factor)
        if kind == "linear":
            return RopeScaling(kind, factor, attn_factor=attn_factor)
        if factor < 1:
            self.fail(f"key 'llama.rope.scaling.factor' must be at least 1 for yarn, found {factor}")
        if (extrapolation := self.number("rope.scaling.yarn_ext_factor", 1.0)) not in (1.0, -1.0):  # -1: not set
            self.refuse(f"key 'llama.rope.scaling.yarn_ext_factor' is {extrapolation}, but llamina needs it to be 1")
        original = self.integer("rope.scaling.original_context_length", MAX_CONTEXT, 0, least=0) or context_length
        fast, slow = self.positive("rope.scaling.yarn_beta_fast", 32.0), self.positive("rope.scaling.yarn_beta_slow", 1.0)
        return RopeScaling(kind, factor, original, attn_factor, fast, slow)

    def integer(self, key: str, most: int, default: Any = REQUIRED, *, least: int = 1, layers: int = 0) -> int:
        """A whole number from `least` to `most`. If `layers`, an array of that many equal numbers will do as well."""
        key = "llama." + key
        if layers and self.gguf.metadata.array_length(key) is not None:
            array = self.gguf.get(key, np.ndarray)
            if array.dtype.kind not in "iu" or len(array) != layers:
                self.fail(f"key '{key}' must be one whole number or {layers}, one a layer; found {len(array)} of {array.dtype}")
            if (array != array[0]).any():
                self.refuse(f"key '{key}' differs between layers ({array.min()} to {array.max()}), which llamina does not support")
            value = int(array[0])
        else:
            value = self.gguf.get(key, int, default)
        if not least <= value <= most:
            self.fail(f"key '{key}' must be from {least} to {most}, found {value}")
        return value

    def number(self, key: str, default: Any = REQUIRED) -> float:
        value = self.gguf.get("llama." + key, float, default)
        if not abs(value) < 3.4e38:  # NaN, infinity, or infinity as float32
            self.fail(f"key 'llama.{key}' must be a finite float32, found {value}")
        return value

    def positive(self, key: str, default: Any = REQUIRED) -> float:
        value = self.number(key, default)
        if value < 1e-37:  # 0 or subnormal as float32
            self.fail(f"key 'llama.{key}' must be positive, found {value}")
        return value


def check_tensors(gguf: GGUFFile, config: ModelConfig) -> None:
    """Check that the file holds each tensor of `config` in its right shape and in a format that runs, and nothing else.

    FormatError: missing or of another shape, or RoPE factors not positive. UnsupportedError: a format without a kernel, or a tensor that is
    not known."""
    expected = dict(config.tensor_shapes())
    for name in gguf.tensors:
        if name not in expected:
            _check_extra(gguf, config, name)
    for name, shape in expected.items():
        if name not in gguf.tensors:
            raise FormatError(f"{gguf.path}: tensor '{name}' {list(shape)} is missing: the file is not a whole Llama model")
        info = gguf.tensors[name]
        if info.shape != shape:
            raise FormatError(f"{info.path}: tensor '{name}' must have shape {list(shape)}, found {list(info.shape)}")
        runs = RUNNABLE if len(shape) == 2 else _VECTOR_FORMATS
        if info.format.name not in runs:
            usable = ", ".join(f for f in FORMATS if f in runs)
            raise UnsupportedError(f"{info.path}: tensor '{name}' is {info.format.name}, expected one of {usable}: convert the model")
    if config.rope_freq_factors:
        factors = read_vector(gguf, "rope_freqs.weight")
        if not (np.isfinite(factors) & (factors > 0)).all():
            path = gguf.tensors["rope_freqs.weight"].path
            raise FormatError(f"{path}: tensor 'rope_freqs.weight' must be positive and finite throughout, found {quote(factors.tolist())}")


def _check_extra(gguf: GGUFFile, config: ModelConfig, name: str) -> None:
    """Refuse a tensor that no Llama model of this configuration has, unless it is known to be without effect."""
    path = gguf.tensors[name].path
    match = _BLOCK_TENSOR.fullmatch(name)
    layer, part = (int(match[1]), match[2]) if match else (0, name)
    if part in _IGNORED:
        return
    if part == "rope_freqs.weight" and config.rope_freq_factors and _same(gguf, name, "rope_freqs.weight"):
        return  # a copy for each layer
    if layer >= config.n_layers:
        raise FormatError(f"{path}: tensor {quote(name)} is of layer {layer}, but key 'llama.block_count' is only {config.n_layers}")
    if part.endswith(".bias"):
        raise UnsupportedError(f"{path}: tensor {quote(name)}: llamina runs Llama models without biases only")
    if "_exp" in part or "ffn_gate_inp" in part:
        raise UnsupportedError(f"{path}: tensor {quote(name)}: llamina does not run mixtures of experts")
    raise UnsupportedError(f"{path}: tensor {quote(name)} is unknown, and leaving it out would make another model of it")


def _same(gguf: GGUFFile, a: str, b: str) -> bool:
    return gguf.tensors[a].n_bytes == gguf.tensors[b].n_bytes and np.array_equal(gguf.data(a), gguf.data(b))


def read_vector(gguf: GGUFFile, name: str) -> np.ndarray:
    """A one-dimensional tensor (norm weights, RoPE factors) in F32, F16 or BF16, as float32 [n]; exact."""
    raw, format = gguf.data(name)[0], gguf.tensors[name].format.name
    if format == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f4" if format == "F32" else "<f2").astype(np.float32)
