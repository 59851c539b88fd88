"""Hugging Face checkpoints as sources: weights and their order, tied and FP8 matrices, shards, configuration, and what is refused."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    TINY,
    Tiny,
    all_rows,
    assert_weights,
    half_split,
    hf_weights,
    random_weights,
    sentencepiece_model,
    with_,
    write_gguf,
    write_hf,
    write_safetensors,
    write_torch,
)
from llamina.convert.sources import open_source
from llamina.engine.architectures.config import ModelConfig, check_tensors
from llamina.engine.errors import FileError, FormatError, LlaminaError, OptionError, UnsupportedError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.text.tokenizer import load_tokenizer


def refused(path: Path, kind: type[LlaminaError], *words: str, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        open_source(path, **options)
    assert "\n" not in str(caught.value) and str(path.parent if path.is_file() else path) in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


# ---- weights


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_weights(tmp_path: Path, dtype: str) -> None:
    weights = random_weights()
    with open_source(write_hf(tmp_path / "m", weights=weights, dtype=dtype)) as source:
        assert source.kind == "hf" and {t.dtype for t in source.tensors} == {dtype}
        assert_weights(source, weights)
        assert all(t.raw() is None for t in source.tensors)
        assert source.tensors[0].path == tmp_path / "m" / "model.safetensors"
    with open_source(tmp_path / "m" / "model.safetensors") as source:
        assert_weights(source, weights)


def test_rope_order_is_not_symmetric() -> None:
    """The permutation and its inverse differ here, so the tests above tell them apart."""
    q = np.arange(16.0).reshape(16, 1)
    assert not np.array_equal(half_split(half_split(q, 2), 2), q)


def test_gguf_runs(tmp_path: Path) -> None:
    """What a source says is enough for the engine."""
    with open_source(write_hf(tmp_path / "m")) as source:
        path = write_gguf(tmp_path / "m.gguf", source)
    with open_gguf(path) as gguf:
        config = ModelConfig.from_gguf(gguf)
        check_tensors(gguf, config)
        assert (config.n_vocab, config.head_dim, config.context_length, config.name) == (320, 8, 128, "m")
        assert load_tokenizer(gguf.metadata).decode(load_tokenizer(gguf.metadata).encode("the cat sat")) == "the cat sat"


def test_pytorch_weights(tmp_path: Path) -> None:
    weights = random_weights()
    folder = write_hf(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    write_torch(folder / "pytorch_model.bin", hf_weights(TINY, weights))
    for path, kind in (folder, "hf"), (folder / "pytorch_model.bin", "pytorch"):
        with open_source(path) as source:
            assert source.kind == kind
            assert_weights(source, weights)
    (folder / "config.json").unlink()
    refused(folder / "pytorch_model.bin", FileError, "config.json")


def shard(folder: Path, tensors: dict[str, np.ndarray], n: int = 3) -> None:
    names = list(tensors)
    index = {name: f"model-{i % n + 1:05d}-of-{n:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(index.values()):
        write_safetensors(folder / file, {name: tensors[name] for name in names if index[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()


def test_shards(tmp_path: Path) -> None:
    weights = random_weights()
    folder = write_hf(tmp_path / "m", weights=weights)
    shard(folder, hf_weights(TINY, weights))
    with open_source(folder) as source:
        assert_weights(source, weights)
        assert len([f for f in source.files if f.suffix == ".safetensors"]) == 3
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    refused(folder, FormatError, first.name, "another model")
    write_safetensors(first, {"model.norm.weight": weights["output_norm.weight"]})
    refused(folder, FormatError, first.name, "missing")
    first.unlink()
    refused(folder, FileError, first.name, "missing")
    first.write_bytes(held)
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, FileError, "index.json")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "..\\x", 5, "a\0b", "C:x"])
def test_index_with_paths(tmp_path: Path, name: Any) -> None:
    folder = write_hf(tmp_path / "m")
    write_safetensors(tmp_path / "x.safetensors", hf_weights(TINY, random_weights()))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    refused(folder, FormatError, "lm_head.weight")


def test_index_that_is_none(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    for text in "[]", "{}", '{"weight_map": []}', "{", "[" * 100_000:
        (folder / "model.safetensors.index.json").write_text(text)
        refused(folder, FormatError, "index.json")


# ---- tied matrices, vocabulary


def test_tied(tmp_path: Path) -> None:
    t = with_(TINY, tied=True)
    weights = random_weights(t)
    folder = write_hf(tmp_path / "m", t, weights)
    tensors = hf_weights(t, weights)
    embedding = tensors.pop("model.embed_tokens.weight")
    for names in ("model.embed_tokens.weight",), ("lm_head.weight",), ("model.embed_tokens.weight", "lm_head.weight"):
        write_safetensors(folder / "model.safetensors", {**tensors, **dict.fromkeys(names, embedding)})
        with open_source(folder) as source:
            assert_weights(source, weights)
            assert bool(source.notes) == (names == ("lm_head.weight",))
    write_safetensors(folder / "model.safetensors", {**tensors, "model.embed_tokens.weight": embedding, "lm_head.weight": -embedding})
    with open_source(folder) as source:  # transformers 5 does not tie them then
        assert_weights(source, {**weights, "output.weight": -embedding})
        assert "lm_head.weight differs" in source.notes[0] and "kept" in source.notes[0]
    write_safetensors(folder / "model.safetensors", tensors)
    refused(folder, FormatError, "model.embed_tokens.weight", "missing")
    write_safetensors(folder / "model.safetensors", {**tensors, "model.embed_tokens.weight": embedding})
    edit_json(folder / "config.json", tie_word_embeddings=False)
    refused(folder, FormatError, "lm_head.weight", "tie_word_embeddings")


def test_vocabulary_padding_and_mismatch(tmp_path: Path) -> None:
    t = with_(TINY, n_vocab=328)
    with open_source(write_hf(tmp_path / "m", t)) as source:
        tokens, types = source.metadata["tokenizer.ggml.tokens"], source.metadata["tokenizer.ggml.token_type"]
        assert tokens[319:322] == [tokens[319], "[PAD320]", "[PAD321]"] and len(tokens) == 328 == len(source.metadata["tokenizer.ggml.scores"])
        assert list(types[318:]) == [1, 1, *[5] * 8]
        assert any("320 -> 328" in note for note in source.notes)
    folder = write_hf(tmp_path / "small", with_(TINY, n_vocab=300))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(320))
    refused(folder, FormatError, "320 tokens", "300 rows")
    edit_json(folder / "config.json", vocab_size=301)
    refused(folder, FormatError, "300 rows", "301")


def test_added_tokens(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", with_(TINY, n_vocab=324))
    decoder = {"0": {"content": "<unk>", "special": True}, "320": {"content": "<|im_start|>", "special": True},
        "321": {"content": "two words", "special": False},
               "330": {"content": "<beyond>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "added_tokens_decoder": decoder, "add_bos_token": False, "eos_token": {"content": "<|im_start|>"}, "pad_token": "<unk>",
        "chat_template": "{{ messages }}"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<x>": 322}))
    with open_source(folder) as source:
        keys = {key.removeprefix("tokenizer.ggml."): value for key, value in source.metadata.items()}
    assert keys["tokens"][320:] == ["<|im_start|>", "two words", "<x>", "[PAD323]"] and list(keys["token_type"][320:]) == [3, 4, 3, 5]
    assert keys["add_bos_token"] is False and keys["padding_token_id"] == 0 and keys["token_type"][0] == 2
    assert keys["eos_token_id"] == 2 and keys["tokenizer.chat_template"] == "{{ messages }}"  # the model's own EOS ids count first
    assert any("<beyond>" in note or "left out" in note for note in source.notes)


def test_ends_of_generation(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 300, 301], "bos_token_id": 1, "do_sample": True,
        "temperature": 0.6, "top_k": 40}))
    with open_source(folder) as source:
        m = source.metadata
        assert (m["tokenizer.ggml.eos_token_id"], m["tokenizer.ggml.eot_token_id"]) == (2, 300) and any("ends at" in note for note in source.notes)
        assert m["general.sampling.temp"] == 0.6 and m["general.sampling.top_k"] == 40
        assert folder / "generation_config.json" in source.files


def test_chat_templates(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]}))
    with open_source(folder) as source:
        assert source.metadata["tokenizer.chat_template"] == "A" and source.metadata["tokenizer.chat_template.tool_use"] == "B"
    (folder / "chat_template.jinja").write_text("C")
    with open_source(folder) as source:
        assert source.metadata["tokenizer.chat_template"] == "C" and folder / "chat_template.jinja" in source.files
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=5)
    refused(folder, FormatError, "chat_template")


def test_card(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# license: none\n")
    with open_source(folder) as source:
        assert source.metadata["general.license"] == "apache-2.0" and source.metadata["general.size_label"] == "36K"


# ---- configuration


@pytest.mark.parametrize("changes, word", [
    ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"), ({"architectures": None, "model_type": "mamba"}, "mamba"), ({"hidden_act": "gelu"}, "hidden_act"), ({"num_local_experts": 8}, "num_local_experts"),
    ({"sliding_window": 64}, "sliding_window"),
    ({"quantization_config": {"quant_method": "gptq"}}, "gptq"), ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"), ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
    ({"head_dim": 7}, "7 dimensions"),
])
def test_unsupported_fields(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    folder = write_hf(tmp_path / "m")
    edit_json(folder / "config.json", **changes)
    refused(folder, UnsupportedError, "config.json", word)


@pytest.mark.parametrize("changes, word", [
    ({"hidden_size": ...}, "hidden_size"), ({"hidden_size": "32"}, "hidden_size"), ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": 1 << 40}, "num_hidden_layers"), ({"num_key_value_heads": 3}, "num_key_value_heads"), ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rope_theta": 1e400}, "rope_theta"), ({"num_hidden_layers": 3}, "missing"), ({"num_hidden_layers": 1}, "layers.1"),
    ({"intermediate_size": 64}, "[64, 32]"), ({"head_dim": 16}, "q_proj"), ({"rope_scaling": []}, "rope_scaling"), ({"hidden_size": True}, "hidden_size"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"), ({"attention_bias": True}, "q_proj.bias"), ({"mlp_bias": True}, "gate_proj.bias"),
])
def test_impossible_fields(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    folder = write_hf(tmp_path / "m")
    edit_json(folder / "config.json", **changes)
    refused(folder, FormatError, word)


def test_harmless_fields(tmp_path: Path) -> None:
    with open_source(write_hf(tmp_path / "m", sliding_window=128, attention_bias=False, rope_scaling=None, pretraining_tp=2,
        architectures=["MistralForCausalLM"],
                              model_type="mistral", torch_dtype="bfloat16", rope_theta=5e5)) as source:
        assert source.metadata["llama.rope.freq_base"] == 5e5


def test_unknown_tensor(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    tensors = hf_weights(TINY, random_weights())
    for name, kind in ("model.layers.0.self_attn.q_proj.bias", UnsupportedError), ("model.layers.2.mlp.up_proj.weight", FormatError):
        write_safetensors(folder / "model.safetensors", {**tensors, name: np.ones((48, 32), np.float32)})
        refused(folder, kind, name)
    write_safetensors(folder / "model.safetensors", {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)})
    assert_weights(open_source(folder), random_weights())
    write_safetensors(folder / "model.safetensors", tensors, dtypes={"lm_head.weight": "I8"})
    refused(folder, UnsupportedError, "lm_head.weight", "I8")


# ---- RoPE scaling


def test_rope_scaling(tmp_path: Path) -> None:
    def scaled(**rope: Any) -> dict[str, Any]:
        folder = write_hf(tmp_path / "m", rope_scaling=rope)
        with open_source(folder) as source:
            values = {key.removeprefix("llama.rope.scaling."): value for key, value in source.metadata.items() if ".rope.scaling." in key}
            if "rope_freqs.weight" in (found := all_rows(source)):
                values["freqs"] = found["rope_freqs.weight"]
            with open_gguf(write_gguf(tmp_path / "m.gguf", source)) as gguf:
                config = ModelConfig.from_gguf(gguf)
                check_tensors(gguf, config)
            return values
    assert scaled(type="linear", factor=4) == {"type": "linear", "factor": 4.0}
    assert scaled(rope_type="default") == {}
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
    assert scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=64) == yarn
    attention = scaled(type="yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.0, beta_fast=16)
    assert attention == {**yarn, "yarn_beta_fast": 16.0, "attn_factor": pytest.approx(1 / (1 + 0.1 * math.log(4)))}
    mscale = scaled(type="yarn", factor=4.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=1.0)
    assert mscale["attn_factor"] == pytest.approx((1 + 0.07 * math.log(4)) / (1 + 0.1 * math.log(4)) ** 2)
    freqs = scaled(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)["freqs"]
    np.testing.assert_allclose(freqs, naive_llama3(8, 1e4, 8.0, 1.0, 4.0, 128), rtol=1e-6)


def naive_llama3(head_dim: int, base: float, factor: float, low: float, high: float, original: int) -> list[float]:
    """Meta's apply_scaling, as it is written there: what each frequency is divided by."""
    out = []
    for i in range(0, head_dim, 2):
        freq = 1.0 / base ** (i / head_dim)
        wavelen = 2 * math.pi / freq
        if wavelen < original / high:
            new = freq
        elif wavelen > original / low:
            new = freq / factor
        else:
            smooth = (original / wavelen - low) / (high - low)
            new = (1 - smooth) * freq / factor + smooth * freq
        out.append(freq / new)
    return out


# ---- detection, files


def test_detection(tmp_path: Path) -> None:
    refused(tmp_path, FileError, "config.json", "params.json")
    with pytest.raises(FileError, match="no such"):
        open_source(tmp_path / "none")
    with pytest.raises(OptionError, match="onnx"):
        open_source(tmp_path, kind="onnx")
    (tmp_path / "x.txt").write_text("hello")
    refused(tmp_path / "x.txt", FormatError, "no checkpoint")
    (tmp_path / "y.bin").write_bytes(b"")
    refused(tmp_path / "y.bin", FormatError, "no checkpoint")
    folder = write_hf(tmp_path / "m", tokenizer=False)
    refused(folder, FileError, "tokenizer.model", "tokenizer.json")
    (tmp_path / "tok.model").write_bytes(sentencepiece_model())
    with open_source(folder, tokenizer=tmp_path / "tok.model") as source:
        assert tmp_path / "tok.model" in source.files
    with pytest.raises(FileError, match="no such tokenizer"):
        open_source(folder, tokenizer=tmp_path / "none.model")
    (folder / "model.safetensors").unlink()
    refused(folder, FileError, "model.safetensors")
    (folder / "config.json").write_text("{")
    refused(folder, LlaminaError)


def test_close(tmp_path: Path) -> None:
    from llamina.engine.errors import ClosedError
    source = open_source(write_hf(tmp_path / "m"))
    kept = source.tensors[0].rows(0, 2)
    source.close()
    assert np.isfinite(kept).all()
    with pytest.raises(ClosedError, match="closed"):
        source.tensors[0].rows(0, 1)


def test_memory_stays_small(tmp_path: Path) -> None:
    """Reading 64 MB of rows leaves few of the file's pages resident."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc here")

    def shared() -> int:
        return int(statm.read_text().split()[2]) * 4096
    t = Tiny(dim=1024, n_layers=1, n_heads=4, n_kv_heads=4, ffn_dim=64, n_vocab=16384, head_dim=8, tied=True)
    weights = {name: np.zeros(value.shape, np.float32) for name, value in random_weights(with_(t, n_vocab=16)).items()}
    weights["token_embd.weight"] = np.ones((t.n_vocab, t.dim), np.float32)
    with open_source(write_hf(tmp_path / "m", t, weights)) as source:
        before = shared()
        for first in range(0, t.n_vocab, 1024):
            assert source.tensors[0].rows(first, first + 1024).all()
        assert shared() - before < 16 << 20


# ---- real files


def test_tinystories(real: Path) -> None:
    with open_source(real / "hf-tinystories-656k") as source:
        assert [t.name for t in source.tensors][:2] == ["token_embd.weight", "blk.0.attn_norm.weight"] and len(source.tensors) == 20
        assert "output.weight" not in {t.name for t in source.tensors} and source.notes == ["the tied embedding was stored as lm_head.weight only"]
        assert source.metadata["llama.embedding_length"] == 128
        comp = all_rows(source, 50)
    with open_gguf(real / "gguf-by-llama.cpp" / "tinystories-656k.q8_0.gguf") as gguf:
        from llamina.kernels.formats.registry import decode
        for name, values in comp.items():
            info = gguf.tensors[name]
            ref = decode(info.format.name, gguf.data(name)).reshape(values.shape)
            assert np.abs(values - ref).max() <= np.abs(ref).max() / 127, name
