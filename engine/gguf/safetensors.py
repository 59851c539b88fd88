"""The header of a safetensors file. Own code: the library's NumPy interface knows neither BF16 nor FP8.

    8 bytes: N, little-endian | N bytes of JSON: name -> {dtype, shape, data_offsets} | the tensors' bytes, back to back

Source: github.com/huggingface/safetensors, README.md "Format", whose rules are checked: the header is at most 100 MB, offsets tile the rest
of the file without holes or overlaps, and each tensor has as many bytes as its shape says.
"""
from __future__ import annotations

import json
import math
import struct
from typing import Any, NamedTuple, NoReturn

from ..errors import FormatError
from ..files import StableFile
from .header import quote

MAX_HEADER = 100_000_000
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
        "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


class Entry(NamedTuple):
    """A tensor: where its bytes begin in the file, and how many they are."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def read_header(file: StableFile) -> dict[str, Entry]:
    """Name -> tensor. FormatError: damaged."""
    def fail(message: str) -> NoReturn:
        raise FormatError(f"{file.path}: damaged safetensors file: {message}")

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
    tensors: dict[str, Entry] = {}
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
        tensors[name] = Entry(entry["dtype"], tuple(shape), start + begin, end - begin)
    at, before = 0, "the start"
    for begin, end, name in sorted(spans):
        if begin != at:
            fail(f"tensor {quote(name)} begins at byte {begin}, but {quote(before)} ends at {at}: tensors must not overlap or leave holes")
        at, before = end, name
    if at != size:
        fail(f"its tensors end at byte {at} of {size}")
    return tensors


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
