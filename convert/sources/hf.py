"""Hugging Face folders: config.json, safetensors or PyTorch weights (one file, or shards with an index), a tokenizer and its settings.

    config.json -> hf_config.read_config;  weights -> names, RoPE order of q and k, FP8 scales, tied embeddings;  tokenizer files -> hf_tokenizer.read_tokenizer
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from ...engine.architectures.config import ModelConfig
from ...engine.errors import FileError, FormatError, UnsupportedError
from ...engine.gguf.header import quote
from ..changes import changes, shaped, squeezed, times
from ..names import hf_tensors, norm_gains, of_other_part, of_text, row_orders, without_effect
from ..unpickle import load_state_dict
from .base import Constant, Fields, Permuted, PermutedVector, Rows, Scaled, Shifted, Source, SourceFile, Stored, assemble, read_json
from .hf_card import read_card, sampling
from .hf_config import HfModel, read_config
from .hf_encoders import Tail
from .hf_experts import Part, expert_parts, mxfp4, stack
from .hf_fields import SIZES
from .hf_fused import fused_parts
from .hf_sentence import read_sentence
from .hf_tokenizer import read_tokenizer
from .safetensors_file import merge_shards, read_safetensors, shards_of

_SCALES = (".weight_scale_inv", ".weight_scale")
_UNUSED_SCALES = (".input_scale", ".activation_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale")
FLOAT8 = ("F8_E4M3", "F8_E5M2")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order in which transformers looks for them (modeling_utils.py)."""


def open_hf(path: Path, tokenizer: Path | None = None, context: int | None = None) -> Source:
    """A folder, or one weights file in it. tokenizer: a tokenizer file instead of the folder's. context: of hf_config.read_config."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise FileError(f"{folder / 'config.json'}: is missing: a Hugging Face checkpoint needs it beside the weights")
    maps: list[SourceFile] = []
    try:
        notes: list[str] = []
        tensors, files = _weights(path, maps, notes)
        return hf_source("hf", path, folder, tensors, maps, files, tokenizer, context, notes)
    except BaseException:
        for map in maps:
            map.close()
        raise


def _weights(path: Path, maps: list[SourceFile], notes: list[str]) -> tuple[dict[str, Stored], list[Path]]:
    """All tensors under their HF names, and the files that hold them: of several, those that transformers takes. `maps` gets what must be closed."""
    def read(file: Path) -> dict[str, Stored]:
        if file.suffix == ".safetensors" or not path.is_dir() and file.suffix not in (".bin", ".pt", ".pth"):
            map, held = read_safetensors(file)
            maps.append(map)
            return held
        maps.append(SourceFile(file))
        return load_state_dict(maps[-1])[0]

    if not path.is_dir():
        return read(path), [path]
    explicit = read_json(path / "config.json").get("transformers_weights")
    if explicit is not None and explicit not in _WEIGHTS:
        raise UnsupportedError(f"{path / 'config.json'}: field 'transformers_weights' names {quote(explicit)}, expected one of {', '.join(_WEIGHTS)}")
    there = [name for name in _WEIGHTS if (path / name).is_file()]
    taken = explicit or next(iter(there), None)
    if taken and not (path / taken).is_file():
        raise FileError(f"{path / taken}: is missing, config.json names it (transformers_weights): get it")
    if others := [name for name in there if name != taken]:
        notes.append(f"weights taken from {taken}, as transformers does; {', '.join(others)} left out")
    if (path / "adapter_config.json").is_file():
        notes.append("an adapter lies in the folder (adapter_config.json): it is not merged, the result is the model without it")
    if taken and taken.endswith(".index.json"):
        expected = shards_of(path / taken)
        parts = [(path / name, read(path / name)) for name in expected]
        return merge_shards(parts, expected, path / taken), [path / taken, *(file for file, _ in parts)]
    if taken:
        return read(path / taken), [path / taken]
    shards = sorted(p.name for p in path.iterdir() if re.fullmatch(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)", p.name))
    if shards:
        raise FileError(f"{path}: has shards such as {shards[0]}, but no {shards[0].split('-')[0]}.{shards[0].rsplit('.', 1)[1]}.index.json: get it too")
    raise FileError(f"{path}: has no model.safetensors or pytorch_model.bin, nor an index of shards")


def hf_source(kind: str, path: Path, folder: Path, tensors: Mapping[str, Stored], maps: list[SourceFile], files: list[Path], tokenizer: Path | None,
              context: int | None = None, notes: Sequence[str] = ()) -> Source:
    """A Source from tensors in HF naming and the settings in `folder`."""
    fields = Fields(folder / "config.json", read_json(folder / "config.json"))
    model = read_config(fields, folder.resolve().name, context)
    notes = [*notes, *model.notes]
    try:
        if model.parts:
            tensors = _text_part(model, tensors, notes)
        tensors = _used(model, _as_named(model, tensors), notes)
        sentence = read_sentence(folder, maps)
        model.keys |= {f"{model.page.architecture}.{key}": value for key, value in sentence.keys.items()}
        model.biases |= set(sentence.dense)
        notes += sentence.notes
        found = _mapped(fields, model, tensors, notes)
        config = model.config(_settle_output(path, model, found, notes))
        rows = found["token_embd.weight"].shape[0]
        if rows != config.n_vocab:
            raise FormatError(f"{path}: tensor 'model.embed_tokens.weight' has {rows} rows, but field 'vocab_size' of config.json is {config.n_vocab}")
    except FormatError as error:
        if silent := [key for key in SIZES if key not in fields.values and not model.parts]:
            raise FormatError(f"{error} (config.json does not say {', '.join(silent)}: the class's own defaults were taken)") from None
        raise
    if any(stored.dtype in FLOAT8 for stored in tensors.values()):
        notes.append("the source is FP8 already: what it lost then stays lost")
    found |= sentence.dense
    if model.first_position and "position_embd.weight" in found:
        table = found["position_embd.weight"]
        found["position_embd.weight"] = Tail(table, np.arange(model.first_position, table.shape[0]))
    found |= {name: Constant(values) for name, values in model.extra.items()}
    generation = folder / "generation_config.json"
    settings = Fields(generation, read_json(generation)) if generation.is_file() else None
    theirs = {tensor.name: name for name, tensor in hf_tensors(model.page, config).items()}
    vocab, template, read = read_tokenizer(folder, fields, settings, tokenizer)
    vocab.fit(config.n_vocab)
    general = sampling(settings) | read_card(folder) | sentence.general
    files = [*files, *sentence.files]
    read = [folder / "config.json", *([generation] if settings else []), *read]
    return assemble(kind, path, config, found, maps, vocab, [*files, *dict.fromkeys(read)], notes, general | template,
                    lambda name: theirs.get(name, name), model.keys)


def _as_named(model: HfModel, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Under the names that the page knows; what is without effect left out. Checkpoints of a bare model lack the first word of a causal one's names."""
    bare = "embed_tokens.weight" in tensors and not any(name.startswith("model.") for name in tensors)
    named = {("model." + name if bare else model.names(name)): stored for name, stored in tensors.items()}
    if model.page.architecture == "nomic-bert":  # queries, keys and values are one matrix in most checkpoints, three in others
        model.biases |= {f"blk.{name.split('.')[2]}.attn_qkv.weight" for name in named if name and name.endswith(".self_attn.qkv_proj.weight")}
    return {name: stored for name, stored in named.items() if name is not None}


def _text_part(model: HfModel, tensors: Mapping[str, Stored], notes: list[str]) -> dict[str, Stored]:
    """The tensors of the text part of a model of several parts, under the names that it would have alone."""
    kept = {of_text(name): stored for name, stored in tensors.items() if not of_other_part(name)}
    if left := len(tensors) - len(kept):
        notes.append(f"{left} tensors of {model.parts}'s vision and audio parts left out: the result reads text only")
    return kept


def _used(model: HfModel, tensors: Mapping[str, Stored], notes: list[str]) -> Mapping[str, Stored]:
    """Without those that change nothing, which is said."""
    for pattern, what in model.unused.items():
        kept = {name: stored for name, stored in tensors.items() if not re.fullmatch(pattern, name)}
        if left := len(tensors) - len(kept):
            notes.append(f"{left} tensors {what} left out: nothing reads them")
        tensors = kept
    return tensors


def _mapped(fields: Fields, model: HfModel, tensors: Mapping[str, Stored], notes: list[str]) -> dict[str, Rows]:
    """GGUF name -> rows. UnsupportedError for a tensor that the page does not know."""
    config = model.config(tied=False)
    known, orders = hf_tensors(model.page, config), row_orders(model.page, config)
    parts, held = expert_parts(config) | fused_parts(config), dict[str, dict[int, Rows]]()
    found, packed = mxfp4(config, tensors)
    gains, other = norm_gains(config) if model.page.hf_norm_plus_one else set(), changes(config)
    scales = {name: stored for name, stored in tensors.items() if name.endswith(_SCALES)}
    used: set[str] = set()
    block = _check_quantization(fields)
    plain = not scales and fields.values.get("quantization_config") is None  # FP8 as a mere type of storage
    skipped = predictors = 0
    for name, stored in tensors.items():
        if name in scales or name in packed:
            continue
        if name.startswith("mtp.") and model.page.predictors:
            predictors += 1
            continue
        if without_effect(name) or name.endswith(_UNUSED_SCALES) and stored.shape in ((), (1,)):
            skipped += not without_effect(name)
            continue
        if name not in known and name not in parts:
            _refuse_unknown(name, stored, config)
        stored = shaped(squeezed(stored), known[name].shape) if name in known and known[name].plain else stored
        if name.endswith(model.page.hf_turned or ("\0",)) and len(stored.shape) == 2:
            rows_apart, apart = stored.strides or (stored.shape[1], 1)
            stored = replace(stored, shape=stored.shape[::-1], strides=(apart, rows_apart))
        rows: Rows = stored
        own = [n for n in (name.removesuffix(".weight") + suffix for suffix in _SCALES) if n in scales and name.endswith(".weight")]
        if len(own) > 1:
            raise FormatError(f"{stored.file.path}: tensor {quote(name)} has two scales, {quote(own[0])} and {quote(own[1])}")
        if own:
            used.add(own[0])
            rows = _scaled(stored, scales[own[0]], block)
        elif stored.dtype in FLOAT8 and not plain:
            raise FormatError(f"{stored.file.path}: tensor {quote(name)} is {stored.dtype}, but its scale ({quote(name.removesuffix('.weight') + _SCALES[0])}) "
                              "is missing: without it the weights are unknown; get the checkpoint again")
        if name in parts:
            _take_parts(parts[name], rows, stored, found, held)
            continue
        tensor = known[name]
        if tensor.name in orders:
            if stored.shape != tensor.shape:
                raise FormatError(f"{stored.file.path}: tensor {quote(name)} must have shape {list(tensor.shape)} by config.json, found {list(stored.shape)}")
            rows = (Permuted if len(tensor.shape) == 2 else PermutedVector)(rows, orders[tensor.name])
        if tensor.name in other:
            if stored.shape != tensor.shape:
                raise FormatError(f"{stored.file.path}: tensor {quote(name)} must have shape {list(tensor.shape)} by config.json, found {list(stored.shape)}")
            rows = other[tensor.name](rows)
        if tensor.name in model.factors:
            rows = times(rows, model.factors[tensor.name])
        found[tensor.name] = Shifted(rows, 1.0) if tensor.name in gains else rows
    found |= stack(held, config)
    if orphans := sorted(set(scales) - used):
        raise FormatError(f"{scales[orphans[0]].file.path}: tensor {quote(orphans[0])} scales no tensor of this checkpoint")
    if predictors:
        notes.append(f"{predictors} tensors of heads that predict further tokens (mtp) left out: llamina does not run them")
    if skipped:
        notes.append(f"{skipped} scales of FP8 activations left out: llamina quantises activations itself")
    return found


def _take_parts(parts: list[Part], rows: Rows, stored: Stored, found: dict[str, Rows], held: dict[str, dict[int, Rows]]) -> None:
    """A tensor of experts, or of one of them."""
    for tensor, expert, make in parts:
        if expert >= 0:
            held.setdefault(tensor, {})[expert] = make(stored) if rows is stored else rows
        elif rows is stored:
            found[tensor] = make(stored)
        else:
            raise UnsupportedError(f"{stored.file.path}: tensor {quote(stored.name)} of all experts is FP8 with scales, which llamina does not read stacked")


def _refuse_unknown(name: str, stored: Stored, config: ModelConfig) -> NoReturn:
    layer = re.search(r"\.(?:layers|h)\.(\d{1,6})\.", name)
    if layer and int(layer[1]) >= config.n_layers:
        raise FormatError(f"{stored.file.path}: tensor {quote(name)} is not part of a model of this configuration ({config.n_layers} layers)")
    raise UnsupportedError(f"{stored.file.path}: tensor {quote(name)} is unknown in a model of architecture {config.architecture} with this config.json, and "
                           "leaving it out would make another model of it")


def _check_quantization(fields: Fields) -> tuple[int, int] | None:
    """FP8 with scales is read; the block that one scale counts for, if the configuration says. Other quantised checkpoints are refused."""
    settings = fields.get("quantization_config", dict, None)
    if settings is None:
        return None
    method = settings.get("quant_method")
    if method == "mxfp4":  # gpt-oss's experts, whose blocks are GGUF's (hf_experts.py)
        return None
    fp8 = method in ("fp8", "fbgemm_fp8") or method == "compressed-tensors" and settings.get("format") == "float-quantized"
    if not fp8:
        raise UnsupportedError(f"{fields.path}: quantization_config.quant_method = {quote(method)}: llamina reads FP8, and gpt-oss's MXFP4, only; "
                               "convert the unquantised checkpoint")
    block = settings.get("weight_block_size")
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise FormatError(f"{fields.path}: field 'quantization_config.weight_block_size' must be two numbers, found {quote(block)}")
    return block[0], block[1]


def _scaled(weight: Stored, scale: Stored, block: tuple[int, int] | None) -> Rows:
    """FP8 weights times their scales: one for all, one a row, or one a block of `block` (by default the smallest power of two that fits the counts)."""
    if weight.dtype not in FLOAT8 or len(weight.shape) != 2:
        raise UnsupportedError(f"{weight.file.path}: tensor {quote(weight.name)} is {weight.dtype} {list(weight.shape)} with scales; "
                               "llamina knows FP8 matrices only")
    rows, cols = weight.shape
    if scale.dtype not in ("F32", "F16", "BF16"):
        raise UnsupportedError(f"{scale.file.path}: tensor {quote(scale.name)} is {scale.dtype}, expected float scales")
    shape = scale.shape
    if int(np.prod(shape)) == 1:
        shape, block = (1, 1), (rows, cols)
    elif shape in ((rows,), (rows, 1)):
        shape, block = (rows, 1), (1, cols)
    elif len(shape) == 2 and block is None:
        block = _block_side(rows, shape[0]), _block_side(cols, shape[1])
    if block is None or len(shape) != 2 or shape != (-(-rows // block[0]), -(-cols // block[1])):
        raise FormatError(f"{scale.file.path}: tensor {quote(scale.name)} {list(scale.shape)} does not fit {quote(weight.name)} {[rows, cols]}, blocks {block}")
    flat = replace(scale, shape=(int(np.prod(shape)),)) if scale.strides is None else scale
    values = flat.read(np.arange(flat.shape[0] if len(flat.shape) == 2 else 1)).reshape(shape)
    return Scaled(weight, values, block)


def _block_side(size: int, count: int) -> int:
    side = 1
    while -(-size // side) > max(count, 1):
        side *= 2
    return side


def _settle_output(path: Path, model: HfModel, found: dict[str, Rows], notes: list[str]) -> bool:
    """One matrix or two for embedding and output -> whether they are tied, which they are not if they differ. A tied matrix may be stored under either
    name, or both."""
    embedding, output, tied = "token_embd.weight", "output.weight", model.tied
    if not model.tied and embedding in found and output not in found:
        raise FormatError(f"{path}: tensor 'lm_head.weight' is missing, and config.json does not say tie_word_embeddings")
    if model.tied and output in found:
        if embedding not in found:
            found[embedding] = found.pop(output)
            notes.append("the tied embedding was stored as lm_head.weight only")
        elif found[output].shape == found[embedding].shape and _equal(found[output], found[embedding]):
            del found[output]
        else:  # transformers 5: what is there and differs is not tied
            tied = False
            notes.append("lm_head.weight differs from the embedding and is kept, though config.json says tie_word_embeddings")
    if embedding not in found:
        raise FormatError(f"{path}: tensor 'model.embed_tokens.weight' is missing: the checkpoint is not a whole model")
    return tied


def _equal(a: Rows, b: Rows) -> bool:
    n = a.shape[0]
    return all(np.array_equal(a.read(part), b.read(part), equal_nan=True) for part in (np.arange(i, min(n, i + 1024)) for i in range(0, n, 1024)))
