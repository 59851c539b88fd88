"""What is put before a text that is embedded: the prompts of sentence-transformers' folders, or of models that are known to want some.

    kind "query", "document", or the name of any prompt of the file ──► a text; "" where the model has none
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import OptionError, quoted

PREFIX = "sentence_transformers."
SAME = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names that a kind goes by, as sentence-transformers takes them."""
KNOWN = {
    "gemma-embedding": {"query": "task: search result | query: ", "document": "title: none | text: "},
    "nomic-bert": {"query": "search_query: ", "document": "search_document: ", "clustering": "clustering: ", "classification": "classification: "},
}
"""Of architectures all of whose models want the same, for files that hold none."""


def prompts_of(metadata: Mapping[str, Any], architecture: str) -> dict[str, str]:
    """Name -> text."""
    names, texts = (metadata.get(PREFIX + key) for key in ("prompt_names", "prompt_texts"))
    if isinstance(names, list) and isinstance(texts, list) and len(names) == len(texts) and all(isinstance(x, str) for x in (*names, *texts)):
        return dict(zip(names, texts))
    return dict(KNOWN.get(architecture, {}))


def prompt_for(kind: str | None, metadata: Mapping[str, Any], architecture: str) -> str:
    """OptionError: a kind that the model does not know. "query" and "document" are always known: models without prompts take texts as they are."""
    known = prompts_of(metadata, architecture)
    if kind is None:
        default = metadata.get(PREFIX + "default_prompt")
        return known.get(default, "") if isinstance(default, str) else ""
    if not isinstance(kind, str) or kind not in known and kind not in SAME:
        names = ", ".join(dict.fromkeys((*SAME, *known)))
        raise OptionError(f"kind must be one of {names}, found {quoted(kind)}: the model has no such prompt")
    return next((known[name] for name in (kind, *SAME.get(kind, ())) if name in known), "")


def most_tokens(metadata: Mapping[str, Any]) -> int | None:
    """Of a text, as the model's authors cut it (max_seq_length); None: not said."""
    value = metadata.get(PREFIX + "max_tokens")
    return int(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0 else None
