"""Tokenizer files from before tokenizer.json: read as the tokenizer.json that transformers makes of them, so that one reader knows and checks both.

    sentencepiece.bpe.model (Unigram; XLM-RoBERTa's, CamemBERT's)   vocab.txt (WordPiece)   vocab.json and merges.txt (GPT-2's, RoBERTa's)
        ──► the same as tokenizer.json's fields ──► tokenizer_json.read_tokenizer_json

What these files leave open stands in tokenizer_config.json, or is the class's own default. XLM-RoBERTa's ids are fairseq's: special tokens of its own come
first, and SentencePiece's pieces follow one place later. Source: transformers convert_slow_tokenizer.py, models/*/tokenization_*.py.
"""
from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...engine.errors import FileError, FormatError, UnsupportedError
from ...engine.gguf.header import quote
from ...engine.text.tokenizer.vocabulary import CONTROL, UNKNOWN
from .base import Fields, read_json
from .tokenizer_json import read_tokenizer_json
from .vocabulary import SPM_UNIGRAM, Vocab, read_bytes, read_spm

NAMES = ("sentencepiece.bpe.model", "vocab.txt", "vocab.json")
"""What such files are called; transformers knows them by these names."""
FAIRSEQ: Mapping[str, tuple[tuple[str, ...], int]] = {
    "xlm-roberta": (("<s>", "<pad>", "</s>", "<unk>"), 3),
    "camembert": (("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), 1),
}
"""model_type -> (tokens before the pieces, pieces that they replace). "<mask>" follows the pieces."""
BYTE_LEVEL = {"GPT2Tokenizer": "gpt2", "RobertaTokenizer": "roberta"}
Added = list[dict[str, Any]]


def read_older(path: Path, config: Fields, settings: Fields) -> Vocab | None:
    """None: it is no such file, or not of such a model. config: of config.json; settings: of tokenizer_config.json. FileError, FormatError,
    UnsupportedError."""
    kind = config.values.get("model_type")
    if path.name == "vocab.txt":
        made = _wordpiece(path, settings)
    elif path.name == "vocab.json":
        made = _byte_level(path, settings, str(kind))
    elif kind in FAIRSEQ and read_bytes(path)[:1] == b"\x0a":
        made = _fairseq(path, settings, *FAIRSEQ[str(kind)])
    else:
        return None
    vocab = read_tokenizer_json(path, {"version": "1.0", **made})
    if path.name == "vocab.txt" and "do_lower_case" not in settings.values:
        vocab.notes.append(f"{settings.path.name} does not say do_lower_case: letters are made small, as transformers does then")
    return vocab


def _special(settings: Fields, key: str, default: str) -> str:
    token = settings.values.get(key)
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else default


def _added(ids: Mapping[str, int], texts: Sequence[str]) -> Added:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": ids[text], "content": text, **flags, "special": True} for text in dict.fromkeys(texts) if text in ids]


def _fairseq(path: Path, settings: Fields, first: tuple[str, ...], replaced: int) -> dict[str, Any]:
    model = read_spm(path, read_bytes(path))
    if model.kind != SPM_UNIGRAM:
        raise UnsupportedError(f"{path}: is no SentencePiece model of kind unigram, as this model's should be")
    if model.types[0] != UNKNOWN or any(t != CONTROL for t in model.types[1:replaced]):
        raise FormatError(f"{path}: begins with the pieces {quote(model.tokens[:replaced])}, expected <unk>, <s> and </s>: it is another model's")
    pieces = [*((text, 0.0) for text in first), *zip(model.tokens[replaced:], model.scores[replaced:]), ("<mask>", 0.0)]
    ids = {text: id for id, (text, _) in reversed(list(enumerate(pieces)))}
    normalizer = None if not model.charsmap else {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}
    ends = {"<s>": ids.get("<s>"), "</s>": ids.get("</s>")}
    if None in ends.values():
        raise FormatError(f"{path}: has no piece <s> or </s>, which this model's texts begin and end with")
    prefix = settings.get("add_prefix_space", bool, True)
    return {"model": {"type": "Unigram", "vocab": [list(piece) for piece in pieces], "unk_id": ids["<unk>"], "byte_fallback": False}, "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _metaspace(prefix)]},
            "decoder": _metaspace(prefix), "added_tokens": _added(ids, [*first, "<s>", "</s>", "<mask>"]),
            "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", ends["</s>"]], "cls": ["<s>", ends["<s>"]]}}


def _metaspace(prefix: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always" if prefix else "never", "split": True}


def _wordpiece(path: Path, settings: Fields) -> dict[str, Any]:
    try:
        lines = read_bytes(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    tokens = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    ids: dict[str, int] = {}
    for id, text in enumerate(tokens):
        if ids.setdefault(text, id) != id:
            raise FormatError(f"{path}: line {id + 1} is the token {quote(text)}, as line {ids[text] + 1} is")
    names = [_special(settings, f"{key}_token", f"[{key.upper()}]") for key in ("unk", "cls", "sep", "pad", "mask")]
    unknown, cls, sep = names[:3]
    if missing := [name for name in (unknown, cls, sep) if name not in ids]:
        raise FormatError(f"{path}: has no token {quote(missing[0])}, which {settings.path.name} (or BERT's habit) names")
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": settings.get("tokenize_chinese_chars", bool, True),
                  "strip_accents": settings.get("strip_accents", bool, None), "lowercase": settings.get("do_lower_case", bool, True)}
    return {"model": {"type": "WordPiece", "vocab": ids, "unk_token": unknown, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
            "normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": None, "added_tokens": _added(ids, names),
            "post_processor": {"type": "BertProcessing", "sep": [sep, ids[sep]], "cls": [cls, ids[cls]]}}


def _byte_level(path: Path, settings: Fields, kind: str) -> dict[str, Any]:
    """GPT-2's, whose way of cutting words is its class's, and RoBERTa's, which is the same between <s> and </s>."""
    name = str(settings.values.get("tokenizer_class") or "").removesuffix("Fast")
    style = BYTE_LEVEL.get(name) if name else kind if kind in BYTE_LEVEL.values() else None
    if style is None:
        raise UnsupportedError(f"{path}: how {name or kind} cuts texts into words does not stand in vocab.json and merges.txt: get its tokenizer.json")
    beside = path.with_name("merges.txt")
    if not beside.is_file():
        raise FileError(f"{beside}: is missing: vocab.json alone is no tokenizer")
    ids = read_json(path)
    merges = [line for line in read_bytes(beside).decode(errors="replace").splitlines() if line.strip() and not line.startswith("#version")]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if style == "roberta" else ["<|endoftext|>"]
    if any(type(id) is not int for id in ids.values()) or style == "roberta" and not {"<s>", "</s>"} <= ids.keys():
        raise FormatError(f"{path}: must map tokens to ids, {'<s> and </s> among them' if style == 'roberta' else 'whole numbers'}")
    ends = None if style == "gpt2" else {"type": "RobertaProcessing", "sep": ["</s>", ids["</s>"]], "cls": ["<s>", ids["<s>"]]}
    return {"model": {"type": "BPE", "vocab": ids, "merges": merges, "unk_token": None}, "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": settings.get("add_prefix_space", bool, False), "trim_offsets": True, "use_regex": True},
            "decoder": None, "added_tokens": _added(ids, special), "post_processor": ends}
