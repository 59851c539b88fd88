"""Meta's releases as sources: shards joined along the right axis, params.json, Llama 3's tokenizer file, and what is refused."""
from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import META, TINY, assert_weights, meta_shards, random_weights, renamed, with_, write_gguf, write_meta, write_torch
from llamina.convert.sources import open_source
from llamina.convert.sources.vocabulary import llama3_specials, read_vocabulary_file
from llamina.engine.architectures.config import ModelConfig, check_tensors
from llamina.engine.errors import FileError, FormatError, LlaminaError, UnsupportedError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.text.tokenizer import load_tokenizer

WEIGHTS = random_weights()


def refused(path: Path, kind: type[LlaminaError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        open_source(path)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("vocab_parallel", [False, True])
@pytest.mark.parametrize("vocab_size", [-1, 320])
def test_shards(tmp_path: Path, n: int, vocab_parallel: bool, vocab_size: int) -> None:
    with open_source(write_meta(tmp_path / "m", TINY, WEIGHTS, n, vocab_parallel, vocab_size=vocab_size)) as source:
        assert source.kind == "meta" and len([f for f in source.files if f.suffix == ".pth"]) == n
        assert_weights(source, WEIGHTS)


def test_four_shards(tmp_path: Path) -> None:
    t = with_(TINY, n_kv_heads=4)
    weights = random_weights(t, 5)
    with open_source(write_meta(tmp_path / "m", t, weights, 4)) as source:
        assert_weights(source, weights)
        assert source.notes[0] == "4 shards joined"
        path = write_gguf(tmp_path / "m.gguf", source)
    with open_gguf(path) as gguf:
        check_tensors(gguf, ModelConfig.from_gguf(gguf))
    with open_source(tmp_path / "m" / "consolidated.00.pth") as source:  # one of them stands for all
        assert_weights(source, weights)


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "m", TINY, WEIGHTS, 2)
    second = folder / "consolidated.01.pth"
    held = second.read_bytes()
    second.unlink()
    refused(folder, FormatError, "16 rows", "1 shards", "missing")
    second.write_bytes((folder / "consolidated.00.pth").read_bytes())
    refused(folder, FormatError, "consolidated.01.pth", "duplicated")
    other = with_(TINY, ffn_dim=64)
    write_torch(second, meta_shards(other, random_weights(other), 2)[1])
    refused(folder, FormatError, "consolidated.01.pth", "not of one model")
    write_torch(second, meta_shards(with_(TINY, n_layers=1), random_weights(with_(TINY, n_layers=1)), 2)[1])
    refused(folder, FormatError, "consolidated.01.pth", "layers.1", "missing")
    second.write_bytes(held[: len(held) // 2])
    refused(folder, FormatError, "consolidated.01.pth")
    second.write_bytes(held)
    shutil.move(second, folder / "consolidated.03.pth")
    refused(folder, FileError, "consolidated.01.pth", "missing")


@pytest.mark.parametrize("params, kind, word", [
    ({"vocab_size": 300}, FormatError, "300"), ({"n_heads": 8, "head_dim": 8}, FormatError, "32 rows"),
    ({"n_kv_heads": 4}, FormatError, "layers.0.attention.wk.weight"),
    ({"dim": 64}, FormatError, "32"), ({"moe": {"num_experts": 8}}, UnsupportedError, "moe"),
    ({"vision_chunk_size": 448}, UnsupportedError, "vision_chunk_size"),
    ({"n_layers": 3}, FormatError, "layers.2"), ({"n_layers": None}, FormatError, "n_layers"), ({"n_heads": "4"}, FormatError, "n_heads"),
    ({"sliding_window": 64}, UnsupportedError, "sliding_window"), ({"n_kv_heads": 3}, FormatError, "divide"),
    ({"use_biases": True}, UnsupportedError, "use_biases"),
])
def test_params(tmp_path: Path, params: dict[str, Any], kind: type[LlaminaError], word: str) -> None:
    refused(write_meta(tmp_path / "m", TINY, WEIGHTS, **params), kind, word)


@pytest.mark.parametrize("params, context", [
    ({"norm_eps": 1e-6}, 2048), ({}, 4096), ({"rope_theta": 5e5}, 8192), ({"rope_theta": 1e6}, 16384), ({"rope_theta": 1e6, "head_dim": 8}, 32768),
    ({"rope_theta": 5e5, "use_scaled_rope": True}, 131072), ({"max_seq_len": 77}, 77),
])
def test_context(tmp_path: Path, params: dict[str, Any], context: int) -> None:
    weights = dict(WEIGHTS)
    with open_source(write_meta(tmp_path / "m", TINY, weights, **params)) as source:
        assert source.metadata["llama.context_length"] == context
        assert ("rope_freqs.weight" in {t.name for t in source.tensors}) == ("use_scaled_rope" in params)
        assert any("context length" in note for note in source.notes) == ("max_seq_len" not in params)


def test_missing_parts(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "a", TINY, WEIGHTS)
    (folder / "tokenizer.model").replace(tmp_path / "tokenizer.model")
    with open_source(folder) as source:  # Llama 1 has it one folder up
        assert tmp_path / "tokenizer.model" in source.files
    (tmp_path / "tokenizer.model").unlink()
    refused(folder, FileError, "tokenizer.model")
    (folder / "consolidated.00.pth").unlink()
    refused(folder, FileError, "consolidated.00.pth")
    folder = write_meta(tmp_path / "b", TINY, WEIGHTS)
    tensors = meta_shards(TINY, WEIGHTS, 1)[0]
    write_torch(folder / "consolidated.00.pth", {**tensors, "layers.0.attention.wq.bias": np.ones(32, np.float32)})
    refused(folder, UnsupportedError, "layers.0.attention.wq.bias")
    write_torch(folder / "consolidated.00.pth", {name: v for name, v in tensors.items() if name != "layers.1.ffn_norm.weight"})
    refused(folder, FormatError, "missing", "layers.1.ffn_norm.weight")


def test_llama2c_checkpoint(tmp_path: Path) -> None:
    """A training checkpoint of llama2.c (torch.save) shares Meta's names; its embedding and output are one storage."""
    from checkpoints import sentencepiece_model
    t = with_(TINY, tied=True)
    weights = random_weights(t)
    args = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 320, "multiple_of": 16, "max_seq_len": 64, "dropout": 0.0}
    (tmp_path / "tok320.model").write_bytes(sentencepiece_model())
    model = {f"_orig_mod.{name}": value for name, value in renamed(weights, META, "").items()}
    with open_source(write_torch(tmp_path / "ckpt.pt", {"model": model, "model_args": args, "optimizer": {"state": {}}})) as source:
        assert source.kind == "pytorch" and source.metadata["llama.context_length"] == 64
        assert_weights(source, weights)
    refused(write_torch(tmp_path / "bare.pt", model), FormatError, "model_args")
    refused(write_torch(tmp_path / "other.pt", {"wte.weight": np.ones((2, 2), np.float32)}), UnsupportedError, "wte.weight")


# ---- Llama 3's tokenizer.model


def tiktoken_file(path: Path, words: list[bytes]) -> Path:
    tokens = [bytes([b]) for b in range(256)] + words
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    return path


def test_tiktoken(tmp_path: Path) -> None:
    words = [b"th", b"he", b"the", b" the", b" c", b"at", b" cat", "é".encode(), b"in", b"ing"]
    path = tiktoken_file(tmp_path / "tokenizer.model", words)
    vocab = read_vocabulary_file(path, special=llama3_specials(True))
    metadata = vocab.metadata()
    tokenizer = load_tokenizer(metadata, path)
    assert len(vocab.tokens) == 256 + 10 + 256 and metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert tokenizer.encode("the cat the thé", bos=False) == [258, 262, 259, 32, *naive_tiktoken("thé".encode(), words)]
    assert metadata["tokenizer.ggml.bos_token_id"] == 266 and tokenizer.token_text(metadata["tokenizer.ggml.eot_token_id"]) == "<|eot_id|>"
    for text in "hething", "thethe", "cating", "ththin":
        assert tokenizer.encode(text, bos=False) == naive_tiktoken(text.encode(), words), text
    with open(path, "ab") as file:
        file.write(b"!!! 300\n")
    with pytest.raises(FormatError, match="line 267"):
        read_vocabulary_file(path)


def naive_tiktoken(word: bytes, words: list[bytes]) -> list[int]:
    """tiktoken's way: join the pair whose concatenation has the least rank, until none has one."""
    ranks = {w: 256 + i for i, w in enumerate(words)} | {bytes([b]): b for b in range(256)}
    parts = [bytes([b]) for b in word]
    while True:
        pairs = [(ranks[parts[i] + parts[i + 1]], i) for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in ranks]
        if not pairs:
            return [ranks[p] for p in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_llama3_special_tokens() -> None:
    for scaled, places in (False, {0: "<|begin_of_text|>", 6: "<|start_header_id|>", 9: "<|eot_id|>", 10: "<|reserved_special_token_5|>",
        255: "<|reserved_special_token_250|>"}), \
                          (True, {1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>",
                                  11: "<|reserved_special_token_3|>", 255: "<|reserved_special_token_247|>"}):
        names = llama3_specials(scaled)
        assert len(names) == len(set(names)) == 256 and {i: names[i] for i in places} == places


def test_llama3_release(tmp_path: Path) -> None:
    t = with_(TINY, n_vocab=256 + 40 + 256)
    weights = random_weights(t)
    folder = write_meta(tmp_path / "m", t, weights, 2, vocab_parallel=True, vocab_size=t.n_vocab, rope_theta=5e5, use_scaled_rope=True)
    tiktoken_file(folder / "tokenizer.model", [b"a" * (i + 2) for i in range(40)])
    with open_source(folder) as source:
        assert source.metadata["tokenizer.ggml.model"] == "gpt2"
        factors = source.tensors[-1]
        assert factors.name == "rope_freqs.weight" and factors.shape == (4,) and factors.rows(0, 1)[0, 0] == 1 and factors.rows(0, 1).max() <= 32
        path = write_gguf(tmp_path / "m.gguf", source)
    with open_gguf(path) as gguf:
        check_tensors(gguf, ModelConfig.from_gguf(gguf))
        assert load_tokenizer(gguf.metadata).encode("aaa") == [296, 257]
