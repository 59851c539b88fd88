"""Tokenizers, made from the vocabulary inside a GGUF file: load_tokenizer(metadata, path) -> Tokenizer.

vocabulary.py reads and checks the metadata; base.py has what both kinds share; spm.py (SentencePiece) and bpe.py (byte-level BPE) split text;
stream.py decodes token by token. The libraries are imported when a tokenizer is made.
"""
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import TokenizerError, UnsupportedError
from ...panics import panics_are

if TYPE_CHECKING:
    from .base import Tokenizer


@panics_are(TokenizerError, "the vocabulary cannot be used")
def load_tokenizer(metadata: Mapping[str, Any], path: str | os.PathLike[str] = "vocabulary") -> Tokenizer:
    """The tokenizer of a GGUF file's metadata (keys tokenizer.ggml.*; arrays as list[str] or NumPy arrays). `path` is for messages.

    Raises TokenizerError for a missing or damaged vocabulary, UnsupportedError for a kind that is not implemented, by its name."""
    path = os.fspath(path)
    from .vocabulary import read_vocabulary

    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        from .spm import SpmTokenizer

        return SpmTokenizer(read_vocabulary(metadata, path, default_ids=(1, 2, 0), add_bos=True))
    if model == "gpt2":
        from .bpe import LLAMA3_NAMES, BpeTokenizer

        pre = metadata.get("tokenizer.ggml.pre", "default")
        if pre not in LLAMA3_NAMES:
            raise UnsupportedError(f"{path}: tokenizer.ggml.pre is {pre!r:.60}; llamina splits text like {', '.join(LLAMA3_NAMES)} only")
        return BpeTokenizer(read_vocabulary(metadata, path, default_ids=(), add_bos=True))
    if model is None or model == "none":
        raise TokenizerError(f"{path}: has no vocabulary (tokenizer.ggml.model is {'missing' if model is None else 'none'}), so no text can be tokenised")
    raise UnsupportedError(f"{path}: tokenizer.ggml.model is {model!r:.60}; llamina knows 'llama' (SentencePiece) and 'gpt2' (byte-level BPE)")
