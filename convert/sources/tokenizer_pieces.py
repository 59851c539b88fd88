"""tokenizer.json of encoders as a GGUF vocabulary: WordPiece (kind "bert") and Unigram (kind "t5"); refused by name where GGUF can't say the same."""
from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...engine.gguf.header import quote
from ...engine.text.tokenizer.vocabulary import NORMAL, UNKNOWN
from ...engine.text.tokenizer.wordpiece import MOST_LETTERS
from .vocabulary import Vocab

SPACE = "\u2581"
Fail = Callable[[str], NoReturn]
Steps = list[dict[str, Any]]


def wordpiece(path: Path, model: dict[str, Any], tokens: tuple[list[str], list[int]], normalizers: Steps, cuts: Steps, refuse: Fail) -> Vocab:
    """BERT's: pieces that go on are "##piece" there, and bare in GGUF, where those that begin a word have U+2581 before them."""
    if model.get("continuing_subword_prefix", "##") != "##" or model.get("max_input_chars_per_word", MOST_LETTERS) != MOST_LETTERS:
        refuse("its WordPiece model has another prefix than ##, or another longest word than 100 letters, which GGUF cannot express")
    kinds = [step.get("type") for step in normalizers]
    if kinds != ["BertNormalizer"] or [step.get("type") for step in cuts] != ["BertPreTokenizer"]:
        refuse(f"is a WordPiece tokenizer with normalizer {quote(kinds)} and pre_tokenizer {json.dumps(cuts)[:120]}; llamina knows BERT's")
    settings = normalizers[0]
    if settings.get("clean_text", True) is not True or settings.get("handle_chinese_chars", True) is not True:
        refuse("leaves control characters in the text, or Chinese characters together, which GGUF's WordPiece kind cannot express")
    texts, types = tokens
    vocab = Vocab(path, "bert", texts, types, from_json=True)
    lower, strip = settings.get("lowercase", True), settings.get("strip_accents")
    vocab.settings = {"normalizer.lowercase": bool(lower), "normalizer.strip_accents": bool(lower if strip is None else strip)}
    _unknown(vocab, model.get("unk_token"), refuse)
    return vocab


def phantom(vocab: Vocab) -> None:
    """Write pieces as GGUF does, once it is settled which tokens are special ones."""
    vocab.tokens = [text if type_ != NORMAL else text[2:] if text.startswith("##") else SPACE + text for text, type_ in zip(vocab.tokens, vocab.types)]


def unigram(path: Path, model: dict[str, Any], normalizers: Steps, cuts: Steps, refuse: Fail) -> Vocab:
    """XLM-RoBERTa's and T5's: scores, SentencePiece's map of characters, and spaces written U+2581."""
    listed = model.get("vocab")
    if not isinstance(listed, list) or not all(isinstance(p, list) and [type(x) for x in p] in ([str, float], [str, int]) for p in listed):
        refuse("its Unigram model has no list of pieces with scores")
    if model.get("byte_fallback"):
        refuse("its Unigram model falls back to bytes, which GGUF's kind does not")
    vocab = Vocab(path, "t5", [text for text, _ in listed], [NORMAL] * len(listed), scores=[float(score) for _, score in listed], from_json=True)
    _unknown(vocab, listed[model["unk_id"]][0] if isinstance(model.get("unk_id"), int) and 0 <= model["unk_id"] < len(listed) else None, refuse)
    for step in normalizers:
        if step.get("type") == "Precompiled":
            try:
                vocab.settings["precompiled_charsmap"] = np.frombuffer(base64.b64decode(step.get("precompiled_charsmap", ""), validate=True), np.uint8)
            except (binascii.Error, ValueError, TypeError):
                refuse("its map of characters (precompiled_charsmap) is no base64")
        elif step.get("type") == "Replace" and step.get("pattern") == {"Regex": " {2,}"} and step.get("content") in (" ", SPACE):
            vocab.remove_extra_whitespaces = True
        elif step.get("type") not in ("Strip", "Nmt"):
            refuse(f"has the normalizer {json.dumps(step)[:120]}, which GGUF's Unigram kind cannot express")
    prefix = False
    for step in cuts:
        if step.get("type") == "WhitespaceSplit":
            vocab.remove_extra_whitespaces = True
        elif step.get("type") == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            prefix = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
        else:
            refuse(f"splits text by pre_tokenizer {json.dumps(step)[:120]}, which GGUF's Unigram kind cannot express")
    vocab.add_space_prefix = prefix
    if not any(step.get("type") == "WhitespaceSplit" for step in cuts):
        vocab.exceptions.add("outer spaces")
        vocab.notes.append(f"{path.name} keeps a piece for spaces at a text's ends; GGUF's Unigram kind drops them, as SentencePiece does")
    return vocab


def _unknown(vocab: Vocab, text: Any, refuse: Fail) -> None:
    if not isinstance(text, str) or text not in vocab.tokens:
        refuse(f"has no token for what it does not know (unk_token = {quote(text)})")
    vocab.ids["unknown"] = vocab.tokens.index(text)
    vocab.types[vocab.ids["unknown"]] = UNKNOWN
