"""A page's view of a file: typed, bounded look-ups of the keys below its architecture's name.

    Keys.integer / number / positive / per_layer(key, ..., default)     what a page reads is what it accepts; `done` refuses the rest by name
    builder.py adds .norm, .rope, .attention, .glu, .mlp, .output, .windows: blocks with GGUF's and Hugging Face's usual names filled in

Defaults are llama.cpp's; the keys are described in github.com/ggml-org/ggml, docs/gguf.md.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..gguf.file import REQUIRED
from ..gguf.header import quote

MAX_LAYERS, MAX_CONTEXT, MAX_WIDTH, MAX_HEADS, MAX_EXPERTS = 1 << 12, 1 << 24, 1 << 20, 1 << 14, 1 << 12
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

    @property
    def get(self) -> Callable[..., Any]: ...


class Keys:
    """The keys of one file, for the page of its architecture. tensors: names of those that the file holds, all of them if `whole`; n_vocab: rows
    of the embedding."""

    def __init__(self, architecture: str, file: File, tensors: Collection[str], n_vocab: int, whole: bool = True):
        self.architecture, self.file, self.tensors, self.n_vocab, self.whole = architecture, file, tensors, n_vocab, whole
        self.read: set[str] = set()
        self._arrays: dict[str, list[int]] = {}
        self.n_layers = self.integer("block_count", MAX_LAYERS)
        self.skipped_layers = 0
        """Blocks at the end that predict further tokens (MTP) and are not run."""
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
        if array.dtype.kind not in "iub" or len(array) not in (self.n_layers, self.n_layers + self.skipped_layers):
            self.fail(f"key '{name}' must be one whole number or {self.n_layers}, one a layer; found {len(array)} of {array.dtype}")
        return [self._bounded(key, int(value), least, most) for value in array[:self.n_layers]]

    def skip_predictors(self) -> None:
        """Leave out the last blocks if they are heads that predict further tokens (nextn_predict_layers); before anything is read layer by layer."""
        self.skipped_layers = self.integer("nextn_predict_layers", max(0, self.n_layers - 1), 0, least=0)
        self.n_layers -= self.skipped_layers

    def flag(self, key: str, default: bool) -> bool:
        value: bool = self.file.get(self.name(key), bool, default)
        return value

    def text(self, key: str, default: Any = REQUIRED) -> str:
        value: str = self.file.get(self.name(key), str, default)
        return value

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
        value = self._keys[key]
        return np.asarray(value) if kind is np.ndarray else value

    def array_length(self, key: str) -> int | None:
        value = self._keys.get(key)
        return len(value) if isinstance(value, (list, np.ndarray)) else None

    def __getitem__(self, key: str) -> Any:
        return self._keys[key]

    def __iter__(self) -> Any:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
