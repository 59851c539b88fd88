"""A model as Hugging Face stores it: names of its tensors, and the order of the rows of q and k.

**RoPE pairs.** Rotary positions turn pairs of a head's dimensions. Meta's release, llama2.c and GGUF's llama convention pair neighbours,
(0, 1), (2, 3), ...; Hugging Face pairs dimension i with i + head_dim/2. The angles are the same, so only the order of the rows of the query and key
matrices differs: HF has, in each head, first the even rows of Meta's order, then the odd ones. `interleaved_order` undoes that. Scores are dot products of q
and k, which do not care how both are ordered; v and the rest have no pairs, and stay.
"""
from __future__ import annotations

import numpy as np

from .config import ModelConfig
from .page import Page
from .spec import Tensor


def hf_tensors(page: Page, config: ModelConfig) -> dict[str, Tensor]:
    """Hugging Face's name -> tensor, of all that a model of this configuration has there, as its page says."""
    found = {}
    for tensor in config.tensors():
        name = tensor.hf
        for ours, theirs in page.hf_renamed:
            name = name.replace(ours, theirs)
        if name:
            found[name] = tensor
    return found


def of_text(name: str) -> str:
    """The name in the text part of a model of several parts: "language_model.model.x" and "model.language_model.x" are "model.x"."""
    return name.removeprefix("language_model.") if name.startswith("language_model.") else name.replace("model.language_model.", "model.", 1)


def row_orders(page: Page, config: ModelConfig) -> dict[str, np.ndarray]:
    """Tensor -> the rows of Hugging Face's that its rows are, for queries' and keys' matrices, biases and gains, where the two pair dimensions otherwise."""
    found: dict[str, np.ndarray] = {}
    if page.hf_heads_fused:
        for a in config.attentions():
            found[a.q.tensor] = np.arange(3 * a.heads * a.head_dim).reshape(a.heads, 3, a.head_dim).swapaxes(0, 1).reshape(-1)
            if a.q.bias:
                found[a.q.bias] = found[a.q.tensor]
    if not page.hf_halves:
        return found
    for a in config.attentions():
        dims = config.rope.dims
        for matrix, norm, heads in (a.q, a.q_norm, a.heads), (a.k, a.k_norm, a.kv_heads):
            if matrix:
                assert not matrix.whole, "no page has fused rows in another order"
                found[matrix.tensor] = interleaved_order(heads, a.head_dim, dims)
                if matrix.bias:
                    found[matrix.bias] = found[matrix.tensor]
                if norm:
                    found[norm.tensor] = interleaved_order(norm.dim // a.head_dim, a.head_dim, dims)
    return found


def interleaved_order(n_heads: int, head_dim: int, dims: int | None = None) -> np.ndarray:
    """int64 [n_heads * head_dim]: the row of HF's query or key matrix that each row of GGUF's is, row h * head_dim + 2i + j being
    h * head_dim + j * dims/2 + i; rows past the `dims` (default: all) that are turned stay."""
    dims = head_dim if dims is None else dims
    rows = np.arange(n_heads * head_dim).reshape(n_heads, head_dim)
    turned = rows[:, :dims].reshape(n_heads, 2, dims // 2).swapaxes(1, 2).reshape(n_heads, dims)
    return np.concatenate([turned, rows[:, dims:]], axis=1).reshape(-1)
