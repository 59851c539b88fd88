"""Byte-level BPE vocabularies (tokenizer.ggml.model = "gpt2") with Llama 3's way of splitting text, through Hugging Face's tokenizers library.

    text -> split by LLAMA3_SPLIT -> each word's UTF-8 bytes in GPT-2's alphabet -> a whole-word token, or merges in rank order

Special tokens are found before (base.py) and are not part of the model that the library sees. Everything is checked first: the library
panics on merges that do not fit the vocabulary, and drops bytes that have no token without a word.
"""
from __future__ import annotations

from typing import Any, ClassVar

from .base import Tokenizer
from .vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

# tokenizer.ggml.pre of files split like Llama 3 (tokenizer.json of Meta-Llama-3-8B; llama.cpp: LLAMA_VOCAB_PRE_TYPE_LLAMA3).
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 characters are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


class BpeTokenizer(Tokenizer):
    kind: ClassVar[str] = "bpe"
    utf8_errors: ClassVar[str] = "replace"
    control_ends_character: ClassVar[bool] = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        from tokenizers import Regex, models, pre_tokenizers
        from tokenizers import Tokenizer as HfTokenizer

        ids, merges = _model(vocabulary)
        self._hf = HfTokenizer(models.BPE(ids, merges, ignore_merges=True))
        self._hf.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    def _encode_text(self, text: str) -> list[int]:
        return self._hf.encode(text, add_special_tokens=False).ids

    def _piece_bytes(self, text: str, type_: int) -> bytes:
        if type_ in (NORMAL, UNUSED) and all(char in BYTE_OF for char in text):
            return bytes(BYTE_OF[char] for char in text)
        return text.encode()  # added tokens are written as they read


def _model(v: Vocabulary) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and merges that the library is given. Where two tokens have one text, the first counts."""
    ids: dict[str, int] = {}
    for id, (text, type_) in enumerate(zip(v.tokens, v.types)):
        if type_ not in (CONTROL, USER_DEFINED, UNKNOWN) and text:
            ids.setdefault(text, id)
    missing = sorted(byte for char, byte in BYTE_OF.items() if char not in ids)
    if missing:
        v.fail(f"tokenizer.ggml.tokens has no token for {len(missing)} of the 256 bytes (the first: 0x{missing[0]:02X}); not a byte-level vocabulary")
    if v.merges is None:
        v.fail("tokenizer.ggml.merges is missing; a BPE vocabulary cannot merge without it")
    merges: list[Any] = [tuple(merge.split(" ", 1)) for merge in v.merges]
    for rank, pair in enumerate(merges):
        if len(pair) != 2 or pair[0] not in ids or pair[1] not in ids or pair[0] + pair[1] not in ids:
            v.fail(f"tokenizer.ggml.merges: entry {rank}, {v.merges[rank]!r:.60}, does not join two tokens of the vocabulary into a third")
    return ids, merges
