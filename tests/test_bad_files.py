"""Damaged, hostile and unsupported model files: each is refused by a typed one-line error that names the file and the field, within a second and
100 MB. Further cases (split files, look-ups by type) are in test_gguf.py; random damage in test_gguf_fuzz.py."""
from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import ARRAY, BOOL, F32, F64, I32, STRING, U8, U32, U64, Builder, MemoryFile, llama
from llamina.engine.architectures.config import ModelConfig, check_tensors
from llamina.engine.errors import FileError, FormatError, LlaminaError, UnsupportedError
from llamina.engine.gguf import header as gguf_header
from llamina.engine.gguf.file import open_gguf


def open_all(path: Path) -> None:
    """Everything that happens to a file before a kernel sees it, and a look at every metadata value."""
    with open_gguf(path) as g:
        config = ModelConfig.from_gguf(g)
        check_tensors(g, config)
        dict(g.metadata)


def check_refused(path: Path, error: type[LlaminaError], message: str, seconds: float = 1.0) -> None:
    """`open_all` raises exactly `error`, in time and memory, with a one-line message that begins with the path and matches `message`."""
    tracemalloc.start()
    start = time.thread_time()  # not the clock: the machine may be busy with other things, and a wait would hang the test anyway
    try:
        with pytest.raises(LlaminaError) as caught:
            open_all(path)
        duration, peak = time.thread_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert type(caught.value) is error, repr(caught.value)
    assert text.startswith(str(path) + ": ") and "\n" not in text and len(text) < len(str(path)) + 300, text
    assert re.search(message, text), text
    assert duration < seconds and peak < 100e6, (duration, peak)


Damage = Callable[[Builder], object]
HUGE = 2**62
LIAR = bytearray(struct.pack("<Q", HUGE) + b"abc")  # a string of three bytes that claims to be longer
D, U = FormatError, UnsupportedError


def dims(*sizes: int) -> Damage:
    """Give output_norm.weight these dimensions (GGUF order)."""
    return lambda b: setattr(b.tensor("output_norm.weight"), "dims", list(sizes))


def field(name: str, value: object, tensor: str = "blk.1.attn_q.weight") -> Damage:
    return lambda b: setattr(b.tensor(tensor), name, value)


def raw(kind: int, value: bytes) -> Damage:
    """A pair 'x' of this type with these bytes, followed by nothing known."""
    return lambda b: b.set("x", value, kind)


HEADER: dict[str, tuple[Damage, type[LlaminaError], str]] = {
    "wrong magic": (lambda b: setattr(b, "magic", b"GGML"), D, r"not a GGUF file: .* found b'GGML'"),
    "old llama.cpp": (lambda b: setattr(b, "magic", b"tjgg"), U, r"from before GGUF \(ggjt\)"),
    "version 0": (lambda b: setattr(b, "version", 0), U, "GGUF version 0, expected 2 or 3"),
    "version 1": (lambda b: setattr(b, "version", 1), U, "GGUF version 1, expected 2 or 3"),
    "version 4": (lambda b: setattr(b, "version", 4), U, "GGUF version 4, expected 2 or 3"),
    "version 2^32 - 1": (lambda b: setattr(b, "version", 2**32 - 1), U, "GGUF version 4294967295"),
    "big-endian": (lambda b: setattr(b, "version", 3 << 24), U, "big-endian"),
    "2^62 tensors": (lambda b: setattr(b, "n_tensors", HUGE), D, f"claims {HUGE} tensors"),
    "2^62 pairs": (lambda b: setattr(b, "n_pairs", HUGE), D, f"claims {HUGE} metadata keys"),
    "1000 tensors": (lambda b: setattr(b, "n_tensors", 1000), D, "tensor"),
    "1000 pairs": (lambda b: setattr(b, "n_pairs", 1000), D, "key"),
    "key of 2^62 bytes": (lambda b: b.pairs.append((LIAR, U8, 1)), D, r"key \d+ claims 4611686018427387904 bytes"),
    "string of 2^62 bytes": (lambda b: b.set("x", LIAR, STRING), D, "the value of key 'x' claims 4611686018427387904 bytes"),
    "string past the end": (lambda b: b.set("x", bytearray(struct.pack("<Q", 10**6)), STRING), D, "the value of key 'x' needs 1000000 bytes"),
    "tensor name of 2^62 bytes": (field("name", LIAR), D, r"the name of tensor \d+ claims 4611686018427387904 bytes"),
    "unknown value type": (raw(13, b"\0" * 8), D, "key 'x' has the unknown value type 13"),
    "unknown element type": (raw(ARRAY, struct.pack("<IQ", 13, 1)), D, "key 'x' has the unknown element type 13"),
    "nested arrays": (raw(ARRAY, struct.pack("<IQIQ", ARRAY, 1, ARRAY, 1)), U, "key 'x' is an array of arrays"),
    "array of 2^62 numbers": (raw(ARRAY, struct.pack("<IQ", U64, HUGE)), D, f"key 'x' claims {HUGE} elements"),
    "array of 2^62 strings": (raw(ARRAY, struct.pack("<IQ", STRING, HUGE)), D, f"key 'x' claims {HUGE} strings"),
    "array of 2^61 strings": (raw(ARRAY, struct.pack("<IQ", STRING, 2**61)), D, f"key 'x' claims {2**61} strings"),
    "string of 2^62 bytes in an array": (raw(ARRAY, struct.pack("<IQQ", STRING, 3, HUGE)), D, "the strings of key 'x' pass the file's end"),
    "string of 2^64 - 8 bytes in an array": (raw(ARRAY, struct.pack("<IQQ", STRING, 3, 2**64 - 8)), D, "the strings of key 'x' pass the file's end"),
    "array past the end": (raw(ARRAY, struct.pack("<IQ", U32, 2**22)), D, "array of 4194304 elements in key 'x' needs 16777216 bytes"),
    "bool of 2": (raw(BOOL, b"\2"), D, "key 'x' is a bool, so 0 or 1, found 2"),
    "array of bools with a 7": (lambda b: b.set("x", (BOOL, [0, 1, 7]), ARRAY), D, "key 'x' is an array of bools, so 0 or 1, found 7"),
    "duplicate key": (lambda b: b.pairs.append(b.pairs[3]), D, "key 'llama.embedding_length' is there twice"),
    "key without a name": (lambda b: b.pairs.append(("", U8, 1)), D, "has no name"),
    "key not UTF-8": (lambda b: b.pairs.append((b"\xc3(", U8, 1)), D, r"key \d+ at byte \d+ is not UTF-8"),
    "surrogate in a key": (lambda b: b.pairs.append((b"\xed\xa0\x80", U8, 1)), D, "is not UTF-8"),
    "key of 70,000 bytes": (lambda b: b.pairs.append(("k" * 70000, U8, 1)), D, "claims 70000 bytes"),
    "value not UTF-8": (lambda b: b.set("x", b"\xff", STRING), D, "the value of key 'x' at byte .* is not UTF-8"),
    "value of 17 million bytes": (lambda b: b.set("x", "x" * 17_000_000), D, "the value of key 'x' claims 17000000 bytes"),
    "much text": (lambda b: [b.set(f"x{i}", "x" * 7_000_000) for i in "ab"], D, "header's text passes 12582912 bytes"),
    "token not UTF-8": (lambda b: b.set("x", (STRING, [b"\xff"]), ARRAY), D, "string 0 of key 'x' is not UTF-8"),
    "newline in a name": (lambda b: b.pairs.append(("a\nb", 77, b"")), D, r"key 'a\\nb' has the unknown value type 77"),
    "alignment 0": (lambda b: b.set("general.alignment", 0), D, "'general.alignment' must be a power of two from 8 to 1048576, found 0"),
    "alignment 3": (lambda b: b.set("general.alignment", 3), D, "'general.alignment' .* found 3"),
    "alignment 2^30": (lambda b: b.set("general.alignment", 2**30), D, "'general.alignment' .* found 1073741824"),
    "alignment text": (lambda b: b.set("general.alignment", "32"), D, "'general.alignment' must be a whole number, found '32'"),
    "duplicate tensor": (lambda b: b.tensors.append(b.tensors[2]), D, "tensor 'blk.0.ffn_norm.weight' is there twice"),
    "tensor name of 2 kB": (field("name", "n" * 2000), D, r"name of tensor \d+ claims 2000 bytes"),
    "tensor name not UTF-8": (field("name", b"\xff"), D, r"name of tensor \d+ at byte \d+ is not UTF-8"),
    "0 dimensions": (dims(), D, "'output_norm.weight' must have 1 to 4 dimensions, found 0"),
    "5 dimensions": (dims(64, 1, 1, 1, 1), D, "'output_norm.weight' must have 1 to 4 dimensions, found 5"),
    "2^32 - 1 dimensions": (field("n_dims", 2**32 - 1), D, "must have 1 to 4 dimensions, found 4294967295"),
    "dimension 0": (dims(64, 0), D, r"'output_norm.weight' has a dimension of 0: shape \[0, 64\]"),
    "dimension 2^62": (dims(HUGE), D, "'output_norm.weight' of shape .* needs 18446744073709551616 bytes"),
    "product 2^64 + 64": (dims(2**32, 2**32, 4), D, "'output_norm.weight' of shape .* needs 295147905179352825856 bytes"),
    "unknown format": (field("format", 200), U, "'blk.1.attn_q.weight' has format number 200"),
    "format 2^32 - 1": (field("format", 2**32 - 1), U, "'blk.1.attn_q.weight' has format number 4294967295"),
    "removed format": (field("format", 4), U, "'blk.1.attn_q.weight' is stored as Q4_2, a format that llama.cpp has removed"),
    "removed repacked format": (field("format", 31), U, "'blk.1.attn_q.weight' is stored as Q4_0_4_4"),
    "misaligned": (field("offset", 33), D, "'blk.1.attn_q.weight' begins at offset 33, which is not a multiple of the alignment 32"),
    "overlapping": (field("offset", 0), D, "tensors 'token_embd.weight' and 'blk.1.attn_q.weight' overlap|tensors 'blk.1.attn_q.weight' and"),
    "past the end": (field("offset", 2**40, "output.weight"), D, "'output.weight' ends at byte 10995"),
    "offset 2^64 - 32": (field("offset", 2**64 - 32, "output.weight"), D, "'output.weight' ends at byte 18446744073709"),
    "data cut short": (lambda b: setattr(b, "cut", 100_000), D, "ends at byte .* but the file at 100000: the file is cut short"),
}

CONFIG: dict[str, tuple[Damage, type[LlaminaError], str]] = {
    "no architecture": (lambda b: b.drop("general.architecture"), D, "key 'general.architecture' is missing, expected a string"),
    "architecture a number": (lambda b: b.set("general.architecture", 5), D, "key 'general.architecture' must be a string, found 5"),
    "experts": (lambda b: b.set("llama.expert_count", 8), D, "'llama.expert_used_count' is missing"),
    "clamped attention": (lambda b: b.set("llama.attention.clamp_kqv", 8.0), U, "llama.attention.clamp_kqv = 8.0"),
    "not causal": (lambda b: b.set("llama.attention.causal", False), U, "llama.attention.causal = False"),
    "soft caps of NaN": (lambda b: b.set("llama.final_logit_softcapping", float("nan")), U, "llama.final_logit_softcapping = nan"),
    "expert_count an array": (lambda b: b.set("llama.expert_count", [0, 0]), D, "'llama.expert_count' must be a whole number"),
    "window not a number": (lambda b: b.set("llama.attention.sliding_window", "64"), D, "'llama.attention.sliding_window' must be a whole number, found '64'"),
    "0 heads": (lambda b: b.set("llama.attention.head_count", 0), D, "'llama.attention.head_count' must be from 1 to .*, found 0"),
    "0 kv heads": (lambda b: b.set("llama.attention.head_count_kv", 0), D, "'llama.attention.head_count_kv' must be from 1 to .*, found 0"),
    "heads not divisible": (lambda b: b.set("llama.attention.head_count_kv", 3), D, "'llama.attention.head_count' is 4, no multiple of .* 3"),
    "more kv heads than heads": (lambda b: b.set("llama.attention.head_count_kv", 8), D, "'llama.attention.head_count' is 4, no multiple of .* 8"),
    "width not divisible": (lambda b: b.set("llama.attention.head_count", 6), D, "'llama.embedding_length' is 64, which is not a multiple of .* 6"),
    "odd head size": (lambda b: b.set("llama.attention.key_length", 15), D, "heads have 15 dimensions, expected an even number"),
    "value size differs": (lambda b: b.set("llama.attention.value_length", 8), U, "'llama.attention.value_length' is 8, .* equal the head size, 16"),
    "partial rotation": (lambda b: b.set("llama.rope.dimension_count", 8), U, "'llama.rope.dimension_count' is 8, .* equal the head size, 16"),
    "heads differ between layers": (lambda b: b.set("llama.attention.head_count", [4, 2]), D,
                                    r"'blk.1.attn_q.weight' must have shape \[32, 64\], found \[64, 64\]"),
    "heads for 3 layers": (lambda b: b.set("llama.attention.head_count", [4, 4, 4]), D, "head_count' must be one whole number or 2, one a layer; found 3"),
    "heads for no layer": (lambda b: b.set("llama.attention.head_count", (I32, []), ARRAY), D, "head_count' must be one whole number or 2"),
    "heads as floats": (lambda b: b.set("llama.feed_forward_length", [96.0, 96.0]), D, "feed_forward_length' must be one .* found 2 of float32"),
    "heads as text": (lambda b: b.set("llama.attention.head_count", ["4", "4"]), D, "head_count' must be an array of numbers"),
    "10^9 layers": (lambda b: b.set("llama.block_count", 10**9), D, "'llama.block_count' must be from 1 to 4096, found 1000000000"),
    "0 layers": (lambda b: b.set("llama.block_count", 0), D, "'llama.block_count' must be from 1 to 4096, found 0"),
    "-1 layers": (lambda b: b.set("llama.block_count", -1, I32), D, "'llama.block_count' must be from 1 to 4096, found -1"),
    "2.5 layers": (lambda b: b.set("llama.block_count", 2.5), D, "'llama.block_count' must be a whole number, found 2.5"),
    "1 layer more": (lambda b: b.set("llama.block_count", 3), D, "tensor 'blk.2.attn_norm.weight' .* is missing"),
    "4096 layers": (lambda b: b.set("llama.block_count", 4096), D, "tensor 'blk.2.attn_norm.weight' .* is missing"),
    "1 layer less": (lambda b: b.set("llama.block_count", 1), D, "tensor 'blk.1.attn_norm.weight' is of layer 1, but key 'llama.block_count' is only 1"),
    "context 10^9": (lambda b: b.set("llama.context_length", 10**9), D, "'llama.context_length' must be from 1 to 16777216, found 1000000000"),
    "context 0": (lambda b: b.set("llama.context_length", 0), D, "'llama.context_length' must be from 1"),
    "no context": (lambda b: b.drop("llama.context_length"), D, "key 'llama.context_length' is missing, expected a whole number"),
    "width 2^63": (lambda b: b.set("llama.embedding_length", 2**63, U64), D, "'llama.embedding_length' must be from 1 to"),
    "ffn width 0": (lambda b: b.set("llama.feed_forward_length", 0), D, "'llama.feed_forward_length' must be from 1"),
    "epsilon negative": (lambda b: b.set("llama.attention.layer_norm_rms_epsilon", -1e-5), D, "rms_epsilon' must be positive, found -"),
    "epsilon NaN": (lambda b: b.set("llama.attention.layer_norm_rms_epsilon", float("nan")), D, "rms_epsilon' must be a finite float32, found nan"),
    "epsilon 0": (lambda b: b.set("llama.attention.layer_norm_rms_epsilon", 0.0), D, "rms_epsilon' must be positive, found 0.0"),
    "epsilon true": (lambda b: b.set("llama.attention.layer_norm_rms_epsilon", True), D, "rms_epsilon' must be a number, found True"),
    "no epsilon": (lambda b: b.drop("llama.attention.layer_norm_rms_epsilon"), D, "rms_epsilon' is missing, expected a number"),
    "RoPE base NaN": (lambda b: b.set("llama.rope.freq_base", float("nan")), D, "'llama.rope.freq_base' must be a finite float32, found nan"),
    "RoPE base infinite": (lambda b: b.set("llama.rope.freq_base", float("inf")), D, "'llama.rope.freq_base' must be a finite float32, found inf"),
    "RoPE base 1e300": (lambda b: b.set("llama.rope.freq_base", 1e300, F64), D, r"'llama.rope.freq_base' must be a finite float32, found 1e\+300"),
    "RoPE base 0": (lambda b: b.set("llama.rope.freq_base", 0.0), D, "'llama.rope.freq_base' must be positive"),
    "RoPE base 1": (lambda b: b.set("llama.rope.freq_base", 1.0), D, "'llama.rope.freq_base' must be greater than 1"),
    "longrope": (lambda b: b.set("llama.rope.scaling.type", "longrope"), U, "scales rotary positions by 'longrope'"),
    "scaling factor NaN": (lambda b: b.set("llama.rope.scaling.factor", float("nan")), D, "'llama.rope.scaling.factor' must be a finite"),
    "scaling factor -2": (lambda b: b.set("llama.rope.scaling.factor", -2.0), D, "'llama.rope.scaling.factor' must be positive, .* found -2.0"),
    "YaRN factor 0.5": (lambda b: b.set("llama.rope.scaling.type", "yarn").set("llama.rope.scaling.factor", 0.5), D, "must be at least 1 for yarn"),
    "YaRN extrapolation": (lambda b: b.set("llama.rope.scaling.type", "yarn").set("llama.rope.scaling.factor", 2.0)
                           .set("llama.rope.scaling.yarn_ext_factor", 0.5), U, "yarn_ext_factor' is 0.5"),
    "attention factor 0": (lambda b: b.set("llama.rope.scaling.attn_factor", 0.0), D, "attn_factor' must be positive"),
    "vocabulary of another size": (lambda b: b.set("tokenizer.ggml.tokens", ["a", "b"]), D, "has 261 rows, but key 'tokenizer.ggml.tokens' 2 tokens"),
    "no embeddings": (lambda b: b.drop("token_embd.weight"), D, "tensor 'token_embd.weight' is missing"),
    "missing tensor": (lambda b: b.drop("blk.1.ffn_up.weight"), D, r"tensor 'blk.1.ffn_up.weight' \[96, 64\] is missing"),
    "wrong shape": (field("dims", [32, 128]), D, r"'blk.1.attn_q.weight' must have shape \[64, 64\], found \[128, 32\]"),
    "transposed": (field("dims", [96, 64], "blk.0.ffn_up.weight"), D, r"must have shape \[96, 64\], found \[64, 96\]"),
    "3-dimensional": (field("dims", [64, 64, 1]), D, r"must have shape \[64, 64\], found \[1, 64, 64\]"),
    "matrix of integers": (field("format", 26), U, "'blk.1.attn_q.weight' is I32, expected one of F32, F16, BF16"),
    "quantised norm": (field("format", 8, "output_norm.weight"), U, "'output_norm.weight' is Q8_0, expected one of F32, F16, BF16"),
    "format without a kernel": (field("format", 9), U, "'blk.1.attn_q.weight' is Q8_1, expected one of F32"),
    "bias of another shape": (lambda b: b.add("blk.0.attn_q.bias", (63,)), D, r"'blk.0.attn_q.bias' must have shape \[64\], found \[63\]"),
    "bias of a norm": (lambda b: b.add("blk.0.attn_norm.bias", (64,)), U, "'blk.0.attn_norm.bias': llamina knows no such bias"),
    "unknown key": (lambda b: b.set("llama.attention.new_idea", 2), U, "key 'llama.attention.new_idea', which llamina does not know"),
    "expert tensors": (lambda b: b.add("blk.0.ffn_gate_inp.weight", (8, 64)), U, "'blk.0.ffn_gate_inp.weight': llamina does not run such experts"),
    "unknown tensor": (lambda b: b.add("blk.0.attn_q_norm.weight", (16,)), U, "'blk.0.attn_q_norm.weight' is unknown"),
    "tensor of layer 7": (lambda b: b.add("blk.7.attn_q.weight", (64, 64)), D, "'blk.7.attn_q.weight' is of layer 7"),
    "RoPE factors of zero": (lambda b: b.add("rope_freqs.weight", (8,)), D, "'rope_freqs.weight' must be positive and finite"),
    "RoPE factors NaN": (lambda b: b.add("rope_freqs.weight", (8,), "F32", np.full(8, np.nan, "<f4")), D, "'rope_freqs.weight' must be positive"),
    "RoPE factors too many": (lambda b: b.add("rope_freqs.weight", (9,)), D, r"'rope_freqs.weight' must have shape \[8\], found \[9\]"),
    "RoPE factors per layer": (lambda b: b.add("blk.1.rope_freqs.weight", (8,)), U, "'blk.1.rope_freqs.weight' is unknown"),
}


@pytest.mark.parametrize("name", HEADER)
def test_bad_header(tmp_path: Path, name: str) -> None:
    damage, error, message = HEADER[name]
    b = llama()
    damage(b)
    check_refused(b.write(tmp_path / "bad.gguf"), error, message)


@pytest.mark.parametrize("name", CONFIG)
def test_bad_config(tmp_path: Path, name: str) -> None:
    damage, error, message = CONFIG[name]
    b = llama()
    damage(b)
    check_refused(b.write(tmp_path / "bad.gguf"), error, message)


def test_the_undamaged_file_is_accepted(tmp_path: Path) -> None:
    """Or else every case above would prove nothing."""
    open_all(llama().write(tmp_path / "good.gguf"))


def test_row_that_is_no_whole_number_of_blocks(tmp_path: Path) -> None:
    b = llama(ffn_dim=100)
    b.tensor("blk.0.ffn_down.weight").format = 8
    check_refused(b.write(tmp_path / "bad.gguf"), FormatError, "'blk.0.ffn_down.weight' has rows of 100, which is not a whole number of Q8_0 blocks")


@pytest.mark.parametrize("size", range(0, 60))
def test_short_files(tmp_path: Path, size: int) -> None:
    """Every prefix of a file that claims 2^62 of everything; among them the 43 bytes that hang the gguf package."""
    path = tmp_path / "bad.gguf"
    whole = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"x" + struct.pack("<IIQ", ARRAY, F32, HUGE) + bytes(100)
    path.write_bytes(whole[:size])
    check_refused(path, FormatError, "empty|not a GGUF|needs .* bytes|cannot fit|claims")


def check_truncations(header: bytes, size: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file cut at every byte of its header is refused: cut short or damaged; so it is when it ends one byte early; whole, it opens."""
    cut = 0
    monkeypatch.setattr(gguf_header, "open_source", lambda _path: MemoryFile(header, cut))
    start = time.thread_time()
    for end in range(1, len(header)):
        cut = end
        with pytest.raises(FormatError) as caught:
            open_gguf(path)
        assert str(caught.value).startswith(f"{path}: ")
    assert (time.thread_time() - start) / len(header) < 0.1
    cut = size - 1
    with pytest.raises(FormatError, match="cut short"):
        open_gguf(path)
    cut = size
    open_gguf(path)


def test_truncated_at_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = llama(n_layers=1)
    whole = b.write(tmp_path / "good.gguf")
    check_truncations(b.header(), whole.stat().st_size, whole, monkeypatch)


def test_real_file_truncated_at_every_byte(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = real / "llama2c" / "stories260K.gguf"
    header = gguf_header.Header(path)
    header.read()
    check_truncations(path.read_bytes()[: header.at], path.stat().st_size, path, monkeypatch)


# Paths


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.touch()
    check_refused(path, FormatError, "is empty: expected a GGUF file")


def test_missing_path(tmp_path: Path) -> None:
    check_refused(tmp_path / "nothing.gguf", FileError, "no such file")
    check_refused(tmp_path / "no" / "folder.gguf", FileError, "no such file")


def test_directory(tmp_path: Path) -> None:
    check_refused(tmp_path, FileError, "is a directory: expected a GGUF file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.gguf"
    os.mkfifo(path)
    check_refused(path, FileError, "is not a regular file")
    check_refused(Path("/dev/zero"), FileError, "is not a regular file")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = llama().write(tmp_path / "secret.gguf")
    path.chmod(0)
    if os.access(path, os.R_OK):  # as root, nothing is unreadable
        def refuse(*_args: object) -> int:
            raise PermissionError(13, "Permission denied", str(path))
        monkeypatch.setattr("os.open", refuse)
    with pytest.raises(FileError, match=r"secret\.gguf.*: cannot be read \(Permission denied\)"):
        open_gguf(path)


@pytest.mark.parametrize("name", ["a\0b.gguf", "a\ud800b.gguf", "x" * 5000])
def test_impossible_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match="cannot be read|no such file") as caught:
        open_gguf(tmp_path / name)
    str(caught.value).encode()


# The costliest files that stay within the limits, or just pass them


def test_costly_headers(tmp_path: Path) -> None:
    """2^16 keys, 2^16 tensors, 2^20 empty strings: valid, and still cheap; one more of each is refused."""
    for more in 0, 1:
        keys, tensors, strings = Builder(), Builder(), Builder()
        for i in range(2**16 + more):
            keys.pairs.append((f"k{i}", U8, 1))
            tensors.add(f"t{i}", (1,))
        strings.set("x", struct.pack("<IQ", STRING, 2**20 + more) + bytes(8 * (2**20 + more)), ARRAY)
        for what, b in ("metadata keys", keys), ("tensors", tensors), ("strings", strings):
            path = b.write(tmp_path / "costly.gguf")
            if more:
                check_refused(path, FormatError, f"claims {2**20 + 1 if what == 'strings' else 2**16 + 1} {what}")
                continue
            start = time.thread_time()
            g = open_gguf(path)
            assert time.thread_time() - start < 3, what  # a second on slow machines
            assert len(g.metadata) + len(g.tensors) == (1 if what == "strings" else 2**16)


def test_sparse_terabyte(tmp_path: Path) -> None:
    """A file of a terabyte of zeros that claims 10^10 strings, or numbers, or a tensor of 10^12 elements, costs nothing."""
    for b, message in (
        (Builder().set("x", struct.pack("<IQ", STRING, 10**10), ARRAY), "claims 10000000000 strings"),
        (Builder().set("x", struct.pack("<IQ", U32, 10**10), ARRAY), "claims 10000000000 elements"),
        (Builder(n_pairs=2**32), "claims 4294967296 metadata keys"),
        (llama().add("blk.0.attn_q.bias", (10**6, 10**6)), "data|ends|needs|biases"),
    ):
        try:
            path = b.write(tmp_path / "sparse.gguf")
            os.truncate(path, 2**40)
        except OSError:
            pytest.skip("this file system has no files of a terabyte")
        with pytest.raises(LlaminaError, match=message):
            open_all(path)
        path.unlink()


MEASURE = """
import re, sys, time
from llamina.engine.architectures.config import ModelConfig, check_tensors
from llamina.engine.errors import LlaminaError
from llamina.engine.gguf.file import open_gguf
def peak():  # ru_maxrss will not do: a child inherits its parent's
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = peak(), time.process_time()
try:
    g = open_gguf(sys.argv[1])
    dict(g.metadata)
    check_tensors(g, ModelConfig.from_gguf(g))
except LlaminaError as error:
    print(time.process_time() - start, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_worst_files_in_a_process_of_their_own(tmp_path: Path) -> None:
    """Real time and peak resident memory of the worst headers that we can think of: wide text, many strings, keys, tensors."""
    wide = "x" * (12 * 2**20 - 100) + "🐢"  # one character beyond the basic plane makes Python use 4 bytes for each
    keys, tensors = Builder(), Builder().set("general.architecture", "llama")
    for i in range(2**16):
        keys.pairs.append((f"k{i}", ARRAY, struct.pack("<IQ", U8, 0)))
        tensors.add(f"t{i}", (1,))
    strings = Builder().set("x", struct.pack("<IQ", STRING, 2**20) + b"".join(struct.pack("<Q", 4) + b"%04x" % (i & 0xFFFF) for i in range(2**20)), ARRAY)
    cases = {"text": Builder().set("x", wide), "keys": keys, "tensors": tensors, "strings": strings}
    for name, b in cases.items():
        path = b.write(tmp_path / "worst.gguf")
        out = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, timeout=60).stdout
        seconds, megabytes = map(float, out.split())
        print(f"{name}: {seconds:.2f} s, {megabytes:.0f} MB")
        assert seconds < 5 and megabytes < 100, name
