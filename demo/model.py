"""The demo model's network in PyTorch: a small Llama 2, written to be read.

tokens [B, T] -> embedding -> n_layers x (RMSNorm, grouped-query attention with RoPE, RMSNorm, SwiGLU) -> RMSNorm -> logits [B, T, n_vocab].

RoPE turns the pairs (2i, 2i+1) of each head, the convention of Meta's checkpoints and of GGUF's architecture "llama", so the exported
q/k matrices need no permutation. The output matrix is the embedding (tied): a sixth layer is worth more than a second 2048 x 256 matrix.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Shape of the network; every matrix has both sides a multiple of 128, every row (columns) a multiple of 256."""

    n_vocab: int = 2048
    dim: int = 256
    ffn_dim: int = 768
    n_layers: int = 6
    n_heads: int = 8
    n_kv_heads: int = 4
    head_dim: int = 32
    context: int = 512
    rms_eps: float = 1e-5
    rope_base: float = 10000.0

    def dict(self) -> dict[str, int | float]:
        return asdict(self)


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, in float32 whatever the autocast type."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i+1) of x [B, T, heads, head_dim] by the angles of cos, sin [T, 1, head_dim / 2]."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).type_as(x)


class Attention(nn.Module):
    """Causal attention; each key/value head serves n_heads / n_kv_heads consecutive query heads."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.q = nn.Linear(c.dim, c.n_heads * c.head_dim, bias=False)
        self.k = nn.Linear(c.dim, c.n_kv_heads * c.head_dim, bias=False)
        self.v = nn.Linear(c.dim, c.n_kv_heads * c.head_dim, bias=False)
        self.o = nn.Linear(c.n_heads * c.head_dim, c.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        q = rope(self.q(x).unflatten(-1, (self.c.n_heads, -1)), cos, sin).transpose(1, 2)
        k = rope(self.k(x).unflatten(-1, (self.c.n_kv_heads, -1)), cos, sin).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.c.n_kv_heads, -1)).transpose(1, 2)
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
            cache[:] = [k, v]
        groups = self.c.n_heads // self.c.n_kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(c.dim, c.rms_eps)
        self.attn = Attention(c)
        self.ffn_norm = RMSNorm(c.dim, c.rms_eps)
        self.gate = nn.Linear(c.dim, c.ffn_dim, bias=False)
        self.up = nn.Linear(c.dim, c.ffn_dim, bias=False)
        self.down = nn.Linear(c.ffn_dim, c.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin, cache)
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """The whole network. `cache`: n_layers lists, empty at first, that keep keys and values between calls."""

    cos: Tensor
    sin: Tensor

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.n_vocab, c.dim)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.n_layers))
        self.norm = RMSNorm(c.dim, c.rms_eps)
        angles = torch.arange(c.context)[:, None] * c.rope_base ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:  # GPT-2's initialisation: what is added to the residual stream is scaled down by the depth
                nn.init.normal_(p, std=0.02 / (2 * c.n_layers) ** 0.5 if name.endswith((".o.weight", ".down.weight")) else 0.02)

    def forward(self, ids: Tensor, cache: list[list[Tensor]] | None = None) -> Tensor:
        """ids [B, T] int64 -> logits float32 [B, T, n_vocab]. With a filled cache T must be 1."""
        past = cache[0][0].shape[2] if cache and cache[0] else 0
        cos, sin = self.cos[past : past + ids.shape[1]], self.sin[past : past + ids.shape[1]]
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, cache[i] if cache is not None else None)
        return F.linear(self.norm(x), self.embed.weight).float()

    def matrices(self) -> list[nn.Parameter]:
        """The 2-D weights inside the layers, which Muon trains (embedding and norms go to AdamW)."""
        return [p for p in self.layers.parameters() if p.ndim == 2]
