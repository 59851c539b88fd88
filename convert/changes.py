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
from ..engine.architectures.mamba_blocks import Mamba2
from ..engine.architectures.state_blocks import Delta
from .sources.base import Mapped, Permuted, PermutedVector, Rows, Scaled, Stored


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


def shaped(stored: Stored, shape: tuple[int, ...]) -> Stored:
    """A vector [n] as a matrix of as many numbers: the gains of groups, or numbers of heads."""
    if len(stored.shape) == 1 and len(shape) == 2 and stored.shape[0] == shape[0] * shape[1] and stored.strides in (None, (1,)):
        return replace(stored, shape=shape, strides=None)
    return stored


def times(rows: Rows, factor: float | np.ndarray) -> Rows:
    """Rows multiplied by a number, or each by its own; of a vector, its elements."""
    if isinstance(factor, np.ndarray) and len(rows.shape) == 2:
        return Scaled(rows, factor.astype(np.float32)[:, None], (1, rows.shape[1]))
    return Mapped(rows, lambda values: values * np.float32(factor))


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
        if isinstance(r, Mamba2):
            found[r.a.name] = lambda base: Mapped(base, _negative_exp)
        if isinstance(r, Delta):
            heads, rows = value_order(r.key_heads, r.value_heads), value_order(r.key_heads, r.value_heads, r.value_dim)
            channels = np.concatenate([np.arange(2 * r.keys), 2 * r.keys + rows])
            if r.grouped:
                heads, rows, channels = np.arange(len(heads)), np.arange(len(rows)), np.arange(len(channels))
            gates = [(m.tensor, heads) for m in (r.alpha, r.beta) if m]
            for name, order in ((r.qkv.tensor, channels), (r.z.tensor, rows), *gates, (r.kernel.name, channels)):
                found[name] = lambda base, order=order: Permuted(base, order)  # type: ignore[misc]
            found[r.dt.name] = lambda base, order=heads: PermutedVector(base, order)  # type: ignore[misc]
            found[r.a.name] = lambda base, order=heads: PermutedVector(Mapped(base, _negative_exp), order)  # type: ignore[misc]
            found[r.output.tensor] = lambda base, order=rows: PermutedColumns(base, order)  # type: ignore[misc]
    return found
