"""The way of cutting text of files that do not say it (tokenizer.ggml.pre is missing, as before April 2024): by their vocabulary, or their architecture.

A vocabulary is known by a digest of its ordinary tokens: fine-tunes that add special ones, or pad the list, keep it.
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .vocabulary import NORMAL

DIGESTS = {
    "8dd8b994f25dc533": "llama-bpe", "36c3749fd3c87e24": "qwen2", "3a1f1c010d179f03": "gpt-2", "686f864888d8ef5b": "olmo",  # GPT-NeoX's, MPT's, OLMo's
    "5cb7f24d95435545": "starcoder", "f5f01d320c3a4ae0": "smollm", "aa241c90a290db06": "refact", "5184f247bc1d011a": "command-r",
    "3d00f7d7c285b8a8": "falcon", "5a6fa654cd354af4": "deepseek-coder", "a2de2318bef640f5": "deepseek-llm",
}
"""Digest of the ordinary tokens -> pre. Of the vocabularies that come with llama.cpp's sources, and SmolLM2's."""

ARCHITECTURES = {
    "gpt2": "gpt-2", "gptneox": "olmo", "mpt": "mpt", "falcon": "falcon", "starcoder": "starcoder", "starcoder2": "starcoder", "refact": "refact",
    "codeshell": "codeshell", "command-r": "command-r", "bloom": "bloom", "phi2": "phi-2", "qwen2": "qwen2", "qwen2moe": "qwen2", "qwen3": "qwen2",
    "qwen3moe": "qwen2", "gemma4": "gemma4",
}
"""Architectures all of whose published models cut text in one way."""


def digest(tokens: Sequence[str], types: Sequence[int]) -> str:
    """Of the tokens of type NORMAL, in order."""
    text = "\n".join(text for text, type_ in zip(tokens, types) if type_ == NORMAL)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def implied(architecture: object, tokens: Sequence[str], types: Sequence[int]) -> str | None:
    """The value that tokenizer.ggml.pre would have; None if neither vocabulary nor architecture is known."""
    return DIGESTS.get(digest(tokens, types)) or ARCHITECTURES.get(str(architecture))
