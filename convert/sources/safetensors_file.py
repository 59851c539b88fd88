"""safetensors files, whole or in shards. The header is read by engine/gguf/safetensors.py."""
from __future__ import annotations

from pathlib import Path

from ...engine.errors import FileError, FormatError
from ...engine.gguf.header import quote
from ...engine.gguf.safetensors import read_header
from .base import SourceFile, Stored, read_json


def read_safetensors(path: Path) -> tuple[SourceFile, dict[str, Stored]]:
    """Open one file and check its header. FileError: unreadable; FormatError: damaged."""
    file = SourceFile(path)
    return file, {name: Stored(file, name, entry.dtype, entry.shape, entry.offset) for name, entry in read_header(file).items()}


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
