"""SentencePiece vocabularies (tokenizer.ggml.model = "llama"): Llama 1 and 2, Code Llama, TinyLlama, Mistral.

The sentencepiece library does the merging. It wants a ModelProto, which GGUF files do not hold but for its parts: model_proto() writes it again,
in the protobuf wire format by hand (https://protobuf.dev/programming-guides/encoding; fields: sentencepiece/src/sentencepiece_model.proto).

Ours, not the library's, are: special tokens (base.py); the space put before a text, at its start and after every special token as llama.cpp has
it; and decoding, equal to SentencePiece's (tests compare), because it must also work token by token.

Token texts that the library refuses (empty, said twice, holding NUL; a byte piece without its 255 sisters) take part as placeholders that no
text matches: their ids decode, but are never produced. Without all 256 byte pieces, characters outside the vocabulary become the unknown token.
"""
from __future__ import annotations

import re
from typing import ClassVar

import numpy as np

from ...errors import TokenizerError
from .base import Tokenizer
from .vocabulary import BYTE, BYTE_TEXT, CONTROL, NORMAL, UNKNOWN, Vocabulary

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # U+2581, how pieces write a space
UNKNOWN_SURFACE = " \N{DOUBLE QUESTION MARK} "  # what SentencePiece decodes the unknown token to


class SpmTokenizer(Tokenizer):
    kind: ClassVar[str] = "spm"
    utf8_errors: ClassVar[str] = "llamina-replace-each-byte"
    control_ends_character: ClassVar[bool] = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        import sentencepiece

        _settle_types(vocabulary)
        super().__init__(vocabulary)
        self._strips = vocabulary.add_space_prefix or vocabulary.remove_extra_whitespaces
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto(vocabulary))
        except Exception as error:
            vocabulary.fail(f"sentencepiece cannot use the vocabulary: {' '.join(str(error).split())[-200:]}")

    def _encode_text(self, text: str) -> list[int]:
        if self.vocabulary.remove_extra_whitespaces:
            text = re.sub(" +", " ", text).strip(" ")
        if self.vocabulary.add_space_prefix and text:
            text = " " + text
        ids = self._processor.encode(text)
        if self.unk_id is None and self.n_vocab in ids:  # the placeholder that model_proto() added
            raise TokenizerError(f"{self.path}: the text has characters that the vocabulary cannot express, and it has no unknown token")
        return ids

    def piece(self, id: int, at_start: bool, special: bool) -> tuple[bytes, bool]:
        if self.is_control(id):
            return (self.vocabulary.tokens[id].encode() if special else b""), at_start
        piece = self.token_bytes(id)
        if at_start and self._strips and self.vocabulary.types[id] not in (BYTE, UNKNOWN) and self.vocabulary.tokens[id].startswith(SPACE):
            piece = piece[1:]
            return piece, self.vocabulary.remove_extra_whitespaces and not piece
        return piece, at_start and not piece

    def _piece_bytes(self, text: str, type_: int) -> bytes:
        if type_ == BYTE:
            return bytes([int(text[3:5], 16)])
        return (UNKNOWN_SURFACE if type_ == UNKNOWN else text.replace(SPACE, " ")).encode()


def _settle_types(v: Vocabulary) -> None:
    """Makes exactly the unknown token UNKNOWN, and checks or finds the byte pieces."""
    if v.unk_id is None:
        v.unk_id = next((id for id, type_ in enumerate(v.types) if type_ == UNKNOWN), None)
    if UNKNOWN in v.types:
        v.types[:] = [CONTROL if type_ == UNKNOWN else type_ for type_ in v.types]
    if v.unk_id is not None:
        v.types[v.unk_id] = UNKNOWN
    for id in np.flatnonzero(np.asarray(v.types, np.int8) == BYTE).tolist():
        if not BYTE_TEXT.fullmatch(v.tokens[id]):
            v.fail(f"tokenizer.ggml.tokens: id {id} has the type of a byte but the text {v.tokens[id]!r:.40}; expected <0x00> to <0xFF>")
    if BYTE not in v.types:  # files without types, or with every type "normal"
        found = [id for id, text in enumerate(v.tokens) if BYTE_TEXT.fullmatch(text) and v.types[id] == NORMAL]
        if len(found) == 256 == len({v.tokens[id] for id in found}):
            for id in found:
                v.types[id] = BYTE


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _int(field: int, n: int) -> bytes:
    return _varint(field << 3) + _varint(n & (1 << 64) - 1)  # negative int32: ten bytes of two's complement


def _chunk(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _put_placeholders(texts: list[str], types: list[int], complete: bool) -> None:
    """Texts that the library refuses become ones that no text matches, of type CONTROL; byte pieces too unless all 256 are there."""
    used: set[str] = set()
    taken = set(texts)
    for id, (text, type_) in enumerate(zip(texts, types)):
        if not text or text in used or "\0" in text or (type_ == BYTE and not complete):
            serial = id
            while (text := f"\uE000placeholder {serial}") in taken or text in used:
                serial += len(taken)
            texts[id], types[id] = text, UNKNOWN if type_ == UNKNOWN else CONTROL
        used.add(text)


def model_proto(v: Vocabulary) -> bytes:
    """SentencePiece's ModelProto (BPE) with the vocabulary's tokens, scores and types; one UNKNOWN piece more if the vocabulary has none."""
    if v.scores is None:
        v.fail("tokenizer.ggml.scores is missing; a SentencePiece vocabulary cannot merge without it")
    complete = len({text for text, type_ in zip(v.tokens, v.types) if type_ == BYTE}) == 256
    types, texts, scores = list(v.types), list(v.tokens), v.scores.astype("<f4")
    if v.unk_id is None:
        texts.append("")
        types.append(UNKNOWN)
        scores = np.append(scores, np.float32(0))
    if not complete or len(set(texts)) < len(texts) or "" in texts or "\0" in "".join(texts):
        _put_placeholders(texts, types, complete)
    # SentencePiece { string piece = 1; float score = 2; Type type = 3; }
    ends = np.empty((len(texts), 7), np.uint8)
    ends[:, 0], ends[:, 1:5], ends[:, 5], ends[:, 6] = 0x15, scores.view(np.uint8).reshape(-1, 4), 0x18, types
    tail = ends.tobytes()
    heads = [b"\x0a" + _varint(9 + n) + b"\x0a" + _varint(n) for n in range(119)]  # of texts of n bytes, whose length takes one
    raws = [text.encode() for text in texts]
    pieces = [heads[len(raw)] + raw + tail[7 * id : 7 * id + 7] if len(raw) < 119 else _chunk(1, b"\x0a" + _varint(len(raw)) + raw + tail[7 * id : 7 * id + 7])
              for id, raw in enumerate(raws)]

    def named(field: int, id: int | None) -> bytes:  # TrainerSpec: *_id = 40.., *_piece = 45.. in the same order
        return _int(field, -1 if id is None else id) + (b"" if id is None else _chunk(field + 5, v.tokens[id].encode()))

    trainer = _int(3, 2) + _int(4, len(pieces)) + _int(35, complete)  # model_type BPE, vocab_size, byte_fallback
    trainer += named(40, v.unk_id) + named(41, v.bos_id) + named(42, v.eos_id) + named(43, v.pad_id)
    # NormalizerSpec: name, add_dummy_prefix (we put the space ourselves), remove_extra_whitespaces (likewise), escape_whitespaces
    normalizer = _chunk(1, b"identity") + _int(3, 0) + _int(4, 0) + _int(5, 1)
    return b"".join(pieces) + _chunk(2, trainer) + _chunk(3, normalizer)
