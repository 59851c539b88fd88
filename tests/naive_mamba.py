"""Mamba-2 hybrids in float64, token after token in plain loops: written from Hugging Face's modelling code (mamba2_selective_state_update, the layers
of Granite 4 H, Nemotron-H and Falcon-H1), on the GGUF file's names. Shares no code with the engine and its pages."""
from __future__ import annotations

import numpy as np
from naive_experts import Mixture
from naive_families import Array, Family, Granite, relu2, silu
from naive_states import Recurrent


class Mamba2(Recurrent):
    def vector(self, name: str) -> Array:
        return np.asarray(self.tensors[name].data, np.float64).reshape(-1)

    def mix(self, h: Array, i: int, at: str) -> Array:
        inner, heads, groups, size = (self.get("ssm." + key) for key in ("inner_size", "time_step_rank", "group_count", "state_size"))
        z, xbc, steps = np.split(self.linear(h, at + "ssm_in"), [inner, 2 * inner + 2 * groups * size], axis=1)
        xbc = silu(self.conv(xbc, at + "ssm_conv1d") + self.bias(at + "ssm_conv1d"))
        x, b, c = np.split(xbc, [inner, inner + groups * size], axis=1)
        x, b, c = x.reshape(len(h), heads, -1), b.reshape(len(h), groups, size), c.reshape(len(h), groups, size)
        steps = np.log1p(np.exp(steps + self.vector(at + "ssm_dt.bias")))
        decay, skip = np.exp(steps * self.vector(at + "ssm_a")), self.vector(at + "ssm_d")
        out, states = np.zeros_like(x), np.zeros((heads, x.shape[2], size))
        for t in range(len(h)):
            for head in range(heads):
                group = head // (heads // groups)
                states[head] = decay[t, head] * states[head] + np.outer(steps[t, head] * x[t, head], b[t, group])
                out[t, head] = states[head] @ c[t, group] + skip[head] * x[t, head]
        y = out.reshape(len(h), inner) * silu(z)
        if at + "ssm_norm.weight" in self.tensors:
            y = y.reshape(len(h), groups, -1)
            y = y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + self.get("attention.layer_norm_rms_epsilon")) * self.weight(at + "ssm_norm")
        return self.linear(y.reshape(len(h), inner), at + "ssm_out")

    def prepare(self, q: Array, k: Array, i: int, at: str) -> tuple[Array, Array]:
        return self.turn(q, i), self.turn(k, i)


class GraniteHybrid(Mamba2, Mixture, Granite):
    architecture = "granitehybrid"
    halves = False
    shared = "plain"

    def pair_frequencies(self, i: int) -> list[float] | None:
        return super().pair_frequencies(i) if self.get("rope.scaling.finetuned", True) else None

    def feed_forward(self, h: Array, at: str) -> Array:
        return Family.feed_forward(self, h, at) if at + "ffn_gate.weight" in self.tensors else Mixture.feed_forward(self, h, at)

    def layer(self, x: Array, i: int, at: str) -> Array:
        h, residual = self.norm(x, at + "attn_norm"), self.get("residual_scale", 1.0)
        x = x + residual * (self.attend(h, i, at) if self.attends(i, at) else self.mix(h, i, at))
        return x + residual * self.feed_forward(self.norm(x, at + "ffn_norm"), at)


class NemotronH(Mamba2):
    architecture = "nemotron_h"
    act = staticmethod(relu2)

    def pair_frequencies(self, i: int) -> list[float] | None:
        return None

    def layer(self, x: Array, i: int, at: str) -> Array:
        h = self.norm(x, at + "attn_norm")
        if at + "ssm_in.weight" in self.tensors:
            return x + self.mix(h, i, at)
        return x + (self.attend(h, i, at) if self.attends(i, at) else self.feed_forward(h, at))


class NemotronHMoe(NemotronH, Mixture):
    architecture = "nemotron_h_moe"

    def feed_forward(self, h: Array, at: str) -> Array:
        out = self.linear(relu2(self.linear(h, at + "ffn_up_shexp")), at + "ffn_down_shexp")
        logits = self.linear(h, at + "ffn_gate_inp")
        for t in range(len(h)):
            for e, w in zip(*self.experts_of(logits[t], at)):
                out[t] += w * (self.weight(at + "ffn_down_exps")[e] @ relu2(self.weight(at + "ffn_up_exps")[e] @ h[t]))
        return out

    def scores(self, logits: Array) -> Array:
        return 1 / (1 + np.exp(-logits))


class FalconH1(Mamba2):
    architecture = "falcon-h1"

    def layer(self, x: Array, i: int, at: str) -> Array:
        h = self.norm(x, at + "attn_norm")
        x = x + self.mix(h, i, at) + self.attend(h, i, at)
        return x + self.feed_forward(self.norm(x, at + "ffn_norm"), at)

    def norm(self, x: Array, name: str) -> Array:
        if not name.endswith("ffn_norm"):
            return super().norm(x, name)
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self.vector(name)  # the one whose name lacks .weight


MAMBA = (GraniteHybrid, NemotronH, NemotronHMoe, FalconH1)
