"""BPE vocabularies with merges (tokenizer.ggml.model = "gpt2" and "gemma4"), through Hugging Face's tokenizers library.

    text -> words, cut by the expressions of a row of splits.py -> each word's UTF-8 bytes in GPT-2's alphabet -> a whole-word token, or merges in rank order

"gemma4" (RawBpeTokenizer) merges characters instead of bytes: a space is written U+2581, a character without a token becomes its bytes, <0x00> to
<0xFF>, and only lines are cut. Special tokens are found before (base.py) and are not part of the model that the library sees. Everything is checked
first: the library panics on merges that do not fit the vocabulary.

Short texts are merged here (merging.py); the library takes in the vocabulary when the first long one comes.

What real files lack: bytes that have no token are dropped from texts, as the library and llama.cpp do it, and merges of tokens that are not there never
apply. Both are noted (Vocabulary.notes).
"""
from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .base import Tokenizer
from .merging import MOST_TEXT, MOST_WORD, merge, merged_ids
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
        from tokenizers import Regex, pre_tokenizers

        self.rules = (row.split, row.ignore_merges)
        self._ignore_merges = row.ignore_merges
        self._ids, self._merges = model_parts(vocabulary)
        self._ranks = dict(zip(self._merges, range(len(self._merges))))
        self._known: dict[str, list[int]] = {}
        _note_missing_bytes(vocabulary, self._ids)
        cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in row.split]
        self._words = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    @cached_property
    def _hf(self) -> Any:
        from tokenizers import Tokenizer as HfTokenizer
        from tokenizers import models

        hf = HfTokenizer(models.BPE(self._ids, pairs_of(self._merges), ignore_merges=self._ignore_merges))
        hf.pre_tokenizer = self._words
        return hf

    def _encode_text(self, text: str) -> list[int]:
        if self.vocabulary.nfc:
            text = unicodedata.normalize("NFC", text)
        if len(text) <= MOST_TEXT:
            words = [word for word, _ in self._words.pre_tokenize_str(text)]
            if (ids := merged_ids(words, self._ids, self._ranks, self._ignore_merges, self._known)) is not None:
                return ids
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
        self.rules = (row.split, row.ignore_merges)
        self._ids, self._merges = model_parts(vocabulary, also=BYTE)
        self._ranks = dict(zip(self._merges, range(len(self._merges))))
        self._lines = {text: id for text, id in self._ids.items() if text[0] == "\n" and text.strip("\n") == ""}
        self._unknown = None if self.unk_id is None else vocabulary.tokens[self.unk_id]
        if self._unknown is not None and self.unk_id is not None:
            self._ids.setdefault(self._unknown, self.unk_id)
        self._byte_tokens = all(f"<0x{byte:02X}>" in self._ids for byte in range(256))

    @cached_property
    def _hf(self) -> Any:
        from tokenizers import Tokenizer as HfTokenizer
        from tokenizers import models

        return HfTokenizer(models.BPE(self._ids, pairs_of(self._merges), unk_token=self._unknown, fuse_unk=True, byte_fallback=True))

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in LINES.split(text.replace(" ", SPACE)):
            if word in self._lines:
                ids.append(self._lines[word])
            elif self._byte_tokens and len(text) <= MOST_TEXT and len(word) <= MOST_WORD:
                symbols = [symbol for char in word for symbol in ([char] if char in self._ids else (f"<0x{byte:02X}>" for byte in char.encode()))]
                ids += [self._ids[symbol] for symbol in merge(symbols, self._ranks)]
            else:
                ids += self._hf.encode(word, add_special_tokens=False).ids
        return ids

    def _piece_bytes(self, text: str, type_: int) -> bytes:
        if type_ == BYTE:
            return bytes([int(text[3:5], 16)])
        return (text.replace(SPACE, " ") if type_ in (NORMAL, UNUSED) else text).encode()


def model_parts(v: Vocabulary, also: int = NORMAL) -> tuple[dict[str, int], list[str]]:
    """(ids by text, merges) to merge with: the tokens of types NORMAL, UNUSED and `also`. Where two tokens have one text, the first counts.

    Written for speed: one pass over the joined merges instead of one look at each."""
    if v.merges is None:
        v.fail("tokenizer.ggml.merges is missing; a BPE vocabulary cannot merge without it")
    taken = np.isin(v.types, (NORMAL, UNUSED, also))
    places = range(len(v.tokens) - 1, -1, -1) if taken.all() else np.flatnonzero(taken)[::-1].tolist()
    ids = dict(zip(map(v.tokens.__getitem__, places), places))
    ids.pop("", None)
    merges = v.merges
    whole = "\0".join(merges)
    sides, joined = whole.replace(" ", "\0").split("\0"), whole.replace(" ", "").split("\0")
    if merges and (len(sides) != 2 * len(merges) or list(map("".join, zip(sides[::2], sides[1::2]))) != joined):
        rank = next((rank for rank, merge in enumerate(merges) if merge.count(" ") != 1 or "\0" in merge), 0)
        v.fail(f"tokenizer.ggml.merges: entry {rank}, {merges[rank]!r:.60}, is not two tokens with a space between")
    if merges and not (ids.keys() >= set(sides) and ids.keys() >= set(joined)):
        kept = [merge for merge, made in zip(merges, joined) if made in ids and all(side in ids for side in merge.split(" "))]
        if not kept:
            v.fail(f"tokenizer.ggml.merges: none of {len(merges)} joins two tokens of the vocabulary into a third: they belong to another vocabulary")
        v.notes.append(f"{len(merges) - len(kept)} of {len(merges)} merges have tokens that the vocabulary lacks, and never apply")
        merges = kept
    return ids, merges


def pairs_of(merges: list[str]) -> list[tuple[str, str]]:
    """Merges as the library wants them."""
    return [(left, right) for left, right in (merge.split(" ") for merge in merges)]


def _note_missing_bytes(v: Vocabulary, ids: dict[str, int]) -> None:
    """A note of bytes that texts can hold and no token says; TokenizerError if no byte at all has one."""
    missing = [byte for char, byte in BYTE_OF.items() if char not in ids]
    if len(missing) == len(BYTE_OF):
        v.fail("tokenizer.ggml.tokens has no token for any of the 256 bytes; not a byte-level vocabulary")
    if in_texts := sorted(set(missing) - NEVER_IN_UTF8):
        shown = ", ".join(f"{byte:02X}" for byte in in_texts[:8]) + (", ..." if len(in_texts) > 8 else "")
        v.notes.append(f"no token says the bytes {shown}: characters with them lose them")
