"""The LayerNorm families in float64, written from Hugging Face's modelling code on the GGUF's names: GPT-2, GPT-NeoX, Phi 2, StarCoder 2, Cohere."""
from __future__ import annotations

import math

import numpy as np
from naive_families import Array, Phi3, StableLm, gelu_tanh

erf = np.vectorize(math.erf)


class GPT2(StableLm):
    architecture = "gpt2"
    act = staticmethod(gelu_tanh)
    qkv = Phi3.qkv

    def layer(self, x: Array, i: int, at: str) -> Array:
        x = x + self.attend(self.norm(x, at + "attn_norm"), i, at)
        return x + self.feed_forward(self.norm(x, at + "ffn_norm"), at)

    def pair_frequencies(self, i: int) -> list[float] | None:
        return None

    def logits(self, ids: list[int]) -> Array:
        x = (self.weight("token_embd")[ids] + self.weight("position_embd")[:len(ids)]) * self.embedding_scale()
        for i in range(self.n_layers):
            x = self.layer(x, i, f"blk.{i}.")
        return self.norm(x, "output_norm") @ self.weight("output" if "output.weight" in self.tensors else "token_embd").T


class GPTNeoX(StableLm):
    architecture = "gptneox"
    act = staticmethod(lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))))

    def qkv(self, h: Array, i: int, at: str) -> tuple[Array, Array, Array]:
        return Phi3.qkv(self, h, i, at) if at + "attn_qkv.weight" in self.tensors else super().qkv(h, i, at)  # type: ignore[arg-type]

    def layer(self, x: Array, i: int, at: str) -> Array:
        attended = self.attend(self.norm(x, at + "attn_norm"), i, at)
        if self.get("use_parallel_residual", True):
            return x + attended + self.feed_forward(self.norm(x, at + "ffn_norm"), at)
        return x + attended + self.feed_forward(self.norm(x + attended, at + "ffn_norm"), at)


class Phi2(StableLm):
    architecture = "phi2"
    act = staticmethod(gelu_tanh)

    def last(self, logits: Array) -> Array:
        return logits + self.bias("output")


class StarCoder2(StableLm):
    architecture = "starcoder2"
    act = staticmethod(gelu_tanh)
    every = 0

    def full(self, i: int) -> bool:
        return self.get("attention.sliding_window") is None


class CommandR(StableLm):
    """LayerNorm without biases; sublayers side by side."""

    architecture = "command-r"
    halves = False

    def last(self, logits: Array) -> Array:
        return logits * self.get("logit_scale")


class Cohere2(CommandR):
    architecture = "cohere2"
    every = 4

    def pair_frequencies(self, i: int) -> list[float] | None:
        return None if self.full(i) else super().pair_frequencies(i)


LAYER_NORM = (GPT2, GPTNeoX, Phi2, StarCoder2, CommandR, Cohere2)
