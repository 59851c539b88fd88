"""Unigram vocabularies (tokenizer.ggml.model = "t5"): T5's, XLM-RoBERTa's, through Hugging Face's tokenizers library (Kudo, arXiv 1804.10959).

    text -> the file's map of characters -> single spaces, written U+2581, one before each word -> the pieces with the greatest sum of scores

The map (tokenizer.ggml.precompiled_charsmap) is SentencePiece's: NFKC with changes, as a trie. Control tokens take part as placeholders that no text matches.
"""
from __future__ import annotations

import re
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .base import Tokenizer
from .vocabulary import NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class UnigramTokenizer(Tokenizer):
    kind: ClassVar[str] = "unigram"
    utf8_errors: ClassVar[str] = "replace"
    control_ends_character: ClassVar[bool] = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        v = vocabulary
        if v.scores is None:
            v.fail("tokenizer.ggml.scores is missing: a Unigram vocabulary can't be used without")
        if v.unk_id is None:
            v.unk_id = next((id for id, type_ in enumerate(v.types) if type_ == UNKNOWN), None)
        if v.unk_id is None:
            v.fail("tokenizer.ggml.unknown_token_id is missing: a Unigram vocabulary needs one for characters that it lacks")
        super().__init__(v)
        self.rules = (v.charsmap,)

    @cached_property
    def _hf(self) -> tuple[Any, Any]:
        """The model, and the map of characters (None: none)."""
        from tokenizers import Tokenizer as HfTokenizer
        from tokenizers import models, normalizers, pre_tokenizers

        v = self.vocabulary
        assert v.scores is not None and self.unk_id is not None
        usual = np.isin(v.types, (NORMAL, UNUSED, USER_DEFINED))
        usual[self.unk_id] = False
        least = float(v.scores[usual].min()) if usual.any() else 0.0
        seen: set[str] = set()
        pieces: list[tuple[str, float]] = []
        for id, text in enumerate(v.tokens):
            takes_part = bool(usual[id]) and text and text not in seen
            if takes_part:
                seen.add(text)
            pieces.append((text, float(v.scores[id])) if takes_part else (f"\uE000placeholder {id}", least))
        hf = HfTokenizer(models.Unigram(pieces, self.unk_id, byte_fallback=False))
        hf.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if v.add_space_prefix else "never", split=True)
        return hf, normalizers.Precompiled(v.charsmap) if v.charsmap else None

    def _encode_text(self, text: str) -> list[int]:
        hf, mapped = self._hf
        if mapped is not None:
            text = mapped.normalize_str(text)
        if self.vocabulary.remove_extra_whitespaces:
            text = re.sub(" +", " ", text).strip(" ")
        ids: list[int] = hf.encode(text, add_special_tokens=False).ids if text else []
        return ids

    def piece(self, id: int, at_start: bool, special: bool) -> tuple[bytes, bool]:
        if self.is_control(id):
            return (self.vocabulary.tokens[id].encode() if special else b""), at_start
        piece = self.token_bytes(id)
        return piece[1:] if at_start and piece.startswith(b" ") else piece, at_start and not piece

    def _piece_bytes(self, text: str, type_: int) -> bytes:
        return text.replace(SPACE, " ").encode()
