"""Small GGUF models with random weights, for tests: any configuration, any format, written in milliseconds.

    path = write_small_model(tmp_path / "m.gguf", "Q4_0")                          the default configuration
    path = write_small_model(path, "Q4_K", dim=256, ffn_dim=512, head_dim=32)      any field of bench.synthetic.Shape
    path = write_small_model(path, "F32", rope={"type": "yarn", "factor": 4.0, "original_context_length": 64})
    path = write_family(path, "qwen3", {"attention.key_length": 24}, "Q4_0", tensors=["output.weight"])          a model of any page

Norm weights are not ones, so that a forgotten one shows. Floats go through `gguf.quants.quantize`; formats that it cannot write (K-quants) get random
valid blocks. Logits have a standard deviation of about 2 (1 if the output is tied): some tokens are likelier than others.
"""
from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from llamina.bench.synthetic import Shape, add_keys, add_metadata, add_vocabulary, matrices, random_blocks
from llamina.engine.architectures.config import written_config

SMALL = Shape(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, n_vocab=288, context_length=1024)
SMALL_256 = replace(SMALL, dim=256, ffn_dim=256, n_heads=8, n_kv_heads=4)  # what K-quants need

QUANTIZABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
OF_32_COLUMNS = ("IQ4_NL", "MXFP4")
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M")
ALL_FORMATS = QUANTIZABLE + OF_32_COLUMNS + K_QUANTS
"""Formats with kernels at this stage; a test compares it with the kernel table."""


def write_small_model(
    path: Path, format: str = "F32", *, seed: int = 0, formats: dict[str, str] | None = None, rope: dict[str, Any] | None = None,
    rope_base: float | None = None, freq_factors: np.ndarray | None = None, blocks: bool = False,
    edit: Callable[[str, np.ndarray], np.ndarray] | None = None, **shape: Any,
) -> Path:
    """Write a model whose matrices are all in `format`, but for those named in `formats` ("output.weight", or "ffn_down" for all layers' -> format).

    shape: fields of `Shape` that differ from SMALL (from SMALL_256 if a K-quant is used). rope: keys below "llama.rope.scaling.".
    freq_factors: float [head_dim / 2], written as rope_freqs.weight. blocks: draw random blocks even where floats could be quantised
    (more extreme codes). edit: (tensor name, float32 values) -> values to write instead; vectors and matrices that are quantised from floats only.
    """
    formats = formats or {}
    used = {format, *formats.values()}
    base = SMALL_256 if used & set(K_QUANTS) else SMALL
    config = replace(base, **shape)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"small {format}")
    add_metadata(writer, config)
    if rope_base is not None:
        writer.add_rope_freq_base(rope_base)
    for key, value in (rope or {}).items():
        add: Any = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add("llama.rope.scaling." + key, value)
    for name, dims, _, std in matrices(config, "f32"):
        if len(dims) == 1:
            gain = (1 + 0.3 * rng.standard_normal(dims)).astype(np.float32)
            writer.add_tensor(name, edit(name, gain).astype(np.float32) if edit else gain)
            continue
        kind = formats.get(name) or formats.get(name.split(".")[-2]) or format
        if name == "output.weight":
            std *= 2
        if kind in QUANTIZABLE and not blocks:
            type_ = gguf.GGMLQuantizationType[kind]
            values = (rng.standard_normal(dims) * std).astype(np.float32)
            data = quantize(edit(name, values).astype(np.float32) if edit else values, type_)
        else:
            type_, data = gguf.GGMLQuantizationType[kind], random_blocks(rng, kind, dims[0], dims[1], std)
        if data.dtype != np.uint8:  # F32, F16
            data = data.view(np.uint8)
        writer.add_tensor(name, data, raw_dtype=type_)
    if freq_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(freq_factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FAMILY = {
    "block_count": 3, "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2, "feed_forward_length": 96, "context_length": 1024,
    "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
}


def write_family(
    path: Path, architecture: str, keys: dict[str, Any] | None = None, format: str = "F32", *, tensors: Collection[str] = (), n_vocab: int = SMALL.n_vocab,
    seed: int = 0, edit: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> Path:
    """A model of any architecture that has a page, with random weights: the tensors that its page asks for.

    keys: below the architecture's name, over FAMILY's (None takes one away). tensors: names of optional ones that it shall have ("output.weight", biases,
    "rope_freqs.weight"; "blk.*.attn_q.bias": of all layers). Gains are about 1, biases and sinks about 0.3, RoPE factors from 1 to 3, decays (ssm_a)
    below 0. edit: as of write_small_model.
    """
    values = {k: v for k, v in {**FAMILY, **(keys or {})}.items() if v is not None}
    asked = [name.replace("*", str(i)) for name in tensors for i in range(values["block_count"] if "*" in name else 1)]
    metadata = {f"{architecture}.{key}": value for key, value in values.items()}
    config = written_config(architecture, metadata, asked, n_vocab, path)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"small {architecture}")
    add_keys(writer, metadata)
    add_vocabulary(writer, n_vocab)
    rng, type_ = np.random.default_rng(seed), gguf.GGMLQuantizationType[format]
    for tensor in config.tensors():
        name, dims = tensor.name, tensor.shape
        if len(dims) == 1:
            x = rng.uniform(1, 3, dims) if "rope" in name else rng.standard_normal(dims) * 0.3 + (0 if "bias" in name or "sinks" in name else 1)
            if architecture == "gemma4" and name.endswith(("attn_q_norm.weight", "attn_k_norm.weight")):
                x = x * 0.4  # nothing else scales its scores: softmaxes so sharp would only multiply the rounding
            x = (-rng.uniform(0.02, 1, dims) if name.endswith("ssm_a") else x).astype(np.float32)
            writer.add_tensor(name, edit(name, x).astype(np.float32) if edit else x)
            continue
        if tensor.plain:
            x = rng.uniform(-1, 1, dims) if "conv" in name else -rng.uniform(0.02, 1, dims) if name.endswith("ssm_a") else 0.3 * rng.standard_normal(dims)
            writer.add_tensor(name, x.astype(np.float32))
            continue
        std = dims[-1] ** -0.5 * (2 if name == "output.weight" else dims[-1] ** 0.5 if name == "token_embd.weight" and not config.tied_output else 1)
        x = (rng.standard_normal(dims) * std).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F32 if "ffn_gate_inp" in name else type_  # routers are never quantised
        data = quantize(edit(name, x).astype(np.float32) if edit else x, kind)
        writer.add_tensor(name, data if data.dtype == np.uint8 else data.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_ids(n: int, n_vocab: int = SMALL.n_vocab, seed: int = 0) -> list[int]:
    """BOS, then n - 1 random tokens that are no control tokens."""
    return [1] + [int(i) for i in np.random.default_rng(seed).integers(3, n_vocab, n - 1)]
