"""Does a vocabulary, as GGUF will hold it, give the ids that the tokenizer file's own library gives?

    Vocab -> metadata -> load_tokenizer -> ids  ==  ids <- tokenizers | sentencepiece <- the file, reduced to what makes ids

The libraries see no more than they need: of a tokenizer.json model, normaliser, pre-tokeniser, decoder and added tokens (its padding alone can claim all
memory). What GGUF can't say is an exception, noted where it is found and left out here.
"""
from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ...engine.errors import FormatError, LlaminaError, UnsupportedError
from ...engine.gguf.header import quote
from ...engine.text.tokenizer import load_tokenizer
from ...engine.text.tokenizer.bpe import BYTE_OF
from ...engine.text.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from .vocabulary import Vocab

T = TypeVar("T")
Ids = Callable[[str], list[int]]
SPACE = "\u2581"
EXCEPTIONS = {
    "leading space": "texts that begin with a space: Metaspace puts no second one there",
    "outer spaces": "texts with spaces at their ends",
    "normalised": "texts that the file's character map changes: only printable ASCII is compared",
    "unknown characters": "texts with characters outside the vocabulary",
    "other rules": "its own engine follows other rules than the file's library (llama2.c's run.c): nothing is compared",
}
"""What Vocab.exceptions may hold."""
HARD_STRINGS = (
    "", " ", "  ", "\n", "\t", "\r\n", " \n \n\n ", "a", " a", "a ", "  two  spaces  ", "Hello, world!", "Once upon a time, there was a girl named Lily.",
    "don't can't I'll we've", "3.14159 1,000,000 0x7F 2^10 1e-9", "def f(x):\n\treturn x ** 2  # comment\n", "CamelCase snake_case kebab-case SHOUTING",
    "naïve café façade", "Größe Straße ÄÖÜ", "Привет, мир!", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم",
    "नमस्ते दुनिया", "你好，世界。", "こんにちは世界", "안녕하세요",
    "🙂🙃 👩‍👩‍👧‍👦 🇫🇷 👍🏽", "e\u0301 vs \u00e9", "\u200b\u200d\ufeff",
    "\u00a0non-breaking\u00a0", "▁▁ low line", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\x00\x01\x7f",
    "!!!???...---___***", "()[]{}<>",
    "https://example.org/a?b=c&d=%20#e", "a" * 40, "<unk", "s>", "1234567890" * 3, "\"quoted\" 'single' `back`", "ﬁ ligature ½ ² ™",
    "a  b   c", "line\nline\n\n line", "don't it's WE'LL", "3.14159 and 1234567",
    "(x+y)*z==0; // ok", "tab\tend ", "émigré naïve", "日本語と漢字",
    "Привет", "😀👍🏽", "\r\n\r\n", "x" * 70, "end  ", "word\u00a0word", "a\u0301", "<b>&amp;</b>", "Á\u200bB",
)
"""Spaces, digits, scripts, joiners, control characters: where tokenizers differ. No special tokens' names."""


def reference(vocab: Vocab) -> Ids | None:
    """What the library that vocab.path is made for makes of a text, with a space before it as `vocab` has it; None where there is no such library."""
    if "other rules" in vocab.exceptions:
        return None
    if vocab.from_json:
        values = vocab.as_json or json.loads(vocab.path.read_bytes().decode("utf-8-sig"))
        return _fast(vocab.path, values, vocab.add_space_prefix if vocab.model == "llama" else None)
    if vocab.model != "llama":
        return None
    from sentencepiece import SentencePieceProcessor
    # protobuf adds messages up: field 3, the normaliser, once more, with its field 3, add_dummy_prefix
    proto = vocab.path.read_bytes() + b"\x1a\x02\x18" + bytes([vocab.add_space_prefix])
    processor = _library(vocab.path, lambda: SentencePieceProcessor(model_proto=proto))
    return lambda text: list(processor.encode(text))


def comparable(vocab: Vocab, texts: Iterator[str]) -> Iterator[str]:
    """Those of `texts` for which no exception, and no added token, lets the ids differ."""
    special = [text for text, type_ in zip(vocab.tokens, vocab.types) if text and type_ in (CONTROL, UNKNOWN, USER_DEFINED)]
    for text in texts:
        if "leading space" in vocab.exceptions and text.startswith((" ", SPACE)):
            continue
        if "outer spaces" in vocab.exceptions and text != text.strip():
            continue
        if "normalised" in vocab.exceptions and not (text.isascii() and text.isprintable()):
            continue
        if "unknown characters" in vocab.exceptions and not known_characters(vocab, text):
            continue
        if not any(s in text for s in special):
            yield text


def known_characters(vocab: Vocab, text: str) -> bool:
    known = {c for token, type_ in zip(vocab.tokens, vocab.types) if type_ == NORMAL for c in token}
    return all(c in known for c in text.replace(" ", SPACE))


def check_json(vocab: Vocab, values: Mapping[str, Any]) -> None:
    """Tokenise hard and random texts with both. UnsupportedError at the first difference in a text whose characters the vocabulary knows; a note and
    an exception if only other characters differ."""
    path = vocab.path
    theirs = _fast(path, values, None)
    try:
        ours = load_tokenizer(vocab.metadata(), path)
    except LlaminaError as error:
        raise type(error)(f"{error}; so this tokenizer has no GGUF form that llamina knows") from None
    all_known = BYTE in vocab.types or not vocab.scores
    rng = random.Random(0)
    pieces = [id for id, type_ in enumerate(vocab.types) if type_ == NORMAL]
    drawn = [[vocab.tokens[rng.choice(pieces)] for _ in range(rng.randint(1, 12))] for _ in range(600)] if pieces else []
    if vocab.model == "gpt2":
        texts = [bytes(BYTE_OF.get(c, 63) for c in "".join(some)).decode(errors="replace") for some in drawn]
    else:
        texts = ["".join(some).replace(SPACE, " ") for some in drawn]
    odd = None
    for text in comparable(vocab, (t.lstrip(" ") if vocab.scores else t for t in (*HARD_STRINGS, *texts))):
        want = theirs(text)
        got = ours.encode(text, bos=False, eos=False)
        if want == got:
            continue
        if all_known or known_characters(vocab, text):
            raise UnsupportedError(f"{path}: has no equal in GGUF: {quote(text)} is {want[:12]} by its own rules, but would be {got[:12]}")
        odd = odd or text
    if odd:
        vocab.exceptions.add("unknown characters")
        vocab.notes.append(f"characters outside the vocabulary are tokenised otherwise than by {path.name}, such as in {quote(odd)}")


def _fast(path: Path, values: Mapping[str, Any], prefix: bool | None) -> Ids:
    """The tokenizers library's ids by a tokenizer.json, of which it sees what makes ids only. prefix: with or without a space before the text, whatever
    the file says; None: as it says."""
    from tokenizers import Tokenizer
    kept = {key: values.get(key) for key in ("version", "added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")}
    kept |= {"truncation": None, "padding": None, "post_processor": None}
    if prefix is not None:
        kept["normalizer"], kept["pre_tokenizer"] = (_prefixed(kept[key], prefix) for key in ("normalizer", "pre_tokenizer"))
        if prefix and not any(f'"{part}"' in json.dumps([kept["normalizer"], kept["pre_tokenizer"]]) for part in ("Prepend", "Metaspace")):
            kept["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, kept["normalizer"]]}
    fast = _library(path, lambda: Tokenizer.from_str(json.dumps(kept)))
    return lambda text: _library(path, lambda: fast.encode(text, add_special_tokens=False).ids)


def _prefixed(step: Any, prefix: bool) -> Any:
    """A normaliser or pre-tokeniser that puts a space before the text, or not, where it has a part for that."""
    if not isinstance(step, dict):
        return step
    for inner in ("normalizers", "pretokenizers"):
        if isinstance(step.get(inner), list):
            return {**step, inner: [part for part in (_prefixed(part, prefix) for part in step[inner]) if part]}
    if step.get("type") == "Metaspace":
        scheme = step.get("prepend_scheme", "always")
        return {**step, "prepend_scheme": "never" if not prefix else "always" if scheme == "never" else scheme, "add_prefix_space": prefix}
    return None if step.get("type") == "Prepend" and not prefix else step


def _library(path: Path, call: Callable[[], T]) -> T:
    """What a tokenizer library says; FormatError where it fails. They raise bare Exceptions, and tokenizers' panics are not even those."""
    try:
        return call()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise FormatError(f"{path}: the tokenizer's library cannot use it: {' '.join(str(error).split())[:120]}") from None
