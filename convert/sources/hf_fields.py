"""What config.json may say, class by class: every field is read, without effect, or refused unless it is off; and what a class takes for one that is not there.

    config.json ──class_of──► ClassFields(defaults, …) ──settled──► Fields with the class's defaults filled in, checked

An absent field is not the same as a null one, and neither is "off": MistralConfig without sliding_window has a window of 4096, with null none. So the
defaults are transformers' own (configuration_llama.py, configuration_mistral.py, version 5), and tests/test_sources_oracle.py compares both, field by field.
Fields that a class does not have are without effect there, as transformers keeps but never reads them; those that name a feature of another
architecture are refused all the same, because whoever wrote them meant something.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from .base import Fields


@dataclass(frozen=True)
class ClassFields:
    """defaults: field -> what the class takes if it is absent. nullable: fields for which null is a value."""

    model_type: str
    architectures: tuple[str, ...]
    defaults: dict[str, Any]
    nullable: frozenset[str]


_SHARED = {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": None, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_parameters": None, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_NULLABLE = frozenset(("num_key_value_heads", "head_dim", "rope_parameters", "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id"))
CLASSES = (
    ClassFields("llama", ("LlamaForCausalLM", "LLaMAForCausalLM"),
                {**_SHARED, "intermediate_size": 11008, "num_key_value_heads": None, "max_position_embeddings": 2048}, _NULLABLE),
    ClassFields("mistral", ("MistralForCausalLM",),
                {**_SHARED, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
                _NULLABLE | {"sliding_window"}),
)
READ = frozenset(key for c in CLASSES for key in c.defaults) | {
    "architectures", "model_type", "rope_theta", "rope_scaling", "original_max_position_embeddings", "quantization_config", "layer_types", "auto_map",
    "transformers_weights", "sliding_window", "use_sliding_window"}
WITHOUT_EFFECT = frozenset((
    "initializer_range", "use_cache", "attention_dropout", "hidden_dropout", "residual_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop",  # training
    "pretraining_tp", "chunk_size_feed_forward", "output_hidden_states", "output_attentions", "return_dict", "tie_last_hidden_states",  # how it is computed
    "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path", "id2label", "label2id", "problem_type", "num_labels",
    "max_window_layers",  # Qwen 2's: no field of these classes
))
"""Fields of these classes that change no logit."""
_OFF: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1, 1.0), "num_local_experts": (0, 1),
    "num_experts": (0, 1), "n_routed_experts": (0,), "use_qk_norm": (False,), "qk_norm": (False,), "attn_logit_softcapping": (), "final_logit_softcapping": (),
    "embedding_multiplier": (1, 1.0), "residual_multiplier": (1, 1.0), "attention_multiplier": (), "logits_scaling": (1, 1.0), "logit_scale": (1, 1.0),
    "clip_qkv": (), "no_rope_layers": ([],), "use_bias": (False,), "bias": (False,), "is_decoder": (True, False), "add_cross_attention": (False,),
    "cross_attention_layers": ([],), "is_encoder_decoder": (False,), "position_embedding_type": ("rope", "rotary"), "alibi": (False,), "mup": (False,),
    "scale_attn_weights": (True,), "use_parallel_residual": (False,), "parallel_attn": (False,), "per_layer_config": ({},), "pruned_heads": ({},),
    "num_nextn_predict_layers": (0,), "tie_encoder_decoder": (False,),
}
"""Fields of features that llamina lacks -> the values that turn them off (null and absence do too)."""
REFUSED = frozenset(_OFF)


def class_of(fields: Fields) -> tuple[ClassFields, str | None]:
    """The class that transformers would make (by model_type; by architectures where that is absent), and a remark if the two disagree.
    UnsupportedError: another architecture."""
    names, kind = fields.get("architectures", list, []), fields.get("model_type", str, None)
    named = next((c for c in CLASSES if len(names) == 1 and names[0] in c.architectures), None)
    typed = next((c for c in CLASSES if c.model_type == kind), None)
    if names and named is None or kind is not None and typed is None and named is None:
        known = " and ".join(c.architectures[0] for c in CLASSES)
        raise UnsupportedError(f"{fields.path}: is of architecture {quote(names[0] if names else kind)}; llamina converts {known} only")
    if kind is not None and typed is None:
        raise UnsupportedError(f"{fields.path}: field 'model_type' is {quote(kind)}, 'architectures' {quote(names[0])}: they contradict each other")
    found = typed or named or CLASSES[0]
    if named and typed and named is not typed:
        return found, f"config.json says model_type {kind} and architecture {names[0]}: read as {found.architectures[0]}, as transformers does"
    return found, None


def settled(fields: Fields, cls: ClassFields) -> Fields:
    """`fields` with the class's defaults where they are absent. FormatError: null for what can't be; UnsupportedError: a feature that llamina lacks."""
    for key in cls.defaults:
        if key in fields.values and fields.values[key] is None and key not in cls.nullable:
            raise FormatError(f"{fields.path}: field '{key}' is null, expected a value (absent, it would be {cls.defaults[key]})")
    for key, off in _OFF.items():
        value = fields.values.get(key)
        if value is not None and value not in off:
            raise UnsupportedError(f"{fields.path}: asks for a feature that llamina lacks: {key} = {quote(value)}")
    return Fields(fields.path, {**cls.defaults, **fields.values})
