"""Tokenizers, made from the vocabulary inside a GGUF file: load_tokenizer(metadata, path) -> Tokenizer.

vocabulary.py reads and checks the metadata (ends.py: which tokens end an answer); base.py has what all kinds share; spm.py (SentencePiece) and bpe.py
(merges), wordpiece.py and unigram.py (encoders' kinds) split text, bpe.py as a row of splits.py says, which known.py finds for files that do not name one;
stream.py decodes token by token. The libraries are imported when a tokenizer is made. tokenizer_problem() says of a header alone whether one can be made of
it.
"""
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import LlaminaError, TokenizerError, UnsupportedError
from ...panics import panics_are

if TYPE_CHECKING:
    from .base import Tokenizer
    from .splits import Row


@panics_are(TokenizerError, "the vocabulary cannot be used")
def load_tokenizer(metadata: Mapping[str, Any], path: str | os.PathLike[str] = "vocabulary") -> Tokenizer:
    """The tokenizer of a GGUF file's metadata (keys tokenizer.ggml.*; arrays as list[str] or NumPy arrays). `path` is for messages.

    Raises TokenizerError for a missing or damaged vocabulary, UnsupportedError for a kind that is not implemented, by its name."""
    path = os.fspath(path)
    from .vocabulary import read_vocabulary

    if (kind := _kind(metadata, path)) == "llama":
        from .spm import SpmTokenizer

        vocabulary = read_vocabulary(metadata, path, default_ids=(1, 2, 0), add_bos=True)
        vocabulary.strips_after_tags = _strips_after_tags(metadata)
        return SpmTokenizer(vocabulary)
    if kind in ("bert", "t5"):
        from .unigram import UnigramTokenizer
        from .wordpiece import WordPieceTokenizer

        if kind == "bert":
            return WordPieceTokenizer(read_vocabulary(metadata, path, default_ids=(101, 102, 100), add_bos=True))
        return UnigramTokenizer(read_vocabulary(metadata, path, default_ids=(-1, 1, 2), add_bos=False))
    from .bpe import BpeTokenizer, RawBpeTokenizer

    row = _row(metadata, path)
    vocabulary = read_vocabulary(metadata, path, default_ids=(), add_bos=row.add_bos, add_sep=row.add_sep)
    vocabulary.strips_after_tags = _strips_after_tags(metadata)
    if not row.raw:
        return BpeTokenizer(vocabulary, row)
    vocabulary.add_bos = vocabulary.bos_id is not None  # Gemma 4's files say false by mistake; llama.cpp overrides them too
    return RawBpeTokenizer(vocabulary, row)


def tokenizer_problem(metadata: Mapping[str, Any], path: str | os.PathLike[str] = "vocabulary") -> str | None:
    """Why load_tokenizer() would refuse this header's kind of vocabulary, as one line; None if it would not. Nothing is read but a few short keys, or the
    list of tokens where the file does not say how it cuts text: what is damaged inside the arrays only shows when it is loaded."""
    path = os.fspath(path)
    try:
        if _kind(metadata, path) not in ("llama", "bert", "t5"):
            _row(metadata, path)
        if "tokenizer.ggml.tokens" not in metadata:
            raise TokenizerError(f"{path}: tokenizer.ggml.tokens is missing: the file has no vocabulary")
    except LlaminaError as error:
        return str(error)
    return None


def _kind(metadata: Mapping[str, Any], path: str) -> str:
    """"llama", "gpt2", "gemma4", "bert" or "t5"."""
    model = metadata.get("tokenizer.ggml.model")
    if isinstance(model, str) and model in ("llama", "gpt2", "gemma4", "bert", "t5"):
        return model
    if model is None or isinstance(model, str) and model == "none":
        raise TokenizerError(f"{path}: has no vocabulary (tokenizer.ggml.model is {'missing' if model is None else 'none'}), so no text can be tokenised")
    known = "'llama' (SentencePiece), 'gpt2' (byte-level BPE), 'gemma4' (BPE on characters), 'bert' (WordPiece) and 't5' (Unigram)"
    raise UnsupportedError(f"{path}: tokenizer.ggml.model is {model!r:.60}; llamina knows {known}")


def _row(metadata: Mapping[str, Any], path: str) -> Row:
    """How a vocabulary with merges cuts text: as tokenizer.ggml.pre says, else as is known of the vocabulary or the architecture."""
    from .known import implied
    from .splits import REFUSED, row_of

    pre = metadata.get("tokenizer.ggml.pre")
    if metadata["tokenizer.ggml.model"] == "gemma4":
        pre = "gemma4"
    elif pre is None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        types = metadata.get("tokenizer.ggml.token_type")
        if isinstance(tokens, list) and set(map(type, tokens)) <= {str}:
            pre = implied(metadata.get("general.architecture"), tokens, [1] * len(tokens) if types is None else list(types))
        if pre is None:
            found = "does not say how text is cut into words (tokenizer.ggml.pre is missing), and its vocabulary is not a known one"
            raise UnsupportedError(f"{path}: {found}: convert the model again, or set the key")
    row = row_of(pre) if isinstance(pre, str) else None
    if row is None or row.raw != (metadata["tokenizer.ggml.model"] == "gemma4"):
        why = REFUSED.get(pre) if isinstance(pre, str) else None
        raise UnsupportedError(f"{path}: tokenizer.ggml.pre is {pre!r:.60}, a way of cutting text that llamina does not have" + (f": {why}" if why else ""))
    return row


def _strips_after_tags(metadata: Mapping[str, Any]) -> bool:
    """Whether white space after a special token is dropped. GGUF has no key for that; Phi-3 does it, which llama.cpp knows by the model's name."""
    name, architecture = metadata.get("general.name"), metadata.get("general.architecture")
    named = isinstance(name, str) and any(word in name.lower() for word in ("phi-3", "phi3"))
    # of the architecture's byte-level vocabularies (Phi-4) llama.cpp strips none
    return named or isinstance(architecture, str) and architecture == "phi3" and metadata.get("tokenizer.ggml.model") == "llama"
