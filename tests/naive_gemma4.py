"""Gemma 4 in float64, written from Hugging Face's modeling_gemma4.py on the GGUF's names; naive_families.py's `Family` gives what it shares with others."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from naive_families import Array, Gemma2, gelu_tanh


class Gemma4(Gemma2):
    architecture = "gemma4"
    every = 6

    def scale(self) -> float:
        return 1.0

    def cap(self) -> float | None:
        return None

    def size(self, i: int) -> int:
        whole: int = self.get("attention.key_length")
        return whole if self.full(i) else self.get("attention.key_length_swa", whole)

    def pair_frequencies(self, i: int) -> list[float] | None:
        d = self.size(i)
        base = self.get("rope.freq_base", 10000.0) if self.full(i) else self.get("rope.freq_base_swa", 10000.0)
        plain = np.array([base ** (-2 * j / d) for j in range(d // 2)])
        if self.full(i) and "rope_freqs.weight" in self.tensors:
            plain = plain / self.weight("rope_freqs")
        return list(plain)

    def turn_scale(self, i: int) -> float:
        return 1.0

    def rms(self, x: Array) -> Array:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)

    def attend(self, h: Array, i: int, at: str) -> Array:
        n, d = len(h), self.size(i)
        q = self.turn(self.head_norm(self.linear(h, at + "attn_q").reshape(n, -1, d), at + "attn_q_norm"), i)
        kind = self.full(i)
        if at + "attn_k.weight" in self.tensors:
            k = self.linear(h, at + "attn_k").reshape(n, -1, d)
            v = self.linear(h, at + "attn_v").reshape(n, -1, d) if at + "attn_v.weight" in self.tensors else k
            k, v = self.turn(self.head_norm(k, at + "attn_k_norm"), i), self.rms(v)
            self.kept[kind] = k, v  # the last one of its kind is what later layers without keys read
        k, v = self.kept[kind]
        out, window = np.empty_like(q), self.window(i)
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // k.shape[1])
            for t in range(n):
                first = max(0, t - window + 1) if window else 0
                scores = k[first:t + 1, kv] @ q[t, head]
                p = np.exp(scores - scores.max())
                out[t, head] = p / p.sum() @ v[first:t + 1, kv]
        return self.linear(out.reshape(n, -1), at + "attn_output")

    def beside(self, x: Array, at: str) -> Array:
        """What the experts make of the stream (Gemma4TextRouter, Gemma4TextExperts)."""
        scores = self.rms(x) * self.vector(at + "ffn_gate_inp.scale") / math.sqrt(x.shape[1]) @ self.weight(at + "ffn_gate_inp").T
        h, out, scales = self.norm(x, at + "pre_ffw_norm_2"), np.zeros_like(x), self.vector(at + "ffn_down_exps.scale")
        for t in range(len(x)):
            p = np.exp(scores[t] - scores[t].max())
            chosen = np.argsort(-p, kind="stable")[:self.get("expert_used_count")]
            for e in chosen:
                gate, up = np.split(self.weight(at + "ffn_gate_up_exps")[e] @ h[t], 2)
                out[t] += p[e] / p[chosen].sum() * scales[e] * (self.weight(at + "ffn_down_exps")[e] @ (gelu_tanh(gate) * up))
        return out

    def vector(self, name: str) -> Array:
        return np.asarray(self.tensors[name].data, np.float64)

    def layer(self, x: Array, i: int, at: str) -> Array:
        if at + "ffn_gate_inp.weight" in self.tensors:
            x = x + self.norm(self.attend(self.norm(x, at + "attn_norm"), i, at), at + "post_attention_norm")
            dense = self.norm(self.feed_forward(self.norm(x, at + "ffn_norm"), at), at + "post_ffw_norm_1")
            x = x + self.norm(dense + self.norm(self.beside(x, at), at + "post_ffw_norm_2"), at + "post_ffw_norm")
        else:
            x = super().layer(x, i, at)
        if self.inputs is not None:
            hidden = gelu_tanh(self.linear(x, at + "inp_gate")) * self.inputs[:, i]
            x = x + self.norm(self.linear(hidden, at + "proj"), at + "post_norm")
        return x * self.weight(at + "layer_output_scale") if at + "layer_output_scale.weight" in self.tensors else x

    def logits(self, ids: list[int]) -> Array:
        self.kept: dict[bool, tuple[Array, Array]] = {}
        self.inputs: Any = None
        if width := self.get("embedding_length_per_layer_input", 0):
            x = self.weight("token_embd")[ids] * self.embedding_scale()
            context = (self.linear(x, "per_layer_model_proj") / math.sqrt(x.shape[1])).reshape(len(ids), self.n_layers, width)
            token = self.weight("per_layer_token_embd")[ids].reshape(len(ids), self.n_layers, width) * math.sqrt(width)
            self.inputs = (self.rms(context) * self.weight("per_layer_proj_norm") + token) / math.sqrt(2)
        return super().logits(ids)
