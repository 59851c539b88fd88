"""Latent attention in float64: DeepSeek V2 and GLM-4.7-Flash, written from Hugging Face's DeepseekV2Attention and Glm4MoeLiteAttention, with keys and values of
every head made from the latents as there; the GGUF file's matrices and names."""
from __future__ import annotations

import math

import numpy as np
from naive_experts import Mixture
from naive_families import Array, Family


class DeepSeek2(Mixture):
    architecture = "deepseek2"
    halves = False
    shared = "plain"
    norm_weights = False

    def pair_frequencies(self, i: int) -> list[float] | None:
        d, base, factor = self.get("rope.dimension_count"), self.get("rope.freq_base", 10000.0), self.get("rope.scaling.factor", 1.0)
        plain = np.array([base ** (-2 * j / d) for j in range(d // 2)])
        if self.get("rope.scaling.type") != "yarn":
            return list(plain)
        trained = self.get("rope.scaling.original_context_length")
        low, high = (d * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32.0, 1.0))
        low, high = max(math.floor(low), 0), min(math.ceil(high), d - 1)
        ramp = np.clip((np.arange(d // 2) - low) / max(high - low, 0.001), 0, 1)
        return list(plain / factor * ramp + plain * (1 - ramp))

    def turn_scale(self, i: int) -> float:
        return 1.0

    def rms(self, x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self.weight(name)

    def attend(self, h: Array, i: int, at: str) -> Array:
        n, heads, latent, turned = len(h), self.get("attention.head_count"), self.get("attention.kv_lora_rank"), self.get("rope.dimension_count")
        size = self.get("attention.key_length_mla")
        if at + "attn_q.weight" in self.tensors:
            q = self.linear(h, at + "attn_q")
        else:
            q = self.linear(self.rms(self.linear(h, at + "attn_q_a"), at + "attn_q_a_norm"), at + "attn_q_b")
        q = q.reshape(n, heads, size)
        q[:, :, size - turned:] = self.turn(q[:, :, size - turned:], i)
        both = self.linear(h, at + "attn_kv_a_mqa")
        c, k_turned = self.rms(both[:, :latent], at + "attn_kv_a_norm"), self.turn(both[:, None, latent:], i)[:, 0]
        m = 0.0 if self.get("rope.scaling.type") != "yarn" else self.get("rope.scaling.yarn_log_multiplier", 0.0) * math.log(self.get("rope.scaling.factor"))
        scale, out = (1 + m) ** 2 * size**-0.5, []
        for head in range(heads):
            k = np.concatenate([c @ self.weight(at + "attn_k_b")[head], k_turned], axis=1)  # the file has that of keys transposed
            v, result = c @ self.weight(at + "attn_v_b")[head].T, []
            for t in range(n):
                p = np.exp((scores := k[:t + 1] @ q[t, head] * scale) - scores.max())
                result.append(p / p.sum() @ v[:t + 1])
            out.append(np.array(result))
        return self.linear(np.concatenate(out, axis=1), at + "attn_output")

    def feed_forward(self, h: Array, at: str) -> Array:
        return Family.feed_forward(self, h, at) if at + "ffn_gate.weight" in self.tensors else Mixture.feed_forward(self, h, at)
