"""A model that nobody has trained yet: what a config.json describes, with drawn weights, and the tokenizer of a file or of a GGUF model.

    config.json -> hf_config.read_config -> ModelConfig -> its tensors: matrices drawn (engine/train/normal.py), gains 1, biases 0 -> Source

A weight is a function of the seed, its tensor's name and its place: normal, of standard deviation `initializer_range` (0.02 where the configuration is
silent); in GPT-2, what joins the stream is drawn 1 / √(2 layers) as wide, as OpenAI did.
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...engine.architectures.config import ModelConfig
from ...engine.errors import FormatError, UnsupportedError
from ...engine.files import paths, shown
from ...engine.gguf.file import open_gguf
from ...engine.home.resolve import resolve
from ...engine.train.normal import normal
from .base import Constant, Fields, Rows, Source, assemble, read_json
from .hf_config import read_config
from .hf_tokenizer import read_tokenizer
from .vocabulary import Vocab

STD = 0.02
_JOINS = ("attn_output.weight", "ffn_down.weight")


@dataclass(frozen=True)
class Drawn:
    """A matrix of random numbers."""

    name: str
    shape: tuple[int, ...]
    seed: int
    std: float
    dtype: str = "F32"

    def read(self, index: np.ndarray) -> np.ndarray:
        cuts = [0, *(np.flatnonzero(np.diff(index) != 1) + 1), len(index)]
        return np.concatenate([np.empty((0, self.shape[1]), np.float32), *(
            normal(self.seed, self.name, int(index[a]), b - a, self.shape[1], self.std) for a, b in zip(cuts, cuts[1:]) if b > a)])


@dataclass
class _Taken:
    """A GGUF file's tokenizer, key by key."""

    keys: dict[str, Any]
    notes: Sequence[str] = field(default=())

    def metadata(self) -> dict[str, Any]:
        return self.keys


@paths("the configuration")
def open_config(path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None, seed: int = 0) -> Source:
    """path: a config.json as Hugging Face has them, or its folder. tokenizer: a tokenizer.model, a tokenizer.json, a GGUF model, or a model's name; None: what
    lies beside the configuration. Without "vocab_size" there are as many tokens as the tokenizer has. FileError, FormatError; UnsupportedError: a model that
    can't be trained."""
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    values, folder = read_json(path), path.parent
    given = None if tokenizer is None else _found(tokenizer)
    silent = values.get("vocab_size") is None
    vocab: Vocab | _Taken
    if given is not None and _is_gguf(given):
        with open_gguf(given) as gguf:
            vocab, read = _Taken({key: gguf.metadata[key] for key in gguf.metadata if key.startswith("tokenizer.")}), [given]
        n, templates = len(vocab.keys.get("tokenizer.ggml.tokens", ())), dict[str, Any]()
        if not silent and values["vocab_size"] != n:
            raise FormatError(f"{shown(path)}: field 'vocab_size' is {values['vocab_size']}, but {shown(given)} has {n} tokens: write that, or leave the "
                              "field out")
    else:
        vocab, templates, read = read_tokenizer(folder, Fields(path, values), None, given)
        n = len(vocab.tokens)
    fields = Fields(path, {**values, "vocab_size": n} if silent else values)
    model = read_config(fields, folder.resolve().name)
    config = model.config()
    _check(path, config)
    if isinstance(vocab, Vocab):
        vocab.fit(config.n_vocab)
    std = fields.number("initializer_range", STD)
    found = {**_weights(config, seed, std), **{name: Constant(numbers) for name, numbers in model.extra.items()}}
    notes = [*model.notes, f"weights drawn from seed {seed}, standard deviation {std:g}"]
    source = assemble("config", path, config, found, [], cast(Vocab, vocab), [path, *read], notes, templates, keys=model.keys)
    return source if isinstance(vocab, Vocab) else replace(source, vocabulary=None)


def _check(path: Path, config: ModelConfig) -> None:
    from ...engine.train.gradients import why_not  # here: it needs the compiler
    if why := why_not(config):
        raise UnsupportedError(f"{shown(path)}: a model of architecture {config.architecture} can't be begun: {why}; dense models of attention and "
                               "feed-forward blocks can be trained")


def _weights(config: ModelConfig, seed: int, std: float) -> dict[str, Rows]:
    gains, found = {norm.tensor for norm in config.norms()}, dict[str, Rows]()
    for tensor in config.tensors():
        if tensor.name in gains and len(tensor.shape) == 1:
            found[tensor.name] = Constant(np.ones(tensor.shape, np.float32))
        elif tensor.name.endswith(".bias"):
            found[tensor.name] = Constant(np.zeros(tensor.shape, np.float32))
        elif len(tensor.shape) == 2:
            joins = config.architecture == "gpt2" and tensor.name.endswith(_JOINS)
            found[tensor.name] = Drawn(tensor.name, tensor.shape, seed, std / float(np.sqrt(2.0 * config.n_layers)) if joins else std)
        elif not tensor.name.startswith("rope_"):
            raise UnsupportedError(f"a model of architecture {config.architecture} can't be begun: how '{tensor.name}' is drawn is not known")
    return found


def _found(tokenizer: str | os.PathLike[str]) -> Path:
    name = os.fspath(tokenizer)
    return resolve(name) if isinstance(tokenizer, str) and (name == "demo" or not os.path.exists(name)) else Path(name)


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"
