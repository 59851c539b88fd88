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
from llamina.convert.sources.hf_encoders import ENCODERS
from llamina.convert.sources.hf_fields import CLASSES, READ, REFUSED, WITHOUT_EFFECT
from llamina.convert.sources.hf_keys import BY_KIND
from llamina.convert.sources.hf_rope import FULL, WINDOWED
from llamina.engine.architectures.pages import PAGES
from llamina.engine.errors import FormatError, LlaminaError, UnsupportedError
from llamina.engine.run.rope import frequencies

GONE = object()
OWN: dict[str, dict[str, Any]] = {
    "arcee": {"hidden_act": "relu2"}, "gemma": {"hidden_act": "gelu_pytorch_tanh"}, "gemma2": {"hidden_act": GONE, "sliding_window": 40},
    "gemma3_text": {"hidden_act": GONE, "sliding_window": 40}, "olmo3": {"sliding_window": 40}, "exaone4": {"sliding_window": 40},
    "phi3": {"original_max_position_embeddings": 64}, "minicpm": {"dim_model_base": 8, "scale_depth": 1.4, "scale_emb": 12},
}
"""What the whole configuration of a class says beside or otherwise than Llama's."""
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
    "max_window_layers": (0, 1, 2), "no_rope_layers": (None, [], [1, 1], [1, 0]), "no_rope_layer_interval": (4, 2), "query_pre_attn_scalar": (GONE, 8, 16),
    "final_logit_softcapping": (GONE, None, 20.0), "attn_logit_softcapping": (GONE, None, 20.0), "hidden_activation": (GONE, "gelu_pytorch_tanh", "silu"),
    "sliding_window_pattern": (GONE, 1, 2, 3), "rope_local_base_freq": (GONE, 2e4), "attention_out_bias": (True,), "use_bias": (True,),
    "embedding_multiplier": (GONE, 3.0), "logits_scaling": (GONE, 3.0), "residual_multiplier": (GONE, 0.3), "attention_multiplier": (GONE, 0.3),
    "use_bidirectional_attention": (GONE, False, True), "scale_emb": (GONE,), "scale_depth": (GONE,), "dim_model_base": (GONE,), "eod_token_id": (GONE, 5),
    "initializer_range": (GONE, 0.5), "use_cache": (GONE, False), "attention_dropout": (GONE, 0.5), "pretraining_tp": (GONE, 2), "pad_token_id": (GONE, 0),
}


def read(values: dict[str, Any], context: int | None = None) -> Any:
    return read_config(Fields(Path("config.json"), values), "m", context)


def written(family: str, **changes: Any) -> dict[str, Any]:
    """A whole configuration, of small sizes, with some fields changed (GONE: left out)."""
    cls = next(c for c in CLASSES if c.model_type == family)
    values = {**hf_config(TINY, model_type=family, architectures=[cls.architectures[0]]), **OWN.get(family, {})}
    if family == "mistral":
        values["sliding_window"] = None
    if family in BY_KIND:
        del values["rope_theta"]
    values.update(changes)
    return {key: value for key, value in values.items() if value is not GONE}


def test_mistral_without_a_window_field_has_one() -> None:
    model = read(written("mistral", sliding_window=GONE, max_position_embeddings=32768))
    assert {a.window for a in model.config().attentions()} == {4096} and "the field is absent" in model.notes[0]
    model = read(written("mistral", sliding_window=GONE, max_position_embeddings=32768), 4096)
    assert {a.window for a in model.config().attentions()} == {0} and not model.notes  # within one window
    model = read(written("mistral", sliding_window=64, use_sliding_window=False))  # no field of this class
    assert {a.window for a in model.config().attentions()} == {64}
    for window in 128, None:
        assert {a.window for a in read(written("mistral", sliding_window=window)).config().attentions()} == {0}


def test_what_gguf_cannot_say_is_refused_by_its_field() -> None:
    four = {"num_hidden_layers": 4}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}, "sliding_window = 40 in 1 of 2 layers"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 0}, "--context 40"),
        ("smollm3", {**four, "no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers"), ("smollm3", {**four, "no_rope_layer_interval": 2}, "no_rope_layers"),
        ("seed_oss", {"attention_bias": False}, "attention_bias"), ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "sliding_attention"),
        ("ministral3", {"sliding_window": 40}, "sliding_window = 40"), ("exaone4", {"layer_types": ["full_attention"] * 2}, "none has positions"),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "alpha"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ("olmo3", {"layer_types": ["chunked_attention", "full_attention"]}, "chunked_attention"), ("granite", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"), ("arcee", {"hidden_act": "silu"}, "hidden_act"),
        ("llama", {"embedding_multiplier": 3.0}, "embedding_multiplier"), ("olmo2", {"sliding_window": 40}, "sliding_window = 40"),
    ]
    for family, changes, word in cases:
        with pytest.raises(UnsupportedError, match=word):
            read(written(family, **changes)).config()
    same: list[dict[str, Any]] = [{"use_sliding_window": False, "sliding_window": 40},
                                  {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 2}]
    for fields in same:
        read(written("qwen2", **fields))
    read(written("qwen2", use_sliding_window=True, sliding_window=40, max_window_layers=0), 40)


def test_classes_are_those_of_the_pages() -> None:
    """gemma3_text is of two pages: with attention to both sides it is an encoder, EmbeddingGemma."""
    for cls in (*CLASSES, *ENCODERS):
        pages = (cls.gguf, "gemma-embedding") if cls.model_type == "gemma3_text" else (cls.gguf,)
        assert set(cls.architectures) <= {name for page in pages for name in PAGES[page].hf}, cls.model_type
    assert {name for page in PAGES.values() for name in page.hf} == {name for cls in (*CLASSES, *ENCODERS) for name in cls.architectures}
    assert [read(written("gemma3_text", use_bidirectional_attention=both)).config().architecture for both in (False, True)] == ["gemma3", "gemma-embedding"]
    with pytest.raises(UnsupportedError, match="converts [0-9]+ others \\(docs/models.md"):
        read({"model_type": "mamba"})


def test_absent_is_the_default_of_the_class() -> None:
    assert read(written("llama", num_key_value_heads=GONE)).config().n_kv_heads == 4
    with pytest.raises(FormatError, match="num_key_value_heads', 8"):
        read(written("mistral", num_key_value_heads=GONE))
    assert read(written("mistral", num_key_value_heads=None)).config().n_kv_heads == 4
    assert read(written("llama", max_position_embeddings=GONE)).config().context_length == 2048
    assert read(written("mistral", max_position_embeddings=GONE)).config().context_length == 131072
    with pytest.raises(FormatError, match="'rms_norm_eps' is null"):
        read(written("llama", rms_norm_eps=None))


def test_rope_by_kind_of_layer() -> None:
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
    assert read(written("llama", rope_parameters=nested, rope_theta=GONE, layer_types=["full_attention"] * 2)).config().rope_base == 5e5
    for rope in nested, {**nested, "sliding_attention": {"rope_theta": 1e4}}:
        with pytest.raises(UnsupportedError, match="rope_parameters.full_attention"):
            read(written("llama", rope_parameters=rope))


def test_rope_scaling_replaces_rope_parameters() -> None:
    older, newer = {"type": "linear", "factor": 2.0}, {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    both = read(written("llama", rope_parameters=newer, rope_scaling=older)).config()
    assert (both.rope_base, both.rope_scaling.factor) == (1e4, 2.0)
    outer = read(written("llama", rope_scaling={**YARN, "original_max_position_embeddings": 32}, original_max_position_embeddings=64)).config()
    assert outer.rope_scaling.original_context == 64


# ---- against transformers


def mutations() -> list[tuple[str, str, Any]]:
    return [(cls.model_type, key, value) for cls in CLASSES for key, values in CHANGES.items() for value in values]


OF_TRANSFORMERS = [cls for cls in CLASSES if cls.model_type not in ("exaone", "minicpm")]
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")


def test_all_fields_of_the_classes_are_known() -> None:
    transformers = pytest.importorskip("transformers", reason="extra 'oracle' is not installed", minversion="5.0")
    for cls in OF_TRANSFORMERS:
        fields = {f.name: f.default for f in dataclass_fields(transformers.CONFIG_MAPPING[cls.model_type])}
        assert not set(fields) - READ - WITHOUT_EFFECT - REFUSED, cls.model_type
        for key, default in cls.defaults.items():
            assert fields[key] == default, (cls.model_type, key)
        assert set(CHANGES) | WITHOUT_EFFECT | REFUSED | {"bos_token_id", "eos_token_id"} >= set(fields), cls.model_type


def rotary(transformers: Any, theirs: Any) -> dict[str, tuple[np.ndarray, float]]:
    """{kind of layers: (inverse frequencies, scale of cosine and sine)} as the class's own module has them."""
    package = {"gemma3_text": "gemma3"}.get(theirs.model_type, theirs.model_type)
    module = getattr(getattr(transformers.models, package), f"modeling_{package}")
    made = next(getattr(module, name) for name in dir(module) if name.endswith("RotaryEmbedding") and "Vision" not in name)(theirs)
    if theirs.model_type in BY_KIND:
        return {kind: (getattr(made, f"{kind}_inv_freq").double().numpy(), getattr(made, f"{kind}_attention_scaling")) for kind in set(theirs.layer_types)}
    return {FULL: (made.inv_freq.double().numpy(), made.attention_scaling)}


def same_as(transformers: Any, config: Any, extra: dict[str, np.ndarray], theirs: Any) -> None:
    """Sizes, windows, scales, caps and rotary positions of each layer."""
    fields = {f.name for f in dataclass_fields(theirs)}

    def of(name: str, default: Any = None) -> Any:  # what is no field of the class is kept by it, but not read
        value = getattr(theirs, name) if name in fields else None
        return default if value is None else value
    found = (config.n_vocab, config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.n_kv_heads, config.context_length, config.rms_eps,
             config.tied_output)
    assert found == tuple(getattr(theirs, name) for name in SIZES)
    size = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    kinds = of("layer_types", [WINDOWED if of("sliding_window") else FULL] * theirs.num_hidden_layers)
    turned = of("no_rope_layers", [True] * theirs.num_hidden_layers)
    frequency = rotary(transformers, theirs)
    for i, (a, kind) in enumerate(zip(config.attentions(), kinds)):
        seen = (of("sliding_window") if kind == WINDOWED else None) or config.context_length
        assert min(a.window or seen, config.context_length) == min(seen, config.context_length), (a.window, seen)
        assert a.head_dim == size and a.soft_cap == of("attn_logit_softcapping", 0.0) and a.factor == pytest.approx(of("residual_multiplier", 1.0))
        assert a.scale == pytest.approx(of("attention_multiplier", of("query_pre_attn_scalar", size)**-0.5), rel=1e-6)
        if a.rope is None:
            assert not turned[i] or theirs.model_type == "exaone4" and kind == FULL
            continue
        assert turned[i]
        name = a.rope.factors_for(1)
        ours, scale = frequencies(a.rope, extra[name] if name else None)
        wanted, attention = frequency[kind if kind in frequency else FULL]
        np.testing.assert_allclose(ours, wanted, rtol=2e-6)
        assert scale == pytest.approx(attention, rel=1e-6)
    assert config.output.soft_cap == of("final_logit_softcapping", 0.0)
    assert config.output.factor == pytest.approx(1 / of("logits_scaling", 1.0))
    stream = theirs.hidden_size**0.5 if "gemma" in theirs.model_type else 1.0
    assert config.embedding_scale == pytest.approx(of("embedding_multiplier", stream))


@pytest.mark.parametrize("family", [cls.model_type for cls in OF_TRANSFORMERS])
def test_as_transformers_reads_it(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="extra 'oracle' is not installed", minversion="5.0")
    pytest.importorskip("torch", reason="extra 'oracle' is not installed")
    read_ones = 0
    for _, key, value in (m for m in mutations() if m[0] == family):
        values = written(family, **{key: value})
        (tmp_path / "config.json").write_text(json.dumps(values))
        try:
            model = read(values)
            config = model.config()
        except LlaminaError as error:
            assert "config.json" in str(error)
            continue  # refusing is never wrong; what must not be refused has its tests
        try:
            theirs = transformers.AutoConfig.from_pretrained(tmp_path) if "model_type" in values else transformers.CONFIG_MAPPING[family](**values)
        except Exception as error:  # the strict classes refuse nulls that earlier versions read as we do
            assert value in (None, []) or key in ("rope_scaling", "rope_parameters"), (key, value, error)
            continue
        read_ones += 1
        try:
            same_as(transformers, config, model.extra, theirs)
        except Exception as error:
            raise AssertionError(f"{key} = {value}: {error}") from error
    assert read_ones > 40
