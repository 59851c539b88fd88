"""A Llama model in float64, written to be checked by eye: what the engine is judged by. Shares no code with it.

    naive_logits("model.gguf", ids) -> float64 [len(ids), n_vocab]

The file is read by the `gguf` package, weights are dequantised by `gguf.quants`, and everything after that is a float64 matrix product or a loop.
"""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize


class NaiveLlama:
    """`path`: a file, or its reader. `kv_dtype`: what keys and values are rounded to when they are stored (float64: not at all)."""

    def __init__(self, path: Path | str | gguf.GGUFReader, kv_dtype: type = np.float64):
        reader = path if isinstance(path, gguf.GGUFReader) else gguf.GGUFReader(path)
        self.kv_dtype = kv_dtype
        self.tensors = {t.name: t for t in reader.tensors}
        self.keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        self.n_layers = self.get("block_count")
        self.n_heads = self.get("attention.head_count")
        self.n_kv_heads = self.get("attention.head_count_kv", self.n_heads)
        self.head_dim = self.get("attention.key_length") or self.get("embedding_length") // self.n_heads
        self.eps = self.get("attention.layer_norm_rms_epsilon")

    def get(self, key: str, default: Any = None) -> Any:
        return self.keys.get("llama." + key, default)

    def weight(self, name: str) -> np.ndarray:
        """float64, in NumPy's order: a matrix is [outputs, inputs]."""
        tensor = self.tensors[name + ".weight"]
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float64)

    def logits(self, ids: list[int]) -> np.ndarray:
        x = self.weight("token_embd")[ids]  # [n, dim]
        for i in range(self.n_layers):
            h = self.norm(x, f"blk.{i}.attn_norm")
            x = x + self.attention(h, f"blk.{i}.attn_")
            h = self.norm(x, f"blk.{i}.ffn_norm")
            gate = h @ self.weight(f"blk.{i}.ffn_gate").T
            up = h @ self.weight(f"blk.{i}.ffn_up").T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.weight(f"blk.{i}.ffn_down").T
        h = self.norm(x, "output_norm")
        return h @ self.weight("output" if "output.weight" in self.tensors else "token_embd").T

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self.weight(name)

    def attention(self, h: np.ndarray, prefix: str) -> np.ndarray:
        n, d, heads, kv_heads = len(h), self.head_dim, self.n_heads, self.n_kv_heads
        q = self.rope((h @ self.weight(prefix + "q").T).reshape(n, heads, d))
        k = self.rope((h @ self.weight(prefix + "k").T).reshape(n, kv_heads, d))
        v = (h @ self.weight(prefix + "v").T).reshape(n, kv_heads, d)
        k, v = k.astype(self.kv_dtype).astype(np.float64), v.astype(self.kv_dtype).astype(np.float64)
        out = np.empty((n, heads, d))
        for head in range(heads):
            kv = head // (heads // kv_heads)  # consecutive query heads share a key/value head
            for t in range(n):
                scores = k[:t + 1, kv] @ q[t, head] / math.sqrt(d)  # positions 0 .. t
                p = np.exp(scores - scores.max())
                out[t, head] = p / p.sum() @ v[:t + 1, kv]
        return out.reshape(n, heads * d) @ self.weight(prefix + "output").T

    def rope(self, x: np.ndarray) -> np.ndarray:
        """Turn each pair (x[2i], x[2i + 1]) of a head by position * frequency i; x is [n, heads, head_dim]."""
        out = np.empty_like(x)
        for i, f in enumerate(self.frequencies()):
            angle = np.arange(len(x))[:, None] * f
            c, s = np.cos(angle) * self.rope_scale(), np.sin(angle) * self.rope_scale()
            a, b = x[:, :, 2 * i], x[:, :, 2 * i + 1]
            out[:, :, 2 * i], out[:, :, 2 * i + 1] = a * c - b * s, a * s + b * c
        return out

    def frequencies(self) -> list[float]:
        """Radians per position of each pair: base^(-2i/d), divided by Llama 3's factors, then scaled as linear or YaRN (arXiv 2309.00071) say."""
        d, base = self.head_dim, self.get("rope.freq_base", 10000.0)
        kind, factor = self.get("rope.scaling.type", "none"), self.get("rope.scaling.factor", 1.0)
        llama3 = self.weight("rope_freqs") if "rope_freqs.weight" in self.tensors else np.ones(d // 2)
        result = []
        for i in range(d // 2):
            f = base ** (-2 * i / d) / llama3[i]
            if kind == "linear":
                f = f / factor
            if kind == "yarn":
                ramp = self.yarn_ramp(i, d, base)  # 0: turns fast, is kept; 1: turns slowly, is stretched
                f = f * (1 - ramp) + f / factor * ramp
            result.append(f)
        return result

    def yarn_ramp(self, i: int, d: int, base: float) -> float:
        trained = self.get("rope.scaling.original_context_length")
        beta_fast, beta_slow = self.get("rope.scaling.yarn_beta_fast", 32.0), self.get("rope.scaling.yarn_beta_slow", 1.0)

        def pair_that_turns(times: float) -> float:  # within the trained context: trained * base^(-2i/d) = times * 2 pi, solved for i
            return d * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(0, math.floor(pair_that_turns(beta_fast))), min(d - 1, math.ceil(pair_that_turns(beta_slow)))
        return min(1.0, max(0.0, (i - low) / max(0.001, high - low)))

    def rope_scale(self) -> float:
        """What cosine and sine are multiplied by."""
        scale = self.get("rope.scaling.attn_factor", 1.0)
        if self.get("rope.scaling.type") == "yarn":
            scale *= 1 + 0.1 * math.log(self.get("rope.scaling.factor", 1.0))
        return scale


def naive_logits(path: Path | str, ids: list[int], kv_dtype: type = np.float64) -> np.ndarray:
    """float64 [len(ids), n_vocab] logits of the GGUF file's model, with its weights dequantised."""
    return NaiveLlama(path, kv_dtype).logits(ids)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 log probabilities along the last axis."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def nll(logits: np.ndarray, ids: list[int]) -> float:
    """Negative log-likelihood, in nats, of ids[1:], each given what stands before it; logits is [len(ids), n_vocab]."""
    return -float(log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]].sum())


def kl(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean over positions of KL(softmax(reference) || softmax(logits)), in nats."""
    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
