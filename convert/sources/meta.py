"""Meta's releases: params.json, consolidated.00.pth, consolidated.01.pth, ... (one for each model-parallel rank), tokenizer.model.
Mistral's too: consolidated.safetensors, whole or in parts, with tekken.json or tokenizer.model.v3.

Each rank holds a slice of every matrix (names.META_SPLIT_AXIS says along which axis) and all norms; the slices are put together row by row as they
are asked for. q and k are in GGUF's order already. params.json gives heads and RoPE; the rest is seen from the tensors: ffn_dim, the vocabulary's size (which
may be -1 there), whether there is an output matrix. The trained context stands nowhere; it is known by the release.
Source: meta-llama/llama llama/model.py, meta-llama/llama-models models/llama3/reference_impl/model.py.
"""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ...engine.architectures.config import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, ModelConfig, RopeScaling, llama_config
from ...engine.errors import FileError, FormatError, UnsupportedError
from ...engine.gguf.header import quote
from ..names import META_SPLIT_AXIS, from_meta, to_meta, without_effect
from ..unpickle import load_state_dict
from .base import Constant, Fields, Joined, Rows, Source, SourceFile, Stored, assemble, read_json
from .hf_rope import llama3_factors
from .safetensors_file import merge_shards, read_safetensors, shards_of
from .vocabulary import Vocab, llama3_specials, read_vocabulary_file

MAX_SHARDS = 128
_KNOWN = {"dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta",
          "use_scaled_rope", "rope_scaling_factor", "high_freq_factor", "max_seq_len", "max_position_embeddings", "max_batch_size", "sliding_window",
          "use_biases", "tied_embeddings"}
_NEUTRAL = {"model_type": ("transformer",), "causal": (True,)}
_CONTEXTS = ("max_seq_len", "max_position_embeddings")


def open_meta(path: Path, tokenizer: Path | None = None, context: int | None = None) -> Source:
    """A folder of a release, or one of its files. tokenizer: default is Mistral's tekken.json or tokenizer.model in the folder, or the one above (Llama 1).
    context: instead of the trained one; a model with sliding windows is the same without them within one window."""
    folder = path if path.is_dir() else path.parent
    fields = Fields(folder / "params.json", read_json(folder / "params.json"))
    maps: list[SourceFile] = []
    try:
        shards = _shards(folder, maps)
        config, factors = _config(fields, folder, shards, context)
        found = _join(shards, config)
        if factors is not None:
            found["rope_freqs.weight"] = Constant(factors)
        vocab = _vocabulary(folder, tokenizer, bool(fields.values.get("use_scaled_rope")))
        vocab.fit(config.n_vocab)
        files = [*(map.path for map in maps), folder / "params.json", vocab.path]
        notes = [f"context length {config.context_length} by the kind of release: params.json does not say"]
        if any(fields.values.get(key) for key in _CONTEXTS):
            notes.pop()
        if len(maps) > 1:
            notes.insert(0, f"{len(maps)} shards joined")
        return assemble("meta", path, config, found, maps, vocab, files, notes, theirs=to_meta)
    except BaseException:
        for map in maps:
            map.close()
        raise


def _shards(folder: Path, maps: list[SourceFile]) -> list[dict[str, Stored]]:
    """The tensors of each shard, by rank, without what has no effect. FileError: one is missing; FormatError: they do not belong together."""
    found = sorted(p.name for p in folder.iterdir() if re.fullmatch(r"consolidated\.\d\d\.pth", p.name))
    if not found and any(folder.glob("consolidated*.safetensors")):
        return [_safetensors(folder, maps)]
    if not found or len(found) > MAX_SHARDS:
        raise FileError(f"{folder}: has {len(found)} files consolidated.NN.pth, expected 1 to {MAX_SHARDS}")
    for rank in range(len(found)):
        if (name := f"consolidated.{rank:02d}.pth") not in found:
            raise FileError(f"{folder / name}: shard is missing, but {found[-1]} is there: get it again")
    shards: list[dict[str, Stored]] = []
    for name in found:
        maps.append(SourceFile(folder / name))
        held = {key: stored for key, stored in load_state_dict(maps[-1])[0].items() if not without_effect(key)}
        first = shards[0] if shards else held
        for key in sorted(held.keys() ^ first.keys()):
            where = name if key not in held else found[0]
            raise FormatError(f"{folder / where}: tensor {quote(key)} is missing, but another shard has it: the shards are not of one model")
        for key, stored in held.items():
            if (stored.shape, stored.dtype) != (first[key].shape, first[key].dtype):
                raise FormatError(f"{folder / name}: tensor {quote(key)} is {stored.dtype} {list(stored.shape)}, but {first[key].dtype} "
                                  f"{list(first[key].shape)} in {found[0]}: the shards are not of one model")
        shards.append(held)
    _check_distinct(folder, found, shards)
    return shards


def _safetensors(folder: Path, maps: list[SourceFile]) -> dict[str, Stored]:
    """Mistral's releases: one file, or parts with an index, which hold whole tensors each."""
    whole, index = folder / "consolidated.safetensors", folder / "consolidated.safetensors.index.json"

    def read(path: Path) -> dict[str, Stored]:
        map, held = read_safetensors(path)
        maps.append(map)
        return held
    if whole.is_file():
        tensors = read(whole)
    elif index.is_file():
        expected = shards_of(index)
        tensors = merge_shards([(folder / name, read(folder / name)) for name in expected], expected, index)
    else:
        raise FileError(f"{index}: is missing, but parts such as {next(folder.glob('consolidated*.safetensors')).name} are there: get it, too")
    return {key: stored for key, stored in tensors.items() if not without_effect(key)}


def _check_distinct(folder: Path, names: list[str], shards: list[dict[str, Stored]]) -> None:
    """FormatError if a slice is in two shards: one was copied over another."""
    key = next((key for key in shards[0] if key.endswith("attention.wq.weight") and len(shards[0][key].shape) == 2), None)
    seen: dict[bytes, str] = {}
    for name, held in zip(names, shards):
        if key is None or not (rows := held[key].read(np.arange(min(4, held[key].shape[0])))).any():
            continue
        if other := seen.get(rows.tobytes()):
            raise FormatError(f"{folder / name}: holds the same weights as {other}: a shard was duplicated")
        seen[rows.tobytes()] = name


def _config(fields: Fields, folder: Path, shards: list[dict[str, Stored]], asked: int | None) -> tuple[ModelConfig, np.ndarray | None]:
    f, held, n_shards = fields, shards[0], len(shards)
    for key, value in f.values.items():
        if key in _NEUTRAL and value in _NEUTRAL[key]:
            continue
        if key not in _KNOWN and value not in (None, False, 0, "", [], {}) or key == "use_biases" and value:
            raise UnsupportedError(f"{f.path}: field {quote(key)} is {quote(value)}: llamina does not know it, and ignoring it would make another model")
    dim, n_layers, n_heads = f.integer("dim", MAX_WIDTH), f.integer("n_layers", MAX_LAYERS), f.integer("n_heads", MAX_HEADS)
    n_kv_heads = f.integer("n_kv_heads", MAX_HEADS, n_heads)
    head_dim = f.integer("head_dim", MAX_WIDTH, None) or dim // n_heads
    if n_heads % n_kv_heads or head_dim % 2 or "head_dim" not in f.values and dim % n_heads:
        raise FormatError(f"{f.path}: fields dim {dim}, n_heads {n_heads}, n_kv_heads {n_kv_heads} do not divide each other")
    for key in "tok_embeddings.weight", "layers.0.feed_forward.w1.weight", "layers.0.attention.wq.weight":
        if key not in held or len(held[key].shape) != 2:
            raise FormatError(f"{folder}: matrix {quote(key)} is missing: the checkpoint is not a whole Llama model")
    if (rows := held["layers.0.attention.wq.weight"].shape[0]) * n_shards != n_heads * head_dim:
        raise FormatError(f"{folder}: tensor 'layers.0.attention.wq.weight' has {rows} rows in each of {n_shards} shards, expected {n_heads * head_dim} "
                          "in all: shards are missing, or of another model")
    rows, cols = held["tok_embeddings.weight"].shape
    size = f.get("vocab_size", int, -1)
    n_vocab = rows if cols != dim or rows == size else rows * n_shards
    if size > 0 and size != n_vocab:
        raise FormatError(f"{f.path}: field 'vocab_size' is {size}, but the embedding has {n_vocab} rows")
    base = f.number("rope_theta", 10000.0)
    scaled = f.get("use_scaled_rope", bool, False)
    factors = None
    if scaled:  # 8 for Llama 3.1 and 3.3; 32 for the 1B and 3B models of 3.2, whose params.json may not say it
        factor = f.number("rope_scaling_factor", 32.0 if dim <= 3072 else 8.0)
        factors = llama3_factors(head_dim, base, factor, 1.0, f.number("high_freq_factor", 4.0), 8192)
    context = next((n for n in (f.integer(key, MAX_CONTEXT, None) for key in _CONTEXTS) if n), None) or _context(f, base, scaled)
    window = f.integer("sliding_window", 1 << 40, None)
    if window is not None and window < (asked or context):
        raise UnsupportedError(f"{f.path}: needs sliding windows, which llamina lacks: sliding_window = {window} of context {context}; "
                               f"--context {window} converts it for texts of {window} positions, within which the model is the same")
    tied = "output.weight" not in held
    if f.get("tied_embeddings", bool, tied) != tied:
        raise FormatError(f"{f.path}: field 'tied_embeddings' is {str(not tied).lower()}, but tensor 'output.weight' is {'missing' if tied else 'there'}")
    return llama_config(
        name=folder.resolve().name, n_layers=n_layers, dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
        ffn_dim=min(held["layers.0.feed_forward.w1.weight"].shape[0] * n_shards, MAX_WIDTH), n_vocab=n_vocab, context_length=context,
        rms_eps=f.number("norm_eps", 1e-5), rope_dim=head_dim, rope_base=base, rope_scaling=RopeScaling(), rope_freq_factors=factors is not None,
        tied_output=tied), factors


def _context(fields: Fields, base: float, scaled: bool) -> int:
    """Trained positions, by what sets the releases apart."""
    if scaled:
        return 131072  # Llama 3.1 and later
    if base == 500000.0:
        return 8192  # Llama 3
    if base == 1000000.0:
        return 32768 if "head_dim" in fields.values else 16384  # Mistral 0.2 and later, Code Llama
    if fields.values.get("sliding_window"):
        return 32768  # Mistral 0.1
    return 2048 if fields.values.get("norm_eps") == 1e-6 else 4096  # Llama 1, Llama 2


def _join(shards: list[dict[str, Stored]], config: ModelConfig) -> dict[str, Rows]:
    """GGUF name -> rows of the whole tensor."""
    found: dict[str, Rows] = {}
    for key, stored in shards[0].items():
        ours = from_meta(key)
        if ours is None:
            raise UnsupportedError(f"{stored.file.path}: tensor {quote(key)} is unknown, and leaving it out would make another model of it")
        axis = _axis(ours, stored, config)
        parts = [held[key] for held in shards]
        found[ours] = parts[0] if axis is None or len(parts) == 1 else Joined(parts, axis)
    return found


def _axis(name: str, stored: Stored, config: ModelConfig) -> int | None:
    """Along which axis shards cut this tensor; None: each has all of it."""
    if len(stored.shape) != 2 or name == "token_embd.weight" and stored.shape == (config.n_vocab, config.dim):
        return None
    if name == "token_embd.weight":
        return 0 if stored.shape[1] == config.dim else 1
    return META_SPLIT_AXIS[name.split(".", 2)[-1] if name.startswith("blk.") else name]


def _vocabulary(folder: Path, tokenizer: Path | None, scaled_rope: bool) -> Vocab:
    mistral = sorted((p for p in folder.glob("tokenizer.model.v*") if p.is_file()), key=lambda p: p.name, reverse=True)
    places = (folder / "tekken.json", folder / "tokenizer.model", *mistral, folder.parent / "tokenizer.model")
    path = tokenizer or next((p for p in places if p.is_file()), None)
    if path is None:
        raise FileError(f"{folder / 'tokenizer.model'}: is missing: get it (or tekken.json), or give one with --tokenizer")
    return read_vocabulary_file(path, special=llama3_specials(scaled_rope))

