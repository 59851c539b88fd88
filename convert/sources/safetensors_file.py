"""safetensors files, whole or in shards. Own code: the library's NumPy interface knows neither BF16 nor FP8.

    8 bytes: N, little-endian | N bytes of JSON: name -> {dtype, shape, data_offsets} | the tensors' bytes, back to back

Source: github.com/huggingface/safetensors, README.md "Format", whose rules are checked: the header is at most 100 MB, offsets tile the rest
of the file without holes or overlaps, and each tensor has as many bytes as its shape says.
"""
from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, NoReturn

from ...engine.errors import FileError, FormatError
from ...engine.gguf.header import quote
from .base import SourceFile, Stored, read_json

MAX_HEADER = 100_000_000
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
        "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def read_safetensors(path: Path) -> tuple[SourceFile, dict[str, Stored]]:
    """Open one file and check its header. FileError: unreadable; FormatError: damaged."""
    file = SourceFile(path)

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{path}: damaged safetensors file: {message}")

    if file.size < 8:
        fail(f"it has {file.size} bytes")
    [length] = struct.unpack("<Q", file.read(0, 8))
    if length > min(MAX_HEADER, file.size - 8):
        fail(f"its header claims {length} bytes, the file has {file.size}, and {MAX_HEADER} are allowed; it may be truncated: get it again")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for key, value in pairs:
            if key in keys:
                fail(f"{quote(key)} is there twice in its header")
            keys[key] = value
        return keys

    try:
        header = json.loads(file.read(8, length).decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        fail(f"its header is not valid JSON ({' '.join(str(error).split())[:100]})")
    if not isinstance(header, dict):
        fail("its header is no JSON object")
    header.pop("__metadata__", None)
    start, size = 8 + length, file.size - 8 - length
    tensors: dict[str, Stored] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            fail(f"tensor {quote(name)} has no dtype")
        shape: Any = entry.get("shape")
        offsets: Any = entry.get("data_offsets")
        if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 8:
            fail(f"tensor {quote(name)} must have a shape and two data_offsets, found {quote(shape)} and {quote(offsets)}")
        begin, end = offsets
        if not begin <= end <= size:
            fail(f"tensor {quote(name)} lies from byte {begin} to {end} of {size}: the file is truncated or damaged")
        if entry["dtype"] not in BITS:
            fail(f"tensor {quote(name)} is of unknown type {quote(entry['dtype'])}")
        bits = math.prod(shape) * BITS[entry["dtype"]]
        if bits != 8 * (end - begin):
            fail(f"tensor {quote(name)} {entry['dtype']} {quote(shape)} needs {bits // 8} bytes, but has {end - begin}")
        spans.append((begin, end, name))
        tensors[name] = Stored(file, name, entry["dtype"], tuple(shape), start + begin)
    at, before = 0, "the start"
    for begin, end, name in sorted(spans):
        if begin != at:
            fail(f"tensor {quote(name)} begins at byte {begin}, but {quote(before)} ends at {at}: tensors must not overlap or leave holes")
        at, before = end, name
    if at != size:
        fail(f"its tensors end at byte {at} of {size}")
    return file, tensors


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def shards_of(index: Path) -> dict[str, set[str]]:
    """An index file's (model.safetensors.index.json, pytorch_model.bin.index.json) shards: file name -> names of the tensors that it should hold.
    FormatError: a shard's name is a path, or the index is not one; FileError: a shard is missing."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index}: must have a 'weight_map' from tensors to files")
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\:\0") or len(name) > 255:
            raise FormatError(f"{index}: tensor {quote(tensor)} is said to lie in {quote(name)}: expected the name of a file in the same folder")
        shards.setdefault(name, set()).add(tensor)
    for name in sorted(shards):
        if not (index.parent / name).is_file():
            raise FileError(f"{index.parent / name}: shard is missing, {index.name} names it for {len(shards[name])} tensors: get it again")
    return dict(sorted(shards.items()))


def merge_shards(parts: list[tuple[Path, dict[str, Stored]]], expected: dict[str, set[str]], index: Path) -> dict[str, Stored]:
    """All shards' tensors together. FormatError if a shard lacks a tensor that the index promises in it, or holds one that another shard has too."""
    tensors: dict[str, Stored] = {}
    for path, held in parts:
        if missing := sorted(expected[path.name] - set(held)):
            raise FormatError(f"{path}: tensor {quote(missing[0])} is missing, {index.name} says it is here: the shard is of another model or version")
        for name, stored in held.items():
            if name in tensors:
                other = tensors[name].file.path.name
                raise FormatError(f"{path}: tensor {quote(name)} is also in {other}: a shard was duplicated, or is of another model")
            if name not in expected[path.name]:
                raise FormatError(f"{path}: tensor {quote(name)} is not named by {index.name}: the shard is of another model or version")
            tensors[name] = stored
    return tensors
