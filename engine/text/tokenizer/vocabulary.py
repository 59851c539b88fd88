"""The vocabulary a GGUF file carries, read and checked once for both kinds of tokenizer.

    tokenizer.ggml.tokens, .scores, .token_type, .merges, .*_token_id, .add_*   ->   Vocabulary

Nothing here depends on how text is split. Repairs of what real files get wrong, each as llama.cpp does it: the tokens that begin or end a text
are control tokens whatever their type says, and so are the well-known end-of-turn texts (ends.py); an id of 2^32 - 1 means "none"; one outside the
vocabulary names no token, and is left out with a note.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from ...errors import TokenizerError
from .ends import END_OF_TURN, FILLS, known_ends

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's llama_token_type == SentencePiece's Type
NO_ID = 2**32 - 1
MAX_TOKENS = 2**31 - 1  # ids are int32 everywhere

NFC_KEY = "tokenizer.ggml.normalizer.nfc"
"""Written by `convert` for a tokenizer.json that normalises texts so (Qwen's); llama.cpp has no such key, and does not normalise."""
BYTE_TEXT = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass
class Vocabulary:
    """What a file says about its tokens. Ids index `tokens`; an id that a file does not set is None."""

    path: str
    tokens: list[str]
    types: list[int]
    scores: np.ndarray | None  # float32 [n_vocab]
    merges: list[str] | None
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False
    add_sep: bool = False
    sep_id: int | None = None
    strips_after_tags: bool = False  # white space that follows a special token is dropped
    nfc: bool = False  # texts are brought to Unicode's normal form C first
    lowercase: bool = True  # WordPiece: words in lower case, …
    strip_accents: bool = True  # … without accents
    charsmap: bytes = b""  # Unigram: SentencePiece's map of characters
    eog_ids: frozenset[int] = field(default_factory=frozenset)
    notes: list[str] = field(default_factory=list)  # what was left out or put right, a line each

    def fail(self, message: str) -> NoReturn:
        raise TokenizerError(f"{self.path}: {message}")


def read_vocabulary(metadata: Mapping[str, Any], path: str, *, default_ids: tuple[int, ...], add_bos: bool, add_sep: bool = False) -> Vocabulary:
    """Reads and checks the tokenizer.ggml.* keys. `default_ids` are (bos, eos, unknown) where the file names none and they are control tokens;
    `add_bos` and `add_sep` are the kind's habits where the file is silent. Raises TokenizerError naming file and key."""
    notes: list[str] = []

    def fail(key: str, problem: str) -> NoReturn:
        raise TokenizerError(f"{path}: tokenizer.ggml.{key} {problem}")

    def array(key: str) -> Any:
        value = metadata.get("tokenizer.ggml." + key)
        if value is not None and (isinstance(value, (str, bytes)) or not hasattr(value, "__len__")):
            fail(key, f"must be an array, not {type(value).__name__}")
        return value

    def strings(key: str) -> list[str] | None:
        value = array(key)
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            fail(key, f"must be an array of strings, not of {value.dtype}")
        if len(value) > MAX_TOKENS:
            fail(key, f"has {len(value)} entries, more than ids can count ({MAX_TOKENS})")
        return list(value)

    def numbers(key: str, count: int) -> np.ndarray | None:
        value = array(key)
        if value is None:
            return None
        if len(value) != count:
            fail(key, f"has {len(value)} entries, but tokenizer.ggml.tokens has {count}: the file is damaged or was written wrongly")
        value = np.asarray(value)
        if value.dtype.kind not in "iuf" or value.ndim != 1:
            fail(key, f"must be an array of numbers, not of {value.dtype}")
        return value

    def flag(key: str, default: bool) -> bool:
        value = metadata.get("tokenizer.ggml." + key, default)
        if not isinstance(value, (bool, np.bool_)):
            fail(key, f"must be true or false, not {value!r:.40}")
        return bool(value)

    tokens = strings("tokens")
    if not tokens:
        fail("tokens", "is missing or empty: the file has no vocabulary")
    for key, texts in ("tokens", tokens), ("merges", merges := strings("merges")):
        if set(map(type, texts or ())) - {str}:
            id, other = next((id, text) for id, text in enumerate(texts or ()) if type(text) is not str)
            fail(key, f"holds {type(other).__name__} at place {id}, not a string")

    outside: set[str] = set()

    def token_id(key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}", NO_ID)
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            fail(key, f"must be a whole number, not {value!r:.40}")
        if value in (NO_ID, -1):
            return None
        if not 0 <= value < len(tokens):
            notes.append(f"tokenizer.ggml.{key} is {value}, outside the vocabulary of {len(tokens)} tokens: left out")
            outside.add(key)
            return None
        return int(value)

    scores = numbers("scores", len(tokens))
    if scores is not None:
        scores = scores.astype(np.float32)
        if np.isnan(scores).any():
            fail("scores", f"is NaN for id {int(np.isnan(scores).argmax())}")
    raw_types = numbers("token_type", len(tokens))
    if raw_types is not None and (odd := ~np.isin(raw_types, range(BYTE + 1))).any():
        fail("token_type", f"is {raw_types[odd.argmax()]} for id {int(odd.argmax())}; known types are 0 to 6")
    types = [NORMAL] * len(tokens) if raw_types is None else np.where(raw_types == 0, NORMAL, raw_types).astype(int).tolist()  # 0: "undefined"

    v = vocabulary = Vocabulary(path, tokens, types, scores, merges, notes=notes)
    v.bos_id, v.eos_id, v.unk_id = token_id("bos_token_id"), token_id("eos_token_id"), token_id("unknown_token_id")
    v.pad_id = token_id("padding_token_id")
    for name, default in zip(("bos", "eos", "unknown"), default_ids):
        fits = 0 <= default < len(tokens) and (types[default] in (CONTROL, UNKNOWN) or raw_types is None)
        if fits and (f"tokenizer.ggml.{name}_token_id" not in metadata or name + "_token_id" in outside):
            setattr(v, "unk_id" if name == "unknown" else name + "_id", default)

    ends = known_ends(tokens, _ordinary_words(vocabulary)) | {v.eos_id}
    ends |= {token_id(key + "_token_id") for key in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")}
    v.eog_ids = frozenset(end for end in ends if end is not None)
    for end in v.eog_ids if v.bos_id is None else {v.bos_id, *v.eog_ids}:
        if types[end] in (NORMAL, USER_DEFINED):
            types[end] = CONTROL

    v.add_bos = flag("add_bos_token", add_bos and v.bos_id is not None)
    v.add_eos = flag("add_eos_token", False)
    v.add_bos, v.add_eos = v.add_bos and "bos_token_id" not in outside, v.add_eos and "eos_token_id" not in outside
    if v.add_bos and v.bos_id is None:
        fail("add_bos_token", "is true, but there is no tokenizer.ggml.bos_token_id")
    if v.add_eos and v.eos_id is None:
        fail("add_eos_token", "is true, but there is no tokenizer.ggml.eos_token_id")
    v.add_space_prefix = flag("add_space_prefix", True)
    v.remove_extra_whitespaces = flag("remove_extra_whitespaces", False)
    v.add_sep, v.sep_id = flag("add_sep_token", add_sep), token_id("seperator_token_id")
    v.nfc = bool(metadata.get(NFC_KEY, False))
    if (framed := kind_settings(metadata, flag, array)) is not None:
        v.lowercase, v.strip_accents, v.charsmap = framed
        cls = token_id("cls_token_id")
        v.bos_id, v.eos_id = v.bos_id if cls is None else cls, v.eos_id if v.sep_id is None else v.sep_id
        v.add_bos = flag("add_bos_token", True) and v.bos_id is not None
        v.add_eos = flag("add_eos_token", True) and v.eos_id is not None
    return vocabulary


def kind_settings(metadata: Mapping[str, Any], flag: Any, array: Any) -> tuple[bool, bool, bytes] | None:
    """(lower case, without accents, map of characters) of a WordPiece or Unigram vocabulary, whose texts stand between two special tokens; None for others."""
    if metadata.get("tokenizer.ggml.model") not in ("bert", "t5"):
        return None
    lower = flag("normalizer.lowercase", True)
    charsmap = array("precompiled_charsmap")
    return lower, flag("normalizer.strip_accents", lower), b"" if charsmap is None else np.asarray(charsmap).astype(np.uint8).tobytes()


def _ordinary_words(v: Vocabulary) -> frozenset[str]:
    """Texts of END_OF_TURN and FILLS whose token is an ordinary one that a merge makes: people's texts hold them, and so does what the model writes."""
    if not v.merges:
        return frozenset()
    normal = [text for text in (END_OF_TURN | FILLS).intersection(v.tokens) if v.types[v.tokens.index(text)] == NORMAL]
    return frozenset(text for text in normal if any(f"{text[:at]} {text[at:]}" in v.merges for at in range(1, len(text))))
