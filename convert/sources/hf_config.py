"""config.json -> the keys of a GGUF file, and what its page makes of them. What llamina would not compute is refused by its field's name.

    flattened (text part) -> class_of, settled (hf_fields.py) -> sizes -> rope (hf_rope.py) -> READERS[class] (hf_keys.py) -> HfModel -> .config()

Source: transformers' configuration_*.py; keys as llama.cpp's converter writes them.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...engine.architectures.config import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, ModelConfig, written_config
from ...engine.architectures.page import Page
from ...engine.architectures.pages import PAGES
from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from .base import Fields, scaling_keys
from .hf_encoders import Encoder, encoder_keys, encoder_of, offset
from .hf_fields import class_of, flattened, settled
from .hf_gemma4 import full_layers, kinds, proportional
from .hf_keys import BASES, BY_KIND, PARTIAL, READERS, Reading
from .hf_mamba_keys import nemotron_layers
from .hf_rope import FULL, MINICPM, PHI3, USUAL, WINDOWED, HfRope, parameters, read_rope

YARN_3 = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
          "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1}
"""What Ministral3Config takes where it says nothing of rotary positions."""
YARN_OSS = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}
"""And GptOssConfig."""


@dataclass
class HfModel:
    """What a configuration says. keys: GGUF's, with the architecture's name. biases: names of tensors that have to be there. extra: tensors that are made,
    not read: float32 vectors. parts: class of a model of several parts, of which this is the text part; "" else. names: the checkpoint's name of a tensor ->
    the one that the page knows; None: it is without effect. first_position: of the rows of an encoder's table of positions. unused: pattern
    of names of tensors that change nothing -> what they are. factors: tensor of ours -> what it is multiplied by, one number or one for each row."""

    path: Path
    page: Page
    keys: dict[str, Any]
    n_vocab: int
    tied: bool
    biases: set[str]
    extra: dict[str, np.ndarray]
    notes: list[str]
    parts: str = ""
    unused: dict[str, str] = field(default_factory=dict)
    names: Callable[[str], str | None] = str
    first_position: int = 0
    factors: dict[str, Any] = field(default_factory=dict)

    def config(self, tied: bool | None = None) -> ModelConfig:
        """As the page reads it. tied: embedding and output are one matrix (default: as the configuration says)."""
        tied = self.tied if tied is None else tied
        tensors = {*self.biases, *self.extra, *([] if tied else ["output.weight"])}
        return written_config(self.page.architecture, self.keys, tensors, self.n_vocab, self.path)


def read_config(fields: Fields, name: str, context: int | None = None) -> HfModel:
    """name: the model's. context: instead of the trained one; a model with sliding windows is the same without them within one window.
    FormatError: a field is missing or impossible. UnsupportedError: an architecture or a feature that llamina lacks."""
    if encoder := encoder_of(fields):
        return _encoder(fields, encoder, name)
    return _Config(fields, name, context).read()


def _encoder(fields: Fields, encoder: Encoder, name: str) -> HfModel:
    found = encoder_keys(fields, encoder)
    keys = {"general.name": name, **{key if key.startswith("tokenizer.") else f"{encoder.gguf}.{key}": value for key, value in found.keys.items()}}
    return HfModel(fields.path, PAGES[encoder.gguf], keys, found.keys["vocab_size"], True, found.optional, {}, found.notes, names=found.names,
                   first_position=offset(fields))


class _Config:
    def __init__(self, fields: Fields, name: str, context: int | None) -> None:
        given, self.parts = flattened(fields)
        self.cls, remark = class_of(given)
        self.given = given
        self.fields, self.name, self.context = settled(given, self.cls), name, context
        self.notes = [remark] if remark else []
        if self.cls.model_type == "nemotron_h":
            layers = nemotron_layers(self.fields.values)
            self.fields = Fields(fields.path, {**self.fields.values, "num_hidden_layers": len(layers)})
            if {"moe", "E"} & set(layers):
                self.cls = replace(self.cls, gguf="nemotron_h_moe")

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedError(f"{self.fields.path}: {message}")

    def read(self) -> HfModel:
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
        trained, n_vocab = f.integer("max_position_embeddings", MAX_CONTEXT), f.integer("vocab_size", 1 << 30)
        layers = self.layers(n_layers)
        if f.get("auto_map", Mapping, {}):  # type: ignore[type-abstract]
            self.notes.append(f"config.json names code of its own (auto_map), which llamina does not run: read as {self.cls.architectures[0]}")
        rope, windowed = self.rope(trained, head_dim, layers)
        arch = "mistral3" if self.parts.startswith("Mistral3") else self.cls.gguf
        if f.values.get("use_bidirectional_attention") is True and self.cls.model_type == "gemma3_text":
            arch = "gemma-embedding"
        keys = {
            "vocab_size": n_vocab, "context_length": trained, "embedding_length": dim, "block_count": n_layers,
            "feed_forward_length": f.integer("intermediate_size", MAX_WIDTH, 4 * dim if self.cls.model_type in ("exaone", "gpt2") else ...),
            "attention.head_count": n_heads, "attention.head_count_kv": n_kv_heads, "attention.key_length": head_dim, "attention.value_length": head_dim,
            "attention.layer_norm_rms_epsilon": f.number("rms_norm_eps"), "rope.dimension_count": rope.dims, "rope.freq_base": rope.base,
            **scaling_keys(rope.scaling),
        }
        r = Reading(f, n_layers, dim, n_heads, head_dim, self.context or trained, layers, rope, windowed, given=self.given)
        READERS["ministral3" if arch == "mistral3" else self.cls.model_type](r)
        self.notes += r.notes
        if predictors := f.integer("num_nextn_predict_layers", MAX_LAYERS, 0, least=0) if PAGES[arch].predictors else 0:
            after = "|".join(str(n_layers + i) for i in range(predictors))
            r.unused[rf"model\.layers\.({after})\..+"] = "of heads that predict further tokens (num_nextn_predict_layers)"
        biases = {f"blk.{i}.{part}.bias" for i in range(n_layers) for part in r.biases}
        fused = {f"blk.{i}.attn_qkv.weight" for i in range(n_layers)} if r.fused else set()
        full = {"general.name": self.name, **{f"{arch}.{key}": value for key, value in {**keys, **r.keys}.items() if value is not None}}
        return HfModel(f.path, PAGES[arch], full, n_vocab, f.get("tie_word_embeddings", bool), biases | fused | r.tensors, rope.tensors, self.notes, self.parts,
                       r.unused, r.names, factors=r.factors)

    def layers(self, n_layers: int) -> list[str]:
        """layer_types, [] if the file does not say. Classes without windows: full attention everywhere."""
        layers = self.fields.get("layer_types", list, [])
        if layers and len(layers) != n_layers:
            raise FormatError(f"{self.fields.path}: field 'layer_types' has {len(layers)} entries, 'num_hidden_layers' is {n_layers}")
        other = [kind for kind in layers if kind != FULL]
        if other and "layer_types" not in self.cls.defaults:
            self.refuse(f"asks for a feature that llamina lacks: layer_types holds {quote(other[0])}")
        if "sliding_window" not in self.cls.defaults:
            self.no_field()
        return layers

    def no_field(self) -> None:
        """A window in a class that has none."""
        f = self.fields
        window = f.integer("sliding_window", 1 << 40, None)
        if window is None or window >= (self.context or f.integer("max_position_embeddings", MAX_CONTEXT)):
            return
        if f.values.get("use_sliding_window") is not False:
            self.refuse(f"needs sliding windows, which {self.cls.architectures[0]} does not have: sliding_window = {window}")
        self.notes.append(f"sliding_window left out: {self.cls.architectures[0]} has no windows, and config.json says use_sliding_window = false")

    def rope(self, trained: int, head_dim: int, layers: list[str]) -> tuple[HfRope, HfRope]:
        """Of full layers, and of windowed ones."""
        f, kind = self.fields, self.cls.model_type
        silent = {"ministral3": YARN_3, "gpt_oss": YARN_OSS}
        if kind in silent and f.values.get("rope_parameters") is None and not f.values.get("rope_scaling"):
            f = self.fields = Fields(f.path, {**f.values, "rope_parameters": dict(silent[kind])})
        found = parameters(f, layers, kind in BY_KIND)
        if "global_head_dim" in self.cls.reads:
            return self.gemma4(found, trained, head_dim, layers)
        if kind == "hunyuan_v1_dense":
            self.fixed_alpha(found[FULL], head_dim)

        def read(values: dict[str, Any], fields: Fields, base: float) -> HfRope:
            return read_rope(fields, values, head_dim, trained, base, partial=PARTIAL.get(kind), known={"phi3": PHI3, "minicpm": MINICPM}.get(kind, USUAL),
                             yarn_multiplier=self.cls.gguf == "mistral3", rounded=kind != "gpt_oss")
        full = read(found[FULL], f, BASES.get(kind, 10000.0))
        if kind not in BY_KIND:
            return full, full
        local = {**f.values, "rope_theta": f.values.get("rope_local_base_freq" if kind == "gemma3_text" else "rope_theta")}
        if local["rope_theta"] is None:
            del local["rope_theta"]
        return full, read(found[WINDOWED], Fields(f.path, local), BY_KIND[kind])

    def gemma4(self, found: dict[str, dict[str, Any]], trained: int, head_dim: int, layers: list[str]) -> tuple[HfRope, HfRope]:
        f = self.fields
        size, _ = full_layers(f, kinds(f, layers, f.integer("num_hidden_layers", MAX_LAYERS)))
        local = read_rope(f, found[WINDOWED], head_dim, trained, BY_KIND[self.cls.model_type], partial=None, known=("default",), yarn_multiplier=False)
        return proportional(f, found[FULL], size), local

    def fixed_alpha(self, values: dict[str, Any], head_dim: int) -> None:
        """HunYuan's NTK scaling by a fixed alpha (modeling_hunyuan_v1_dense.py), called "dynamic": a larger base and nothing else."""
        if values.get("rope_type", values.get("type")) != "dynamic":
            return
        alpha = Fields(self.fields.path, {"rope_scaling.alpha": values.get("alpha")}).number("rope_scaling.alpha", None)
        if alpha is None:
            self.refuse("scales rotary positions by 'dynamic' without alpha (rope_scaling), which GGUF can't say")
        base = Fields(self.fields.path, {"rope_theta": values.get("rope_theta", self.fields.values.get("rope_theta"))}).number("rope_theta", 10000.0)
        values["rope_theta"] = base * alpha ** (head_dim / (head_dim - 2))
        values["rope_type"] = "default"
