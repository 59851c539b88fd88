"""What a step is given: tokens for sequences, which rows are wanted; and the rows that the first layer gets of them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from ..architectures.config import ModelConfig
    from .kv_cache import Sequence
    from .weights import Weights

Look = Callable[[np.ndarray, np.ndarray], None]
"""Called with some of a feed's rows of logits, float32 [k, n_vocab], valid during the call, and their positions in the sequence, int64 [k]."""


@dataclass
class Feed:
    """Tokens to append to a sequence in a step, and which of their logits are wanted."""

    sequence: Sequence
    ids: Any
    """int [n], 1 <= n."""
    logits: Literal["none", "last", "all"] = "last"
    look: Look | None = None
    """Gets the wanted rows instead of the caller, some at a time: there may be as many as the step has tokens."""
    types: Any = None
    """An encoder's token types, int [n]; None: all 0."""


@dataclass
class Part:
    """Layers [first, last) of a step instead of all. rows: the residual stream before layer `first`, float32 [tokens, dim], unless that is 0. A step that ends
    before the last layer gives no logits. The other layers' keys and values stay what they are: whoever asks for a part answers for them. until: a site of a
    layer that is observed, whose later stages do not run: the stream does not get what they would have added."""

    first: int = 0
    last: int | None = None
    rows: np.ndarray | None = None
    until: str = ""


@dataclass
class Keep:
    """An observer that copies the rows at its site: to float32 [tokens, at least the site's columns], each row contiguous. A layer that only such ones look at
    need not run in open form, if its keeping form has their sites (blocks.py); it is faster where rows begin on cache lines."""

    rows: np.ndarray

    def fits(self, n: int, columns: int) -> bool:
        """Whether compiled code can write there."""
        return self.rows.dtype == np.float32 and len(self.rows) == n and self.rows.shape[1] >= columns and self.rows.flags.c_contiguous

    def __call__(self, rows: np.ndarray) -> None:
        self.rows[:, :rows.shape[1]] = rows


def embedded(config: ModelConfig, weights: Weights, ids: np.ndarray, positions: np.ndarray, feeds: list[Feed]) -> np.ndarray:
    """Rows of the embedding, scaled, with what the architecture adds to them (token types, positions), one addition after the other: float32 [M, dim]."""
    rows = weights.embed(ids)
    if config.embedding_scale != 1:
        rows = rows * np.float32(config.embedding_scale)
    for added in config.added:
        kept = weights.kept[added.tensor.name]
        if added.by_position:
            rows = rows + kept[positions]
        else:
            types = [np.zeros(len(feed.ids), np.int64) if feed.types is None else np.asarray(feed.types) for feed in feeds]
            rows = rows + kept[np.minimum(np.concatenate(types), len(kept) - 1)]
    return rows
