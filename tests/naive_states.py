"""Families with recurrent layers in float64, token after token in plain loops: written from Hugging Face's modelling code (Lfm2ShortConv,
torch_recurrent_gated_delta_rule), on the GGUF file's names and its order of heads. Shares no code with the engine and its pages."""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from naive_families import Array, Family, silu


class Recurrent(Family, ABC):
    """Layers that attend, and others."""

    def attends(self, i: int, at: str) -> bool:
        return at + "attn_q.weight" in self.tensors

    @abstractmethod
    def mix(self, h: Array, i: int, at: str) -> Array:
        """What the layer adds, from the normed rows."""

    def layer(self, x: Array, i: int, at: str) -> Array:
        h = self.norm(x, at + "attn_norm")
        x = x + (self.attend(h, i, at) if self.attends(i, at) else self.mix(h, i, at))
        return x + self.feed_forward(self.norm(x, at + self.second_norm), at)

    second_norm = "ffn_norm"

    def conv(self, u: Array, name: str) -> Array:
        """Each channel by itself, over the last tokens; zeros before the first."""
        kernel = np.asarray(self.weight(name), np.float64)
        taps, out = kernel.shape[1], np.zeros_like(u)
        for t in range(len(u)):
            for j in range(taps):
                if t - taps + 1 + j >= 0:
                    out[t] += kernel[:, j] * u[t - taps + 1 + j]
        return out

    def prepare(self, q: Array, k: Array, i: int, at: str) -> tuple[Array, Array]:
        q, k = self.head_norm(q, at + "attn_q_norm"), self.head_norm(k, at + "attn_k_norm")
        return self.turn(q, i), self.turn(k, i)


class Lfm2(Recurrent):
    architecture = "lfm2"

    def norm(self, x: Array, name: str) -> Array:
        return super().norm(x, name.replace("output_norm", "token_embd_norm"))

    def mix(self, h: Array, i: int, at: str) -> Array:
        b, c, x = np.split(self.linear(h, at + "shortconv.in_proj"), 3, axis=1)
        return self.linear(c * self.conv(b * x, at + "shortconv.conv"), at + "shortconv.out_proj")


class Qwen35(Recurrent):
    architecture = "qwen35"
    second_norm = "post_attention_norm"

    def qkv(self, h: Array, i: int, at: str) -> tuple[Array, Array, Array]:
        both = self.linear(h, at + "attn_q").reshape(len(h), -1, 2, self.head_dim)
        self.gates = both[:, :, 1]
        k, v = (self.linear(h, at + "attn_" + name).reshape(len(h), -1, self.head_dim) for name in "kv")
        return both[:, :, 0], k, v

    def project(self, out: Array, at: str) -> Array:
        return super().project(out / (1 + np.exp(-self.gates.reshape(out.shape))), at)

    def vector(self, name: str) -> Array:
        return np.asarray(self.tensors[name].data, np.float64)

    def beta_and_alpha(self, h: Array, at: str) -> tuple[Array, Array]:
        return self.linear(h, at + "ssm_beta"), self.linear(h, at + "ssm_alpha")

    def key_head(self, head: int, keys: int, heads: int) -> int:
        return head % keys

    def mix(self, h: Array, i: int, at: str) -> Array:
        keys, heads, size = (self.get("ssm." + key) for key in ("group_count", "time_step_rank", "state_size"))
        mixed = silu(self.conv(self.linear(h, at + "attn_qkv"), at + "ssm_conv1d"))
        q, k, v = np.split(mixed, [keys * size, 2 * keys * size], axis=1)
        q, k, v = q.reshape(-1, keys, size), k.reshape(-1, keys, size), v.reshape(-1, heads, size)
        q, k = (x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6) for x in (q, k))
        beta, alpha = self.beta_and_alpha(h, at)
        beta = 1 / (1 + np.exp(-beta))
        decay = np.exp(self.vector(at + "ssm_a") * np.log1p(np.exp(alpha + self.vector(at + "ssm_dt.bias"))))
        out, states = np.zeros_like(v), np.zeros((heads, size, size))
        for t in range(len(h)):
            for head in range(heads):
                key, query = k[t, self.key_head(head, keys, heads)], q[t, self.key_head(head, keys, heads)] / math.sqrt(size)
                state = states[head] * decay[t, head]
                error = (v[t, head] - state.T @ key) * beta[t, head]
                states[head] = state + np.outer(key, error)
                out[t, head] = states[head].T @ query
        gain: Any = self.weight(at + "ssm_norm")
        eps = self.get("attention.layer_norm_rms_epsilon")
        out = out / np.sqrt((out * out).mean(axis=-1, keepdims=True) + eps) * gain
        z = self.linear(h, at + "attn_gate").reshape(out.shape)
        return self.linear((out * silu(z)).reshape(len(h), -1), at + "ssm_out")
