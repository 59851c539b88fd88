"""llama2.c's .bin files: v0 (llama2.c's own run.c), v1 and v2 ("ak42"; float32, and int8 in groups).

    v0   7 int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: the output is not tied), seq_len; then float32 tensors:
         embedding, attention norms, wq, wk, wv, wo, ffn norms, w1, w2, w3 (each of all layers), final norm, freq_cos, freq_sin (unused), output if not tied
    v1   "ak42", int32 version, the same 7 int32 (vocab_size positive), uint8 tied, zeros up to byte 256; float32: attention norms, ffn norms, final norm,
         embedding, wq, wk, wv, wo, w1, w2, w3, output if not tied
    v2   as v1, with int32 group_size after `tied`; norms float32, then each matrix: int8 codes [n], float32 scales [n / group_size]: weight = code * scale

The rows of q and k are in GGUF's (Meta's) order already. head_dim is dim / n_heads, RoPE's base 10000 and the norms' epsilon 1e-5: run.c has no other.
Source: karpathy/llama2.c export.py (legacy_export, version1_export, version2_export), run.c and runq.c (memory_map_weights).
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from ...engine.architectures.config import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, ModelConfig, RopeScaling, llama_config
from ...engine.errors import FileError, FormatError, UnsupportedError
from .base import Rows, Source, SourceFile, Stored, assemble
from .vocabulary import Vocab, read_vocabulary_file

RMS_EPS, ROPE_BASE = 1e-5, 10000.0


@dataclass(frozen=True)
class Grouped:
    """An int8 matrix [rows, cols] with a float32 scale for every `group` codes, counted through the rows."""

    file: SourceFile
    shape: tuple[int, ...]
    codes: int  # offset of int8 [rows, cols]
    scales: int  # offset of float32 [rows * cols / group]
    group: int
    dtype: str = "I8"

    def read(self, index: np.ndarray) -> np.ndarray:
        cols = self.shape[1]
        if not len(index):
            return np.empty((0, cols), np.float32)
        first, last = int(index.min()), int(index.max()) + 1
        codes = np.frombuffer(self.file.read(self.codes + first * cols, (last - first) * cols), np.int8).reshape(-1, cols)[index - first]
        group, end = first * cols // self.group, -(-last * cols // self.group)  # they may reach across rows: run.c's quantize sees a matrix as one run
        scales = np.frombuffer(self.file.read(self.scales + 4 * group, 4 * (end - group)), "<f4")
        return codes.astype(np.float32) * scales[(index[:, None] * cols + np.arange(cols)) // self.group - group]


def open_llama2c(path: Path, tokenizer: Path | None = None) -> Source:
    """tokenizer: default is the only tok*.bin, tok*.model or tokenizer.* beside the model that fits its vocabulary's size."""
    file = SourceFile(path)
    try:
        return _Reader(path, file).source(tokenizer)
    except BaseException:
        file.close()
        raise


class _Reader:
    def __init__(self, path: Path, file: SourceFile) -> None:
        self.path, self.file = path, file
        self.at = 0

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.path}: {message}")

    def source(self, tokenizer: Path | None) -> Source:
        config, version, group = self.header()
        if version == 0:
            found = self.v0(config)
        else:
            found = self.v1(config) if version == 1 else self.v2(config, group)
        if self.at != self.file.size:
            self.fail(f"has {self.file.size - self.at} bytes more than its header describes: it is another kind of file, or of another version")
        vocab = find_vocabulary(self.path, tokenizer, config.n_vocab)
        notes = [f"llama2.c v{version}" + (f", int8 in groups of {group}" if group else "")]
        return assemble("llama2c", self.path, config, found, [self.file], vocab, [self.path, vocab.path], notes)

    def header(self) -> tuple[ModelConfig, int, int]:
        file, version, group, tied = self.file, 0, 0, True
        if file.size < 28:
            self.fail(f"has {file.size} bytes, too few for a llama2.c header")
        head = file.read(0, min(256, file.size))
        if head[:4] == b"24ka":
            if file.size < 256:
                self.fail(f"is truncated: its header has 256 bytes, the file {file.size}")
            version, *numbers = struct.unpack_from("<8i", head, 4)
            if version not in (1, 2):
                raise UnsupportedError(f"{self.path}: is a llama2.c file of version {version}; llamina knows 0, 1 and 2")
            tied, self.at = bool(head[36]), 256
            if version == 2:
                [group] = struct.unpack_from("<i", head, 37)
                if not 1 <= group <= 1 << 20:
                    self.fail(f"its group size is {group}")
            if head[41 if version == 2 else 37:256].strip(b"\0"):
                raise UnsupportedError(f"{self.path}: its header says more than llama2.c's of version {version}: another program's file, which llamina "
                                       "does not know")
        else:
            numbers = list(struct.unpack_from("<7i", head))
            tied, numbers[5], self.at = numbers[5] > 0, abs(numbers[5]), 28
        limits = {"dim": MAX_WIDTH, "hidden_dim": MAX_WIDTH, "n_layers": MAX_LAYERS, "n_heads": MAX_HEADS, "n_kv_heads": MAX_HEADS, "vocab_size": 1 << 30,
                  "seq_len": MAX_CONTEXT}
        for (name, most), value in zip(limits.items(), numbers):
            if not 1 <= value <= most:
                self.fail(f"header field {name} must be from 1 to {most}, found {value}: no llama2.c file, or a damaged one")
        dim, ffn_dim, n_layers, n_heads, n_kv_heads, n_vocab, context = numbers
        if dim % n_heads or n_heads % n_kv_heads or dim // n_heads % 2:
            self.fail(f"header fields dim {dim}, n_heads {n_heads}, n_kv_heads {n_kv_heads} do not divide each other")
        head_dim = dim // n_heads
        return llama_config(
            name=self.path.stem, n_layers=n_layers, dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, ffn_dim=ffn_dim, n_vocab=n_vocab,
            context_length=context, rms_eps=RMS_EPS, rope_dim=head_dim, rope_base=ROPE_BASE, rope_scaling=RopeScaling(), rope_freq_factors=False,
            tied_output=tied), version, group

    def take(self, name: str, n_bytes: int) -> int:
        """The offset of the next `n_bytes`."""
        start, self.at = self.at, self.at + n_bytes
        if self.at > self.file.size:
            self.fail(f"is truncated: tensor '{name}' ends at byte {self.at}, the file has {self.file.size}")
        return start

    def floats(self, name: str, shape: tuple[int, ...]) -> Stored:
        return Stored(self.file, name, "F32", shape, self.take(name, 4 * int(np.prod(shape))))

    def grouped(self, name: str, shape: tuple[int, ...], group: int) -> Grouped:
        n = shape[0] * shape[1]
        if n % group:
            self.fail(f"tensor '{name}' has {n} weights, no multiple of the group size {group}")
        return Grouped(self.file, shape, self.take(name, n), self.take(name, 4 * n // group), group)

    def v0(self, config: ModelConfig) -> dict[str, Rows]:
        shapes = dict(config.tensor_shapes())
        found: dict[str, Rows] = {}
        parts = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up")
        layers = [name for part in parts for name in _layers(config, part)]
        for name in ("token_embd.weight", *layers, "output_norm.weight"):
            found[name] = self.floats(name, shapes[name])
        for name in "freq_cis_real", "freq_cis_imag":
            self.take(name, 4 * config.context_length * config.head_dim // 2)
        if not config.tied_output:
            found["output.weight"] = self.floats("output.weight", shapes["output.weight"])
        return found

    def v1(self, config: ModelConfig) -> dict[str, Rows]:
        shapes = dict(config.tensor_shapes())
        return {name: self.floats(name, shapes[name]) for name in (*_norms(config), *_matrices(config))}

    def v2(self, config: ModelConfig, group: int) -> dict[str, Rows]:
        shapes = dict(config.tensor_shapes())
        found: dict[str, Rows] = {name: self.floats(name, shapes[name]) for name in _norms(config)}
        return found | {name: self.grouped(name, shapes[name], group) for name in _matrices(config)}


def find_vocabulary(path: Path, tokenizer: Path | None, n_vocab: int) -> Vocab:
    """`tokenizer`, or the first tok*.model or tok*.bin beside the model that has as many tokens as its embedding rows."""
    if tokenizer is not None:
        vocab = read_vocabulary_file(tokenizer, n_vocab=n_vocab)
        vocab.fit(n_vocab)
    else:
        vocab = _beside(path, n_vocab)
    vocab.remove_extra_whitespaces = False  # run.c, these models' own engine, keeps every space
    vocab.exceptions.add("other rules")
    return vocab


def _beside(path: Path, n_vocab: int) -> Vocab:
    found = {p for pattern in ("tok*.model", "tok*.bin") for p in path.parent.glob(pattern) if p != path}
    refusals = []
    for candidate in sorted(found, key=lambda p: (p.suffix != ".model", p.name)):
        try:
            vocab = read_vocabulary_file(candidate, n_vocab=n_vocab)
            if len(vocab.tokens) == n_vocab:
                return vocab
            refusals.append(f"{candidate.name} has {len(vocab.tokens)}")
        except (FormatError, UnsupportedError) as error:
            refusals.append(str(error).removeprefix(f"{path.parent}/"))
    seen = "".join(f"; {refusal}" for refusal in refusals)[:300]
    raise FileError(f"{path}: no tokenizer of {n_vocab} tokens (tok*.model, tok*.bin) beside it: give one with --tokenizer{seen}")


def _layers(config: ModelConfig, part: str) -> Iterator[str]:
    return (f"blk.{i}.{part}.weight" for i in range(config.n_layers))


def _norms(config: ModelConfig) -> Iterator[str]:
    yield from _layers(config, "attn_norm")
    yield from _layers(config, "ffn_norm")
    yield "output_norm.weight"


def _matrices(config: ModelConfig) -> Iterator[str]:
    yield "token_embd.weight"
    for part in "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up":
        yield from _layers(config, part)
    if not config.tied_output:
        yield "output.weight"
