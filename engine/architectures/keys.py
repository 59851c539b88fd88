"""A page's view of a file: typed, bounded look-ups of the keys below its architecture's name, and the blocks that most pages are made of.

    Keys.integer / number / positive / per_layer(key, ..., default)     what a page reads is what it accepts; `done` refuses the rest by name
    Keys.norm / rope / attention / glu / model                           blocks with GGUF's and Hugging Face's usual names filled in

Defaults are llama.cpp's; the keys are described in github.com/ggml-org/ggml, docs/gguf.md.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..gguf.file import REQUIRED
from ..gguf.header import quote
from .blocks import Attention, Block, Mlp, Output
from .spec import Matrix, Norm, Rope, RopeScaling

MAX_LAYERS, MAX_CONTEXT, MAX_WIDTH, MAX_HEADS = 1 << 12, 1 << 24, 1 << 20, 1 << 14
"""Far above any known model (Llama 3.1 405B: 126 layers, width 53,248, 128 heads; the longest contexts known are 10 million)."""

NEUTRAL: dict[str, Any] = {
    "expert_count": 0, "use_parallel_residual": False, "logit_scale": 1, "residual_scale": 1, "embedding_scale": 1,
    "attn_logit_softcapping": 0, "final_logit_softcapping": 0, "pooling_type": 0, "attention.scale": 0, "attention.output_scale": 1,
    "attention.clamp_kqv": 0, "attention.max_alibi_bias": 0, "attention.causal": True, "attention.temperature_scale": 0,
    "rope.scaling.alpha": 0, "rope.scaling.yarn_log_multiplier": 0, "nextn_predict_layers": 0, "attention.shared_kv_layers": 0,
}
"""Keys of features that a page which does not read them lacks -> the value that turns the feature off. Zero turns any of them off too."""
WITHOUT_EFFECT = {
    "vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scale", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "attention.layer_norm_epsilon", "rope.freq_base",
    "rope.dimension_count", "attention.key_length", "attention.value_length", "expert_used_count", "expert_shared_count", "expert_feed_forward_length",
    "attention.temperature_length",
}
"""Keys that say nothing by themselves, or nothing that a page without them computes otherwise."""


class File(Protocol):
    """What is read of a GGUF file, or of a checkpoint on its way to become one."""

    path: Path

    @property
    def metadata(self) -> Any: ...

    def get(self, key: str, kind: Any, default: Any = REQUIRED) -> Any: ...


class Keys:
    """The keys of one file, for the page of its architecture. tensors: names of those that the file holds, all of them if `whole`; n_vocab: rows
    of the embedding."""

    def __init__(self, architecture: str, file: File, tensors: Collection[str], n_vocab: int, whole: bool = True):
        self.architecture, self.file, self.tensors, self.n_vocab, self.whole = architecture, file, tensors, n_vocab, whole
        self.read: set[str] = set()
        self._arrays: dict[str, list[int]] = {}
        self._ropes: dict[str, Rope] = {}
        self._head_dims: dict[int, int] = {}
        self._eps: dict[str, float] = {}
        self.n_layers = self.integer("block_count", MAX_LAYERS)
        self.dim = self.integer("embedding_length", MAX_WIDTH)
        self.context_length = self.integer("context_length", MAX_CONTEXT)

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.file.path}: {message}")

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedError(f"{self.file.path}: {message}")

    # -- keys -----------------------------------------------------------------------------------------------------------------------------

    def has(self, tensor: str) -> bool:
        return tensor in self.tensors

    def name(self, key: str) -> str:
        """The key's full name; it counts as read."""
        self.read.add(key)
        return f"{self.architecture}.{key}"

    def given(self, key: str) -> bool:
        return self.name(key) in self.file.metadata

    def integer(self, key: str, most: int, default: Any = REQUIRED, *, least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        return self._bounded(key, self.file.get(self.name(key), int, default), least, most)

    def per_layer(self, key: str, most: int, default: Any = REQUIRED, *, least: int = 1) -> list[int]:
        """One whole number for all layers, or an array with one for each. default: a number, or one for each layer."""
        if key not in self._arrays:
            self._arrays[key] = self._per_layer(key, most, default, least)
        return self._arrays[key]

    def _per_layer(self, key: str, most: int, default: Any, least: int) -> list[int]:
        name = self.name(key)
        if name not in self.file.metadata and isinstance(default, list):
            return default
        if self.file.metadata.array_length(name) is None:
            return [self.integer(key, most, default, least=least)] * self.n_layers
        array = self.file.get(name, np.ndarray)
        if array.dtype.kind not in "iu" or len(array) != self.n_layers:
            self.fail(f"key '{name}' must be one whole number or {self.n_layers}, one a layer; found {len(array)} of {array.dtype}")
        return [self._bounded(key, int(value), least, most) for value in array]

    def _bounded(self, key: str, value: int, least: int, most: int) -> int:
        if not least <= value <= most:
            self.fail(f"key '{self.name(key)}' must be from {least} to {most}, found {value}")
        return value

    def number(self, key: str, default: Any = REQUIRED) -> float:
        value: float = self.file.get(self.name(key), float, default)
        if not abs(value) < 3.4e38:  # NaN, infinity, or infinity as float32
            self.fail(f"key '{self.name(key)}' must be a finite float32, found {value}")
        return value

    def positive(self, key: str, default: Any = REQUIRED) -> float:
        value = self.number(key, default)
        if value < 1e-37:  # 0 or subnormal as float32
            self.fail(f"key '{self.name(key)}' must be positive, found {value}")
        return value

    def done(self) -> None:
        """UnsupportedError for a key that the page did not read and that means something: leaving it out would make another model of the file."""
        prefix, metadata = self.architecture + ".", self.file.metadata
        left = [full for full in metadata if full.startswith(prefix) and full.removeprefix(prefix) not in self.read]
        for full in sorted(left, key=lambda full: full.removeprefix(prefix) not in NEUTRAL):  # what has a name is told first
            key = full.removeprefix(prefix)
            if key in NEUTRAL:
                value, off = metadata[full], NEUTRAL[key]
                if isinstance(value, (list, np.ndarray)) or value != off and value != 0 or off is True and not value:
                    self.refuse(f"asks for a feature that llamina lacks: {full} = {quote(value)}")
            elif key == "attention.sliding_window":
                if 0 < (window := self.integer(key, 1 << 64, least=0)) < self.context_length:
                    self.refuse(f"needs sliding windows, which llamina lacks: {full} = {window} of {self.context_length}")
            elif key not in WITHOUT_EFFECT:
                self.refuse(f"has key {quote(full)}, which llamina does not know of models of this architecture: leaving it out could make another model of it")

    # -- blocks ---------------------------------------------------------------------------------------------------------------------------

    def norm(self, layer: int | None, name: str, hf: str, eps: str = "attention.layer_norm_rms_epsilon") -> Norm:
        """An RMSNorm of the residual stream: blk.{layer}.{name}.weight, in Hugging Face's checkpoint model.layers.{layer}.{hf}.weight."""
        here, theirs = ("", "model.") if layer is None else (f"blk.{layer}.", f"model.layers.{layer}.")
        if eps not in self._eps:
            self._eps[eps] = self.positive(eps)
        return Norm(f"{here}{name}.weight", self.dim, self._eps[eps], hf=f"{theirs}{hf}.weight")

    def matrix(self, layer: int, name: str, rows: int, columns: int, site: str, hf: str) -> Matrix:
        """blk.{layer}.{name}.weight, with its bias if the file holds one."""
        bias = f"blk.{layer}.{name}.bias"
        return Matrix(f"blk.{layer}.{name}.weight", rows, columns, f"blocks.{layer}.{site}", bias if self.has(bias) else "",
                      hf=f"model.layers.{layer}.{hf}.weight")

    def head_dim(self, heads: int) -> int:
        """attention.key_length, else the width divided by the heads; rotary positions need it even, and values as wide."""
        if heads not in self._head_dims:
            self._head_dims[heads] = self._head_dim(heads)
        return self._head_dims[heads]

    def _head_dim(self, heads: int) -> int:
        if not self.given("attention.key_length") and self.dim % heads:
            self.fail(f"key '{self.name('embedding_length')}' is {self.dim}, which is not a multiple of '{self.name('attention.head_count')}', {heads}")
        head_dim = self.integer("attention.key_length", MAX_WIDTH, self.dim // heads)
        if head_dim % 2:
            self.fail(f"heads have {head_dim} dimensions, expected an even number: rotary positions turn pairs")
        if (found := self.integer("attention.value_length", MAX_WIDTH, head_dim)) != head_dim:
            self.refuse(f"key '{self.name('attention.value_length')}' is {found}, but llamina needs it to equal the head size, {head_dim}")
        return head_dim

    def rope(self, kind: str) -> Rope:
        """Rotary positions of whole heads, with the file's base, scaling and frequency factors."""
        if kind not in self._ropes:
            self._ropes[kind] = self._rope(kind)
        return self._ropes[kind]

    def _rope(self, kind: str) -> Rope:
        head_dim = self.head_dim(self.per_layer("attention.head_count", MAX_HEADS)[0])
        dims = self.integer("rope.dimension_count", MAX_WIDTH, head_dim)
        if dims != head_dim:
            self.refuse(f"key '{self.name('rope.dimension_count')}' is {dims}, but llamina needs it to equal the head size, {head_dim}")
        base = self.positive("rope.freq_base", 10000.0)
        if base <= 1:
            self.fail(f"key '{self.name('rope.freq_base')}' must be greater than 1, found {base}")
        return Rope(kind, dims, base, self._scaling(), "rope_freqs.weight" if self.has("rope_freqs.weight") else "")

    def _scaling(self) -> RopeScaling:
        kind = self.file.get(self.name("rope.scaling.type"), str, "linear")
        if kind not in ("none", "linear", "yarn"):
            self.refuse(f"scales rotary positions by {quote(kind)} ({self.name('rope.scaling.type')}); llamina knows none, linear and yarn")
        # 0 stands for "not set", as in llama.cpp; scale_linear is the key's name of 2023
        factor = self.number("rope.scaling.factor", 0.0) or self.number("rope.scale_linear", 0.0) or 1.0
        if not 1e-6 <= factor <= 1e6:
            self.fail(f"key '{self.name('rope.scaling.factor')}' must be positive, and at most a million, found {factor}")
        attn_factor = self.positive("rope.scaling.attn_factor", 1.0) * self.positive("rope.scaling.yarn_attn_factor", 1.0)
        if kind == "none" or factor == 1.0:
            return RopeScaling(attn_factor=attn_factor)
        if kind == "linear":
            return RopeScaling(kind, factor, attn_factor=attn_factor)
        if factor < 1:
            self.fail(f"key '{self.name('rope.scaling.factor')}' must be at least 1 for yarn, found {factor}")
        if (extrapolation := self.number("rope.scaling.yarn_ext_factor", 1.0)) not in (1.0, -1.0):  # -1: not set
            self.refuse(f"key '{self.name('rope.scaling.yarn_ext_factor')}' is {extrapolation}, but llamina needs it to be 1")
        original = self.integer("rope.scaling.original_context_length", MAX_CONTEXT, 0, least=0) or self.context_length
        fast, slow = self.positive("rope.scaling.yarn_beta_fast", 32.0), self.positive("rope.scaling.yarn_beta_slow", 1.0)
        return RopeScaling(kind, factor, original, attn_factor, fast, slow)

    def attention(self, layer: int, norm: Norm | None, rope: Rope | None, post_norm: Norm | None = None, scale: float = 0.0) -> Attention:
        """An attention block under the usual names. scale 0: 1 / sqrt(head_dim)."""
        heads = self.per_layer("attention.head_count", MAX_HEADS)
        kv = self.per_layer("attention.head_count_kv", MAX_HEADS, heads)
        n, n_kv = heads[layer], kv[layer]
        if n % n_kv:
            self.fail(f"key '{self.name('attention.head_count')}' is {n}, no multiple of '{self.name('attention.head_count_kv')}', {n_kv}")
        head_dim = self.head_dim(heads[0])
        normed, prefix = "ln1.hook_normalized", "self_attn."
        scale = scale or float(np.float32(1.0) / np.sqrt(np.float32(head_dim)))
        return Attention(
            layer, self.dim, n, n_kv, head_dim, head_dim, scale, norm,
            self.matrix(layer, "attn_q", n * head_dim, self.dim, normed, prefix + "q_proj"),
            self.matrix(layer, "attn_k", n_kv * head_dim, self.dim, normed, prefix + "k_proj"),
            self.matrix(layer, "attn_v", n_kv * head_dim, self.dim, normed, prefix + "v_proj"),
            self.matrix(layer, "attn_output", self.dim, n * head_dim, "attn.hook_z", prefix + "o_proj"),
            rope, layer, post_norm)

    def glu(self, layer: int, activation: str, norm: Norm | None, post_norm: Norm | None = None) -> Mlp:
        """A gated feed-forward block under the usual names."""
        width = self.per_layer("feed_forward_length", MAX_WIDTH)[layer]
        normed = "ln2.hook_normalized"
        return Mlp(layer, self.dim, width, activation, norm,
                   self.matrix(layer, "ffn_gate", width, self.dim, normed, "mlp.gate_proj"),
                   self.matrix(layer, "ffn_up", width, self.dim, normed, "mlp.up_proj"),
                   self.matrix(layer, "ffn_down", self.dim, width, "mlp.hook_post", "mlp.down_proj"), post_norm)

    def layers(self, layer: Callable[[int], Sequence[Block]]) -> tuple[tuple[Block, ...], ...]:
        """All layers' blocks. FormatError at the first layer that the file holds nothing of, before thousands are described."""
        held = {int(parts[1]) for name in self.tensors if (parts := name.split(".", 2))[0] == "blk" and parts[1].isascii() and parts[1].isdigit()}
        found = []
        for i in range(self.n_layers):
            found.append(tuple(layer(i)))
            if self.whole and i not in held:
                tensor = next(found[-1][0].tensors())
                self.fail(f"tensor '{tensor.name}' {list(tensor.shape)} is missing: the file is not a whole model of architecture {self.architecture}")
        return tuple(found)

    def output(self, norm: Norm) -> Output:
        """The output matrix: output.weight, or the embedding if there is none."""
        tied = not self.has("output.weight")
        return Output(norm, Matrix("token_embd.weight" if tied else "output.weight", self.n_vocab, self.dim, "ln_final.hook_normalized",
                                   hf="model.embed_tokens.weight" if tied else "lm_head.weight"))


class Written(Mapping[str, Any]):
    """Keys of a file that is yet to be written, as `Keys` reads them."""

    def __init__(self, path: Path, keys: Mapping[str, Any]):
        self.path, self._keys = path, keys

    @property
    def metadata(self) -> Written:
        return self

    def get(self, key: str, kind: Any = None, default: Any = REQUIRED) -> Any:
        if key not in self._keys:
            if default is REQUIRED:
                raise FormatError(f"{self.path}: key {quote(key)} is missing")
            return default
        return self._keys[key]

    def array_length(self, key: str) -> int | None:
        value = self._keys.get(key)
        return len(value) if isinstance(value, (list, np.ndarray)) else None

    def __getitem__(self, key: str) -> Any:
        return self._keys[key]

    def __iter__(self) -> Any:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
