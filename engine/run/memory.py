"""What a model will take of the machine's memory, computed from the header alone, before anything is loaded.

    context, memory, free memory ──► plan() ──► MemoryPlan: positions of a sequence, pages of the KV cache
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..architectures.config import ModelConfig
from ..errors import OptionError, OutOfMemoryError
from ..gguf.file import GGUFFile
from .kv_cache import PAGE, kv_type, page_bytes, pages_of
from .weights import available_memory, matrix_bytes

DEFAULT_CONTEXT = 4096
"""Positions of a sequence where neither the caller nor the model's training asks for fewer."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class MemoryPlan:
    """weights, kv: bytes; kv is the budget, claimed page by page as sequences grow. context: positions of a sequence; pages: of 64 positions, in kv."""

    weights: int
    kv: int
    context: int
    pages: int
    page_bytes: int

    @property
    def context_bytes(self) -> int:
        """Of the KV cache of one full context."""
        return pages_of(self.context) * self.page_bytes

    def __str__(self) -> str:
        def size(n: int) -> str:
            return f"{n / 1e9:.2f} GB" if n >= 10**9 else f"{n / 1e6:.1f} MB"
        return (f"memory: weights {size(self.weights)}, KV cache up to {size(self.kv)} ({self.pages * PAGE} positions); "
                f"a full context of {self.context} takes {size(self.context_bytes)}")


def plan(gguf: GGUFFile, config: ModelConfig, context: int | None = None, memory: int | None = None, kv: str | None = None) -> MemoryPlan:
    """The KV cache gets what `memory` bytes leave beside the weights, else half of what is free beside them; at least one full context.

    context None: as trained, at most 4096, or what fits into `memory`. kv: a name of kv_cache.KV_TYPES. Raises OutOfMemoryError if it can't be, OptionError.
    """
    weights = sum(matrix_bytes(gguf, m) for m in config.matrices())
    one_page = page_bytes(config, kv_type(config, kv))
    wanted = context or min(config.context_length, DEFAULT_CONTEXT)
    needed = pages_of(wanted)
    free = available_memory()
    if free is not None and weights + (needed * one_page if memory is None else 0) > free:
        raise OutOfMemoryError(f"{gguf.path}: weights and a context of {wanted} positions need {weights + needed * one_page >> 20} MiB, {free >> 20} MiB are "
                               "free; use a smaller context or a smaller quantisation")
    if memory is None:
        spare = (free - weights) // 2 if free is not None else 16 * needed * one_page
        pages = max(needed, spare // one_page)
    else:
        pages = max(0, memory - weights) // one_page
        if context is None and 0 < pages < needed:
            wanted = pages * PAGE
        elif pages < needed:
            raise OutOfMemoryError(f"{gguf.path}: weights ({weights >> 20} MiB) and a context of {wanted} positions ({needed * one_page >> 20} MiB) "
                                   f"don't fit into the {memory >> 20} MiB allowed; allow more, use a smaller context or a smaller quantisation")
    return MemoryPlan(weights, pages * one_page, wanted, pages, one_page)


def parse_memory(value: Any) -> int | None:
    """Bytes, or "4GB", "500 MB", "2GiB", "1.5g" -> bytes. OptionError."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", value.strip().lower(), re.ASCII) if isinstance(value, str) else None
    n = int(float(match[1]) * _UNITS[match[2] or ""]) if match and len(match[1]) < 20 else 0
    if n <= 0:
        raise OptionError(f"memory must be bytes or a size such as 4GB or 512MiB, found {value!r}")
    return n
