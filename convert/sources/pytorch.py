"""PyTorch state dicts in one file: in Hugging Face's naming (with config.json beside), or in llama2.c's (a training checkpoint, with its "model_args")."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...engine.architectures.config import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, RopeScaling, llama_config
from ...engine.errors import FileError, FormatError, UnsupportedError
from ...engine.gguf.header import quote
from ..names import from_meta, is_hf, to_meta, without_effect
from ..unpickle import load_state_dict
from .base import Fields, Rows, Source, SourceFile, Stored, assemble
from .hf import hf_source
from .llama2c import RMS_EPS, ROPE_BASE, find_vocabulary

_ARGS = {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "hidden_dim", "multiple_of", "norm_eps", "max_seq_len", "dropout", "rope_theta"}
"""llama2.c's ModelArgs (model.py), and its forks' rope_theta. multiple_of says how hidden_dim was made, dropout is for training."""


def open_pytorch(path: Path, tokenizer: Path | None = None, context: int | None = None) -> Source:
    """Errors as of unpickle.load_state_dict and the readers of the naming found."""
    file = SourceFile(path)
    try:
        tensors, rest = load_state_dict(file)
        theirs = sum(map(is_hf, tensors))
        llama2c = sum(from_meta(name) is not None for name in tensors)
        if not theirs and not llama2c:
            raise UnsupportedError(f"{path}: its tensors are no Llama model's in Hugging Face's or llama2.c's naming, the first: {quote(next(iter(tensors)))}")
        if theirs > llama2c:
            if not (path.parent / "config.json").is_file():
                raise FileError(f"{path.parent / 'config.json'}: is missing: a state dict in Hugging Face's naming needs it beside")
            return hf_source("pytorch", path, path.parent, tensors, [file], [path], tokenizer, context)
        return _llama2c(path, file, tensors, rest, tokenizer)
    except BaseException:
        file.close()
        raise


def _llama2c(path: Path, file: SourceFile, tensors: Mapping[str, Stored], rest: Mapping[str, Any], tokenizer: Path | None) -> Source:
    args = rest.get("model_args")
    if not isinstance(args, dict):
        raise FormatError(f"{path}: has no 'model_args' beside its tensors, as llama2.c's training checkpoints have, so heads and context are unknown")
    fields = Fields(path, {f"model_args.{key}": value for key, value in args.items() if isinstance(key, str)})
    for key, value in args.items():
        if key not in _ARGS and value not in (None, False):
            raise UnsupportedError(f"{path}: model_args has {quote(key)} = {quote(value)}: llamina does not know it, and ignoring it would make another model")
    found: dict[str, Rows] = {}
    for name, stored in tensors.items():
        if without_effect(name):
            continue
        ours = from_meta(name)
        if ours is None:
            raise UnsupportedError(f"{path}: tensor {quote(name)} is unknown, and leaving it out would make another model of it")
        found[ours] = stored
    for name in "token_embd.weight", "blk.0.ffn_gate.weight":
        if name not in found or len(found[name].shape) != 2:
            raise FormatError(f"{path}: a matrix for {name} is missing: the checkpoint is not a whole Llama model")
    n_vocab, dim = found["token_embd.weight"].shape
    n_heads = fields.integer("model_args.n_heads", MAX_HEADS)
    n_kv_heads = fields.integer("model_args.n_kv_heads", MAX_HEADS, n_heads)
    if dim % n_heads or n_heads % n_kv_heads or dim // n_heads % 2:
        raise FormatError(f"{path}: dim {dim}, n_heads {n_heads}, n_kv_heads {n_kv_heads} do not divide each other")
    for key, size in ("dim", dim), ("vocab_size", n_vocab), ("hidden_dim", found["blk.0.ffn_gate.weight"].shape[0]):
        said = fields.integer(f"model_args.{key}", 1 << 30, None)
        if said is not None and said != size:
            raise FormatError(f"{path}: model_args says {key} = {said}, its tensors have {size}: they are of two models")
    tied = "output.weight" not in found or _same(tensors["output.weight"], tensors["tok_embeddings.weight"])
    if tied:
        found.pop("output.weight", None)
    config = llama_config(
        name=path.stem, n_layers=fields.integer("model_args.n_layers", MAX_LAYERS), dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=dim // n_heads,
        ffn_dim=min(found["blk.0.ffn_gate.weight"].shape[0], MAX_WIDTH), n_vocab=n_vocab,
        context_length=fields.integer("model_args.max_seq_len", MAX_CONTEXT, 2048), rms_eps=fields.number("model_args.norm_eps", RMS_EPS),
        rope_dim=dim // n_heads, rope_base=fields.number("model_args.rope_theta", ROPE_BASE), rope_scaling=RopeScaling(),
        rope_freq_factors=False, tied_output=tied)
    vocab = find_vocabulary(path, tokenizer, n_vocab)
    return assemble("pytorch", path, config, found, [file], vocab, [path, vocab.path], [], theirs=to_meta)


def _same(a: Stored, b: Stored) -> bool:
    """Whether two tensors are one storage: tied, as llama2.c's are."""
    return (a.offset, a.shape, a.strides, a.dtype) == (b.offset, b.shape, b.strides, b.dtype)
