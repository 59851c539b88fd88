"""Vocabularies of checkpoints as GGUF's tokenizer.ggml.* keys: SentencePiece models, Meta's tiktoken file, and llama2.c's tokenizer.bin.

    tokenizer.model | tokenizer.bin | tokenizer.json (tokenizer_json.py) -> Vocab -> fit(rows of the embedding) -> metadata()

A SentencePiece model is a protobuf message, read here by hand: the library hides which pieces are "user defined".
Sources: sentencepiece/src/sentencepiece_model.proto; karpathy/llama2.c tokenizer.py (export); openai/tiktoken load.py.
"""
from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...engine.errors import FileError, FormatError, UnsupportedError
from ...engine.gguf.header import quote, refuse_pointer
from ...engine.text.tokenizer.bpe import BYTE_OF
from ...engine.text.tokenizer.vocabulary import BYTE, BYTE_TEXT, CONTROL, NFC_KEY, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

MAX_FILE = 1 << 28
PAD_SCORE = -10000.0
SPM_UNIGRAM, SPM_BPE = 1, 2
"""Kinds of SentencePiece models."""
MAX_SPLITS = 1 << 27
"""Sum of the squares of the tokens' lengths of a tiktoken file; Llama 3's has 9 million."""


@dataclass
class Vocab:
    """A vocabulary on its way to a GGUF file. Ids index `tokens`."""

    path: Path
    model: str  # "llama" (SentencePiece), "gpt2" (byte-level BPE), "bert" (WordPiece) or "t5" (Unigram)
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None  # "llama" and "t5" only
    merges: list[str] | None = None  # "gpt2" only
    ids: dict[str, int] = field(default_factory=dict)  # "bos", "eos", "unknown", "padding", "eot", "eom", "cls", "seperator", "mask"
    add_bos: bool = True
    add_eos: bool = False
    pre: str = "llama-bpe"  # "gpt2" only: how text is cut into words
    nfc: bool = False  # texts are brought to Unicode's normal form C first
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False
    notes: list[str] = field(default_factory=list)
    from_json: bool = False  # of a tokenizer.json, or read as one
    as_json: dict[str, Any] | None = None  # of an older file: the tokenizer.json that it is read as
    exceptions: set[str] = field(default_factory=set)  # where ids may differ from those of the file's own library: check_vocabulary.EXCEPTIONS
    settings: dict[str, Any] = field(default_factory=dict)  # more keys below tokenizer.ggml.
    n_base: int = 0  # tokens of the vocabulary proper; those after it were added

    def __post_init__(self) -> None:
        self.n_base = len(self.tokens)

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.path}: {message}")

    def add(self, id: int, text: str, special: bool) -> None:
        """An added token: one that replaces an id's text and type, or one past the end (ids between are placeholders)."""
        if id > len(self.tokens) + (1 << 20):
            self.fail(f"added token {quote(text)} has id {id}, the vocabulary {len(self.tokens)} tokens")
        self._grow(id + 1)
        if self.types[id] == UNKNOWN and self.tokens[id] == text:
            return
        self.tokens[id], self.types[id] = text, CONTROL if special else USER_DEFINED

    def _grow(self, n: int) -> None:
        for id in range(len(self.tokens), n):
            self.tokens.append(f"[PAD{id}]")
            self.types.append(UNUSED)
            if self.scores is not None:
                self.scores.append(PAD_SCORE)

    def fit(self, n_vocab: int) -> None:
        """Pad to `n_vocab`, the number of rows of the embedding. Tokens past it that were added to the vocabulary proper are dropped with a note.
        FormatError if the vocabulary proper has more tokens than the embedding has rows."""
        n = len(self.tokens)
        if n > n_vocab:
            if self.n_base > n_vocab:
                self.fail(f"has {n} tokens, but the model's embedding only {n_vocab} rows: it is another model's tokenizer")
            self.notes.append(f"{n - n_vocab} added tokens beyond the embedding's {n_vocab} rows left out, the first: {quote(self.tokens[n_vocab])}")
            for values in (self.tokens, self.types, self.scores):
                if values is not None:
                    del values[n_vocab:]
            self.ids = {name: id for name, id in self.ids.items() if id < n_vocab}
        elif n < n_vocab:
            self._grow(n_vocab)
            self.notes.append(f"vocabulary padded {n} -> {n_vocab} with unused tokens, as many as the embedding has rows")

    def metadata(self) -> dict[str, Any]:
        keys: dict[str, Any] = {"model": self.model, "pre": self.pre if self.model == "gpt2" else "default", "tokens": self.tokens}
        if self.scores is not None:
            keys["scores"] = np.asarray(self.scores, np.float32)
        keys["token_type"] = np.asarray(self.types, np.int32)
        if self.merges is not None:
            keys["merges"] = self.merges
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding", "cls", "seperator", "mask"):
            if name in self.ids:
                keys[f"{name}_token_id"] = self.ids[name]
        keys["add_bos_token"], keys["add_eos_token"] = self.add_bos and "bos" in self.ids, self.add_eos and "eos" in self.ids
        keys |= self.settings
        if self.model in ("llama", "t5"):
            keys["add_space_prefix"] = self.add_space_prefix
            if self.remove_extra_whitespaces:
                keys["remove_extra_whitespaces"] = True
        named = {"tokenizer.ggml." + key: value for key, value in keys.items()}
        return named | {NFC_KEY: True} if self.nfc else named


def read_bytes(path: Path) -> bytes:
    """A whole file of at most 256 MB. FileError, FormatError."""
    try:
        if (size := path.stat().st_size) > MAX_FILE:
            raise FormatError(f"{path}: has {size} bytes, expected a tokenizer of at most {MAX_FILE}")
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_vocabulary_file(path: Path, *, n_vocab: int | None = None, special: list[str] | None = None) -> Vocab:
    """A tokenizer file of any kind, known by its content: SentencePiece's or Meta's tokenizer.model, tokenizer.json, or llama2.c's tokenizer.bin, which
    does not say how many tokens it has: `n_vocab`. special: names of the special tokens that follow a tiktoken file's."""
    data = read_bytes(path)
    refuse_pointer(path, data[:200])
    if data[2:4] == b"\0\0":  # llama2.c's begins with a small int32, whatever its first byte looks like; none of the others holds a NUL there
        return _llama2c(path, data, n_vocab)
    if data.lstrip()[:1] == b"{":
        if path.name.startswith("tekken"):
            from .tekken import read_tekken
            return read_tekken(path)
        from .tokenizer_json import read_tokenizer_json
        return read_tokenizer_json(path)
    first = data[:200].split(b"\n", 1)[0].split(b" ")
    if len(first) == 2 and first[1].strip().isdigit():
        return _tiktoken(path, data, special or [])
    if data[:1] == b"\x0a":
        return _sentencepiece(path, data)
    return _llama2c(path, data, n_vocab)


# ---- SentencePiece


def _message(data: bytes, what: str) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message: (number, int or bytes). ValueError for what is none."""
    at, n = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= n or shift > 63:
                raise ValueError(f"{what} ends within a number")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < n:
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(kind) if kind != 2 else varint()
        if length is None or length > n - at:
            raise ValueError(f"{what} has a field of {length} bytes where {n - at} remain")
        yield tag >> 3, data[at : at + length]
        at += length


@dataclass(frozen=True)
class Spm:
    """A SentencePiece model. kind: SPM_UNIGRAM, SPM_BPE, …; trainer, normalizer: fields of its settings, by number; rule: the name of its character map."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    trainer: dict[int, Any]
    normalizer: dict[int, Any]
    charsmap: bytes
    rule: str

    @property
    def kind(self) -> Any:
        return self.trainer.get(3, SPM_UNIGRAM)


def read_spm(path: Path, data: bytes) -> Spm:
    """FormatError: it is none. UnsupportedError: it writes spaces in a way that nothing here knows."""
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}

    def raw(message: dict[int, Any], number: int) -> bytes:
        """A field that must be text: a number there, handed to bytes(), would be a length."""
        value = message.get(number, b"")
        if not isinstance(value, bytes):
            raise ValueError(f"its field {number} is a number where a text belongs")
        return value

    try:
        for number, value in _message(data, "the model"):
            if number == 1:  # SentencePiece { string piece = 1; float score = 2; Type type = 3 [default = NORMAL]; }
                piece = dict(_message(value, f"piece {len(tokens)}"))
                tokens.append(raw(piece, 1).decode())
                scores.append(struct.unpack("<f", raw(piece, 2) or bytes(4))[0])
                types.append(piece.get(3, NORMAL))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(_message(value, "the settings"))
        charsmap, rule = raw(normalizer, 2), raw(normalizer, 1).decode(errors="replace")
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise FormatError(f"{path}: is no SentencePiece model, or a damaged one: {error}") from None
    if not tokens:
        raise FormatError(f"{path}: has no pieces: it is no SentencePiece model")
    for id, type_ in enumerate(types):
        if not isinstance(type_, int) or not NORMAL <= type_ <= BYTE:
            raise FormatError(f"{path}: piece {id} is of type {type_!r}; known are 1 to 6")
    if trainer.get(24) or not normalizer.get(5, 1):
        raise UnsupportedError(f"{path}: puts the space behind a word (treat_whitespace_as_suffix), or leaves spaces as they are, which GGUF can't say")
    return Spm(tokens, scores, types, trainer, normalizer, charsmap, rule)


def _sentencepiece(path: Path, data: bytes) -> Vocab:
    model = read_spm(path, data)
    if model.kind != SPM_BPE:
        name = {SPM_UNIGRAM: "unigram", 3: "word", 4: "char"}.get(model.kind, str(model.kind))
        raise UnsupportedError(f"{path}: is a SentencePiece model of kind {name}; Llama's are BPE, XLM-RoBERTa's and CamemBERT's unigram, and llamina knows no "
                               "other")
    vocab = Vocab(path, "llama", model.tokens, model.types, model.scores)
    for name, number, default in ("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("padding", 43, -1):
        id = model.trainer.get(number, default)
        if isinstance(id, int) and 0 <= id < len(model.tokens):  # absent: -1, as a 64-bit two's complement
            vocab.ids[name] = id
    vocab.add_space_prefix = bool(model.normalizer.get(3, 1))
    vocab.remove_extra_whitespaces = bool(model.normalizer.get(4, 1))
    if model.charsmap:
        vocab.exceptions.add("normalised")
        vocab.notes.append(f"{path.name} normalises characters ({model.rule[:40]!r}), which GGUF's SentencePiece kind cannot say: left out")
    return vocab


# ---- llama2.c


def _llama2c(path: Path, data: bytes, n_vocab: int | None) -> Vocab:
    """tokenizer.bin: int32 longest token, then for each token float32 score, int32 length, bytes. Pieces are written as they read: spaces for U+2581,
    and BOS and EOS with newlines around."""
    if n_vocab is None:
        raise FormatError(f"{path}: a llama2.c tokenizer goes with a llama2.c model only")
    tokens: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, -1)
        if not 0 <= length <= len(data) - at - 8:
            raise FormatError(f"{path}: is no tokenizer that llamina knows, or a truncated llama2.c one: token {len(tokens)} at byte {at} of {len(data)}")
        try:
            tokens.append(data[at + 8 : at + 8 + length].decode())
        except UnicodeDecodeError:
            raise FormatError(f"{path}: is no tokenizer that llamina knows: token {len(tokens)} is not UTF-8") from None
        scores.append(score)
        at += 8 + length
    if len(tokens) != n_vocab:
        raise FormatError(f"{path}: has {len(tokens)} tokens, but the model's embedding {n_vocab} rows: it is another model's tokenizer")
    types = [BYTE if BYTE_TEXT.fullmatch(text) else NORMAL for text in tokens]
    tokens = [text if type_ == BYTE else text.replace(" ", "\u2581") for text, type_ in zip(tokens, types)]
    for id, text, type_ in (0, "<unk>", UNKNOWN), (1, "<s>", CONTROL), (2, "</s>", CONTROL):
        if id < len(tokens):
            if tokens[id].strip("\n") != text:
                raise FormatError(f"{path}: token {id} is {quote(tokens[id])}, expected {text!r}: it is no llama2.c tokenizer")
            tokens[id], types[id] = text, type_
    return Vocab(path, "llama", tokens, types, scores, ids={"unknown": 0, "bos": 1, "eos": 2})


# ---- Meta's tiktoken file (Llama 3)


def llama3_specials(scaled_rope: bool) -> list[str]:
    """The 256 special tokens after Llama 3's 128,000, in order; `scaled_rope`: Llama 3.1's and later. Source: meta-llama/llama3 llama/tokenizer.py and
    meta-llama/llama-models models/llama3/tokenizer.py; the names of 3.1's are those of its tokenizer.json."""
    def reserved(first: int, last: int) -> list[str]:
        return [f"<|reserved_special_token_{i}|>" for i in range(first, last)]
    begin = ["<|begin_of_text|>", "<|end_of_text|>"]
    header = ["<|start_header_id|>", "<|end_header_id|>"]
    if scaled_rope:
        return [*begin, *reserved(0, 2), "<|finetune_right_pad_id|>", *reserved(2, 3), *header, "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *reserved(3, 248)]
    return [*begin, *reserved(0, 4), *header, *reserved(4, 5), "<|eot_id|>", *reserved(5, 251)]


def _tiktoken(path: Path, data: bytes, special: list[str]) -> Vocab:
    """Lines of "base64 rank". tiktoken joins the pair whose concatenation has the least rank; as a list of merges, that is every way to put a token
    together from two others, by the rank of the result."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n")):
        if not line.strip():
            continue
        try:
            code, rank = line.split()
            token = base64.b64decode(code, validate=True)
            if int(rank) != len(ranks) or token in ranks or not token:
                raise ValueError("ranks must count from 0 without gaps, and tokens be said once")
            ranks[token] = len(ranks)
        except ValueError as error:
            raise FormatError(f"{path}: line {number + 1} is no token and rank: {error}") from None
    tokens, merges = byte_tokens(path, ranks)
    vocab = Vocab(path, "gpt2", tokens, [NORMAL] * len(tokens), merges=merges)
    for text in special:
        vocab.add(len(vocab.tokens), text, True)
    place = {text: len(tokens) - len(special) + i for i, text in enumerate(special)}
    for name, text in ("bos", "<|begin_of_text|>"), ("eos", "<|end_of_text|>"), ("eot", "<|eot_id|>"), ("eom", "<|eom_id|>"):
        if text in place:
            vocab.ids[name] = place[text]
    return vocab


def byte_tokens(path: Path, ranks: dict[bytes, int]) -> tuple[list[str], list[str]]:
    """Tokens in GPT-2's byte alphabet and the merges that make them, of tokens with their ranks, 0, 1, 2, ...
    FormatError: tokens so long that it would take for ever."""
    if (work := sum(len(token) ** 2 for token in ranks)) > MAX_SPLITS:
        raise FormatError(f"{path}: its tokens are too long: finding their parts would take {work} steps, expected at most {MAX_SPLITS}")
    letter = {byte: char for char, byte in BYTE_OF.items()}
    tokens = ["".join(letter[b] for b in token) for token in ranks]
    merges: list[str] = []
    for token, text in zip(ranks, tokens):
        pairs = [(ranks[token[:i]], ranks[token[i:]], i) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [f"{text[:i]} {text[i:]}" for _, _, i in sorted(pairs)]
    return tokens, merges
