"""llama2.c's files as sources: the three versions, their tokenizers, and damage."""
from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY, all_rows, assert_weights, quantized, random_weights, sentencepiece_model, with_, write_llama2c, write_tokenizer_bin
from llamina.convert.sources import open_source
from llamina.engine.errors import FileError, FormatError, LlaminaError, UnsupportedError
from llamina.engine.gguf.file import open_gguf

WEIGHTS = random_weights()


def folder_with_tokenizer(tmp_path: Path) -> Path:
    (tmp_path / "tok320.model").write_bytes(sentencepiece_model())
    return tmp_path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("version", [0, 1])
def test_floats(tmp_path: Path, version: int, tied: bool) -> None:
    t = with_(TINY, tied=tied)
    weights = random_weights(t)
    with open_source(write_llama2c(folder_with_tokenizer(tmp_path) / "m.bin", t, weights, version)) as source:
        assert source.kind == "llama2c" and source.metadata["llama.context_length"] == 128
        assert_weights(source, weights)


@pytest.mark.parametrize("group", [8, 16, 64])
def test_int8_groups(tmp_path: Path, group: int) -> None:
    """64 is no divisor of 32 or 48 columns: groups reach across rows."""
    with open_source(write_llama2c(folder_with_tokenizer(tmp_path) / "m.bin", TINY, WEIGHTS, 2, group)) as source:
        comp = all_rows(source)
    for name, ref in WEIGHTS.items():
        if ref.ndim == 2:
            codes, scales, _ = quantized(ref, group)
            ref = (codes * scales[:, None]).reshape(ref.shape)
        np.testing.assert_array_equal(comp[name], ref, err_msg=name)


def test_tokenizers(tmp_path: Path) -> None:
    path = write_llama2c(folder_with_tokenizer(tmp_path) / "m.bin", TINY, WEIGHTS)
    with open_source(path) as source:
        first = source.metadata
        assert tmp_path / "tok320.model" in source.files
    (tmp_path / "tok320.model").replace(tmp_path / "other.model")
    with pytest.raises(FileError, match="320 tokens"):
        open_source(path)
    write_tokenizer_bin(tmp_path / "tok320.bin", sentencepiece_model())
    for given in None, tmp_path / "other.model", tmp_path / "tok320.bin":
        with open_source(path, tokenizer=given) as source:
            assert source.metadata.keys() == first.keys()
            for key, value in source.metadata.items():
                np.testing.assert_array_equal(value, first[key], err_msg=key)
    whole = (tmp_path / "tok320.bin").read_bytes()
    for size in 3, 20, len(whole) // 2, len(whole) - 1:
        (tmp_path / "tok320.bin").write_bytes(whole[:size])
        with pytest.raises(FormatError, match="tok320.bin"):
            open_source(path, tokenizer=tmp_path / "tok320.bin")
    (tmp_path / "small.model").write_bytes(sentencepiece_model(330))
    with pytest.raises(FormatError, match="330 tokens.* 320 rows"):
        open_source(path, tokenizer=tmp_path / "small.model")
    write_tokenizer_bin(tmp_path / "big.bin", sentencepiece_model(330))
    with pytest.raises(FormatError, match="330 tokens.* 320 rows"):
        open_source(path, tokenizer=tmp_path / "big.bin")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_truncated(tmp_path: Path, version: int) -> None:
    path = write_llama2c(folder_with_tokenizer(tmp_path) / "m.bin", TINY, WEIGHTS, version)
    whole = path.read_bytes()
    for size in 30, 200, 300, len(whole) // 2, len(whole) - 1:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match="truncated"):
            open_source(path)
    path.write_bytes(whole[:20])
    with pytest.raises(FormatError):
        open_source(path)


@pytest.mark.parametrize("at, value, kind, word", [
    (4, 3, UnsupportedError, "version 3"), (8, 0, FormatError, "dim"), (8, 1 << 30, FormatError, "dim"), (20, 5, FormatError, "divide"),
    (16, -1, FormatError, "n_layers"),
    (28, -320, FormatError, "vocab_size"), (32, 0, FormatError, "seq_len"), (16, 4000, FormatError, "truncated"),
])
def test_header(tmp_path: Path, at: int, value: int, kind: type[LlaminaError], word: str) -> None:
    path = write_llama2c(folder_with_tokenizer(tmp_path) / "m.bin", TINY, WEIGHTS, 1)
    data = bytearray(path.read_bytes())
    data[at : at + 4] = struct.pack("<i", value)
    path.write_bytes(data)
    with pytest.raises(kind, match=word):
        open_source(path)


def test_group_size(tmp_path: Path) -> None:
    path = write_llama2c(folder_with_tokenizer(tmp_path) / "m.bin", TINY, WEIGHTS, 2)
    data = bytearray(path.read_bytes())
    for group, word in (0, "group size"), (7, "group size 7"), (-8, "group size"):
        data[37:41] = struct.pack("<i", group)
        path.write_bytes(data)
        with pytest.raises(FormatError, match=word):
            open_source(path)


def test_stories(real: Path) -> None:
    """The real model in all its forms, against the GGUF file that others made of it."""
    folder = real / "llama2c"
    with open_gguf(folder / "stories260K.gguf") as gguf:
        refs = {name: gguf.data(name).view("<f4").reshape(info.shape) for name, info in gguf.tensors.items()}
        for file in "stories260K.bin", "stories260K_v1.bin", "stories260K_v2_q8.bin":
            for tokenizer in None, folder / "tok512.bin", folder / "tok512.model":
                with open_source(folder / file, tokenizer=tokenizer) as source:
                    comp, metadata = all_rows(source, 100), source.metadata
                for name, values in comp.items():
                    ref = refs[name]
                    if "q8" in file and ref.ndim == 2:
                        assert np.abs(values - ref).max() <= np.abs(ref).max() / 254 * 1.01
                    else:
                        np.testing.assert_array_equal(values, ref)
                assert refs.keys() - comp.keys() == {"output.weight"} and np.array_equal(refs["output.weight"], refs["token_embd.weight"])
                for key in gguf.metadata:
                    if key in metadata and key not in ("llama.context_length", "general.name", "llama.attention.layer_norm_rms_epsilon"):
                        np.testing.assert_array_equal(metadata[key], gguf.metadata[key], err_msg=key)
                assert np.float32(metadata["llama.attention.layer_norm_rms_epsilon"]) == gguf.metadata["llama.attention.layer_norm_rms_epsilon"]
