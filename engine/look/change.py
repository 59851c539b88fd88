"""Changes with a purpose, made of hooks: ablation, and activation patching, which computes again only what a change can reach.

    ablate(model, names, heads, positions, value) ──► a hooked block
    patch(model, clean, corrupt, names, metric):  one pass of each text;  then, for each place and position, the corrupt text with
        the clean one's numbers there:
        layers before the place's, and positions before the change, are what they were: their keys and values are copied back, not computed
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, memory_errors, quoted
from ..run.runtime import Feed, Part
from ..run.watch import watched, watching
from .activations import activations
from .attention import _heads
from .hooks import Hook, Hooks, Spot, replacement
from .names import Place, places
from .reading import one_token, texts_of
from .spans import Positions
from .texts import ids_of

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run import kv_cache


def editable(model: Core, names: Any, heads: Any = None) -> list[tuple[Place, list[int] | None]]:
    """Places that can be changed, with the heads that are meant. OptionError."""
    found: list[tuple[Place, list[int] | None]] = []
    for place in places(model.config, names, model.path):
        if place.map or place.layer is None:
            replacement(place, None, ())  # says why it can't be changed
        if heads is not None and len(place.shape) < 2:
            raise OptionError(f"{place.name}: has no heads: name hook_z, hook_q, hook_k or hook_v, or leave out heads")
        found.append((place, None if heads is None else _heads(heads, place.layer or 0, place.shape[0])))
    return found


def ablate(model: Core, names: Any, heads: Any = None, positions: Any = None, value: Any = 0.0) -> AbstractContextManager[None]:
    """See `Model.ablate`."""
    chosen, where = editable(model, names, heads), Positions(positions)
    where.ahead()
    functions: list[tuple[Place, Hook]] = []
    for place, which in chosen:
        put = _value(place, which, value)

        def hook(array: np.ndarray, spot: Spot, which: list[int] | None = which, put: np.ndarray = put) -> np.ndarray | None:
            rows = np.flatnonzero(where.among(spot.positions))
            if not len(rows):
                return None
            array = array.copy()
            if which is None:
                array[rows] = put
            else:
                array[np.ix_(rows, np.asarray(which, np.intp))] = put
            return array
        functions.append((place, hook))
    return watched(model.scheduler, Hooks(model, functions))


def _value(place: Place, heads: list[int] | None, value: Any) -> np.ndarray:
    """What is put in: a number, an array of one position's numbers, or {name: such}. OptionError."""
    if isinstance(value, Mapping):
        if place.name not in value:
            raise OptionError(f"no value was given for {place.name}")
        value = value[place.name]
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise OptionError(f"a value must be a number or an array of shape {list(place.shape)}, found {quoted(value)}") from None
    if not np.isfinite(array).all():
        raise OptionError(f"a value must be finite, found NaN or infinity for {place.name}")
    if array.shape not in ((), place.shape):
        raise OptionError(f"a value for {place.name} must be a number or of shape {list(place.shape)}, found {list(array.shape)}")
    whole = np.broadcast_to(array, place.shape)
    return whole if heads is None else whole[heads]


def mean_activations(model: Core, texts: Iterable[Any], names: Any, positions: Any = None) -> dict[str, np.ndarray]:
    """Means over texts and positions, float32, of one position's shape: values for `ablate`."""
    from .activations import stream
    chosen = [place for place, _ in editable(model, names)]
    sums: dict[str, np.ndarray] = {place.name: np.zeros(place.shape) for place in chosen}
    rows = 0
    for _, at, found in stream(model, texts, chosen, Positions(positions)):
        rows += len(at)
        for name, array in found.items():
            sums[name] += array.sum(axis=0, dtype=np.float64)
    if not rows:
        raise OptionError("a mean needs at least one position of one text")
    return {name: (total / rows).astype(np.float32) for name, total in sums.items()}


# -- patching -----------------------------------------------------------------------------------------------------------------------------------

@dataclass
class Patching:
    """What became of the metric. names: [S], positions: int64 [P] of tokens that differ or come after one that does. raw: float64 [S, P], or [S, P, H] by
    heads: the metric of the corrupt text with the clean one's numbers there; clean, corrupt: of both texts as they are. recovered: 0 as in the corrupt text,
    1 as in the clean one."""

    clean_ids: list[int]
    corrupt_ids: list[int]
    tokens: list[str]
    """Of the corrupt text."""
    clean_tokens: list[str]
    names: list[str]
    positions: np.ndarray
    heads: list[int] | None
    raw: np.ndarray
    clean: float
    corrupt: float

    @property
    def recovered(self) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.raw - self.corrupt) / (self.clean - self.corrupt)

    def __repr__(self) -> str:
        return f"<Patching of {len(self.names)} places at {len(self.positions)} positions, metric {self.corrupt:.4g} to {self.clean:.4g}>"

    def _repr_html_(self) -> str:
        from .pictures import patching_html
        return patching_html(self)

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure (extra `plot`)."""
        from .plots import patching_figure
        return patching_figure(self, **options)


def patch(model: Core, clean: Any, corrupt: Any, names: Any, metric: Any, positions: Any = None, heads: Any = None) -> Patching:
    """See `Model.patch`."""
    if watching(model.scheduler):
        raise OptionError("patching within a hooked block: whose changes would be measured? Do it outside")
    if any(True for _ in model.config.recurrents()):
        raise OptionError(f"{model.path}: has recurrent layers, whose states can't be taken up in the middle of a text: patch with hooked blocks instead")
    ours, theirs = ids_of(model, clean), ids_of(model, corrupt)
    if len(ours) != len(theirs):
        shown = [" ".join(map(repr, texts_of(model, ids)[:20])) for ids in (ours, theirs)]
        raise OptionError(f"both texts must have as many tokens: the clean one has {len(ours)} ({shown[0]}), the corrupt one {len(theirs)} ({shown[1]})")
    differs = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    if not differs:
        raise OptionError("both texts are the same: there is nothing to patch")
    chosen = editable(model, names, heads)
    wanted = Positions(positions).of(len(ours))
    wanted = wanted[wanted >= differs[0]]
    if not len(wanted):
        raise OptionError(f"the texts differ from position {differs[0]} on: before it there is nothing to patch")
    measure = metric_of(model, metric)
    numbers = activations(model, ours, [place.name for place, _ in chosen])
    by_heads = [which for _, which in chosen]
    n_heads = len(by_heads[0]) if by_heads[0] is not None else 0
    if any(len(which or []) != n_heads for which in by_heads):
        raise OptionError("the places have different numbers of heads: patch them one by one")
    with _Bench(model, theirs) as bench:
        raw = np.empty((len(chosen), len(wanted), max(1, n_heads)))
        for s, (place, which) in enumerate(chosen):
            for p, position in enumerate(wanted):
                for h, head in enumerate(which or [None]):  # type: ignore[list-item]
                    raw[s, p, h] = measure(bench.run(place, int(position), numbers[place.name][position], head))
        first = model.logits(ours)[-1]  # type: ignore[attr-defined]
        return Patching(ours, theirs, texts_of(model, theirs), texts_of(model, ours), [place.name for place, _ in chosen], wanted, by_heads[0],
                        raw if n_heads else raw[:, :, 0], measure(first), measure(bench.logits))


def metric_of(model: Core, metric: Any) -> Callable[[np.ndarray], float]:
    """A function of the last position's logits, float32 [n_vocab]; or a pair of tokens: the first one's logit less the second's. OptionError."""
    if callable(metric):
        def measure(logits: np.ndarray) -> float:
            found = metric(logits)
            try:
                return float(found)
            except (TypeError, ValueError):
                raise OptionError(f"a metric must give a number, found {quoted(found)}") from None
        return measure
    if isinstance(metric, (tuple, list)) and len(metric) == 2:
        a, b = (one_token(model, token, "a token of the metric") for token in metric)
        return lambda logits: float(logits[a]) - float(logits[b])
    raise OptionError(f"a metric must be a function of the last logits, or two tokens whose logits are compared, found {quoted(metric)}")


class _Bench:
    """The corrupt text's pass as it was, from which every patched one starts: keys and values, and the stream before each layer."""

    def __init__(self, model: Core, ids: list[int]) -> None:
        self._model, self.ids = model, ids
        self._sequence: kv_cache.Sequence = model.runtime.new_sequence()
        self._before: list[np.ndarray] = [np.empty((len(ids), model.config.dim), np.float32) for _ in range(model.config.n_layers)]
        self.logits = np.empty(0, np.float32)
        try:
            self._record()
        except BaseException:
            self._sequence.close()
            raise

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._sequence.close()

    def _record(self) -> None:
        model, at = self._model, 0
        while at < len(self.ids):
            n = min(model.runtime.max_batch, len(self.ids) - at)
            feed = Feed(self._sequence, self.ids[at:at + n], "last" if at + n == len(self.ids) else "none")

            def keep(rows: np.ndarray, layer: int, at: int = at) -> None:
                self._before[layer][at:at + len(rows)] = rows
            observe = {f"blocks.{i}.hook_resid_pre": (lambda rows, i=i: keep(rows, i)) for i in range(model.config.n_layers)}
            if missing := [name for name in observe if name not in model.runtime.sites]:
                raise OptionError(f"{model.path}: patching starts from the stream before a layer, and this model has no {missing[0]}")
            with model.scheduler.alone() as runtime, memory_errors("a step"):
                runtime.on_layers = None
                logits = runtime.step([feed], observe)
            at += n
        self.logits = logits[-1].copy()
        self._pages = [unit.copy() for unit in self._sequence.units()]

    def run(self, place: Place, position: int, numbers: np.ndarray, head: int | None) -> np.ndarray:
        """The last position's logits with these numbers, of one position's shape, at a place: from its layer and position on."""
        model, layer = self._model, place.layer or 0
        hook = Hooks(model, [(place, lambda array, spot: _put(array, spot, position, numbers, head))])
        with model.scheduler.alone() as runtime, memory_errors("a step"):
            runtime.on_layers = None
            self._sequence.truncate(position)
            self._sequence.reserve(len(self.ids))
            for unit, saved in zip(self._sequence.units(), self._pages):
                unit[:] = saved
            at = position
            while at < len(self.ids):
                n = min(runtime.max_batch, len(self.ids) - at)
                feed = Feed(self._sequence, self.ids[at:at + n], "last" if at + n == len(self.ids) else "none")
                rows = runtime.step([feed], hook.observers([feed]), part=Part(layer, None, self._before[layer][at:at + n]))
                at += n
        return rows[-1]


def _put(array: np.ndarray, spot: Spot, position: int, numbers: np.ndarray, head: int | None) -> np.ndarray | None:
    at = np.flatnonzero(spot.positions == position)
    if not len(at):
        return None
    array = array.copy()
    if head is None:
        array[at[0]] = numbers
    else:
        array[at[0], head] = numbers[head]
    return array
