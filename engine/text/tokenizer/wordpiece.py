"""WordPiece vocabularies (tokenizer.ggml.model = "bert"): BERT's, through Hugging Face's tokenizers library (Devlin et al., arXiv 1810.04805).

    text -> cleaned, lower case, no accents (as the file says) -> words and single punctuation marks -> each word's longest pieces from its left, or [UNK]

GGUF writes a piece that begins a word with U+2581 and one that goes on with one bare; the library wants "word" and "##piece". BOS and EOS are [CLS] and [SEP].
"""
from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from .base import Tokenizer
from .vocabulary import CONTROL, UNKNOWN, Vocabulary

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
MOST_LETTERS = 100
"""Of a word: longer ones are unknown, as in BERT's own code."""


class WordPieceTokenizer(Tokenizer):
    kind: ClassVar[str] = "wordpiece"
    utf8_errors: ClassVar[str] = "replace"
    control_ends_character: ClassVar[bool] = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        v = vocabulary
        if v.unk_id is None:
            v.fail("tokenizer.ggml.unknown_token_id is missing: a WordPiece vocabulary needs one for words that it has no pieces of")
        super().__init__(v)
        self.rules = (v.lowercase, v.strip_accents)

    @cached_property
    def _hf(self) -> Any:
        from tokenizers import Tokenizer as HfTokenizer
        from tokenizers import models, normalizers, pre_tokenizers

        v = self.vocabulary
        pieces: dict[str, int] = {}
        for id, (text, type_) in enumerate(zip(v.tokens, v.types)):
            if type_ not in (CONTROL, UNKNOWN):
                pieces.setdefault(text[1:] if text.startswith(SPACE) else "##" + text, id)
        unknown = v.tokens[self.unk_id or 0]
        while unknown in pieces:
            unknown += "?"
        pieces[unknown] = self.unk_id or 0
        hf = HfTokenizer(models.WordPiece(pieces, unk_token=unknown, max_input_chars_per_word=MOST_LETTERS))
        hf.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=v.strip_accents, lowercase=v.lowercase)
        hf.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return hf

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = self._hf.encode(text, add_special_tokens=False).ids
        return ids

    def piece(self, id: int, at_start: bool, special: bool) -> tuple[bytes, bool]:
        if self.is_control(id):
            return (self.vocabulary.tokens[id].encode() if special else b""), at_start
        piece = self.token_bytes(id)
        return piece[1:] if at_start and piece.startswith(b" ") else piece, False

    def _piece_bytes(self, text: str, type_: int) -> bytes:
        return text.replace(SPACE, " ", 1).encode()
