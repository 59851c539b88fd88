"""Hugging Face's tokenizer.json as a GGUF vocabulary, where GGUF can say the same; refused by name where it cannot.

Two kinds of BPE are known. Which one a file is, its normaliser and pre-tokeniser tell, not the model's name:

- **byte-level**, its words cut in a way that is in the engine's table (splits.py; compared by pre_tokenizer.py): kind "gpt2", pre as the row is called,
  merges as they are.
- **SentencePiece-like**: spaces become U+2581 (a Replace normaliser or a Metaspace pre-tokeniser that does not split), a text is otherwise one piece, and
  merges may reach across spaces: kind "llama". That kind has no merges but scores: it always joins the neighbours whose concatenation has the
  highest score, the leftmost first. So a token's score is minus its place among all tokens ordered by the first merge that makes them:
  the same order, as long as no pair that is *not* in the merges, but whose concatenation is a token, comes in between. Trained vocabularies behave, yet nothing
  guarantees it, so tokenizer_check.py tokenises hard strings and some hundred random ones with both.

Source: the JSON that huggingface/tokenizers writes (tokenizers/src/models/bpe, .../normalizers, .../pre_tokenizers).
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from ...engine.text.tokenizer.bpe import BYTE_OF
from ...engine.text.tokenizer.vocabulary import BYTE, BYTE_TEXT, MAX_TOKENS, NORMAL, UNKNOWN, UNUSED
from .base import read_json
from .pre_tokenizer import row_of_steps
from .tokenizer_check import check_json
from .tokenizer_pieces import phantom, unigram, wordpiece
from .vocabulary import Vocab

SPACE = "\u2581"
LEADING_SPACE = "{} adds no space before a text that begins with one; GGUF's SentencePiece kind always adds one"


def read_tokenizer_json(path: Path, made: dict[str, Any] | None = None) -> Vocab:
    """made: what an older file is read as (older_tokenizers.py). FormatError: damaged. UnsupportedError: a tokenizer that a GGUF file of a kind that llamina
    knows cannot express."""
    reader = _Reader(path, made)
    vocab = reader.vocab()
    vocab.as_json = made
    check_json(vocab, reader.json)
    return vocab


class _Reader:
    def __init__(self, path: Path, made: dict[str, Any] | None) -> None:
        self.path, self.json = path, read_json(path) if made is None else made

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.path}: {message}")

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedError(f"{self.path}: {message}")

    def object(self, key: str) -> dict[str, Any] | None:
        value = self.json.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(f"field '{key}' must be an object, found {quote(value)}")
        return value

    def vocab(self) -> Vocab:
        model = self.object("model") or {}
        kind = model.get("type", "BPE" if "merges" in model else None)
        if kind in ("WordPiece", "Unigram"):
            return self.pieces(model, kind)
        if kind != "BPE":
            self.refuse(f"is a tokenizer of kind {quote(kind)}; llamina knows BPE, WordPiece and Unigram")
        for option in "dropout", "continuing_subword_prefix", "end_of_word_suffix":
            if model.get(option):
                self.refuse(f"its model has {option} = {quote(model[option])}, which GGUF cannot express")
        merges = self.merges(model.get("merges"))
        vocab = Vocab(self.path, "llama", *self.tokens(model.get("vocab")), from_json=True)
        ids = {text: id for id, text in enumerate(vocab.tokens) if vocab.types[id] != UNUSED}
        for rank, (left, right) in enumerate(merges):
            if left not in ids or right not in ids or left + right not in ids:
                self.fail(f"merge {rank}, {quote(left + ' ' + right)}, does not join two tokens of the vocabulary into a third")
        if self.is_byte_level(vocab, bool(model.get("ignore_merges"))):
            vocab.merges = [f"{left} {right}" for left, right in merges]
            missing = sum(c not in ids for c in BYTE_OF)
            if missing and model.get("unk_token"):
                vocab.notes.append(f"{missing} bytes have no token: they are dropped from texts, where {self.path.name} says {quote(model['unk_token'])}")
        else:
            vocab.scores = _scores(vocab.tokens, merges)
            self.space_prefix(vocab)
            if model.get("byte_fallback"):
                found = [id for id, text in enumerate(vocab.tokens) if BYTE_TEXT.fullmatch(text)]
                for id in found if len(found) == 256 else ():
                    vocab.types[id] = BYTE
        unknown = model.get("unk_token")
        if isinstance(unknown, str) and unknown in ids and vocab.model == "llama":
            vocab.types[ids[unknown]], vocab.ids["unknown"] = UNKNOWN, ids[unknown]
        self.added(vocab)
        self.post_processor(vocab)
        return vocab

    def pieces(self, model: dict[str, Any], kind: str) -> Vocab:
        """An encoder's vocabulary (tokenizer_pieces.py)."""
        normalizers, cuts = steps(self.object("normalizer"), "normalizers"), steps(self.object("pre_tokenizer"), "pretokenizers")
        if kind == "WordPiece":
            vocab = wordpiece(self.path, model, self.tokens(model.get("vocab")), normalizers, cuts, self.refuse)
        else:
            vocab = unigram(self.path, model, normalizers, cuts, self.refuse)
        self.added(vocab)
        self.post_processor(vocab)
        for ours, theirs in ("cls", "bos"), ("seperator", "eos"):
            if theirs in vocab.ids and kind == "WordPiece":
                vocab.ids[ours] = vocab.ids[theirs]
        if kind == "WordPiece":
            phantom(vocab)
        return vocab

    def tokens(self, vocab: Any) -> tuple[list[str], list[int]]:
        """Texts and types by id; ids that no token has become placeholders."""
        if not isinstance(vocab, dict) or not vocab:
            self.fail("field 'model.vocab' must map tokens to ids")
        by_id: dict[int, str] = {}
        for text, id in vocab.items():
            if type(id) is not int or not 0 <= id < MAX_TOKENS or id in by_id:
                self.fail(f"token {quote(text)} has the id {quote(id)}: ids must be natural numbers, each of one token")
            by_id[id] = text
        n = max(by_id) + 1
        if n > len(by_id) + (1 << 20):
            self.fail(f"its {len(by_id)} tokens have ids up to {n - 1}")
        return [by_id.get(id, f"[PAD{id}]") for id in range(n)], [NORMAL if id in by_id else UNUSED for id in range(n)]

    def merges(self, merges: Any) -> list[tuple[str, str]]:
        if not isinstance(merges, list):
            self.fail("field 'model.merges' must be a list")
        pairs = []
        for rank, merge in enumerate(merges):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
                self.fail(f"merge {rank} must be two tokens, found {quote(merge)}")
            pairs.append((pair[0], pair[1]))
        return pairs

    def is_byte_level(self, vocab: Vocab, ignore_merges: bool) -> bool:
        """Whether the text goes through GPT-2's byte alphabet; then sets kind and way of cutting, or refuses one that is not in the table."""
        found = steps(self.object("pre_tokenizer"), "pretokenizers")
        if not any(step.get("type") == "ByteLevel" for step in found):
            return False
        normalizers = [step.get("type") for step in steps(self.object("normalizer"), "normalizers")]
        if set(normalizers) - {"NFC"}:
            self.refuse(f"is byte-level, but with normalizer {quote(normalizers[0])}, which GGUF's byte-level kind does not have")
        row = row_of_steps(found, ignore_merges)
        if row is None:
            self.refuse(f"cuts text into words in a way that llamina does not know: pre_tokenizer {json.dumps(found, ensure_ascii=False)[:1500]}")
        vocab.model, vocab.pre, vocab.nfc = "gpt2", row.names[0], bool(normalizers)
        return True

    def space_prefix(self, vocab: Vocab) -> None:
        """Settle how spaces are written, from normaliser and pre-tokeniser, which may hold nothing else."""
        prefix, replaced, first = False, False, False
        for step in steps(self.object("normalizer"), "normalizers"):
            if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
                prefix = True
            elif step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE:
                replaced = True
            else:
                self.refuse(f"has the normalizer {json.dumps(step)[:120]}, which GGUF's SentencePiece kind cannot express")
        for step in steps(self.object("pre_tokenizer"), "pretokenizers"):
            if replaced and step.get("type") == "Split" and step.get("pattern") == {"String": " "}:
                continue  # Gemma's: no space is left to cut at
            if step.get("type") != "Metaspace" or step.get("replacement", SPACE) != SPACE or step.get("split", True):
                self.refuse(f"splits text by pre_tokenizer {json.dumps(step)[:120]}, which GGUF's SentencePiece kind cannot express")
            replaced = True
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix, first = prefix or scheme in ("always", "first"), scheme in ("always", "first")
        if not replaced:
            self.refuse(f"does not write spaces as {SPACE}, so it is not of SentencePiece's kind, and it is not byte-level either")
        vocab.add_space_prefix = prefix
        if first:
            vocab.exceptions.add("leading space")
            vocab.notes.append(LEADING_SPACE.format(self.path.name))

    def added(self, vocab: Vocab) -> None:
        tokens = self.json.get("added_tokens") or []
        if not isinstance(tokens, list):
            self.fail("field 'added_tokens' must be a list")
        for token in tokens:
            if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str) or token["id"] < 0:
                self.fail(f"an added token must have an id and a content, found {quote(token)}")
            vocab.add(token["id"], token["content"], bool(token.get("special")))

    def post_processor(self, vocab: Vocab) -> None:
        """BOS and EOS, where the template puts them around a single text."""
        vocab.add_bos = False
        for step in steps(self.object("post_processor"), "processors"):
            template = step.get("single")
            if step.get("type") in ("BertProcessing", "RobertaProcessing"):  # older forms of the same: [text, id] of each end
                for name, key in ("bos", "cls"), ("eos", "sep"):
                    end = step.get(key)
                    if not isinstance(end, list) or len(end) != 2 or type(end[1]) is not int or not 0 <= end[1] < len(vocab.tokens):
                        self.fail(f"post_processor adds {quote(end)}, whose id is not in the vocabulary")
                    vocab.ids[name] = end[1]
                vocab.add_bos = vocab.add_eos = True
                continue
            if step.get("type") != "TemplateProcessing" or not isinstance(template, list):
                continue
            names = [_get(_get(part, "SpecialToken"), "id") for part in template]
            for name, at in ("bos", 0), ("eos", len(names) - 1):
                if names and isinstance(names[at], str):
                    known = _get(_get(_get(step, "special_tokens"), names[at]), "ids")
                    if not isinstance(known, list) or len(known) != 1 or type(known[0]) is not int or not 0 <= known[0] < len(vocab.tokens):
                        self.fail(f"post_processor adds {quote(names[at])}, whose id is not in the vocabulary")
                    vocab.ids[name] = known[0]
                    vocab.add_bos, vocab.add_eos = vocab.add_bos or name == "bos", vocab.add_eos or name == "eos"


def steps(step: Any, inner: str) -> list[dict[str, Any]]:
    """A normaliser, pre-tokeniser or post-processor as a flat list of its parts."""
    if not isinstance(step, dict):
        return []
    if step.get("type") != "Sequence":
        return [step]
    parts = step.get(inner)
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else [step]


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """0, -1, -2, ... for tokens that merges make, in the order of the first merge that does; the others follow, and are never compared."""
    first: dict[str, int] = {}
    for left, right in merges:
        first.setdefault(left + right, len(first))
    rest = len(first)
    scores = []
    for text in tokens:
        if text not in first:
            first[text], rest = rest, rest + 1
        scores.append(-float(first[text]))
    return scores
