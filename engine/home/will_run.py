"""Whether a model file will run here, said by its header alone, before anything is downloaded or loaded in full.

    open_gguf(path) -> problems(gguf) -> ["one line", ...], empty if it will run
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LlaminaError

if TYPE_CHECKING:
    from ..gguf.file import GGUFFile


def problems(gguf: GGUFFile) -> list[str]:
    """Why the file would be refused: first the architecture and its tensors, then the vocabulary. Weights are not read, nor is the vocabulary's list."""
    from ..architectures.config import ModelConfig, check_tensors
    from ..text.tokenizer import tokenizer_problem

    found = []
    try:
        check_tensors(gguf, ModelConfig.from_gguf(gguf))
    except LlaminaError as error:
        found.append(str(error))
    if vocabulary := tokenizer_problem(gguf.metadata, gguf.path):
        found.append(vocabulary)
    return found
