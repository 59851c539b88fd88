"""Encoders in float64, written from Hugging Face's modelling code on the GGUF file's names: what the engine's rows and scores are judged by.

    twin = naive_encoder("model.gguf")
    twin.rows(ids, types)      last_hidden_state: float64 [len(ids), dim]
    twin.scores(ids, types)    logits of …ForSequenceClassification: float64 [labels]

Every token sees all others, or those within half a window to either side. Shares no code with the engine and its pages.
"""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from naive_families import Array, Family, Gemma3, gelu_tanh, silu

erf = np.vectorize(math.erf)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def softmax(scores: Array) -> Array:
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def layer_norm(x: Array, eps: float, gain: Array, bias: Array | float) -> Array:
    spread = x - x.mean(axis=-1, keepdims=True)
    return spread / np.sqrt((spread * spread).mean(axis=-1, keepdims=True) + eps) * gain + bias


class Encoder(Family):
    act = staticmethod(gelu)
    types: list[int]

    def norm(self, x: Array, name: str) -> Array:
        return layer_norm(x, self.get("attention.layer_norm_epsilon"), self.weight(name), self.bias(name))

    def rows(self, ids: list[int], types: list[int] | None = None) -> Array:
        self.types = types or [0] * len(ids)
        x = self.embedded(ids)
        for i in range(self.n_layers):
            x = self.layer(x, i, f"blk.{i}.")
        return self.last(x)

    def embedded(self, ids: list[int]) -> Array:
        x = self.weight("token_embd")[ids]
        if "token_types.weight" in self.tensors:
            x = x + self.weight("token_types")[self.types]
        if "position_embd.weight" in self.tensors:
            x = x + self.weight("position_embd")[:len(ids)]
        return self.norm(x, "token_embd_norm")

    def reach(self, i: int) -> int | None:
        """How many positions away a token sees others; None: all."""
        return None

    def attend(self, h: Array, i: int, at: str) -> Array:
        q, k, v = self.qkv(h, i, at)
        q, k = self.prepare(q, k, i, at)
        place, reach = np.arange(len(h)), self.reach(i)
        hidden = np.abs(place[:, None] - place) > (len(h) if reach is None else reach)
        out = np.empty_like(q)
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // k.shape[1])
            out[:, head] = softmax(np.where(hidden, -np.inf, q[:, head] @ k[:, kv].T * self.scale())) @ v[:, kv]
        return self.project(out.reshape(len(h), -1), at)

    # -- a classifier's head

    def scores(self, ids: list[int], types: list[int] | None = None) -> Array:
        """BertForSequenceClassification: the first row through the pooler, then the classifier."""
        return self.linear(np.tanh(self.linear(self.rows(ids, types)[0], "cls")), "cls.output")


class Bert(Encoder):
    """The norm comes after what it norms: LayerNorm(x + sublayer(x))."""

    architecture = "bert"

    def prepare(self, q: Array, k: Array, i: int, at: str) -> tuple[Array, Array]:
        return q, k

    def layer(self, x: Array, i: int, at: str) -> Array:
        x = self.norm(x + self.attend(x, i, at), at + "attn_output_norm")
        return self.norm(x + self.feed_forward(x, at), at + "layer_output_norm")


class Nomic(Bert):
    architecture = "nomic-bert"
    act = staticmethod(silu)
    prepare = Encoder.prepare


class ModernBert(Encoder):
    """The first layer's attention reads the embedding as it is: its norm is none. Of every three layers the first sees everything."""

    architecture = "modern-bert"

    def __init__(self, path: Path | str):
        super().__init__(path)
        self.act = {"gelu": gelu, "silu": silu, "gelu_pytorch_tanh": gelu_tanh}[self.get("hidden_act", "gelu")]  # type: ignore[method-assign]

    def layer(self, x: Array, i: int, at: str) -> Array:
        x = x + self.attend(self.norm(x, at + "attn_norm") if i else x, i, at)
        return x + self.feed_forward(self.norm(x, at + "ffn_norm"), at)

    def last(self, logits: Array) -> Array:
        return self.norm(logits, "output_norm")

    def qkv(self, h: Array, i: int, at: str) -> tuple[Array, Array, Array]:
        q, k, v = self.linear(h, at + "attn_qkv").reshape(len(h), 3, self.n_heads, self.head_dim).transpose(1, 0, 2, 3)
        return q, k, v

    def feed_forward(self, h: Array, at: str) -> Array:
        value, gate = np.split(self.linear(h, at + "ffn_up"), 2, axis=1)
        return self.linear(self.act(value) * gate, at + "ffn_down")

    def full(self, i: int) -> bool:
        pattern = self.get("attention.sliding_window_pattern", 3)
        return not pattern[i] if isinstance(pattern, list) else i % pattern == 0

    def reach(self, i: int) -> int | None:
        return None if self.full(i) else self.get("attention.sliding_window") // 2

    def pair_frequencies(self, i: int) -> list[float]:
        return self.plain(self.get("rope.freq_base") if self.full(i) else self.get("rope.freq_base_swa"))

    def scores(self, ids: list[int], types: list[int] | None = None) -> Array:
        """classifier(norm(gelu(dense(row)))), of the first row or the rows' mean (classifier_pooling)."""
        rows = self.rows(ids, types)
        pooled = rows[0] if self.get("classifier.pooling_type", 2) == 2 else rows.mean(axis=0)
        return self.linear(self.norm(gelu(self.linear(pooled, "cls")), "cls.norm"), "cls.output")


class GemmaEmbedding(Gemma3):
    """Gemma3TextModel with use_bidirectional_attention."""

    architecture = "gemma-embedding"
    attend = Encoder.attend  # type: ignore[assignment]
    rows, scores = Encoder.rows, Encoder.scores

    def embedded(self, ids: list[int]) -> Array:
        return self.weight("token_embd")[ids] * self.embedding_scale()

    def reach(self, i: int) -> int | None:
        return None if self.full(i) else self.get("attention.sliding_window") // 2

    def last(self, logits: Array) -> Array:
        return self.norm(logits, "output_norm")


ENCODERS: dict[str, type[Bert] | type[ModernBert] | type[GemmaEmbedding]] = {
    page.architecture: page for page in (Bert, Nomic, ModernBert, GemmaEmbedding)}


def naive_encoder(path: Path | str) -> Bert | ModernBert | GemmaEmbedding:
    import gguf
    field = gguf.GGUFReader(path).fields["general.architecture"]
    return ENCODERS[field.contents()](path)
