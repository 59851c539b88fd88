"""How a model reads a text, token by token: how surprising each was, what was expected instead, after which layer that was settled, and who wrote it.

    text ──► one pass (reading.py) ──► Lens of all layers + Attribution of every next token's logit ──► Trace
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .attribution import Attribution, Attributor
from .lens import Affine, Lens, Reader, affine_of, layers_of, top_of
from .reading import Rows, read
from .texts import ids_of

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.runtime import Runtime


@dataclass
class Trace:
    """Of a text of n tokens. .lens: after every layer, of the places *after* each token; .attribution (None if not asked for): of the token that follows each.

    By token, first one NaN, -1 or 0 because nothing was before it: surprise float64 [n], -ln p; entropy float64 [n], nats, of what was expected there; rank
    int64 [n], 1: the first choice; settled int64 [n], the layer after which the first choice stayed what it became, -1 the embedding; expected(i): [(text, p)].
    """

    lens: Lens
    attribution: Attribution | None

    @property
    def ids(self) -> list[int]:
        return self.lens.ids

    @property
    def tokens(self) -> list[str]:
        return self.lens.tokens

    @property
    def surprise(self) -> np.ndarray:
        return np.concatenate([[np.nan], 0.0 - self.lens.target_logprob[-1, :-1]])

    @property
    def entropy(self) -> np.ndarray:
        return np.concatenate([[np.nan], self.lens.entropy[-1, :-1]])

    @property
    def rank(self) -> np.ndarray:
        return np.concatenate([[0], self.lens.rank[-1, :-1]])

    @property
    def settled(self) -> np.ndarray:
        return np.concatenate([[-1], self.lens.settled[:-1]])

    def expected(self, i: int) -> list[tuple[str, float]]:
        """The most likely tokens in the place of token i, with their probabilities; i = n: after the text. Nothing for the first."""
        n = len(self.ids)
        if not 0 <= i <= n:
            raise IndexError(i)
        if i == 0:
            return []
        return [(self.lens.vocabulary[int(id)], float(p)) for id, p in zip(self.lens.top_ids[-1, i - 1], self.lens.top_probs[-1, i - 1])]

    def to_dict(self) -> dict[str, Any]:
        """All of it but the whole lens as JSON-able values."""
        rows = []
        for i, (id, text) in enumerate(zip(self.ids, self.tokens)):
            row: dict[str, Any] = {"id": id, "text": text}
            if i:
                row |= {"surprise": float(self.surprise[i]), "entropy": float(self.entropy[i]), "rank": int(self.rank[i]), "settled": int(self.settled[i]),
                        "expected": [{"text": t, "p": p} for t, p in self.expected(i)]}
            if i and self.attribution is not None:
                parts = self.attribution.parts[i - 1]
                row["logit"] = float(self.attribution.logits[i - 1])
                row["parts"] = {label: float(value) for label, value in zip(self.attribution.labels, parts)}
                row["heads"] = {str(layer): [float(v) for v in values[i - 1]] for layer, values in self.attribution.heads.items()}
            rows.append(row)
        return {"tokens": rows, "next": [{"text": t, "p": p} for t, p in self.expected(len(self.ids))]}

    def __repr__(self) -> str:
        mean = float(np.nanmean(self.surprise)) if len(self.ids) > 1 else float("nan")
        return f"<Trace of {len(self.ids)} tokens, {mean:.3f} nats a token>"

    def _repr_html_(self) -> str:
        from .pictures import trace_html
        return trace_html(self)

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure (extra `plot`)."""
        from .plots import trace_figure
        return trace_figure(self, **options)


def trace(model: Core, text: Any, top: int = 10, attribution: bool = True, heads: bool = True, affine: Affine | None = None) -> Trace:
    """See `Model.trace`."""
    ids = ids_of(model, text)
    reader = Reader(model, ids, layers_of(model, None), top_of(model, top), affine_of(model, affine))
    attributor = Attributor(model, heads) if attribution else None

    def each(runtime: Runtime, positions: np.ndarray, rows: Rows) -> None:
        reader.step(runtime, positions, rows)
        if attributor is not None and reader.final is not None:
            attributor.step(runtime, rows, reader.targets[positions], reader.final)
    read(model, ids, [*reader.wanted(), *(attributor.wanted() if attributor else [])], each)
    return Trace(reader.lens(), Attribution.joined(attributor.parts) if attributor else None)
