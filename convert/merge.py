"""Adapters in conversions: a PEFT folder as llama.cpp's file, and adapters merged into the model that they are of.

    PEFT folder, its base (for names and shapes) ──► Adapter ──► a.gguf
    Source, [(adapter, scale)] ──► Source whose rows are W + scale * B A ──► convert (convert.py) ──► how far the result is from adapter and base at run time

Sums of products are float64, rank after rank: no library's order of summing enters the file.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.architectures.adapted import OUTPUT
from ..engine.architectures.config import ModelConfig, written_config
from ..engine.errors import OptionError, UnsupportedError, quoted
from ..engine.files import paths, shown
from ..engine.train.adapter import Adapter, Pair, given
from .sources import Source, SourceTensor, open_source
from .sources.base import read_json
from .writer import check_target

if TYPE_CHECKING:
    from ..engine.score.perplexity import Divergence

SAID = 320
"""Tokens of the text that a merged model is compared on, if none is given: what the adapted model says itself."""
Given = Sequence[tuple[str | os.PathLike[str] | Adapter, float]]


def config_of(source: Source) -> ModelConfig:
    """What the model is, by the metadata that its file has or will have."""
    names = {t.name: t for t in source.tensors}
    return written_config(str(source.metadata["general.architecture"]), source.metadata, names.keys(), names["token_embd.weight"].shape[0], source.path)


def is_peft(path: str | os.PathLike[str]) -> bool:
    with paths(path):
        return (Path(path) / "adapter_config.json").is_file()


def convert_adapter(folder: str | os.PathLike[str], out: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, *,
                    overwrite: bool = True) -> Adapter:
    """Write a PEFT folder as llama.cpp's adapter file. base: the model that it is of, anything that `convert` takes; default: what the folder names, if that
    is a folder or file here. FileError, FormatError, UnsupportedError, OptionError."""
    check_target(Path(out), [], overwrite)
    if base is None:
        named = read_json(Path(folder) / "adapter_config.json").get("base_model_name_or_path")
        if not isinstance(named, str) or not os.path.exists(named):
            raise OptionError(f"{shown(folder)}: is an adapter of {quoted(named)}, which is no file or folder here: give the model with --base "
                              "(a .gguf of it will do), since names and the order of rows follow from it")
        base = named
    with open_source(base) as source:
        adapter = given(folder, config_of(source))
    adapter.metadata.setdefault("general.name", Path(folder).resolve().name)
    adapter.save(out)
    return adapter


def merged(source: Source, adapters: Given) -> Source:
    """The source with adapters' products in its rows; both share their files. FormatError, UnsupportedError, OptionError: not of this model."""
    config = config_of(source)
    found = [(given(adapter, config), scale) for adapter, scale in adapters]
    pairs: dict[str, list[tuple[Pair, float]]] = {}
    for adapter, scale in found:
        for name, pair in adapter.pairs.items():
            if name == OUTPUT and config.tied_output:
                raise UnsupportedError(f"{shown(adapter.path or 'the adapter')}: has a pair for {OUTPUT}, which is the embedding of this model, too: it can't "
                                       "be merged without changing that; use the adapter at run time")
            pairs.setdefault(name, []).append((pair, scale))
    tensors = [_added(t, pairs[t.name]) if t.name in pairs else t for t in source.tensors]
    notes = [f"merged with {Path(a.path).name or 'an adapter'} x {scale:g}: {len(a.pairs)} matrices" for a, scale in found]
    metadata = dict(source.metadata)
    if called := metadata.get("general.name"):
        metadata["general.name"] = f"{called} + {' + '.join(Path(a.path).stem or 'adapter' for a, _ in found)}"
    return replace(source, tensors=tensors, notes=[*source.notes, *notes], metadata=metadata)


def _added(tensor: SourceTensor, pairs: list[tuple[Pair, float]]) -> SourceTensor:
    def read(index: np.ndarray) -> np.ndarray:
        rows = tensor.read(index).astype(np.float64)
        for pair, scale in pairs:
            product = np.zeros(rows.shape)
            for k in range(pair.rank):
                product += pair.b[index, k, None].astype(np.float64) * pair.a[k].astype(np.float64)
            rows += float(np.float32(pair.scale)) * scale * product
        return rows.astype(np.float32)
    return replace(tensor, read=read, copy=None, dtype="F32")


def kept_formats(before: Source, after: Source) -> dict[str, str]:
    """What matrices that `merged` changed were kept in: their format with --type keep."""
    return {a.name: a.dtype for a, b in zip(before.tensors, after.tensors) if a is not b}


def distance(base: str | os.PathLike[str], adapters: Given, result: str | os.PathLike[str], text: str | None = None, threads: int | None = None,
             progress: Callable[[str, int, int], None] | None = None) -> Divergence:
    """How far the merged model is from base and adapters at run time, on a text, or on what these say. base, result: .gguf files."""
    from ..engine.model import load
    from ..engine.score.perplexity import divergence
    context = 512
    with load(base, threads=threads, context=context) as reference, load(result, threads=threads, context=context) as model:
        for adapter, scale in adapters:
            reference.add_adapter(adapter, scale)
        if text is None:
            bos = reference.tokenizer.bos_id
            text = reference.generate([1 if bos is None else bos], max_tokens=SAID, ignore_eos=True, seed=0).text()
        windows = len(reference.tokenizer.encode(text))
        return divergence(model, reference, text, context=min(context, max(2, windows)), progress=progress)


def told(found: Divergence) -> str:
    """A line."""
    return f"merged against run time: mean KL {found.mean_kl:.6f}, same top token {100 * found.top1_agreement:.2f} %"


def check_options(type_given: bool, **others: Any) -> None:
    """OptionError for what a PEFT folder's conversion has no use for."""
    wrong = [name for name, value in others.items() if value]
    if type_given or wrong:
        raise OptionError(f"an adapter is converted as it is: --{'type' if type_given else wrong[0].replace('_', '-')} is for models")
