"""Whether a model file would run here, and what it would take: said before a download, and before a load.

    GGUFFile (its header is enough) -> judge() -> Verdict -> list, inspect, pull

Everything that `load` refuses a file for before it reads weights is asked here, too: configuration, tensors and their formats, vocabulary, chat template.
"""
from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LlaminaError
from ..gguf.file import GGUFFile
from ..units import count, size

PROCESS_BYTES = 120_000_000
"""What the process takes beside the model: Python, NumPy, the kernels."""


@dataclass(frozen=True)
class Verdict:
    """problem: why it does not run, None if it does. Bytes: `bytes` of all shards, `weights`, `buffers` and `kv` in memory, kv for `context` positions.
    chat: "own" (a template in the file), "none", or why it can't be used. free: bytes of memory that are free, None if the system doesn't tell."""

    problem: str | None
    bytes: int
    name: str | None = None
    architecture: str | None = None
    parameters: int = 0
    format: str | None = None
    weights: int | None = None
    kv: int | None = None
    buffers: int = 0
    context: int | None = None
    trained: int | None = None
    chat: str = "none"
    free: int | None = None

    @property
    def memory(self) -> int | None:
        """Bytes that running it takes, about: weights, the buffers of a step, one full context, and the process itself."""
        return None if self.weights is None or self.kv is None else self.weights + self.buffers + self.kv + PROCESS_BYTES

    @property
    def fits(self) -> bool:
        return self.memory is None or self.free is None or self.memory <= self.free

    @property
    def what(self) -> str:
        """"llama, 1.1B parameters, Q4_K"."""
        parts = (self.architecture, f"{count(self.parameters)} parameters" if self.parameters else None, self.format)
        return ", ".join(part for part in parts if part)

    @property
    def runs(self) -> str:
        """"runs here in about 1.1 GB of memory"; or why it doesn't."""
        if self.problem:
            return f"does not run: {self.problem}"
        if not self.fits:
            return f"needs about {size(self.memory or 0)} of memory, {size(self.free or 0)} are free: a smaller quantisation or --context may fit"
        return f"runs here in about {size(self.memory or 0)} of memory"


def judge(gguf: GGUFFile, context: int | None = None, n_bytes: int | None = None, deep: bool = True) -> Verdict:
    """context: positions to plan memory for; default: as trained, at most 4096. n_bytes: of all shards, if they aren't all on this disk. deep: build the
    tokenizer and the chat template, too, which takes a moment and finds what is damaged inside the vocabulary."""
    from ..text.chat_template import ChatTemplate
    from ..text.tokenizer import load_tokenizer
    from .will_run import problems
    sizes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        sizes[tensor.format.name] += tensor.n_bytes
    name = gguf.metadata.get("general.name")
    known: dict[str, Any] = {
        "bytes": sum(part.stat().st_size for part in gguf.paths) if n_bytes is None else n_bytes,
        "name": name if isinstance(name, str) else None, "architecture": str(gguf.metadata.get("general.architecture")),
        "parameters": sum(math.prod(t.shape) for t in gguf.tensors.values()), "format": sizes.most_common(1)[0][0] if sizes else "vocabulary only",
        "chat": "own" if gguf.metadata.get("tokenizer.chat_template") else "none",
    }
    found = problems(gguf)
    try:
        known |= _memory(gguf, context)
        if deep and not found:
            tokenizer = load_tokenizer(gguf.metadata, gguf.path)
    except LlaminaError as error:
        found.append(str(error))
    if found:
        return Verdict(problem=found[0].removeprefix(f"{gguf.path}: "), **known)
    if deep:
        try:
            ChatTemplate.from_metadata(gguf.metadata, tokenizer)
        except LlaminaError as error:  # it runs all the same
            known["chat"] = without_path(error, gguf.path)
    return Verdict(problem=None, **known)


def _memory(gguf: GGUFFile, context: int | None) -> dict[str, int | None]:
    from ...kernels.threads import default_threads
    from ..architectures.config import ModelConfig, check_tensors
    from ..run.kv_cache import kv_type
    from ..run.kv_groups import kv_layout
    from ..run.memory import DEFAULT_CONTEXT, MOST_TOKENS
    from ..run.step_memory import step_memory
    from ..run.weights import available_memory, weight_bytes
    config = ModelConfig.from_gguf(gguf)
    check_tensors(gguf, config)
    kind, wanted = kv_type(config), context or min(config.context_length, DEFAULT_CONTEXT)
    buffers = step_memory(config, kind, default_threads(), wanted).bytes(min(MOST_TOKENS, -(-wanted // 8) * 8))
    return {"trained": config.context_length, "weights": weight_bytes(gguf, config), "buffers": buffers, "context": wanted,
            "kv": kv_layout(config, kind, wanted, MOST_TOKENS).bytes(wanted), "free": available_memory()}


def without_path(error: LlaminaError, path: Path) -> str:
    """An error's text without the path before it, where the path stands beside it anyway."""
    return str(error).removeprefix(f"{path}: ")
