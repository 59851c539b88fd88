"""The configuration of good files: published shapes, key variants and their defaults. Files that must be refused are in test_bad_files.py."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_builder import ARRAY, U32, Builder, llama
from llamina.engine.architectures.config import ModelConfig, RopeScaling, check_tensors, llama_config, read_vector
from llamina.engine.errors import UnsupportedError
from llamina.engine.gguf.file import open_gguf


def config_of(builder: Builder, folder: Path) -> ModelConfig:
    """Write, open, read, check every tensor."""
    with open_gguf(builder.write(folder / "x.gguf")) as g:
        config = ModelConfig.from_gguf(g)
        check_tensors(g, config)
        return config


def test_stories260k(real: Path) -> None:
    g = open_gguf(real / "llama2c" / "stories260K.gguf")
    c = ModelConfig.from_gguf(g)
    check_tensors(g, c)
    assert c == llama_config(
        name="llama", n_layers=5, dim=64, n_heads=8, n_kv_heads=4, head_dim=8, ffn_dim=172, n_vocab=512, context_length=2048,
        rms_eps=float(np.float32(1e-5)), rope_dim=8, rope_base=10000.0, rope_scaling=RopeScaling(), rope_freq_factors=False, tied_output=False, float32_kv=True,
    )
    assert (c.q_dim, c.kv_dim) == (64, 32)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_files_by_llama_cpp(real: Path, name: str) -> None:
    g = open_gguf(real / "gguf-by-llama.cpp" / f"tinystories-656k.{name}.gguf")
    c = ModelConfig.from_gguf(g)
    check_tensors(g, c)
    assert (c.n_layers, c.dim, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_dim, c.n_vocab) == (2, 128, 8, 4, 16, 384, 2048)


def test_vocabulary_only_file(real: Path) -> None:
    g = open_gguf(real / "tokenizer" / "ggml-vocab-llama-spm.gguf")
    assert g.metadata.array_length("tokenizer.ggml.tokens") == 32000
    with pytest.raises(UnsupportedError, match=r"ggml-vocab-llama-spm\.gguf: holds only a vocabulary"):
        ModelConfig.from_gguf(g)


@pytest.mark.parametrize("shape", [
    {"n_layers": 32, "dim": 4096, "n_heads": 32, "n_kv_heads": 32, "ffn_dim": 11008, "n_vocab": 32000},  # Llama 2 7B
    {"n_layers": 40, "dim": 5120, "n_heads": 40, "n_kv_heads": 40, "ffn_dim": 13824, "n_vocab": 32016},  # Code Llama 13B
    {"n_layers": 80, "dim": 8192, "n_heads": 64, "n_kv_heads": 8, "ffn_dim": 28672, "n_vocab": 32000},  # Llama 2 70B
    {"n_layers": 22, "dim": 2048, "n_heads": 32, "n_kv_heads": 4, "ffn_dim": 5632, "n_vocab": 32000},  # TinyLlama 1.1B
    {"n_layers": 16, "dim": 2048, "n_heads": 32, "n_kv_heads": 8, "ffn_dim": 8192, "n_vocab": 128256, "tied": True},  # Llama 3.2 1B
    {"n_layers": 40, "dim": 5120, "n_heads": 32, "n_kv_heads": 8, "ffn_dim": 14336, "n_vocab": 131072, "head_dim": 128},  # Mistral Nemo: 32 * 128 != 5120
    {"n_layers": 1, "dim": 6, "n_heads": 3, "n_kv_heads": 1, "ffn_dim": 5, "n_vocab": 259, "format": "F16"},  # nothing a multiple of anything
])
def test_published_shapes(tmp_path: Path, shape: dict) -> None:
    """Sparse files of any size; the configuration gives back what was written, and every tensor fits it."""
    c = config_of(llama(**{"format": "Q4_K" if shape["dim"] > 8 else "F16", **shape}), tmp_path)
    expected = {"head_dim": shape["dim"] // shape["n_heads"], "tied": False, **shape}
    found = {**c.summary(), "tied": c.tied_output, "format": shape.get("format")}
    assert {k: found[k] for k in expected} == expected and c.rope_dim == expected["head_dim"] and c.context_length == 128


def test_defaults(tmp_path: Path) -> None:
    """What llama.cpp leaves out or writes otherwise: equal heads, RoPE base, equal values per layer, no name."""
    b = llama(n_kv_heads=4).drop("llama.attention.head_count_kv").drop("llama.rope.freq_base").drop("general.name")
    b.set("llama.feed_forward_length", (U32, [96, 96]), ARRAY).set("llama.attention.head_count", [4, 4])
    b.set("llama.expert_count", 0).set("llama.attention.sliding_window", 128).set("general.type", "model").set("llama.vocab_size", 5)
    c = config_of(b, tmp_path)
    assert (c.n_kv_heads, c.rope_base, c.ffn_dim, c.n_heads, c.name) == (4, 10000.0, 96, 4, "")


def test_file_without_a_vocabulary(tmp_path: Path) -> None:
    b = llama(n_vocab=300)
    for key in [p[0] for p in b.pairs if str(p[0]).startswith("tokenizer.")]:
        b.drop(str(key))
    assert config_of(b, tmp_path).n_vocab == 300


@pytest.mark.parametrize(("keys", "expected"), [
    ({}, RopeScaling()),
    ({"scaling.type": "none", "scaling.factor": 4.0}, RopeScaling()),
    ({"scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
    ({"scaling.type": "linear", "scaling.factor": 0.0}, RopeScaling()),
    ({"scale_linear": 8.0}, RopeScaling("linear", 8.0)),
    ({"scaling.type": "linear", "scaling.factor": 2.0, "scaling.attn_factor": 0.5}, RopeScaling("linear", 2.0, 0, 0.5)),
    ({"scaling.type": "yarn", "scaling.factor": 16.0}, RopeScaling("yarn", 16.0, 128, 1.0, 32.0, 1.0)),
    ({"scaling.type": "yarn", "scaling.factor": 2.0, "scaling.original_context_length": 64, "scaling.finetuned": True, "scaling.yarn_beta_fast": 16.0,
      "scaling.yarn_beta_slow": 2.0, "scaling.attn_factor": 0.5, "scaling.yarn_attn_factor": 4.0}, RopeScaling("yarn", 2.0, 64, 2.0, 16.0, 2.0)),
])
def test_rope_scaling(tmp_path: Path, keys: dict, expected: RopeScaling) -> None:
    b = llama()
    for key, value in keys.items():
        b.set("llama.rope." + key, value)
    assert config_of(b, tmp_path).rope_scaling == expected


def test_llama3_factors_and_ignored_tensors(tmp_path: Path) -> None:
    """rope_freqs.weight is used, equal copies per layer are accepted, and so are the inverse frequencies of old converters."""
    factors = np.array([1, 1, 2, 3.5, 8, 8, 8, 8], np.float32)
    b = llama().add("rope_freqs.weight", (8,), "F32", factors).add("blk.0.attn_rot_embd.weight", (8,)).add("rope.freqs", (8,))
    b.add("blk.1.rope_freqs.weight", (8,), "F32", factors).add("blk.1.attn_rot_embd", (8,))
    c = config_of(b, tmp_path)
    assert c.rope_freq_factors
    g = open_gguf(tmp_path / "x.gguf")
    assert read_vector(g, "rope_freqs.weight").tolist() == factors.tolist()


@pytest.mark.parametrize(("format", "raw"), [
    ("F32", np.array([1.5, -2, 0], "<f4")), ("F16", np.array([1.5, -2, 0], "<f2")), ("BF16", np.array([0x3FC0, 0xC000, 0], "<u2")),
])
def test_vectors_in_three_formats(tmp_path: Path, format: str, raw: np.ndarray) -> None:
    vector = read_vector(open_gguf(Builder().add("v", (3,), format, raw).write(tmp_path / "x.gguf")), "v")
    assert vector.dtype == np.float32 and vector.tolist() == [1.5, -2, 0]


def test_other_kinds_of_file(tmp_path: Path) -> None:
    for key, value, message in (
        ("general.architecture", "qwen9", "architecture 'qwen9'; llamina runs [0-9]+ others .*by names like it qwen"),
        ("general.type", "adapter", r"holds a 'adapter' \(general.type\)"),
    ):
        g = open_gguf(llama().set(key, value).write(tmp_path / "x.gguf"))
        with pytest.raises(UnsupportedError, match=message):
            ModelConfig.from_gguf(g)
