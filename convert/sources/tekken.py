"""Mistral's tekken.json: tiktoken's kind of ranks, with the special tokens before them.

    {"config": {"pattern", "default_vocab_size", "default_num_special_tokens", "version"}, "vocab": [{"rank", "token_bytes" (base64)}, ...],
     "special_tokens": [{"rank", "token_str", "is_control"}, ...]}     ids: specials 0 ... n - 1, then the ranks, as many as the vocabulary's size leaves

Source: github.com/mistralai/mistral-common, tokens/tokenizers/tekken.py.
"""
from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NoReturn

from ...engine.errors import FormatError, UnsupportedError
from ...engine.gguf.header import quote
from ...engine.text.tokenizer.vocabulary import CONTROL, NORMAL, USER_DEFINED
from .base import Fields, read_json
from .vocabulary import Vocab, byte_tokens

PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
           r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
"""What GGUF's pre-tokenizer "tekken" stands for."""
FIRST = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]",
         "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
"""The special tokens of files (version v3) that don't list them; the others have the text <SPECIAL_n>."""
MOST = 1 << 20


def read_tekken(path: Path) -> Vocab:
    """FormatError: damaged; UnsupportedError: a split of another pattern."""
    values = read_json(path)

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{path}: {message}")
    config = Fields(path, Fields(path, values).get("config", dict))
    if (pattern := config.get("pattern", str)) != PATTERN:
        raise UnsupportedError(f"{path}: splits text by {quote(pattern)}, which is not Tekken's pattern; llamina knows no other")
    n_special, size = config.integer("default_num_special_tokens", MOST, least=0), config.integer("default_vocab_size", MOST)
    listed: Any = values.get("vocab")
    if not isinstance(listed, list) or not n_special < size <= n_special + len(listed):
        fail(f"must list a vocabulary of {size - n_special} tokens or more")
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(listed[:size - n_special]):
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
            if entry["rank"] != rank or token in ranks or not token:
                raise ValueError("ranks must count from 0 without gaps, and tokens be said once")
        except (ValueError, TypeError, KeyError) as error:
            fail(f"entry {rank} of its vocabulary is no token and rank: {error}")
        ranks[token] = rank
    tokens, merges = byte_tokens(path, ranks)
    specials = {i: (text, CONTROL) for i, text in enumerate(FIRST[:n_special])}
    given: Any = values.get("special_tokens") or []
    for entry in given if isinstance(given, list) else fail("field 'special_tokens' must be a list"):
        good = isinstance(entry, dict) and type(entry.get("rank")) is int and isinstance(entry.get("token_str"), str)
        if not good or not 0 <= entry["rank"] < n_special:
            fail(f"a special token must have a rank and a token_str, found {quote(entry)}")
        specials[entry["rank"]] = entry["token_str"], CONTROL if entry.get("is_control", True) else USER_DEFINED
    texts = [specials.get(i, (f"<SPECIAL_{i}>", CONTROL)) for i in range(n_special)]
    vocab = Vocab(path, "gpt2", [text for text, _ in texts] + tokens, [type_ for _, type_ in texts] + [NORMAL] * len(tokens), merges=merges, pre="tekken")
    place = {text: i for i, (text, _) in enumerate(texts)}
    vocab.ids = {name: place[text] for name, text in (("unknown", "<unk>"), ("bos", "<s>"), ("eos", "</s>"), ("padding", "<pad>")) if text in place}
    return vocab
