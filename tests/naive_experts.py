"""The families with experts in float64, written from Hugging Face's modeling_*.py: a loop over tokens and their experts. Only naive_families.py
imports it."""
from __future__ import annotations

from typing import Any

import numpy as np
from naive_families import Array, Family, Granite, Olmo2, Qwen2, Qwen3, silu
from naive_states import Lfm2, Qwen35


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class Mixture(Family):
    """A router and its experts. Ties go to the lower expert: torch leaves their order open."""

    norm_weights = True
    shared = ""

    def scores(self, logits: Array) -> Array:
        """What the experts' weights are, before they are normed."""
        return sigmoid(logits) if self.get("expert_gating_func") == 2 else softmax(logits)

    def experts_of(self, logits: Array, at: str) -> tuple[Array, Array]:
        """(experts by rank, their weights)"""
        scores = self.scores(logits)
        by = scores + self.weight_of(at + "exp_probs_b.bias", 0.0)
        groups, kept = self.get("expert_group_count", 0), self.get("expert_group_used_count", 0)
        if groups > 1:
            parts = by.reshape(groups, -1)
            best = np.argsort(-np.sort(parts, axis=1)[:, -2:].sum(axis=1), kind="stable")[:kept]
            by = np.where(np.isin(np.arange(groups), best)[:, None], parts, -np.inf).reshape(-1)
        chosen = np.argsort(-by, kind="stable")[:self.get("expert_used_count")]
        weights = scores[chosen]
        if self.get("expert_weights_norm", self.norm_weights):
            weights = weights / weights.sum()
        return chosen, weights * (self.get("expert_weights_scale") or 1.0)

    def weight_of(self, name: str, default: Any) -> Any:
        return np.asarray(self.tensors[name].data, np.float64) if name in self.tensors else default

    def gate_and_up(self, h: Array, at: str, e: int) -> tuple[Array, Array]:
        if at + "ffn_gate_up_exps.weight" in self.tensors:
            gate, up = np.split(self.weight(at + "ffn_gate_up_exps")[e] @ h, 2)
            return gate, up
        return self.expert(h, at + "ffn_gate_exps", e), self.expert(h, at + "ffn_up_exps", e)

    def expert(self, h: Array, name: str, e: int) -> Array:
        return self.weight(name)[e] @ h + (self.bias(name)[e] if name + ".bias" in self.tensors else 0.0)

    def hidden(self, gate: Array, up: Array) -> Array:
        return silu(gate) * up

    def feed_forward(self, h: Array, at: str) -> Array:
        logits, out = self.linear(h, at + "ffn_gate_inp"), np.zeros_like(h)
        for t in range(len(h)):
            for e, w in zip(*self.experts_of(logits[t], at)):
                out[t] += w * self.expert(self.hidden(*self.gate_and_up(h[t], at, e)), at + "ffn_down_exps", e)
        return out + self.shared_expert(h, at)

    def shared_expert(self, h: Array, at: str) -> Array | float:
        if not self.shared or at + "ffn_up_shexp.weight" not in self.tensors:
            return 0.0
        hidden = silu(self.linear(h, at + "ffn_gate_shexp")) * self.linear(h, at + "ffn_up_shexp")
        out = self.linear(hidden, at + "ffn_down_shexp")
        return sigmoid(h @ self.weight(at + "ffn_gate_inp_shexp"))[:, None] * out if self.shared == "gated" else out


class Qwen3Moe(Mixture):
    architecture = "qwen3moe"
    prepare = Qwen3.prepare


class Qwen2Moe(Mixture, Qwen2):
    architecture = "qwen2moe"
    norm_weights = False
    shared = "gated"


class Olmoe(Mixture):
    architecture = "olmoe"
    prepare = Olmo2.prepare
    norm_weights = False


class GraniteMoe(Mixture, Granite):
    architecture = "granitemoe"
    shared = "plain"


class GptOss(Mixture):
    """Softmax of the chosen logits; sinks take their part of a head's softmax; windows in every second layer; YaRN without rounding its corrections."""

    architecture = "gpt-oss"
    norm_weights = False
    every = 2

    def experts_of(self, logits: Array, at: str) -> tuple[Array, Array]:
        chosen = np.argsort(-logits, kind="stable")[:self.get("expert_used_count")]
        return chosen, softmax(logits[chosen])

    def hidden(self, gate: Array, up: Array) -> Array:
        gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
        return gate * sigmoid(1.702 * gate) * (up + 1)

    def layer(self, x: Array, i: int, at: str) -> Array:
        x = x + self.attend(self.norm(x, at + "attn_norm"), i, at)
        return x + self.feed_forward(self.norm(x, at + "post_attention_norm"), at)

    def sink(self, i: int) -> Array | None:
        return self.weight(f"blk.{i}.attn_sinks")

    def pair_frequencies(self, i: int) -> list[float] | None:
        factor = self.get("rope.scaling.factor", 1.0)
        plain = np.array(self.plain(self.get("rope.freq_base", 10000.0)))
        if self.get("rope.scaling.type") != "yarn":
            return list(plain)
        d, base, trained = self.rope_dim(), self.get("rope.freq_base", 10000.0), self.get("rope.scaling.original_context_length")
        low, high = (d * np.log(trained / (turns * 2 * np.pi)) / (2 * np.log(base)) for turns in
                     (self.get("rope.scaling.yarn_beta_fast", 32.0), self.get("rope.scaling.yarn_beta_slow", 1.0)))
        low, high = max(low, 0), min(high, d - 1)
        ramp = np.clip((np.arange(d // 2) - low) / max(high - low, 0.001), 0, 1)
        return list(plain / factor * ramp + plain * (1 - ramp))


class Mixtral(Mixture):
    """A file of architecture llama with experts."""

    halves = False


class Lfm2Moe(Mixture, Lfm2):
    """The first layers are dense."""

    architecture = "lfm2moe"

    def feed_forward(self, h: Array, at: str) -> Array:
        dense = at + "ffn_gate.weight" in self.tensors
        return Family.feed_forward(self, h, at) if dense else Mixture.feed_forward(self, h, at)


class Qwen35Moe(Mixture, Qwen35):
    architecture = "qwen35moe"
    shared = "gated"


class Qwen3Next(Qwen35Moe):
    """fix_query_key_value_ordering: of each key head its value heads' beta, then their alpha; value heads of a key head side by side."""

    architecture = "qwen3next"

    def beta_and_alpha(self, h: Array, at: str) -> tuple[Array, Array]:
        beta, alpha = np.split(self.linear(h, at + "ssm_ba").reshape(len(h), self.get("ssm.group_count"), -1), 2, axis=2)
        return beta.reshape(len(h), -1), alpha.reshape(len(h), -1)

    def key_head(self, head: int, keys: int, heads: int) -> int:
        return head // (heads // keys)


EXPERTS = (Qwen3Moe, Qwen2Moe, Olmoe, GraniteMoe, GptOss, Lfm2Moe, Qwen35Moe, Qwen3Next)
