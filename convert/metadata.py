"""The result's metadata: the source's keys, what llamina adds, and what the user sets with --meta.

    --meta general.name="My model" --meta llama.rope.freq_base=1e6 --meta tokenizer.ggml.add_bos_token=false --meta general.tags=

A key that is there keeps its type; a new one is true or false, a whole number, a number, or else a text; nothing after the = takes the key out.
"""
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import __version__
from ..engine.errors import OptionError
from .recipes import KEEP, RECIPES, Choice
from .sources import Source
from .sources.base import size_label

QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION
_OURS = ("split.", "llamina.", "quantize.")
_FIXED = ("general.architecture", "general.alignment", "general.quantization_version", "general.file_type", "tokenizer.ggml.tokens",
          "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
"""What describes the file itself, or goes with the tensors."""


def parse_meta(texts: Iterable[str]) -> dict[str, str | None]:
    """`KEY=VALUE` each -> key: value, None to take the key out. OptionError."""
    found: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_-]+)+", key) or len(key) > 200:
            raise OptionError(f"--meta wants KEY=VALUE such as general.name=mine, found {text[:80]!r}")
        if key in _FIXED or key.startswith(_OURS):
            raise OptionError(f"--meta {key}: this key describes the file itself, and is not for setting")
        found[key] = value or None
    return found


def set_meta(source: Source, changes: Mapping[str, str | None], tell: bool = True) -> None:
    """Put parsed changes into an open source's metadata. OptionError: a value that is not of the key's type."""
    for key, text in changes.items():
        if text is None:
            source.metadata.pop(key, None)
        else:
            source.metadata[key] = _typed(key, text, source.metadata.get(key))
    if changes and tell:
        source.notes.append(f"set by --meta: {', '.join(changes)}")


def _typed(key: str, text: str, old: Any) -> Any:
    def wanted(what: str) -> OptionError:
        return OptionError(f"--meta {key}={text[:60]}: expected {what}")
    if isinstance(old, str):
        return text
    if isinstance(old, (bool, np.bool_)) or old is None and text in ("true", "false"):
        if text not in ("true", "false"):
            raise wanted("true or false")
        return text == "true"
    whole = re.fullmatch(r"[+-]?\d{1,18}", text)
    if isinstance(old, (int, np.integer)) or old is None and whole:
        if not whole:
            raise wanted("a whole number")
        return int(text)
    if isinstance(old, (list, tuple)):
        return [part for part in text.split(",") if part]
    if isinstance(old, np.ndarray):
        raise wanted("no value: this key is an array of numbers, which --meta can only take out")
    try:
        number = float(text)
    except ValueError:
        if old is not None:
            raise wanted("a number") from None
        return text
    if not math.isfinite(number) or abs(number) > 3.4e38:
        raise wanted("a number that float32 holds")
    return number


def result_metadata(source: Source, recipe: str, choices: Sequence[Choice], digests: list[str], importance: Mapping[str, Any]) -> dict[str, Any]:
    """The source's keys, and ours: nothing of time or place."""
    meta = {key: value for key, value in source.metadata.items() if not key.startswith("llamina.")}
    meta.setdefault("general.type", "model")
    meta.setdefault("general.name", source.path.name.removesuffix(".gguf"))
    if source.tensors and not meta.get("general.size_label"):
        meta["general.size_label"] = size_label(sum(int(np.prod(t.shape)) for t in source.tensors))
    common: Counter[str] = Counter()
    for t, c in zip(source.tensors, choices):
        common[c.format] += int(np.prod(t.shape))
    by_base = {r.base: r.file_type for r in reversed(RECIPES.values())}  # the _s of several: every matrix alike
    if recipe != KEEP:
        meta["general.file_type"] = RECIPES[recipe].file_type
    elif "general.file_type" not in meta and common:
        meta["general.file_type"] = by_base.get(common.most_common(1)[0][0], 0)
    meta["general.quantization_version"] = QUANTIZATION_VERSION
    if importance:
        meta["quantize.imatrix.entries_count"] = len(importance)
    meta["llamina.version"] = __version__
    meta["llamina.type"] = recipe
    meta["llamina.source.kind"] = source.kind
    meta["llamina.source.files"] = [path.name for path in source.files]
    meta["llamina.source.sha256"] = digests
    return meta
