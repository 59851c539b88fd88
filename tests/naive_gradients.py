"""What gradients of an adapter must be: differences of a float64 model's loss (naive.py, naive_families.py), whose matrices have the pairs merged into them."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from naive import log_softmax
from naive_families import FAMILIES


class Twin:
    """loss(adapter): mean over the rows' targets of -ln p, float64."""

    def __init__(self, path: Path, architecture: str, rows: Sequence[Any]) -> None:
        self._model, self._rows = FAMILIES[architecture](path), rows
        self._weight = self._model.weight

    def loss(self, pairs: dict[str, tuple[np.ndarray, np.ndarray, float]]) -> float:
        """pairs: {tensor: (a, b, scale)}, float64."""
        merged = {name: scale * (b @ a) for name, (a, b, scale) in pairs.items()}

        def weight(name: str) -> np.ndarray:
            found = self._weight(name)
            return found + merged[name + ".weight"] if name + ".weight" in merged else found
        self._model.weight = weight
        total, n = 0.0, 0
        for row in self._rows:
            ids = [int(i) for i in row.ids]
            p = log_softmax(self._model.logits(ids))
            wanted = np.flatnonzero(row.loss_mask)
            total -= float(p[wanted - 1, np.asarray(ids)[wanted]].sum())
            n += len(wanted)
        return total / n

    def slope(self, adapter: Any, directions: dict[str, np.ndarray], h: float = 1e-5) -> float:
        """The loss's derivative along {"TENSOR.lora_a" or "TENSOR.lora_b": direction}, all at once."""
        values = []
        for step in (h, -h):
            pairs = {}
            for tensor, pair in adapter.pairs.items():
                a, b = (x.astype(np.float64) + step * directions.get(f"{tensor}.{name}", 0.0) for x, name in ((pair.a, "lora_a"), (pair.b, "lora_b")))
                pairs[tensor] = (a, b, float(np.float32(pair.scale)))
            values.append(self.loss(pairs))
        return (values[0] - values[1]) / (2 * h)
