"""Tiny checkpoints of every kind for tests, written by hand: safetensors, PyTorch's zip files (no torch needed), Meta's shards, llama2.c's .bin.

    weights = random_weights(TINY)                               GGUF name -> float32, the order of rows GGUF's
    write_hf(folder, TINY, weights, dtype="BF16")                and write_meta, write_llama2c: the same model as other kinds
"""
from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tiny:
    dim: int = 32
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    ffn_dim: int = 48
    n_vocab: int = 320
    context: int = 128
    tied: bool = False
    head_dim: int = 8


TINY = Tiny()
HF = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
      "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
      "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
META = {"attn_norm": "attention_norm", "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv", "attn_output": "attention.wo",
        "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2",
        "token_embd.weight": "tok_embeddings.weight", "output_norm.weight": "norm.weight", "output.weight": "output.weight"}


def random_weights(t: Tiny = TINY, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    q, kv = t.n_heads * t.head_dim, t.n_kv_heads * t.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (t.n_vocab, t.dim)}
    for i in range(t.n_layers):
        shapes |= {f"blk.{i}.{part}.weight": shape for part, shape in {
            "attn_norm": (t.dim,), "attn_q": (q, t.dim), "attn_k": (kv, t.dim), "attn_v": (kv, t.dim), "attn_output": (t.dim, q), "ffn_norm": (t.dim,),
            "ffn_gate": (t.ffn_dim, t.dim), "ffn_up": (t.ffn_dim, t.dim), "ffn_down": (t.dim, t.ffn_dim)}.items()}
    shapes["output_norm.weight"] = (t.dim,)
    if not t.tied:
        shapes["output.weight"] = (t.n_vocab, t.dim)
    # multiples of 1/16 below 8: exact in F16, BF16 and E4M3 alike
    return {name: (rng.integers(-15, 16, shape) / 16).astype(np.float32) for name, shape in shapes.items()}


def renamed(weights: Mapping[str, np.ndarray], names: Mapping[str, str], prefix: str) -> dict[str, np.ndarray]:
    out = {}
    for name, value in weights.items():
        if name in names:
            out[names[name]] = value
        else:
            _, layer, part, _ = name.split(".")
            out[f"{prefix}layers.{layer}.{names[part]}.weight"] = value
    return out


def half_split(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """HF's order of the rows of q or k, from GGUF's: in each head first the even rows, then the odd ones."""
    heads = weight.reshape(n_heads, -1, weight.shape[1])
    return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(weight.shape)


def hf_weights(t: Tiny, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    heads = {"attn_q": t.n_heads, "attn_k": t.n_kv_heads}
    turned = {name: half_split(value, heads[name.split(".")[2]]) if name[:3] == "blk" and name.split(".")[2] in heads else value for name,
        value in weights.items()}
    return renamed(turned, HF, "model.")


def bits(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "U8": "u1"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32", edit: Any = None, dtypes: Mapping[str, str] | None = None) -> Path:
    """edit: (header dict) -> header dict or bytes, to damage it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in tensors.items():
        kind = (dtypes or {}).get(name, dtype)
        raw = bits(value, kind)
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = edit(header) if edit else header
    raw_head = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(raw_head)) + raw_head + data)
    return path


def hf_config(t: Tiny, **more: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": t.dim, "intermediate_size": t.ffn_dim,
            "max_position_embeddings": t.context, "num_attention_heads": t.n_heads, "num_hidden_layers": t.n_layers, "num_key_value_heads": t.n_kv_heads,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": t.tied, "vocab_size": t.n_vocab, "head_dim": t.head_dim,
            "bos_token_id": 1, "eos_token_id": 2, **more}


def write_hf(folder: Path, t: Tiny = TINY, weights: Mapping[str, np.ndarray] | None = None, dtype: str = "F32", *, tokenizer: bool = True,
    **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights = random_weights(t) if weights is None else weights
    write_safetensors(folder / "model.safetensors", hf_weights(t, weights), dtype)
    (folder / "config.json").write_text(json.dumps(hf_config(t, **config)))
    if tokenizer:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(min(t.n_vocab, 320)))
    return folder


@cache
def sentencepiece_model(n_vocab: int = 320, byte_fallback: bool = True) -> bytes:
    """A trained SentencePiece BPE model with all byte pieces."""
    import sentencepiece

    words = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "the", "hat", "with", "him", "then", "she", "said", "no"]
    lines = [" ".join(words[i:] + words[:i]) for i in range(len(words))]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=n_vocab, model_type="bpe", byte_fallback=byte_fallback, hard_vocab_limit=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1)
    return out.getvalue()


# ---- PyTorch's zip files


class Pickle:
    """A pickle written opcode by opcode."""

    def __init__(self) -> None:
        self.code = b"\x80\x02"
        self.storages: dict[str, bytes] = {}

    def op(self, raw: bytes) -> Pickle:
        self.code += raw
        return self

    def name(self, module: str, attribute: str) -> Pickle:
        return self.op(f"c{module}\n{attribute}\n".encode())

    def value(self, value: Any) -> Pickle:
        """None, bool, int, float, str, tuple, list, dict, or a Tensor."""
        if value is None or isinstance(value, bool):
            return self.op(b"N" if value is None else b"\x88" if value else b"\x89")
        if isinstance(value, int):
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return self.op(b"\x8a" + bytes([len(raw)]) + raw)
        if isinstance(value, float):
            return self.op(b"G" + struct.pack(">d", value))
        if isinstance(value, str):
            return self.op(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        if isinstance(value, Tensor):
            return self.tensor(value)
        kind = type(value).__name__
        self.op({"tuple": b"(", "list": b"](", "dict": b"}("}[kind])
        for item in [x for pair in value.items() for x in pair] if isinstance(value, dict) else value:
            self.value(item)
        return self.op({"tuple": b"t", "list": b"e", "dict": b"u"}[kind])

    def storage(self, kind: str, key: str, n: int) -> Pickle:
        return self.op(b"(").value("storage").name("torch", kind).value(key).value("cpu").value(n).op(b"tQ")

    def tensor(self, t: Tensor) -> Pickle:
        self.storages[t.key] = t.data
        item = {"FloatStorage": 4, "DoubleStorage": 8, "CharStorage": 1}.get(t.storage, 2)
        self.name("torch._utils", "_rebuild_tensor_v2").op(b"(").storage(t.storage, t.key, len(t.data) // item if t.claim is None else t.claim)
        self.value(t.offset).value(t.shape).value(t.strides).value(False).name("collections", "OrderedDict").op(b")Rt")
        return self.op(b"R")


@dataclass(frozen=True)
class Tensor:
    """What torch pickles of a tensor; strides and offset in elements."""

    data: bytes
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    key: str
    storage: str = "FloatStorage"
    offset: int = 0
    claim: int | None = None  # elements that the storage is said to have


def tensor(values: np.ndarray, key: str, dtype: str = "F32") -> Tensor:
    strides = tuple(s // values.itemsize for s in np.ascontiguousarray(values).strides)
    return Tensor(bits(values, dtype), values.shape, strides, key,
        {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I8": "CharStorage"}[dtype])


def write_zip(path: Path, code: bytes, storages: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED, more: Mapping[str, bytes] | None = None,
              byteorder: bytes = b"little") -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", code)
        file.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            file.writestr(f"archive/data/{key}", data)
        file.writestr("archive/version", b"3\n")
        for name, data in (more or {}).items():
            file.writestr(name, data)
    return path


def write_torch(path: Path, value: Any) -> Path:
    """A value with arrays (float32 tensors) and Tensors in it, as torch.save would."""
    def turned(value: Any, key: list[int]) -> Any:
        if isinstance(value, np.ndarray):
            key[0] += 1
            return tensor(value, str(key[0] - 1))
        if isinstance(value, dict):
            return {name: turned(item, key) for name, item in value.items()}
        return value
    pickle = Pickle().value(turned(value, [0])).op(b".")
    return write_zip(path, pickle.code, pickle.storages)


# ---- Meta, llama2.c


def meta_shards(t: Tiny, weights: Mapping[str, np.ndarray], n: int, vocab_parallel: bool = False) -> list[dict[str, np.ndarray]]:
    """What each of n model-parallel ranks holds."""
    shards: list[dict[str, np.ndarray]] = [{} for _ in range(n)]
    for name, value in renamed(weights, META, "").items():
        part = name.split(".")[-2]
        axis = 1 if part in ("wo", "w2") or part == "tok_embeddings" and not vocab_parallel else 0
        for rank, shard in enumerate(shards):
            shard[name] = value if value.ndim == 1 else np.ascontiguousarray(np.split(value, n, axis)[rank])
    return shards


def write_meta(folder: Path, t: Tiny, weights: Mapping[str, np.ndarray], n: int = 1, vocab_parallel: bool = False, **params: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for rank, shard in enumerate(meta_shards(t, weights, n, vocab_parallel)):
        write_torch(folder / f"consolidated.{rank:02d}.pth", {**shard, "rope.freqs": np.ones(4, np.float32)})
    values = {"dim": t.dim, "n_layers": t.n_layers, "n_heads": t.n_heads, "n_kv_heads": t.n_kv_heads, "norm_eps": 1e-5, "vocab_size": -1,
        "multiple_of": 16, **params}
    (folder / "params.json").write_text(json.dumps(values))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return folder


def write_llama2c(path: Path, t: Tiny, weights: Mapping[str, np.ndarray], version: int = 0, group: int = 8) -> Path:
    head = [t.dim, t.ffn_dim, t.n_layers, t.n_heads, t.n_kv_heads, t.n_vocab, t.context]

    def layers(part: str) -> list[np.ndarray]:
        return [weights[f"blk.{i}.{part}.weight"] for i in range(t.n_layers)]
    output = [] if t.tied else [weights["output.weight"]]
    embedding, norm = weights["token_embd.weight"], weights["output_norm.weight"]
    matrices = [embedding, *(m for p in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up") for m in layers(p)), *output]
    norms = [*layers("attn_norm"), *layers("ffn_norm"), norm]
    if version == 0:
        head[5] *= 1 if t.tied else -1
        attention = [m for p in ("attn_q", "attn_k", "attn_v", "attn_output") for m in layers(p)]
        ffn = [m for p in ("ffn_gate", "ffn_down", "ffn_up") for m in layers(p)]
        freqs = [np.zeros(t.context * t.head_dim, np.float32)]
        parts = [embedding, *layers("attn_norm"), *attention, *layers("ffn_norm"), *ffn, norm, *freqs, *output]
        path.write_bytes(struct.pack("<7i", *head) + b"".join(bits(p, "F32") for p in parts))
        return path
    start = b"24ka" + struct.pack("<8iB", version, *head, t.tied)
    if version == 1:
        body = b"".join(bits(p, "F32") for p in norms + matrices)
    else:
        start += struct.pack("<i", group)
        body = b"".join(bits(p, "F32") for p in norms) + b"".join(quantized(m, group)[2] for m in matrices)
    path.write_bytes(start.ljust(256, b"\0") + body)
    return path


def quantized(matrix: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """int8 codes, float32 scales, and both as v2 stores them."""
    groups = matrix.reshape(-1, group)
    scales = (np.abs(groups).max(1) / 127).astype(np.float32)
    codes = np.round(groups / np.where(scales, scales, 1)[:, None]).astype(np.int8)
    return codes, scales, codes.tobytes() + scales.tobytes()


def write_tokenizer_bin(path: Path, model: bytes) -> Path:
    """llama2.c's tokenizer.bin of a SentencePiece model, as its tokenizer.py exports it."""
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = []
    for id in range(sp.vocab_size()):
        text = sp.id_to_piece(id)
        text = f"\n{text}\n" if id in (sp.bos_id(), sp.eos_id()) else text
        pieces.append((sp.get_score(id), text.replace("\u2581", " ").encode()))
    path.write_bytes(struct.pack("<I", max(len(p) for _, p in pieces)) + b"".join(struct.pack("<fI", s, len(p)) + p for s, p in pieces))
    return path


def all_rows(source: Any, step: int = 7) -> dict[str, np.ndarray]:
    """Every tensor of a Source, read in pieces."""
    out = {}
    for tensor in source.tensors:
        parts = [tensor.rows(first, min(first + step, tensor.n_rows)) for first in range(0, tensor.n_rows, step)]
        out[tensor.name] = np.concatenate(parts).reshape(tensor.shape)
    return out


def assert_weights(source: Any, weights: Mapping[str, np.ndarray]) -> None:
    comp = all_rows(source)
    assert list(comp) == list(weights)
    for name, ref in weights.items():
        assert comp[name].dtype == np.float32
        np.testing.assert_array_equal(comp[name], ref, err_msg=name)


def write_gguf(path: Path, source: Any) -> Path:
    """A plain F32 GGUF file of a Source."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in source.metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, np.ndarray):
            value = value.tolist()
        add: Any = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}[type(value)]
        add(key, value)
    for t in source.tensors:
        writer.add_tensor(t.name, t.rows(0, t.n_rows).reshape(t.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_(t: Tiny, **changes: Any) -> Tiny:
    return replace(t, **changes)
