"""config.json of encoders (BERT's kin) -> the keys of a GGUF file; their tensors' names; what a folder of sentence-transformers adds.

    is_encoder(fields) ──► read_encoder(fields) ──► HfModel (hf_config.py), whose `names` says what the checkpoint's tensors are called by the page

Fields that would change a number and that llamina does not compute are refused by name. Sources: transformers' configuration_*.py, nomic-ai's remote code.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine.architectures.bert import TYPES
from ...engine.architectures.config import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH
from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from .base import Fields, Permuted

Rename = Callable[[str], "str | None"]
GELU = ("gelu",)


@dataclass(frozen=True)
class Encoder:
    """gguf: its page. read: (fields, keys) adds keys below the architecture's name. names: the checkpoint's name -> the page's, None: without effect."""

    gguf: str
    model_type: str
    architectures: tuple[str, ...]
    read: Callable[[Fields, dict[str, Any]], None]
    names: Rename
    renamed: tuple[tuple[str, str], ...] = ()


def _sizes(f: Fields, keys: dict[str, Any]) -> None:
    heads, dim = f.integer("num_attention_heads", MAX_HEADS), f.integer("hidden_size", MAX_WIDTH)
    if dim % heads:
        raise FormatError(f"{f.path}: field 'hidden_size' is {dim}, no multiple of 'num_attention_heads', {heads}")
    keys |= {"vocab_size": f.integer("vocab_size", 1 << 30), "context_length": f.integer("max_position_embeddings", MAX_CONTEXT), "embedding_length": dim,
             "block_count": f.integer("num_hidden_layers", MAX_LAYERS), "feed_forward_length": f.integer("intermediate_size", MAX_WIDTH),
             "attention.head_count": heads, "attention.causal": False}


def _only(f: Fields, key: str, *known: Any) -> None:
    if (value := f.values.get(key)) is not None and value not in known:
        raise UnsupportedError(f"{f.path}: asks for a feature that llamina lacks: {key} = {quote(value)}, expected {known[0]}")


def _bert(f: Fields, keys: dict[str, Any]) -> None:
    _sizes(f, keys)
    _only(f, "hidden_act", *GELU)
    _only(f, "position_embedding_type", "absolute")
    _only(f, "is_decoder", False)
    _only(f, "add_cross_attention", False)
    keys |= {"attention.layer_norm_epsilon": f.number("layer_norm_eps", 1e-12), TYPES: f.integer("type_vocab_size", 1 << 20, 2)}


def _roberta(f: Fields, keys: dict[str, Any]) -> None:
    """Positions are counted from pad_token_id + 1 on: rows before are never used."""
    _bert(f, keys)
    keys["context_length"] -= offset(f)
    if keys["context_length"] < 1:
        raise FormatError(f"{f.path}: field 'max_position_embeddings' leaves no positions after pad_token_id")


def offset(f: Fields) -> int:
    """Rows of the table of positions that come before the first position."""
    return 1 + int(f.integer("pad_token_id", 1 << 30, 1, least=0)) if f.values.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0


def _modern(f: Fields, keys: dict[str, Any]) -> None:
    _sizes(f, keys)
    for key in "norm_bias", "attention_bias", "mlp_bias":
        _only(f, key, False)
    _only(f, "hidden_activation", "gelu", "gelu_pytorch_tanh", "silu")
    keys |= {"attention.layer_norm_epsilon": f.number("norm_eps", 1e-5), "hidden_act": f.get("hidden_activation", str, "gelu"),
             "attention.sliding_window": f.integer("local_attention", 1 << 30, 128)}
    every, types = f.integer("global_attn_every_n_layers", 1 << 20, 3), f.get("layer_types", list, [])
    if types and len(types) != keys["block_count"] or set(types) - {"full_attention", "sliding_attention"}:
        raise FormatError(f"{f.path}: field 'layer_types' must be full_attention or sliding_attention for each layer, found {quote(types)}")
    windowed = [kind == "sliding_attention" for kind in types] or [i % every != 0 for i in range(keys["block_count"])]
    if windowed == [i % every != 0 for i in range(keys["block_count"])]:
        keys["attention.sliding_window_pattern"] = every
    else:
        keys["attention.sliding_window_pattern"] = np.array(windowed)
    ropes = f.get("rope_parameters", dict, {})
    for kind, name, old, base in (("full_attention", "rope.freq_base", "global_rope_theta", 160000.0),
                                  ("sliding_attention", "rope.freq_base_swa", "local_rope_theta", 10000.0)):
        inner = Fields(f.path, ropes.get(kind) or {})
        _only(inner, "rope_type", "default")
        keys[name] = inner.number("rope_theta", f.number(old, base))
    _only(f, "rope_scaling")
    if f.values.get("classifier_pooling") == "mean":
        keys["classifier.pooling_type"] = 1
    _only(f, "classifier_activation", *GELU)


def _nomic(f: Fields, keys: dict[str, Any]) -> None:
    """Both nomic-ai's own code (n_embd, …) and transformers' class."""
    for key, known in (("prenorm", False), ("qkv_proj_bias", False), ("mlp_fc1_bias", False), ("mlp_fc2_bias", False), ("parallel_block", False),
                       ("rotary_emb_fraction", 1.0), ("rotary_emb_interleaved", False), ("use_rms_norm", False), ("causal", False), ("moe_every_n_layers", 0),
                       ("scale_attn_by_inverse_layer_idx", False), ("rotary_emb_scale_base", None)):
        _only(f, key, known)
    _only(f, "activation_function", "swiglu")
    _only(f, "hidden_act", "silu")
    _sizes(f, keys)
    trained = f.integer("max_trained_positions", MAX_CONTEXT, keys["context_length"])
    rope = Fields(f.path, f.get("rope_parameters", dict, {}))
    _only(rope, "rope_type", "default")
    keys |= {"attention.layer_norm_epsilon": f.number("layer_norm_eps", 1e-12), TYPES: f.integer("type_vocab_size", 1 << 20, 2),
             "context_length": min(trained, keys["context_length"]), "rope.freq_base": rope.number("rope_theta", f.number("rotary_emb_base", 1000.0))}


_DROPPED = re.compile(r"(embeddings\.position_ids|cls\.(predictions|seq_relationship)\..*|lm_head\..*|decoder\..*|pooler\..*)")


def _bert_names(name: str) -> str | None:
    """Of BERT's and RoBERTa's classes. A pooler is the head's first part where a classifier follows, and without effect else."""
    name = re.sub(r"^(bert|roberta)\.", "", name)
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    if (match := re.fullmatch(r"(classifier|pooler\.dense)\.(weight|bias)", name)):
        return f"{'classifier.out_proj' if match[1] == 'classifier' else 'pooler.dense'}.{match[2]}"
    return None if _DROPPED.fullmatch(name) and not name.startswith("pooler.dense") else name


def _modern_names(name: str) -> str | None:
    bare = name.removeprefix("model.")
    if bare.startswith("head.norm."):
        return "model." + bare
    bare = re.sub(r"^head\.dense\.", "classifier.dense.", re.sub(r"^classifier\.(weight|bias)$", r"classifier.out_proj.\1", bare))
    return None if _DROPPED.fullmatch(bare) else bare if bare.startswith("classifier.") else f"model.{bare}"


_NOMIC = (("emb_ln.", "embeddings.LayerNorm."), ("encoder.layers.", "layers."), (".attn.Wqkv.", ".self_attn.qkv_proj."),
          (".attn.out_proj.", ".self_attn.o_proj."), (".mlp.fc11.", ".mlp.up_proj."), (".mlp.fc12.", ".mlp.gate_proj."),
          (".mlp.fc2.", ".mlp.down_proj."), (".norm1.", ".attention.output.LayerNorm."),
          (".norm2.", ".output.LayerNorm."), (".post_attention_layernorm.", ".attention.output.LayerNorm."), (".post_mlp_layernorm.", ".output.LayerNorm."),
          ("embeddings.word_embeddings.", "embed_tokens."))


def _nomic_names(name: str) -> str | None:
    name = re.sub(r"^(bert|nomic_bert|model)\.", "", name)
    for theirs, ours in _NOMIC:
        name = name.replace(theirs, ours)
    return None if _DROPPED.fullmatch(name) else f"model.{name}"


_BY_NOMIC = (("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads"), ("n_inner", "intermediate_size"),
             ("n_positions", "max_position_embeddings"), ("layer_norm_epsilon", "layer_norm_eps"))
ENCODERS = (
    Encoder("bert", "bert", ("BertModel", "BertForMaskedLM", "BertForSequenceClassification"), _bert, _bert_names),
    Encoder("bert", "xlm-roberta", ("XLMRobertaModel", "XLMRobertaForMaskedLM", "XLMRobertaForSequenceClassification"), _roberta, _bert_names),
    Encoder("bert", "roberta", ("RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"), _roberta, _bert_names),
    Encoder("bert", "camembert", ("CamembertModel",), _roberta, _bert_names),
    Encoder("modern-bert", "modernbert", ("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"), _modern, _modern_names),
    Encoder("nomic-bert", "nomic_bert", ("NomicBertModel", "NomicBertForMaskedLM"), _nomic, _nomic_names, _BY_NOMIC),
)


def encoder_of(fields: Fields) -> Encoder | None:
    """By model_type, else by architectures; None for other models."""
    names, kind = fields.get("architectures", list, []), fields.values.get("model_type")
    return next((e for e in ENCODERS if e.model_type == kind), None) or next((e for e in ENCODERS if names and names[0] in e.architectures), None)


@dataclass
class EncoderKeys:
    """optional: names of tensors that a page takes if a file has them, and this checkpoint must have."""

    keys: dict[str, Any]
    optional: set[str]
    notes: list[str]
    names: Rename


def encoder_keys(given: Fields, encoder: Encoder) -> EncoderKeys:
    """FormatError: a field is missing or impossible. UnsupportedError: a feature that llamina lacks."""
    f = Fields(given.path, {dict(encoder.renamed).get(key, key): value for key, value in given.values.items()})
    keys: dict[str, Any] = {}
    encoder.read(f, keys)
    notes, page = [], encoder.gguf
    if f.get("auto_map", dict, {}):
        notes.append(f"config.json names code of its own (auto_map), which llamina does not run: read as {encoder.architectures[0]}")
    parts = {"bert": ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias", "attn_output_norm.bias",
                      "layer_output_norm.bias"), "modern-bert": ("attn_qkv.weight",),
             "nomic-bert": ("attn_output_norm.bias", "layer_output_norm.bias")}[page]
    optional = {f"blk.{i}.{part}" for i in range(keys["block_count"]) for part in parts}
    if page != "modern-bert":
        optional |= {"token_embd_norm.bias", *(["token_types.weight"] if keys[TYPES] else [])}
    classifier = any(isinstance(name, str) and name.endswith("ForSequenceClassification") for name in f.get("architectures", list, []))
    if classifier:
        keys |= _head(f)
        optional |= {"cls.weight", "cls.output.weight", "cls.output.bias"}
        optional |= {"cls.norm.weight"} if page == "modern-bert" else {"cls.bias"}
        if page == "modern-bert" and f.get("classifier_bias", bool, False):
            optional |= {"cls.bias"}

    def names(name: str) -> str | None:
        found = encoder.names(name)
        if found and found.startswith("pooler.dense"):
            return found.replace("pooler.dense", "classifier.dense") if classifier and encoder.model_type == "bert" else None
        return found
    return EncoderKeys(keys, optional, notes, names)


def _head(f: Fields) -> dict[str, Any]:
    """Of a model with a head that scores pairs: rank, and the scores' names if there are several."""
    named = f.get("id2label", dict, {})
    labels = len(named) or f.integer("num_labels", 1 << 16, 2)
    names = [str(named.get(str(i), f"LABEL_{i}")) for i in range(labels)]
    return {"pooling_type": 4, **({"classifier.output_labels": names} if labels > 1 else {})}


@dataclass(frozen=True)
class Tail(Permuted):
    """Rows of a matrix from `order[0]` on."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.order), *self.base.shape[1:])
