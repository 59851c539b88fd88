"""Every field of config.json, absent, null and with values that are not the usual: read as transformers' classes read it, or refused by name.

Two ways: the table of hf_fields.py against the classes' own fields and defaults, and single fields changed in a whole configuration, whose reading is
compared with what transformers makes of the same file (sizes, epsilon, window, tied or not, RoPE frequencies and their scale).
"""
from __future__ import annotations

import json
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, hf_config
from llamina.convert.sources.base import Fields
from llamina.convert.sources.hf_config import read_config
from llamina.convert.sources.hf_fields import CLASSES, READ, REFUSED, WITHOUT_EFFECT
from llamina.engine.errors import FormatError, LlaminaError, UnsupportedError
from llamina.engine.run.rope import frequencies

GONE = object()
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CHANGES: dict[str, tuple[Any, ...]] = {
    "vocab_size": (GONE, None, 400), "hidden_size": (GONE, None, 64), "intermediate_size": (GONE, None, 64), "num_hidden_layers": (GONE, None, 3),
    "num_attention_heads": (GONE, None, 8), "num_key_value_heads": (GONE, None, 1, 4), "head_dim": (GONE, None, 16), "hidden_act": (GONE, "swish", "gelu"),
    "max_position_embeddings": (GONE, None, 256), "rms_norm_eps": (GONE, None, 1e-4), "tie_word_embeddings": (GONE, True, None),
    "sliding_window": (GONE, None, 64, 128, 4096), "use_sliding_window": (False, True), "rope_theta": (GONE, 5e5),
    "rope_scaling": (GONE, None, {}, {"type": "linear", "factor": 2.0}, LLAMA3, YARN, {**YARN, "rope_theta": 1e6}, {**YARN, "factor": None},
                     {**YARN, "mscale": 0.7, "mscale_all_dim": 0.0}, {**YARN, "beta_fast": None}, {**YARN, "attention_factor": 1.2},
                     {"rope_type": "llama3", "factor": 8.0}, {"rope_type": "yarn", "factor": 2.0}, {"type": "dynamic", "factor": 2.0}, {"rope_theta": 1e6}),
    "rope_parameters": (None, {}, {"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}, YARN,
                        {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
                        {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}),
    "original_max_position_embeddings": (32, 64), "attention_bias": (True,), "mlp_bias": (True,), "partial_rotary_factor": (0.5, 1.0),
    "layer_types": (["full_attention"] * 2, ["sliding_attention", "full_attention"], ["full_attention"] * 3),
    "per_layer_config": ({"0": {"num_key_value_heads": 1}}, {}), "model_type": (GONE, "mistral", "llama", "qwen2"),
    "architectures": (GONE, None, ["MistralForCausalLM"], ["LlamaForCausalLM"], ["Qwen2ForCausalLM"]),
    "initializer_range": (GONE, 0.5), "use_cache": (GONE, False), "attention_dropout": (GONE, 0.5), "pretraining_tp": (GONE, 2), "pad_token_id": (GONE, 0),
}


def read(values: dict[str, Any], context: int | None = None) -> Any:
    return read_config(Fields(Path("config.json"), values), "m", context)


def written(family: str, **changes: Any) -> dict[str, Any]:
    """A whole configuration, of small sizes, with some fields changed (GONE: left out)."""
    values = hf_config(TINY, model_type=family, architectures=[f"{family.capitalize()}ForCausalLM"])
    if family == "mistral":
        values["sliding_window"] = None
    values.update(changes)
    return {key: value for key, value in values.items() if value is not GONE}


def test_mistral_without_a_window_field_has_one() -> None:
    with pytest.raises(UnsupportedError, match=r"sliding_window = 4096 \(the field is absent.*--context 4096"):
        read(written("mistral", sliding_window=GONE, max_position_embeddings=32768))
    assert read(written("mistral", sliding_window=GONE, max_position_embeddings=32768), 4096)[0].context_length == 32768
    with pytest.raises(UnsupportedError, match="sliding_window = 64"):
        read(written("mistral", sliding_window=64, use_sliding_window=False))  # no field of this class
    read(written("mistral", sliding_window=128))
    read(written("mistral", sliding_window=None, max_position_embeddings=32768))


def test_absent_is_the_default_of_the_class() -> None:
    assert read(written("llama", num_key_value_heads=GONE))[0].n_kv_heads == 4
    with pytest.raises(FormatError, match="num_key_value_heads', 8"):
        read(written("mistral", num_key_value_heads=GONE))
    assert read(written("mistral", num_key_value_heads=None))[0].n_kv_heads == 4
    assert read(written("llama", max_position_embeddings=GONE))[0].context_length == 2048
    assert read(written("mistral", max_position_embeddings=GONE))[0].context_length == 131072
    with pytest.raises(FormatError, match="'rms_norm_eps' is null"):
        read(written("llama", rms_norm_eps=None))


def test_rope_by_kind_of_layer() -> None:
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
    assert read(written("llama", rope_parameters=nested, rope_theta=GONE, layer_types=["full_attention"] * 2))[0].rope_base == 5e5
    for rope in nested, {**nested, "sliding_attention": {"rope_theta": 1e4}}:
        with pytest.raises(UnsupportedError, match="rope_parameters.full_attention"):
            read(written("llama", rope_parameters=rope))


def test_rope_scaling_replaces_rope_parameters() -> None:
    both = read(written("llama", rope_parameters={"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}, rope_scaling={"type": "linear", "factor": 2.0}))[0]
    assert (both.rope_base, both.rope_scaling.factor) == (1e4, 2.0)
    outer = read(written("llama", rope_scaling={**YARN, "original_max_position_embeddings": 32}, original_max_position_embeddings=64))[0]
    assert outer.rope_scaling.original_context == 64


# ---- against transformers


def mutations() -> list[tuple[str, str, Any]]:
    return [(cls.model_type, key, value) for cls in CLASSES for key, values in CHANGES.items() for value in values]


def test_all_fields_of_the_classes_are_known() -> None:
    transformers = pytest.importorskip("transformers", reason="extra 'oracle' is not installed", minversion="5.0")
    for cls, theirs in zip(CLASSES, (transformers.LlamaConfig, transformers.MistralConfig)):
        names = {f.name for f in dataclass_fields(theirs)}
        assert not names - READ - WITHOUT_EFFECT - REFUSED
        fresh = {f.name: f.default for f in dataclass_fields(theirs)}
        for key, default in cls.defaults.items():
            assert fresh[key] == default, key
        assert names >= set(cls.defaults)
        assert set(CHANGES) | WITHOUT_EFFECT | REFUSED | {"bos_token_id", "eos_token_id"} >= names


@pytest.mark.parametrize("family", [cls.model_type for cls in CLASSES])
def test_as_transformers_reads_it(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="extra 'oracle' is not installed", minversion="5.0")
    torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
    llama, mistral = transformers.models.llama.modeling_llama, transformers.models.mistral.modeling_mistral
    read_ones = 0
    for _, key, value in (m for m in mutations() if m[0] == family):
        values = written(family, **{key: value})
        (tmp_path / "config.json").write_text(json.dumps(values))
        try:
            config, factors, _notes = read(values)
        except LlaminaError as error:
            assert "config.json" in str(error)
            continue  # refusing is never wrong; what must not be refused has its tests
        try:
            theirs = transformers.AutoConfig.from_pretrained(tmp_path) if "model_type" in values else transformers.LlamaConfig(**values)
        except Exception as error:  # version 5 refuses null key-value heads of Mistral, which 4 read as ours does
            assert (key, value) == ("num_key_value_heads", None), error
            continue
        read_ones += 1
        said = (theirs.vocab_size, theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers, theirs.num_attention_heads,
                theirs.num_key_value_heads, theirs.head_dim, theirs.max_position_embeddings, theirs.rms_norm_eps, theirs.tie_word_embeddings)
        found = (config.n_vocab, config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim, config.context_length,
                 config.rms_eps, config.tied_output)
        assert found == said, (key, value)
        window = getattr(theirs, "sliding_window", None) if theirs.model_type == "mistral" else None
        assert window is None or window >= config.context_length, (key, value)
        rotary = (mistral.MistralRotaryEmbedding if theirs.model_type == "mistral" else llama.LlamaRotaryEmbedding)(theirs)
        ours, scale = frequencies(config, factors)
        np.testing.assert_allclose(ours, rotary.inv_freq.to(torch.float64).numpy(), rtol=2e-6, err_msg=f"{key} = {value}")
        assert scale == pytest.approx(rotary.attention_scaling, rel=1e-6), (key, value)
    assert read_ones > 40
