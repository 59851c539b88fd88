"""BPE vocabularies with merges (tokenizer.ggml.model = "gpt2" and "gemma4"), through Hugging Face's tokenizers library.

    text -> words, cut by the expressions of a row of splits.py -> each word's UTF-8 bytes in GPT-2's alphabet -> a whole-word token, or merges in rank order

"gemma4" (RawBpeTokenizer) merges characters instead of bytes: a space is written U+2581, a character without a token becomes its bytes, <0x00> to
<0xFF>, and only lines are cut. Special tokens are found before (base.py) and are not part of the model that the library sees. Everything is checked
first: the library panics on merges that do not fit the vocabulary.

What real files lack: bytes that have no token are dropped from texts, as the library and llama.cpp do it, and merges of tokens that are not there never
apply. Both are noted (Vocabulary.notes).
"""
from __future__ import annotations

import re
import unicodedata
from typing import Any, ClassVar

from .base import Tokenizer
from .splits import Row
from .vocabulary import BYTE, NORMAL, UNUSED, Vocabulary

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
NEVER_IN_UTF8 = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])
LINES = re.compile(r"(\n+)")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 characters are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


class BpeTokenizer(Tokenizer):
    """Byte-level BPE."""

    kind: ClassVar[str] = "bpe"
    utf8_errors: ClassVar[str] = "replace"
    control_ends_character: ClassVar[bool] = False

    def __init__(self, vocabulary: Vocabulary, row: Row) -> None:
        super().__init__(vocabulary)
        from tokenizers import Regex, models, pre_tokenizers
        from tokenizers import Tokenizer as HfTokenizer

        self.rules = (row.split, row.ignore_merges)
        ids, merges = model_parts(vocabulary)
        _note_missing_bytes(vocabulary, ids)
        self._hf = HfTokenizer(models.BPE(ids, merges, ignore_merges=row.ignore_merges))
        cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in row.split]
        self._hf.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def _encode_text(self, text: str) -> list[int]:
        if self.vocabulary.nfc:
            text = unicodedata.normalize("NFC", text)
        return self._hf.encode(text, add_special_tokens=False).ids

    def _piece_bytes(self, text: str, type_: int) -> bytes:
        if type_ in (NORMAL, UNUSED) and all(char in BYTE_OF for char in text):
            return bytes(BYTE_OF[char] for char in text)
        return text.encode()  # added tokens are written as they read


class RawBpeTokenizer(Tokenizer):
    """BPE on characters ("gemma4"). A run of newlines that is a token is taken whole; otherwise each line is one word."""

    kind: ClassVar[str] = "gemma4"
    utf8_errors: ClassVar[str] = "llamina-replace-each-byte"
    control_ends_character: ClassVar[bool] = True

    def __init__(self, vocabulary: Vocabulary, row: Row) -> None:
        super().__init__(vocabulary)
        from tokenizers import Tokenizer as HfTokenizer
        from tokenizers import models

        self.rules = (row.split, row.ignore_merges)
        ids, merges = model_parts(vocabulary, also=BYTE)
        unknown = None if self.unk_id is None else vocabulary.tokens[self.unk_id]
        if unknown is not None:
            ids.setdefault(unknown, self.unk_id or 0)
        self._lines = {text: id for text, id in ids.items() if text.strip("\n") == ""}
        self._hf = HfTokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in LINES.split(text.replace(" ", SPACE)):
            if word in self._lines:
                ids.append(self._lines[word])
            elif word:
                ids += self._hf.encode(word, add_special_tokens=False).ids
        return ids

    def _piece_bytes(self, text: str, type_: int) -> bytes:
        if type_ == BYTE:
            return bytes([int(text[3:5], 16)])
        return (text.replace(SPACE, " ") if type_ in (NORMAL, UNUSED) else text).encode()


def model_parts(v: Vocabulary, also: int = NORMAL) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(ids by text, merges) that the library is given: the tokens of types NORMAL, UNUSED and `also`. Where two tokens have one text, the first counts."""
    if v.merges is None:
        v.fail("tokenizer.ggml.merges is missing; a BPE vocabulary cannot merge without it")
    ids = dict(reversed([(text, id) for id, (text, type_) in enumerate(zip(v.tokens, v.types)) if type_ in (NORMAL, UNUSED, also) and text]))
    merges: list[Any] = [tuple(merge.split(" ")) for merge in v.merges]
    if set(map(len, merges)) - {2}:
        rank = next(rank for rank, pair in enumerate(merges) if len(pair) != 2)
        v.fail(f"tokenizer.ggml.merges: entry {rank}, {v.merges[rank]!r:.60}, is not two tokens with a space between")
    lefts, rights = map(set, zip(*merges)) if merges else (set(), set())
    joined = list(map("".join, merges))
    if not (ids.keys() >= lefts and ids.keys() >= rights and ids.keys() >= set(joined)):
        kept = [pair for pair, made in zip(merges, joined) if pair[0] in ids and pair[1] in ids and made in ids]
        if not kept:
            v.fail(f"tokenizer.ggml.merges: none of {len(merges)} joins two tokens of the vocabulary into a third: they belong to another vocabulary")
        v.notes.append(f"{len(merges) - len(kept)} of {len(merges)} merges have tokens that the vocabulary lacks, and never apply")
        merges = kept
    return ids, merges


def _note_missing_bytes(v: Vocabulary, ids: dict[str, int]) -> None:
    """A note of bytes that texts can hold and no token says; TokenizerError if no byte at all has one."""
    missing = [byte for char, byte in BYTE_OF.items() if char not in ids]
    if len(missing) == len(BYTE_OF):
        v.fail("tokenizer.ggml.tokens has no token for any of the 256 bytes; not a byte-level vocabulary")
    if in_texts := sorted(set(missing) - NEVER_IN_UTF8):
        shown = ", ".join(f"{byte:02X}" for byte in in_texts[:8]) + (", ..." if len(in_texts) > 8 else "")
        v.notes.append(f"no token says the bytes {shown}: characters with them lose them")
