"""Hooks: functions of users that see the pass of their thread's steps, and may change it.

    with hooked(model, {"blocks.5.hook_resid_post": f}): …     f(array, spot) -> None, or what goes on in the array's place

An array is a copy that can be kept and not be written; what is returned goes on through the later layers and, by the KV cache, to later positions. The bits of
a pass that nobody changes are those of one that nobody looks at (docs/exactness.md).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, quoted
from ..run.watch import Callback, watched
from .names import Place, places
from .spans import Span, spans

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.runtime import Feed, Runtime


@dataclass(frozen=True)
class Spot:
    """Where a hook is called. positions, ids: int64 [n], of the array's rows (of a map: its queries)."""

    name: str
    layer: int | None
    positions: np.ndarray
    ids: np.ndarray


Hook = Callable[[np.ndarray, Spot], Any]


class Hooks:
    """A watch (run/watch.py) made of users' functions."""

    def __init__(self, model: Core, functions: list[tuple[Place, Hook]]) -> None:
        self._runtime, self._functions = model.runtime, functions

    def observers(self, feeds: list[Feed]) -> Mapping[str, Callback]:
        parts = spans(feeds)
        at: dict[str, list[tuple[Place, Hook]]] = {}
        for place, hook in self._functions:
            at.setdefault(place.site.name, []).append((place, hook))
        return {site: partial(self._call, here, parts=parts) for site, here in at.items()}

    def _call(self, here: list[tuple[Place, Hook]], rows: np.ndarray, parts: list[Span]) -> None:
        for place, hook in here:
            for span in parts:
                array = map_rows(self._runtime, place, span) if place.map else rows[span.first:span.last].copy().reshape(-1, *place.shape)
                array.flags.writeable = False
                try:
                    found = hook(array, Spot(place.name, place.layer, span.positions, span.ids))
                except ValueError as error:
                    if "read-only" not in str(error):
                        raise
                    raise OptionError(f"{place.name}: the hook wrote into its array, which is read-only: return a changed copy instead") from error
                if found is not None:
                    rows[span.first:span.last] = replacement(place, found, array.shape).reshape(span.last - span.first, -1)


def map_rows(runtime: Runtime, place: Place, span: Span, which: np.ndarray | None = None, heads: np.ndarray | None = None) -> np.ndarray:
    """Attention's map of a span (or of its rows `which`), at the site hook_z: float32 [heads, rows, keys that one of them may see]."""
    assert place.attention is not None
    which = np.arange(span.last - span.first) if which is None else which
    heads = np.arange(place.attention.heads) if heads is None else heads
    if not len(which) or not len(heads):
        return np.zeros((len(heads), len(which), int(span.positions[which].max()) + 1 if len(which) else 0), np.float32)
    return runtime.map_of(place.attention, span.first + which, heads, int(span.positions[which].max()), int(span.positions[-1]) + 1, place.map == "scores")


def replacement(place: Place, found: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What a hook returned, float32, if it can take the place of an array of this shape. OptionError."""
    if place.map:
        raise OptionError(f"{place.name}: can be looked at, not changed; change what it is made of (hook_q, hook_k) or what it makes (hook_z)")
    if place.layer is None:
        raise OptionError(f"{place.name}: can be looked at, not changed; change the last layer's hook_resid_post, which it is made of")
    if not isinstance(found, np.ndarray):
        raise OptionError(f"{place.name}: a hook must return None or a NumPy array, found {type(found).__name__} {quoted(found)}")
    if found.dtype.kind != "f":
        raise OptionError(f"{place.name}: a hook must return floats, found an array of {found.dtype}")
    if found.shape != shape:
        raise OptionError(f"{place.name}: a hook must return an array of shape {list(shape)}, found {list(found.shape)}")
    with np.errstate(over="ignore"):
        array = found.astype(np.float32)
    if not np.isfinite(array).all():
        raise OptionError(f"{place.name}: the hook returned NaN, infinity or what float32 can't hold, at {list(map(int, np.argwhere(~np.isfinite(array))[0]))}")
    return array


def hooked(model: Core, functions: Mapping[str, Hook]) -> AbstractContextManager[None]:
    """Within the block, every step that this thread takes of the model calls these. OptionError: unknown names, what isn't callable."""
    if not isinstance(functions, Mapping):
        raise OptionError(f"hooks must be a mapping of names to functions, found {type(functions).__name__}")
    chosen: list[tuple[Place, Hook]] = []
    for name, hook in functions.items():
        if not callable(hook):
            raise OptionError(f"{name}: a hook must be a function of (array, spot), found {type(hook).__name__}")
        chosen += [(place, hook) for place in places(model.config, name, model.path)]
    return watched(model.scheduler, Hooks(model, chosen))
