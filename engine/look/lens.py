"""The logit lens: what the model would say if its stream ended after each layer, for every position of a text.

    rows after layer l ──► (optionally an affine map of that layer's) ──► final norm ──► output matrix ──► top k, entropy, rank and log-prob. of the target

The last layer's row is what the model says, bit for bit. An affine lens (Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned
lens": rows @ A.T + b; their translators leave the identity out of A) is applied in float32.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import count
from ..errors import OptionError, quoted
from .reading import Rows, read, stream_sites, texts_of
from .texts import ids_of

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.looking import Said
    from ..run.runtime import Runtime

Affine = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""Layer -> (A float [dim, dim], b float [dim]); layers that are not there are read as they are. -1: the embedding."""


@dataclass
class Lens:
    """Of a text of n tokens, seen after L places: the embedding (layer -1) and every layer that was asked for.

    ids, tokens: of the text. target_ids: int64 [n], the token that follows; of the last position what the model itself says. layers: [L]. top_ids int64
    [L, n, k], top_probs float32; entropy (nats), target_logprob: float64 [L, n]; rank int64 [L, n], the target's, 1 for the most likely.
    settled: int64 [n], the first of `layers` from which on the first choice is the model's own.
    """

    ids: list[int]
    tokens: list[str]
    target_ids: np.ndarray
    layers: list[int]
    top_ids: np.ndarray
    top_probs: np.ndarray
    entropy: np.ndarray
    target_logprob: np.ndarray
    rank: np.ndarray
    vocabulary: dict[int, str]
    """Texts of the ids that stand in it."""

    @property
    def settled(self) -> np.ndarray:
        same = self.top_ids[:, :, 0] == self.top_ids[-1, :, 0]
        from_here = np.logical_and.accumulate(same[::-1], axis=0)[::-1]
        return np.array(self.layers)[from_here.argmax(axis=0)]

    def __repr__(self) -> str:
        return f"<Lens of {len(self.ids)} tokens after {len(self.layers)} places>"

    def _repr_html_(self) -> str:
        from .pictures import lens_html
        return lens_html(self)

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure (extra `plot`)."""
        from .plots import lens_figure
        return lens_figure(self, **options)


class Reader:
    """Fills a lens step by step, from token `first` on."""

    def __init__(self, model: Core, ids: list[int], layers: list[int], top: int, affine: Affine, first: int = 0) -> None:
        self.model, self.ids, self.layers, self.top, self.affine, self.first = model, ids, layers, top, affine, first
        self.sites = stream_sites(model)
        self.targets = np.array([*ids[1:], 0], np.int64)
        self.said: list[list[Said]] = [[] for _ in layers]
        self.final: Said | None = None
        """What the model says after the step's positions."""

    def wanted(self) -> list[str]:
        return [*(self.sites[layer + 1] for layer in self.layers), self.sites[-1]]

    def step(self, runtime: Runtime, positions: np.ndarray, rows: Rows) -> None:
        if positions[0] < self.first:
            seen = positions >= self.first
            if not seen.any():
                return
            positions, rows = positions[seen], {name: array[seen] for name, array in rows.items()}
        targets = self.targets[positions]
        final = runtime.say(rows[self.sites[-1]], targets, self.top)
        if positions[-1] == len(self.ids) - 1:  # nothing follows: the model's own choice stands in
            targets[-1] = self.targets[-1] = final.top_ids[-1, 0]
            final.rank[-1], final.target[-1] = 1, final.top_logits[-1, 0]
        self.final, last = final, self.model.config.n_layers - 1
        for said, layer in zip(self.said, self.layers):
            stream = rows[self.sites[layer + 1]]
            if layer in self.affine:
                a, b = self.affine[layer]
                stream = (stream @ a.T + b).astype(np.float32, copy=False)
            said.append(final if layer == last and layer not in self.affine else runtime.say(stream, targets, self.top))

    def lens(self) -> Lens:
        from ..run.looking import Said
        every = [Said.joined(said) for said in self.said]
        top_ids = np.stack([s.top_ids for s in every])
        ids, targets = self.ids[self.first:], self.targets[self.first:]
        texts = np.unique(np.concatenate([top_ids.ravel(), targets]))
        probs = np.stack([np.exp(s.top_logits - s.log_sum[:, None]) for s in every]).astype(np.float32)
        return Lens(ids, texts_of(self.model, ids), targets, self.layers, top_ids, probs, np.stack([s.entropy for s in every]),
                    np.stack([s.target - s.log_sum for s in every]), np.stack([s.rank for s in every]),
                    dict(zip(map(int, texts), texts_of(self.model, texts))))


def lens(model: Core, text: Any, layers: Any = None, top: int = 5, affine: Affine | None = None) -> Lens:
    """See `Model.lens`."""
    ids, chosen = ids_of(model, text), layers_of(model, layers)
    reader = Reader(model, ids, chosen, top_of(model, top), affine_of(model, affine))
    read(model, ids, reader.wanted(), reader.step)
    return reader.lens()


def top_of(model: Core, top: Any) -> int:
    n = count("top", top)
    if n is None or n > min(100, model.config.n_vocab):
        raise OptionError(f"top must be between 1 and {min(100, model.config.n_vocab)}, found {quoted(top)}")
    return n


def layers_of(model: Core, layers: Any) -> list[int]:
    """-1 (the embedding) and all layers, or those asked for. OptionError."""
    n = model.config.n_layers
    if layers is None:
        return list(range(-1, n))
    if isinstance(layers, (int, np.integer)):
        layers = [layers]
    found = []
    try:
        given = list(layers)
    except TypeError:
        raise OptionError(f"layers must be numbers, found {quoted(layers)}") from None
    for layer in given:
        if isinstance(layer, (bool, np.bool_)) or not isinstance(layer, (int, np.integer)) or not -1 <= layer < n:
            raise OptionError(f"layers must be numbers from 0 to {n - 1} (-1: the embedding), found {quoted(layer)}")
        found.append(int(layer))
    if not found:
        raise OptionError(f"no layer was named: give some of 0 to {n - 1}")
    return sorted(set(found))


def affine_of(model: Core, affine: Any) -> Affine:
    """Checked, float32. OptionError."""
    if affine is None:
        return {}
    if not isinstance(affine, Mapping):
        raise OptionError(f"an affine lens must be a mapping of layers to (A, b), found {type(affine).__name__}")
    dim, found = model.config.dim, {}
    for layer in layers_of(model, list(affine)) if affine else []:
        try:
            a, b = (np.asarray(part, np.float32) for part in affine[layer])
        except (TypeError, ValueError):
            raise OptionError(f"an affine lens needs (A, b) for a layer, found {quoted(affine[layer])} for layer {layer}") from None
        if a.shape != (dim, dim) or b.shape != (dim,):
            raise OptionError(f"an affine lens needs A [{dim}, {dim}] and b [{dim}], found {list(a.shape)} and {list(b.shape)} for layer {layer}")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise OptionError(f"an affine lens must be finite, found NaN or infinity for layer {layer}")
        found[layer] = a, b
    return found
