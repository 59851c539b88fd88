"""Other families than Llama in float64 (naive.py's `NaiveLlama` is Llama itself): written from Hugging Face's modelling code, on the GGUF file's names.

    naive_family("model.gguf", ids) -> float64 [len(ids), n_vocab]

One plain transformer whose parts a family replaces: a class each, that says only what differs. Shares no code with the engine and its pages.
"""
from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from naive import NaiveLlama

Array = np.ndarray[Any, Any]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu2(x: Array) -> Array:
    return np.maximum(x, 0) ** 2


class Family(NaiveLlama):
    """What the families share: RMSNorm before attention and feed-forward, biases wherever the file has them, RoPE on halves."""

    head_dim: int
    architecture = "llama"
    halves = True
    act = staticmethod(silu)

    def __init__(self, path: Any, kv_dtype: type = np.float64):
        super().__init__(path, kv_dtype)
        self.n_layers -= self.get("nextn_predict_layers", 0)  # Hugging Face leaves the heads that predict further tokens out as well
        self.weight = functools.cache(super().weight)  # type: ignore[method-assign]

    def get(self, key: str, default: Any = None) -> Any:
        return self.keys.get(f"{self.architecture}.{key}", default)

    def bias(self, name: str) -> Array | float:
        tensor = self.tensors.get(name + ".bias")
        return 0.0 if tensor is None else np.asarray(tensor.data, np.float64)

    def linear(self, h: Array, name: str) -> Array:
        return h @ self.weight(name).T + self.bias(name)

    # -- one layer

    def logits(self, ids: list[int]) -> Array:
        x = self.weight("token_embd")[ids] * self.embedding_scale()
        for i in range(self.n_layers):
            x = self.layer(x, i, f"blk.{i}.")
        h = self.norm(x, "output_norm")
        out = h @ self.weight("output" if "output.weight" in self.tensors else "token_embd").T
        return self.last(out)

    def embedding_scale(self) -> float:
        return 1.0

    def last(self, logits: Array) -> Array:
        return logits

    def layer(self, x: Array, i: int, at: str) -> Array:
        x = x + self.attend(self.norm(x, at + "attn_norm"), i, at)
        return x + self.feed_forward(self.norm(x, at + "ffn_norm"), at)

    def feed_forward(self, h: Array, at: str) -> Array:
        if at + "ffn_gate.weight" in self.tensors:
            hidden = self.act(self.linear(h, at + "ffn_gate")) * self.linear(h, at + "ffn_up")
        else:
            hidden = self.act(self.linear(h, at + "ffn_up"))
        return self.linear(hidden, at + "ffn_down")

    # -- attention

    def qkv(self, h: Array, i: int, at: str) -> tuple[Array, Array, Array]:
        q, k, v = (self.linear(h, at + "attn_" + name).reshape(len(h), -1, self.head_dim) for name in "qkv")
        return q, k, v

    def prepare(self, q: Array, k: Array, i: int, at: str) -> tuple[Array, Array]:
        """Norms and positions."""
        return self.turn(q, i), self.turn(k, i)

    def scale(self) -> float:
        return self.head_dim**-0.5

    every: int | None = None
    """One layer of so many sees everything, the last of them, where the file does not say which."""

    def full(self, i: int) -> bool:
        """Whether the layer sees everything: Hugging Face's layer_types."""
        if self.get("attention.sliding_window") is None:
            return True
        pattern = self.get("attention.sliding_window_pattern", self.every)
        if isinstance(pattern, list):
            return not pattern[i]
        return bool(pattern) and (i + 1) % pattern == 0

    def window(self, i: int) -> int | None:
        return None if self.full(i) else self.get("attention.sliding_window")

    def cap(self) -> float | None:
        return None

    def sink(self, i: int) -> Array | None:
        """A logit for each head that takes its part of the softmax."""
        return None

    def attend(self, h: Array, i: int, at: str) -> Array:
        n = len(h)
        q, k, v = self.qkv(h, i, at)
        q, k = self.prepare(q, k, i, at)
        out, window, cap, scale, sink = np.empty_like(q), self.window(i), self.cap(), self.scale(), self.sink(i)
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // k.shape[1])
            for t in range(n):
                first = max(0, t - window + 1) if window else 0
                scores = k[first:t + 1, kv] @ q[t, head] * scale
                if cap:
                    scores = cap * np.tanh(scores / cap)
                most = max(scores.max(), scores.max() if sink is None else sink[head])
                p = np.exp(scores - most)
                out[t, head] = p / (p.sum() + (0.0 if sink is None else np.exp(sink[head] - most))) @ v[first:t + 1, kv]
        return self.project(out.reshape(n, -1), at)

    def project(self, out: Array, at: str) -> Array:
        return self.linear(out, at + "attn_output")

    # -- positions

    def rope_dim(self) -> int:
        return self.get("rope.dimension_count", self.head_dim)

    def turn(self, x: Array, i: int) -> Array:
        frequencies = self.pair_frequencies(i)
        if frequencies is None:
            return x
        out, pairs = x.copy(), len(frequencies)
        for j, f in enumerate(frequencies):
            a, b = (j, pairs + j) if self.halves else (2 * j, 2 * j + 1)
            angle = np.arange(len(x))[:, None] * f
            c, s = np.cos(angle) * self.turn_scale(i), np.sin(angle) * self.turn_scale(i)
            out[:, :, a], out[:, :, b] = x[:, :, a] * c - x[:, :, b] * s, x[:, :, a] * s + x[:, :, b] * c
        return out

    def turn_scale(self, i: int) -> float:
        return self.rope_scale()

    def pair_frequencies(self, i: int) -> list[float] | None:
        d, whole = self.rope_dim(), self.head_dim
        self.head_dim = d  # NaiveLlama's formulas are of whole heads
        try:
            return self.frequencies()
        finally:
            self.head_dim = whole

    def plain(self, base: float, factor: float = 1.0) -> list[float]:
        d = self.rope_dim()
        return [base ** (-2 * j / d) / factor for j in range(d // 2)]

    def head_norm(self, x: Array, name: str) -> Array:
        """RMSNorm of each head, or of the whole projection where the gain is as wide."""
        gain = self.weight(name)
        flat = x.reshape(len(x), -1) if len(gain) != x.shape[-1] else x
        normed = flat / np.sqrt((flat * flat).mean(axis=-1, keepdims=True) + self.eps) * gain
        return normed.reshape(x.shape)


class Llama(Family):
    halves = False


class Qwen2(Family):
    architecture = "qwen2"


class Qwen3(Family):
    architecture = "qwen3"

    def prepare(self, q: Array, k: Array, i: int, at: str) -> tuple[Array, Array]:
        return self.turn(self.head_norm(q, at + "attn_q_norm"), i), self.turn(self.head_norm(k, at + "attn_k_norm"), i)


class SmolLM3(Family):
    architecture = "smollm3"
    halves = False

    def pair_frequencies(self, i: int) -> list[float] | None:
        return None if (i + 1) % 4 == 0 else super().pair_frequencies(i)  # the converter knows no other interval


class SeedOss(Family):
    architecture = "seed_oss"

    def layer(self, x: Array, i: int, at: str) -> Array:
        x = x + self.attend(self.norm(x, at + "attn_norm"), i, at)
        return x + self.feed_forward(self.norm(x, at + "post_attention_norm"), at)


class Exaone(Family):
    architecture = "exaone"


class Arcee(Family):
    architecture = "arcee"
    halves = False
    act = staticmethod(relu2)


class Hunyuan(Family):
    architecture = "hunyuan-dense"

    def prepare(self, q: Array, k: Array, i: int, at: str) -> tuple[Array, Array]:
        return self.head_norm(self.turn(q, i), at + "attn_q_norm"), self.head_norm(self.turn(k, i), at + "attn_k_norm")


class Ernie(Family):
    architecture = "ernie4_5"
    halves = False


class Gemma(Family):
    """Gains are stored with the 1 already added."""

    architecture = "gemma"
    act = staticmethod(gelu_tanh)

    def embedding_scale(self) -> float:
        return math.sqrt(self.get("embedding_length"))


class Gemma2(Gemma):
    architecture = "gemma2"

    def layer(self, x: Array, i: int, at: str) -> Array:
        x = x + self.norm(self.attend(self.norm(x, at + "attn_norm"), i, at), at + "post_attention_norm")
        return x + self.norm(self.feed_forward(self.norm(x, at + "ffn_norm"), at), at + "post_ffw_norm")

    every = 2

    def scale(self) -> float:
        if self.n_layers == 46:  # 27B
            return (self.get("embedding_length") / self.n_heads) ** -0.5
        return super().scale()

    def cap(self) -> float | None:
        return self.get("attn_logit_softcapping")

    def last(self, logits: Array) -> Array:
        cap = self.get("final_logit_softcapping")
        return cap * np.tanh(logits / cap) if cap else logits


class Gemma3(Gemma2):
    architecture = "gemma3"
    prepare = Qwen3.prepare

    every = 6

    def scale(self) -> float:
        return (self.get("embedding_length") / self.n_heads) ** -0.5 if self.n_layers == 62 else self.head_dim**-0.5

    def pair_frequencies(self, i: int) -> list[float] | None:
        if self.full(i):
            return self.plain(self.get("rope.freq_base", 10000.0), self.get("rope.scaling.factor", 1.0))
        return self.plain(self.get("rope.freq_base_swa", 10000.0))


class Phi3(Family):
    architecture = "phi3"

    def qkv(self, h: Array, i: int, at: str) -> tuple[Array, Array, Array]:
        n, d, every = len(h), self.head_dim, self.linear(h, at + "attn_qkv")
        q, k, v = np.split(every, [self.n_heads * d, (self.n_heads + self.n_kv_heads) * d], axis=1)
        return q.reshape(n, -1, d), k.reshape(n, -1, d), v.reshape(n, -1, d)

    def feed_forward(self, h: Array, at: str) -> Array:
        gate, up = np.split(self.linear(h, at + "ffn_up"), 2, axis=1)
        return self.linear(silu(gate) * up, at + "ffn_down")

    def pair_frequencies(self, i: int) -> list[float] | None:
        plain = self.plain(self.get("rope.freq_base", 10000.0))
        if "rope_factors_long.weight" not in self.tensors:
            return plain
        trained, context = self.get("rope.scaling.original_context_length"), self.context or self.get("context_length")
        return list(np.array(plain) / self.weight("rope_factors_long" if context > trained else "rope_factors_short"))

    context: int | None = None
    """What the model is run with; None: what it was trained for."""

    def turn_scale(self, i: int) -> float:
        return self.get("rope.scaling.attn_factor", 1.0)


class Granite(Family):
    architecture = "granite"
    halves = False

    def embedding_scale(self) -> float:
        return self.get("embedding_scale", 1.0)

    def layer(self, x: Array, i: int, at: str) -> Array:
        residual = self.get("residual_scale", 1.0)
        x = x + residual * self.attend(self.norm(x, at + "attn_norm"), i, at)
        return x + residual * self.feed_forward(self.norm(x, at + "ffn_norm"), at)

    def scale(self) -> float:
        return self.get("attention.scale", super().scale())

    def last(self, logits: Array) -> Array:
        return logits / self.get("logit_scale", 1.0)


class MiniCPM(Granite):
    """Written from the authors' modeling_minicpm.py: the configuration of the 1B and 2B where a file says nothing."""

    architecture = "minicpm"

    def embedding_scale(self) -> float:
        return self.get("embedding_scale", 12.0)

    def layer(self, x: Array, i: int, at: str) -> Array:
        residual = self.get("residual_scale", 1.4 / math.sqrt(self.n_layers))
        x = x + residual * self.attend(self.norm(x, at + "attn_norm"), i, at)
        return x + residual * self.feed_forward(self.norm(x, at + "ffn_norm"), at)

    def last(self, logits: Array) -> Array:
        return logits / self.get("logit_scale", self.get("embedding_length") / 256)


class Mistral3(Family):
    architecture = "mistral3"
    halves = False

    def prepare(self, q: Array, k: Array, i: int, at: str) -> tuple[Array, Array]:
        beta, trained = self.get("attention.temperature_scale", 0.0), self.get("rope.scaling.original_context_length", 8192)
        by = 1 + beta * np.log(1 + np.floor(np.arange(len(q)) / trained))
        return self.turn(q, i) * by[:, None, None], self.turn(k, i)

    def turn_scale(self, i: int) -> float:
        """mscale and mscale_all_dim are equal in every published file, and cancel."""
        return 1.0


class Olmo2(Family):
    """Norms after the sublayers only, and of whole projections."""

    architecture = "olmo2"
    prepare = Qwen3.prepare

    def layer(self, x: Array, i: int, at: str) -> Array:
        x = x + self.norm(self.attend(x, i, at), at + "post_attention_norm")
        return x + self.norm(self.feed_forward(x, at), at + "post_ffw_norm")

    every = 4

    def pair_frequencies(self, i: int) -> list[float] | None:
        return super().pair_frequencies(i) if self.full(i) else self.plain(self.get("rope.freq_base", 10000.0))

    def turn_scale(self, i: int) -> float:
        return self.rope_scale() if self.full(i) else 1.0


class Exaone4(Olmo2):
    """Norms of heads; where there are windows, full layers are not turned."""

    architecture = "exaone4"

    def pair_frequencies(self, i: int) -> list[float] | None:
        if self.get("attention.sliding_window") is not None and self.full(i):
            return None
        return Family.pair_frequencies(self, i)

    def turn_scale(self, i: int) -> float:
        return self.rope_scale()


class Glm4(Gemma2):
    architecture = "glm4"
    halves = False
    feed_forward = Phi3.feed_forward

    def embedding_scale(self) -> float:
        return 1.0

    def scale(self) -> float:
        return self.head_dim**-0.5


class StableLm(Family):
    """LayerNorm with bias; without ffn_norm the sublayers stand side by side."""

    architecture = "stablelm"

    def norm(self, x: Array, name: str) -> Array:
        eps = self.get("attention.layer_norm_epsilon")
        return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps) * self.weight(name) + self.bias(name)

    def prepare(self, q: Array, k: Array, i: int, at: str) -> tuple[Array, Array]:
        if at + "attn_q_norm.weight" in self.tensors:  # a LayerNorm of each head, gains [heads, head_dim]
            q, k = (self.norm(x, at + name).reshape(x.shape) for x, name in ((q, "attn_q_norm"), (k, "attn_k_norm")))
        return self.turn(q, i), self.turn(k, i)

    def layer(self, x: Array, i: int, at: str) -> Array:
        h = self.norm(x, at + "attn_norm")
        if at + "ffn_norm.weight" not in self.tensors:
            return x + self.attend(h, i, at) + self.feed_forward(h, at)
        x = x + self.attend(h, i, at)
        return x + self.feed_forward(self.norm(x, at + "ffn_norm"), at)


from naive_experts import EXPERTS, Mixtral  # noqa: E402  (they need what stands above)
from naive_gemma4 import Gemma4  # noqa: E402
from naive_latent import DeepSeek2  # noqa: E402
from naive_layer_norm import LAYER_NORM  # noqa: E402
from naive_mamba import MAMBA  # noqa: E402
from naive_states import Lfm2, Qwen35  # noqa: E402

FAMILIES = {f.architecture: f for f in (
    Llama, Qwen2, Qwen3, SmolLM3, SeedOss, Arcee, Hunyuan, Ernie, Gemma, Gemma2, Gemma3, Phi3, Granite, MiniCPM, Mistral3, Olmo2, Exaone, Exaone4, Glm4,
    StableLm, Gemma4, *LAYER_NORM, Lfm2, Qwen35, *EXPERTS, *MAMBA, DeepSeek2)} | {"mixtral": Mixtral}


def naive_family(path: Path | str, ids: list[int], kv_dtype: type = np.float64) -> Array:
    """float64 [len(ids), n_vocab] logits of a GGUF file of any architecture in FAMILIES, with its weights dequantised."""
    import gguf

    reader = gguf.GGUFReader(path)  # which takes as long as the logits: once
    architecture = reader.fields["general.architecture"].contents()
    return FAMILIES["mixtral" if "llama.expert_count" in reader.fields else architecture](reader, kv_dtype).logits(ids)
