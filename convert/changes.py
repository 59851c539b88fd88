"""What recurrent layers' tensors of a Hugging Face checkpoint become beyond their names: GGUF's order of value heads, and decays ready to multiply.

Value heads. Hugging Face has the value heads of a key head side by side (v = key * ratio + r), GGUF's qwen35 key heads side by side (r * key_heads + key), so
that value head h has the key of head h mod key_heads. So rows of values, gates, alpha, beta and the convolution go into that order, and columns of ssm_out.
Decays. Hugging Face has log(A), GGUF -A.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..engine.architectures.config import ModelConfig
from ..engine.architectures.state_blocks import Delta
from .sources.base import Mapped, Permuted, PermutedVector, Rows, Stored


@dataclass(frozen=True)
class PermutedColumns(Permuted):
    """Column i is the base's column order[i]."""

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.base.read(index)[:, self.order]


def squeezed(stored: Stored) -> Stored:
    """A convolution's kernel [channels, 1, taps] as [channels, taps]."""
    if len(stored.shape) != 3 or stored.shape[1] != 1:
        return stored
    strides = stored.strides and (stored.strides[0], stored.strides[2])
    return replace(stored, shape=(stored.shape[0], stored.shape[2]), strides=strides)


def value_order(key_heads: int, value_heads: int, size: int = 1) -> np.ndarray:
    """int64 [value_heads * size]: Hugging Face's row of each of GGUF's, of `size` rows a head."""
    heads = np.arange(value_heads).reshape(key_heads, -1).T.reshape(-1)
    return (heads[:, None] * size + np.arange(size)).reshape(-1)


def _negative_exp(values: np.ndarray) -> np.ndarray:
    return -np.exp(values.astype(np.float64)).astype(np.float32)


def changes(config: ModelConfig) -> dict[str, Callable[[Rows], Rows]]:
    """Tensor -> what its rows become."""
    found: dict[str, Callable[[Rows], Rows]] = {}
    for r in config.recurrents():
        if isinstance(r, Delta):
            heads, rows = value_order(r.key_heads, r.value_heads), value_order(r.key_heads, r.value_heads, r.value_dim)
            channels = np.concatenate([np.arange(2 * r.keys), 2 * r.keys + rows])
            if r.grouped:
                heads, rows, channels = np.arange(len(heads)), np.arange(len(rows)), np.arange(len(channels))
            for name, order in ((r.qkv.tensor, channels), (r.z.tensor, rows), (r.alpha.tensor, heads), (r.beta.tensor, heads), (r.kernel.name, channels)):
                found[name] = lambda base, order=order: Permuted(base, order)  # type: ignore[misc]
            found[r.dt.name] = lambda base, order=heads: PermutedVector(base, order)  # type: ignore[misc]
            found[r.a.name] = lambda base, order=heads: PermutedVector(Mapped(base, _negative_exp), order)  # type: ignore[misc]
            found[r.output.tensor] = lambda base, order=rows: PermutedColumns(base, order)  # type: ignore[misc]
    return found
