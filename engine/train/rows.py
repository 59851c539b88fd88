"""What passes between the loop and the gradients: a row of tokens, and what the model thought of it.

    data.py: rows of a file -> Row -> gradients.py: forward, backward -> RowLosses -> loop.py: loss, accuracy
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One text of the data set. Rows have their own lengths; nothing is padded."""

    ids: np.ndarray
    """int32 [n]; n is at least 2."""
    loss_mask: np.ndarray
    """bool [n]: this token is a target, predicted from those before it. The first never is."""
    first_token: int
    """Index of its first token among all tokens of the optimiser step, in the order of the data (what dropout is keyed by, with the step)."""
    name: str = ""
    """Where it comes from, for messages: "data.jsonl, line 7"."""

    @property
    def targets(self) -> int:
        """Tokens that count."""
        return int(np.count_nonzero(self.loss_mask))


@dataclass(frozen=True)
class RowLosses:
    """What the model thought of some rows' targets, in the order of rows and tokens."""

    nll: np.ndarray
    """float64 [targets]: -ln of the probability of each; NaN or infinite where the numbers went wrong."""
    hits: int
    """Targets that were the most probable token."""
    tokens: int
    """Targets: len(nll)."""
