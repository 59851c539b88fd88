"""A SentencePiece model file as the metadata of a GGUF file, and back: read and written by hand, since the fields are few (sentencepiece_model.proto).

    pieces_of(model) -> {"tokenizer.ggml.…": …}       model_of(metadata) -> bytes that the sentencepiece library loads
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 2:
            n = varint()
            yield key >> 3, data[at:at + n]
            at += n
        else:
            assert key & 7 == 5
            yield key >> 3, struct.unpack("<f", data[at:at + 4])[0]
            at += 4


def pieces_of(model: bytes) -> dict[str, Any]:
    """Of a Unigram model."""
    tokens, scores, types = list[str](), list[float](), list[int]()
    keys: dict[str, Any] = {"model": "t5", "add_space_prefix": True, "remove_extra_whitespaces": True}
    ids = {"unknown": 0, "bos": 1, "eos": 2}
    for number, value in fields(model):
        if number == 1:
            piece = dict(fields(value))
            tokens.append(piece[1].decode())
            scores.append(piece.get(2, 0.0))
            types.append(piece.get(3, 1))
        elif number == 2:  # TrainerSpec
            spec = dict(fields(value))
            assert spec.get(3, 1) == 1, "not Unigram"
        elif number == 3:  # NormalizerSpec
            spec = dict(fields(value))
            keys["precompiled_charsmap"] = np.frombuffer(spec.get(2, b""), np.uint8)
            keys["add_space_prefix"], keys["remove_extra_whitespaces"] = bool(spec.get(3, 1)), bool(spec.get(4, 1))
    keys |= {"tokens": tokens, "scores": np.array(scores, np.float32), "token_type": np.array(types, np.int32)}
    return {**{f"tokenizer.ggml.{k}": v for k, v in keys.items()}, **{f"tokenizer.ggml.{k}_token_id": v for k, v in ids.items()}}


def model_of(metadata: dict[str, Any]) -> bytes:
    """A Unigram model with the metadata's pieces."""
    def get(key: str, default: Any = None) -> Any:
        return metadata.get("tokenizer.ggml." + key, default)
    out = bytearray()
    for text, score, type_ in zip(get("tokens"), np.asarray(get("scores"), np.float32), get("token_type")):
        out += _bytes(1, _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(int(type_)))
    out += _bytes(2, b"\x18\x01")
    flags = b"\x18" + _varint(int(get("add_space_prefix", True))) + b"\x20" + _varint(int(get("remove_extra_whitespaces", False))) + b"\x28\x01"
    return bytes(out + _bytes(3, _bytes(2, np.asarray(get("precompiled_charsmap"), np.uint8).tobytes()) + flags))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data
