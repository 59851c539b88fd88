"""GGUF files with random weights, of any size and any architecture that has a page: what a benchmark needs, without a download.

    python -m llamina.bench.synthetic SHAPE TYPE PATH [--seed N]          e.g. 1b q4_k_m model.gguf
    write_model(path, "7b", "q4_0")                                       the same from Python

The weights are drawn as blocks: random codes under scales that give the weights the variance 1/columns, with both signs, so that activations keep
their size through all layers. No float weight is ever quantised, so a 7B file takes seconds, and one tensor at a time is in memory. The vocabulary is made
up: the three control pieces, 256 byte pieces, then distinct combinations of letters, so that any text can be tokenised, if not well.
"""
from __future__ import annotations

import argparse
import itertools
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.errors import OptionError
from ..kernels.formats.table import FORMATS

if TYPE_CHECKING:
    import gguf

    from ..engine.architectures.config import ModelConfig


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; head_dim 0 means dim / n_heads."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    n_vocab: int = 32000
    context_length: int = 2048
    tied_output: bool = False
    head_dim: int = 0
    rms_eps: float = 1e-5
    architecture: str = "llama"
    keys: tuple[tuple[str, Any], ...] = ()
    """Further metadata below the architecture's name."""
    tensors: tuple[str, ...] = ()
    """Optional tensors that it has beside output.weight; "blk.*.attn_qkv.weight": in each layer."""

    def config(self) -> ModelConfig:
        """What its file will be read as. OptionError or FormatError: no such architecture, or it can't be of this shape."""
        from ..engine.architectures.config import written_config
        from ..engine.architectures.pages import PAGES
        if self.architecture not in PAGES:
            raise OptionError(f"unknown architecture {self.architecture!r}: choose from {', '.join(PAGES)}")
        asked = [name.replace("*", str(i)) for name in self.tensors for i in range(self.n_layers if "*" in name else 1)]
        metadata = {f"{self.architecture}.{key}": value for key, value in self.metadata().items()}
        return written_config(self.architecture, metadata, asked if self.tied_output else [*asked, "output.weight"], self.n_vocab)

    def metadata(self) -> dict[str, Any]:
        """Keys below the architecture's name."""
        head_dim = self.head_dim or self.dim // self.n_heads
        found: dict[str, Any] = {
            "context_length": self.context_length, "embedding_length": self.dim, "block_count": self.n_layers, "feed_forward_length": self.ffn_dim,
            "attention.head_count": self.n_heads, "attention.head_count_kv": self.n_kv_heads, "attention.layer_norm_rms_epsilon": self.rms_eps,
            "rope.dimension_count": head_dim,
        }
        if head_dim * self.n_heads != self.dim:
            found |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
        return found | {key: list(value[:self.n_layers]) if isinstance(value, tuple) else value for key, value in self.keys}


SHAPES = {
    "256": Shape(256, 4, 8, 4, 768, n_vocab=2048),  # smallest that K-quants fit
    "15m": Shape(288, 6, 6, 6, 768),  # karpathy's stories15M
    "1b": Shape(2048, 22, 32, 4, 5632),  # TinyLlama 1.1B
    "7b": Shape(4096, 32, 32, 32, 11008, context_length=4096),  # Llama 2 7B
    "qwen3-4b": Shape(2560, 36, 32, 8, 9728, 151936, 40960, True, 128, 1e-6, "qwen3", (("rope.freq_base", 1e6),)),
    "gemma3-1b": Shape(1152, 26, 4, 1, 6912, 262144, 32768, True, 256, 1e-6, "gemma3", (("attention.sliding_window", 512), ("rope.freq_base", 1e6))),
    "gemma3-4b": Shape(2560, 34, 8, 4, 10240, 262208, 131072, True, 256, 1e-6, "gemma3", (
        ("attention.sliding_window", 1024), ("rope.freq_base", 1e6), ("rope.scaling.type", "linear"), ("rope.scaling.factor", 8.0))),
    "gemma4-e2b": Shape(1536, 35, 8, 1, 6144, 262144, 131072, True, 512, 1e-6, "gemma4", (
        ("attention.key_length_swa", 256), ("attention.value_length_swa", 256), ("rope.dimension_count_swa", 256), ("rope.freq_base", 1e6),
        ("attention.sliding_window", 512), ("attention.sliding_window_pattern", (True, True, True, True, False) * 7), ("attention.shared_kv_layers", 20),
        ("feed_forward_length", (6144,) * 15 + (12288,) * 20), ("embedding_length_per_layer_input", 256), ("final_logit_softcapping", 30.0)),
        ("blk.*.attn_v.weight", "blk.*.layer_output_scale.weight", "rope_freqs.weight")),
    "phi4-mini": Shape(3072, 32, 24, 8, 8192, 200064, 131072, True, 128, 1e-5, "phi3", (
        ("rope.dimension_count", 96), ("rope.scaling.original_context_length", 4096), ("rope.scaling.attn_factor", 1.19)),
        ("blk.*.attn_qkv.weight", "rope_factors_long.weight", "rope_factors_short.weight")),
    "lfm2-1.2b": Shape(2048, 16, 32, 8, 8192, 65536, 128000, True, 64, 1e-5, "lfm2", (
        ("attention.head_count_kv", [8 if i in (2, 5, 8, 10, 12, 14) else 0 for i in range(16)]), ("rope.freq_base", 1e6), ("shortconv.l_cache", 3))),
    "qwen3.5-2b": Shape(2048, 24, 8, 2, 6144, 248320, 262144, True, 256, 1e-6, "qwen35", (
        ("rope.dimension_count", 64), ("rope.freq_base", 1e7), ("rope.dimension_sections", [11, 11, 10, 0]), ("ssm.conv_kernel", 4), ("ssm.state_size", 128),
        ("ssm.group_count", 16), ("ssm.time_step_rank", 16), ("ssm.inner_size", 2048), ("full_attention_interval", 4))),
    "qwen3-30b-a3b": Shape(2048, 48, 32, 4, 6144, 151936, 40960, False, 128, 1e-6, "qwen3moe", (
        ("rope.freq_base", 1e6), ("expert_count", 128), ("expert_used_count", 8), ("expert_feed_forward_length", 768))),
    "lfm2-8b-a1b": Shape(2048, 24, 32, 8, 7168, 65536, 128000, True, 64, 1e-5, "lfm2moe", (
        ("attention.head_count_kv", [8 if i in (2, 6, 10, 14, 18, 21) else 0 for i in range(24)]), ("rope.freq_base", 1e6), ("shortconv.l_cache", 3),
        ("leading_dense_block_count", 2), ("expert_count", 32), ("expert_used_count", 4), ("expert_feed_forward_length", 1792), ("expert_gating_func", 2)),
        ("blk.*.exp_probs_b.bias",)),
    "gpt-oss-20b": Shape(2880, 24, 64, 8, 2880, 201088, 131072, False, 64, 1e-5, "gpt-oss", (
        ("rope.freq_base", 150000.0), ("rope.scaling.type", "yarn"), ("rope.scaling.factor", 32.0), ("rope.scaling.original_context_length", 4096),
        ("attention.sliding_window", 128), ("expert_count", 32), ("expert_used_count", 4), ("expert_feed_forward_length", 2880))),
}


def shape_named(name: str) -> Shape:
    """A key of SHAPES, or NAME:N: the same with N layers. OptionError."""
    key, colon, layers = name.partition(":")
    if key not in SHAPES or colon and not (layers.isascii() and layers.isdigit() and 0 < int(layers) <= 1000):
        raise OptionError(f"unknown shape {name!r}: choose from {', '.join(SHAPES)}, with another number of layers as in 1b:4")
    shape = SHAPES[key]
    if not colon:
        return shape
    n = int(layers)
    if any(isinstance(value, list) and len(value) < n for _, value in shape.keys):
        raise OptionError(f"shape {key} has {shape.n_layers} layers at most, found {n}")
    return replace(shape, n_layers=n, keys=tuple((name, value[:n] if isinstance(value, list) else value) for name, value in shape.keys))


_SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,),
    "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,), "IQ1_M": (), "MXFP4": (),
}
"""Format -> where in a block its half-precision numbers lie: d, and m or dmin if it has one."""

_MINIMUM = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
"""Format -> m / d or dmin / d that makes the weights' mean zero."""

_MIXES = {"q4_k_m": ("Q4_K", "Q6_K"), "q5_k_m": ("Q5_K", "Q6_K"), "mxfp4": ("Q8_0", "Q8_0")}
"""Type -> (most matrices, the ones that llama.cpp gives more bits)."""

_INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp's mixes have where rows are no multiple of 256 columns (Gemma 3 1B)."""

_FILE_TYPES = {  # general.file_type, llama.h's enum llama_ftype
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14, "q4_k_m": 15, "q5_k": 16,
    "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32, "mxfp4": 38,
}


def random_blocks(rng: np.random.Generator, name: str, rows: int, cols: int, std: float) -> np.ndarray:
    """A random matrix [rows, cols] with weights of mean 0 and standard deviation about `std`, in block format `name`: uint8 [rows, bytes].

    Every code and every packed sub-scale is equally likely; the half-precision scales are spread over a factor of 3 and have either sign.
    OptionError: `name` is no format that can be drawn, or `cols` is not a multiple of its block.
    """
    if name not in _SCALES and name not in ("F32", "F16", "BF16"):
        raise OptionError(f"no random weights of format {name}: choose from F32, F16, BF16, {', '.join(_SCALES)}")
    format = FORMATS[name]
    if cols % format.columns:
        raise OptionError(f"rows of {cols} columns cannot be {name}: it needs a multiple of {format.columns}")
    if name not in _SCALES:
        return _random_floats(rng, name, rows * cols, std).view(np.uint8).reshape(rows, -1)
    blocks = _random_bytes(rng, rows * cols // format.columns * format.bytes).reshape(-1, format.bytes)
    d = (rng.random(len(blocks), np.float32) + np.float32(0.5)) * np.float32(std / _UNIT[name])
    if name == "MXFP4":  # a power of two, biased by 128
        blocks[:, 0] = 128 + np.floor(np.log2(d)).astype(np.int64)
    sign_bit = blocks[:, 0 if _SCALES[name] and _SCALES[name][0] else -1] & 1  # a code's bit: drawing others would cost more than their independence is worth
    d *= 1 - 2 * sign_bit.astype(np.int8)
    for at, ratio in zip(_SCALES[name], (1.0, _MINIMUM.get(name, 0.0))):
        blocks[:, at:at + 2] = (d * np.float32(ratio)).astype("<f2").view(np.uint8).reshape(-1, 2)
    if name == "IQ1_M":  # its f16 scale lies in the upper four bits of four words
        bits = d.astype("<f2").view(np.uint16)
        for i in range(4):
            at = 48 + 2 * i + 1
            blocks[:, at] = blocks[:, at] & 15 | (bits >> (4 * i) & 15).astype(np.uint8) << 4
    return blocks.reshape(rows, -1)


_UNIT = {
    "Q4_0": 4.64, "Q4_1": 4.61, "Q5_0": 9.24, "Q5_1": 9.23, "Q8_0": 73.9, "Q2_K": 13.9, "Q3_K": 43.5, "Q4_K": 258.0, "Q5_K": 525.0,
    "Q6_K": 1369.0, "IQ4_NL": 67.4, "IQ4_XS": 1246.0, "TQ1_0": 0.817, "TQ2_0": 1.12, "IQ2_XXS": 53.5, "IQ2_XS": 55.9, "IQ2_S": 56.4, "IQ3_XXS": 143.0,
    "IQ3_S": 141.0, "IQ1_S": 7.21, "IQ1_M": 7.20, "MXFP4": 5.87,
}
"""Standard deviation of the weights for d = 1."""


def _random_bytes(rng: np.random.Generator, n: int) -> np.ndarray:
    words: np.ndarray = rng.bit_generator.random_raw(-(-n // 8))
    return words.view(np.uint8)[:n]


def _random_floats(rng: np.random.Generator, name: str, n: int, std: float) -> np.ndarray:
    values = rng.standard_normal(n, np.float32)
    values *= np.float32(std)
    if name == "F32":
        return values
    return values.astype("<f2") if name == "F16" else (values.view(np.uint32) >> 16).astype("<u2")


def vocabulary(n_vocab: int) -> tuple[list[str], list[float], list[int]]:
    """(pieces, scores, types) of a made-up SentencePiece vocabulary of `n_vocab` >= 260 pieces: <unk>, <s>, </s>, 256 bytes, then the space and
    the letters, pairs of them, triples ... Types are SentencePiece's: 1 normal, 2 unknown, 3 control, 6 byte."""
    if n_vocab < 260:
        raise OptionError(f"a vocabulary of {n_vocab} pieces is too small: expected at least 260, three control pieces, 256 bytes and a space")
    letters = "\u2581" + string.ascii_lowercase
    words = ("".join(w) for n in itertools.count(1) for w in itertools.product(letters, repeat=n) if "\u2581" not in w[1:])
    made_up = list(itertools.islice(words, n_vocab - 259))
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + made_up
    return pieces, [0.0] * 259 + [-float(i) for i in range(len(made_up))], [2, 3, 3] + [6] * 256 + [1] * len(made_up)


def matrices(shape: Shape, type: str) -> Iterator[tuple[str, tuple[int, ...], str, float]]:
    """(tensor name, shape, format, standard deviation) of each tensor, in file order; vectors (gains of norms) are all ones, biases zeros,
    decays of a delta rule below 0.

    A plain type ("q4_0") is used for every matrix; "mxfp4" for experts, beside Q8_0; routers are F32; the mixes follow llama.cpp's
    llama_tensor_get_type: the output matrix, and the value (or fused q, k and v)
    and down matrices of the first and last eighth of the layers and of every third one between, are Q6_K; rows that these can't hold are in _INSTEAD's.
    """
    for name, dims, format, std in _matrices(shape, type):
        fits = type not in _MIXES or dims[-1] % FORMATS[format].columns == 0
        yield name, dims, format if fits else _INSTEAD[format], std


def _matrices(shape: Shape, type: str) -> Iterator[tuple[str, tuple[int, ...], str, float]]:
    base, more = _MIXES.get(type, (type.upper(), type.upper()))
    n = shape.n_layers
    for tensor in shape.config().tensors():
        name, dims = tensor.name, tensor.shape
        parts = name.split(".")
        if len(dims) == 1 or tensor.plain:
            yield name, dims, "F32", 0.5 * (tensor.plain and "conv" in name)
        elif "ffn_gate_inp" in name:  # a router
            yield name, dims, "F32", dims[-1] ** -0.5
        elif type == "mxfp4" and len(dims) == 3:
            yield name, dims, "MXFP4", dims[-1] ** -0.5
        elif name == "token_embd.weight":
            yield name, dims, more if shape.tied_output else base, shape.dim ** -0.5 if shape.tied_output else 1.0
        elif name == "output.weight":
            yield name, dims, more, dims[1] ** -0.5
        elif name == "per_layer_token_embd.weight":
            yield name, dims, more if shape.tied_output else base, (dims[1] / n) ** -0.5
        elif name == "per_layer_model_proj.weight":
            yield name, dims, "F16" if type in _MIXES else base, dims[1] ** -0.5
        else:
            i = int(parts[1])
            important = parts[2] in ("attn_v", "attn_qkv", "ffn_down", "ffn_down_exps") and (i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2)
            yield name, dims, more if important else base, dims[-1] ** -0.5


def write_model(path: Path | str, shape: Shape | str, type: str, seed: int = 0) -> Path:
    """Write a model of `shape` (a Shape, or a key of SHAPES) with random weights of `type` ("q4_0", "q4_k_m", "f16", ...) to `path`; same seed, same
    file. OptionError: unknown shape or type, or one that does not fit the other."""
    import gguf

    shape = shape_named(shape) if isinstance(shape, str) else shape
    type = type.lower()
    if type not in _FILE_TYPES:
        raise OptionError(f"unknown type {type!r}: choose from {', '.join(_FILE_TYPES)}")
    tensors = list(matrices(shape, type))
    for name, dims, format, _ in tensors:
        if dims[-1] % FORMATS[format].columns:
            raise OptionError(f"{name} has {dims[-1]} columns, which {format} cannot hold: it needs a multiple of {FORMATS[format].columns}")

    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(f"random {shape.dim}x{shape.n_layers} {type}")
    writer.add_file_type(_FILE_TYPES[type])
    add_metadata(writer, shape)
    for name, dims, format, _ in tensors:
        size = FORMATS[format].row_bytes(dims[-1]) * math.prod(dims[:-1])
        writer.add_tensor_info(name, dims, np.dtype(np.float32), size, gguf.GGMLQuantizationType[format])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for i, (_, dims, format, std) in enumerate(tensors):
        rng = np.random.Generator(np.random.SFC64([seed, i]))
        if std:
            writer.write_tensor_data(random_blocks(rng, format, math.prod(dims[:-1]), dims[-1], std))
        else:
            writer.write_tensor_data(np.full(dims, {"bias": 0.0, "ssm_a": -0.1}.get(tensors[i][0].rsplit(".", 1)[1], 1.0), np.float32))
    writer.close()
    return Path(path)


def add_keys(writer: gguf.GGUFWriter, metadata: dict[str, Any]) -> None:
    """Give a writer keys with values of GGUF's usual types for them."""
    for key, value in metadata.items():
        if isinstance(value, (list, tuple, np.ndarray)):
            writer.add_array(key, list(value))
        else:
            add: Any = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}[type(value)]
            add(key, value)


def add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """Give a writer the keys of a model of this shape, and a made-up vocabulary."""
    add_keys(writer, {f"{shape.architecture}.{key}": value for key, value in shape.metadata().items()})
    add_vocabulary(writer, shape.n_vocab)


def add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Give a writer the vocabulary of `vocabulary(n_vocab)`."""
    pieces, scores, types = vocabulary(n_vocab)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.synthetic", description="Write a GGUF file with random weights.")
    parser.add_argument("shape", metavar="SHAPE", help=f"{', '.join(SHAPES)}, or NAME:LAYERS")
    parser.add_argument("type", choices=_FILE_TYPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        path = write_model(args.path, args.shape, args.type, args.seed)
    except OptionError as error:
        parser.error(str(error))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
