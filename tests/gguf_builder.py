"""A tiny GGUF writer that can write every kind of damage: each field may be overridden, nothing is checked. Used by the tests only.

    b = llama()                          # a small, valid Llama file; Builder() is an empty one
    b.set("llama.block_count", 0)        # then damage it
    path = b.write(tmp_path / "x.gguf")
"""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from llamina.engine.errors import FormatError
from llamina.engine.files import StableFile
from llamina.kernels.formats.table import BY_ID, FORMATS

CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def string(text: str | bytes) -> bytes:
    """Length and bytes; a bytearray is taken as it is, so that it can lie about its length."""
    if isinstance(text, bytearray):
        return bytes(text)
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def encode(kind: int, value: Any) -> bytes:
    """A value's bytes; an array is (element type, list)."""
    if isinstance(value, bytes) and kind != STRING:
        return value  # raw: whatever the test wants
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        element, items = value
        if element in CODES:
            return struct.pack("<IQ", element, len(items)) + np.asarray(items, "<" + np.dtype(CODES[element]).str[1:]).tobytes()
        return struct.pack("<IQ", element, len(items)) + b"".join(encode(element, i) for i in items)
    return struct.pack("<" + CODES[kind], value)


def guess(value: Any) -> tuple[int, Any]:
    """The usual GGUF type of a Python value."""
    if isinstance(value, bool):
        return BOOL, value
    if isinstance(value, int):
        return U32, value
    if isinstance(value, float):
        return F32, value
    if isinstance(value, str):
        return STRING, value
    items = list(value)
    element = STRING if items and isinstance(items[0], str) else F32 if items and isinstance(items[0], float) else I32
    return ARRAY, (element, items)


@dataclass
class Tensor:
    """dims in GGUF order (innermost first); offset None: after the tensor before."""

    name: str | bytes
    dims: list[int]
    format: int
    data: bytes = b""
    offset: int | None = None
    n_dims: int | None = None

    @property
    def n_bytes(self) -> int:
        f = BY_ID.get(self.format, FORMATS["F32"])
        return f.row_bytes(self.dims[0]) * math.prod(self.dims[1:]) if self.dims else 0


@dataclass
class Builder:
    """Key-value pairs (key -> (type, value) or bytes after the key), tensors, and every header field."""

    pairs: list[tuple[str | bytes, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_pairs: int | None = None
    alignment: int = 32  # that the writer really uses
    cut: int | None = None  # length to cut the whole file to

    def set(self, key: str, value: Any, kind: int | None = None) -> Builder:
        """Add a pair, or replace it where it stands. With `kind`, `value` may also be raw bytes."""
        kind, value = (kind, value) if kind is not None else guess(value)
        at = [i for i, p in enumerate(self.pairs) if p[0] == key]
        if at:
            self.pairs[at[0]] = key, kind, value
        else:
            self.pairs.append((key, kind, value))
        return self

    def drop(self, name: str) -> Builder:
        """Remove a pair or a tensor."""
        before = len(self.pairs) + len(self.tensors)
        self.pairs = [p for p in self.pairs if p[0] != name]
        self.tensors = [t for t in self.tensors if t.name != name]
        assert len(self.pairs) + len(self.tensors) == before - 1, name
        return self

    def add(self, name: str | bytes, shape: tuple[int, ...], format: str | int = "F32", data: bytes | np.ndarray = b"") -> Builder:
        """Add a tensor; `shape` in NumPy order. Without data: zeros, which `write` leaves as a hole in the file."""
        number = FORMATS[format].ggml_id if isinstance(format, str) else format
        self.tensors.append(Tensor(name, list(shape)[::-1], number, data if isinstance(data, bytes) else data.tobytes()))
        return self

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    def _place(self) -> list[int]:
        offsets, end = [], 0
        for t in self.tensors:
            offsets.append(end if t.offset is None else t.offset)
            end = -(-(offsets[-1] + t.n_bytes) // self.alignment) * self.alignment if t.n_bytes < 2**45 else offsets[-1]
        return offsets

    def header(self) -> bytes:
        counts = (len(self.tensors) if self.n_tensors is None else self.n_tensors, len(self.pairs) if self.n_pairs is None else self.n_pairs)
        parts = [self.magic, struct.pack("<IQQ", self.version, *counts)]
        for key, kind, value in self.pairs:
            parts += [string(key), struct.pack("<I", kind), encode(kind, value)]
        for t, offset in zip(self.tensors, self._place()):
            parts += [string(t.name), struct.pack("<I", len(t.dims) if t.n_dims is None else t.n_dims), struct.pack(f"<{len(t.dims)}Q", *t.dims)]
            parts.append(struct.pack("<IQ", t.format, offset))
        return b"".join(parts)

    def write(self, path: Path) -> Path:
        header = self.header()
        start = -(-len(header) // self.alignment) * self.alignment
        with open(path, "wb") as file:
            file.write(header)
            end = start if self.tensors else len(header)
            for t, offset in zip(self.tensors, self._place()):
                if t.offset is None:
                    file.seek(start + offset)
                    file.write(t.data)
                    end = max(end, start + offset + t.n_bytes) if t.n_bytes < 2**45 else end
            file.truncate(end if self.cut is None else self.cut)
        return path


class MemoryFile(StableFile):
    """`header` and zeros up to `size` bytes: such a file, without a file. To be returned by a patched `gguf_header.open_source`, when files by the thousand
    would be too slow."""

    def __init__(self, header: bytes, size: int) -> None:
        self.path, self.header, self.size = Path("memory"), header[:size], size
        self._file = None
        if not size:
            raise FormatError("memory: is empty")

    def read_into(self, at: int, into: Any) -> None:
        into = memoryview(into)
        assert at >= 0 and at + len(into) <= self.size
        part = self.header[at:at + len(into)]
        into[:len(part)] = part
        into[len(part):] = bytes(len(into) - len(part))

    def check(self) -> None:
        pass


def vocabulary(n: int) -> dict[str, Any]:
    """The pairs of a SentencePiece vocabulary of n >= 259 tokens: specials, 256 bytes, then made-up words."""
    specials = ["<unk>", "<s>", "</s>"]
    words = [f"▁w{i}" for i in range(n - 259)]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": specials + [f"<0x{b:02X}>" for b in range(256)] + words,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(n - 259)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (n - 259),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }


def llama(
    n_layers: int = 2, dim: int = 64, n_heads: int = 4, n_kv_heads: int = 2, ffn_dim: int = 96, n_vocab: int = 261, format: str = "F32",
    head_dim: int | None = None, tied: bool = False,
) -> Builder:
    """A small, valid Llama file; its weights are a hole of zeros."""
    b = Builder()
    b.set("general.architecture", "llama").set("general.name", "tiny")
    for key, value in {
        "context_length": 128, "embedding_length": dim, "block_count": n_layers, "feed_forward_length": ffn_dim, "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0,
    }.items():
        b.set("llama." + key, value)
    if head_dim:
        b.set("llama.attention.key_length", head_dim).set("llama.attention.value_length", head_dim)
    head_dim = head_dim or dim // n_heads
    for key, value in vocabulary(n_vocab).items():
        b.set(key, value)
    b.add("token_embd.weight", (n_vocab, dim), format)
    for i in range(n_layers):
        b.add(f"blk.{i}.attn_norm.weight", (dim,)).add(f"blk.{i}.ffn_norm.weight", (dim,))
        b.add(f"blk.{i}.attn_q.weight", (n_heads * head_dim, dim), format).add(f"blk.{i}.attn_output.weight", (dim, n_heads * head_dim), format)
        for kv in "kv":
            b.add(f"blk.{i}.attn_{kv}.weight", (n_kv_heads * head_dim, dim), format)
        b.add(f"blk.{i}.ffn_gate.weight", (ffn_dim, dim), format).add(f"blk.{i}.ffn_up.weight", (ffn_dim, dim), format)
        b.add(f"blk.{i}.ffn_down.weight", (dim, ffn_dim), format)
    b.add("output_norm.weight", (dim,))
    return b if tied else b.add("output.weight", (n_vocab, dim), format)
