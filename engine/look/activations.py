"""Activations: the numbers at named places for texts, as arrays, in memory or in a folder (store.py).

    activations(model, texts, ["blocks.*.hook_resid_post"]) ──► {name: float32 [positions, …], or one for each text}

Ragged: each text has its own array, nothing is padded. Of attention's maps an array is [heads, positions asked for, all the text's positions].
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..run.watch import Callback
from .hooks import map_rows
from .names import Place, places
from .spans import Positions, Span, spans
from .texts import ids_of, run, several

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.runtime import Feed, Runtime


class Activations(Mapping[str, Any]):
    """name -> array, or a list of arrays where several texts were given. .ids: of the text (or texts); .positions: which of them the rows are of, int64."""

    def __init__(self, arrays: dict[str, list[np.ndarray]], ids: list[list[int]], positions: list[np.ndarray], single: bool) -> None:
        self._arrays, self._single = arrays, single
        self.ids: Any = ids[0] if single else ids
        self.positions: Any = positions[0] if single else positions

    def __getitem__(self, name: str) -> Any:
        found = self._arrays[name]
        return found[0] if self._single else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        texts = "1 text" if self._single else f"{len(self.ids)} texts"
        return f"<Activations of {texts}: {', '.join(self)}>"


class Tap:
    """Copies rows of places as steps compute them, text by text."""

    def __init__(self, runtime: Runtime, chosen: list[Place], positions: Positions) -> None:
        self._runtime, self._chosen, self._positions = runtime, chosen, positions
        self._wanted: dict[int, np.ndarray] = {}
        self._parts: dict[int, dict[str, list[np.ndarray]]] = {}

    def expect(self, index: int, n: int) -> np.ndarray:
        """A text of n tokens comes -> which positions are wanted."""
        self._wanted[index] = self._positions.of(n)
        self._parts[index] = {place.name: [] for place in self._chosen}
        return self._wanted[index]

    def observers(self, feeds: list[Feed], whose: list[int]) -> Mapping[str, Callback]:
        parts = [(i, span, np.flatnonzero(np.isin(span.positions, self._wanted[i]))) for i, span in zip(whose, spans(feeds))]
        at: dict[str, list[Place]] = {}
        for place in self._chosen:
            at.setdefault(place.site.name, []).append(place)
        return {site: partial(self._take, here, parts=parts) for site, here in at.items()}

    def _take(self, here: list[Place], rows: np.ndarray, parts: list[tuple[int, Span, np.ndarray]]) -> None:
        for place in here:
            for i, span, which in parts:
                if not len(which):
                    continue
                if place.map:
                    taken = map_rows(self._runtime, place, span, which)
                elif len(which) == span.last - span.first:
                    taken = rows[span.first:span.last].copy()
                else:
                    taken = rows[span.first + which]
                self._parts[i][place.name].append(taken)

    def take(self, index: int, n: int) -> dict[str, np.ndarray]:
        """All of a text of n tokens that was seen to its end, and forget it."""
        parts, rows, found = self._parts.pop(index), len(self._wanted.pop(index)), {}
        for place in self._chosen:
            pieces = parts[place.name]
            if place.map:
                array = np.full((place.shape[0], rows, n), -np.inf if place.map == "scores" else 0.0, np.float32)
                at = 0
                for piece in pieces:
                    array[:, at:at + piece.shape[1], :piece.shape[2]] = piece
                    at += piece.shape[1]
                found[place.name] = array
            else:
                joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.empty((0, place.site.columns), np.float32)
                found[place.name] = joined.reshape(-1, *place.shape)
        return found


def last_layer(chosen: list[Place]) -> int | None:
    """The last that must be computed; None: all."""
    return None if any(place.layer is None for place in chosen) else max(place.layer for place in chosen if place.layer is not None)


def stream(model: Core, texts: Iterable[Any], chosen: list[Place], positions: Positions) -> Iterator[tuple[list[int], np.ndarray, dict[str, np.ndarray]]]:
    """(ids, positions, {name: array}) of text after text, while the next ones are computed."""
    tap = Tap(model.runtime, chosen, positions)
    known: dict[int, tuple[list[int], np.ndarray]] = {}

    def ids() -> Iterator[list[int]]:
        for i, text in enumerate(texts):
            found = ids_of(model, text)
            known[i] = found, tap.expect(i, len(found))
            yield found
    for i in run(model, ids(), tap.observers, last_layer(chosen)):
        text_ids, wanted = known.pop(i)
        yield text_ids, wanted, tap.take(i, len(text_ids))


def activations(model: Core, texts: Any, names: Any, positions: Any = None, to: Any = None) -> Any:
    """See `Model.activations`."""
    chosen, where = places(model.config, names, model.path), Positions(positions)
    every, single = several(texts)
    if to is not None:
        from .store import write
        return write(model, every, single, chosen, where, to)
    arrays: dict[str, list[np.ndarray]] = {place.name: [] for place in chosen}
    all_ids, all_positions = [], []
    for ids, wanted, found in stream(model, every, chosen, where):
        all_ids.append(ids)
        all_positions.append(wanted)
        for name, array in found.items():
            arrays[name].append(array)
    if single and not all_ids:
        raise AssertionError("a single text gives an array")
    return Activations(arrays, all_ids, all_positions, single)
