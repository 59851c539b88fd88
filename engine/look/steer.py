"""Steering: a direction for each layer, added to the residual stream; made of texts on the very model that runs, kept as llama.cpp and repeng keep it.

    mean of the stream over positive texts - mean over negative ones ──► SteeringVector ──► steered(strength): resid_post + strength * direction

The file is a GGUF of architecture "controlvector" with tensors direction.N, N the layer whose output it is added to (0 has no place there:
llama.cpp's begin at 1).
"""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, OptionError, quoted
from ..files import new_file, paths, shown, writing
from ..gguf.file import open_gguf
from ..gguf.writer import write_arrays
from ..run.watch import watched
from .activations import stream
from .hooks import Hook, Hooks, Spot
from .lens import layers_of
from .names import Place, catalogue
from .spans import Positions
from .texts import several

if TYPE_CHECKING:
    from ..answers.core import Core

ARCHITECTURE = "controlvector"


@dataclass(frozen=True)
class SteeringVector:
    """directions: {layer: float32 [dim]}, what is added to the output of that layer (hook_resid_post) at strength 1. hint: what model it is for."""

    directions: Mapping[int, np.ndarray]
    hint: str = ""

    def __mul__(self, factor: float) -> SteeringVector:
        return SteeringVector({layer: np.float32(factor) * v for layer, v in self.directions.items()}, self.hint)

    __rmul__ = __mul__

    def __add__(self, other: SteeringVector) -> SteeringVector:
        layers = sorted({*self.directions, *other.directions})
        zero = np.float32(0)
        return SteeringVector({i: np.asarray(self.directions.get(i, zero) + other.directions.get(i, zero)) for i in layers}, self.hint)

    def normalised(self) -> SteeringVector:
        """Every direction of length 1."""
        return SteeringVector({i: (v / np.linalg.norm(v)).astype(np.float32) if np.any(v) else v for i, v in self.directions.items()}, self.hint)

    def save(self, path: Any) -> None:
        """Write it as llama.cpp's --control-vector and repeng read it. FileError; OptionError: it has a direction for layer 0."""
        import gguf
        if 0 in self.directions:
            raise OptionError("a control-vector file has no place for layer 0 (llama.cpp's begin at 1): leave that layer out")
        with paths(path), writing(path), new_file(path) as new:
            writer: Any = gguf.GGUFWriter(None, ARCHITECTURE)
            writer.add_string(f"{ARCHITECTURE}.model_hint", self.hint)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(self.directions))
            arrays = {f"direction.{layer}": np.ascontiguousarray(direction, "<f4") for layer, direction in sorted(self.directions.items())}
            write_arrays(writer, new.file, [(name, "F32", a.shape, a) for name, a in arrays.items()])

    def __repr__(self) -> str:
        layers = sorted(self.directions)
        of = f" of {len(layers)} layers ({layers[0]} to {layers[-1]})" if layers else ""
        return f"<SteeringVector{of}{', ' + self.hint if self.hint else ''}>"


def load_steering_vector(path: Any) -> SteeringVector:
    """Read a control-vector GGUF, ours, llama.cpp's or repeng's. FileError, FormatError."""
    with open_gguf(path) as file:
        architecture = file.get("general.architecture", str, "")
        if architecture != ARCHITECTURE:
            raise FormatError(f"{shown(path)}: is of architecture {quoted(architecture)}, expected '{ARCHITECTURE}': it holds no steering vector")
        found: dict[int, np.ndarray] = {}
        for name, info in file.tensors.items():
            head, _, number = name.partition(".")
            if head != "direction" or not number.isascii() or not number.isdigit() or len(number) > 5:
                raise FormatError(f"{shown(path)}: tensor {quoted(name)} is no direction.N")
            if len(info.shape) != 1 or info.format.name != "F32":
                raise FormatError(f"{shown(path)}: tensor {quoted(name)} must be F32 of one dimension, found {info.format.name} {list(info.shape)}")
            values = np.frombuffer(bytes(file.data(name)), np.float32).copy()
            if not np.isfinite(values).all():
                raise FormatError(f"{shown(path)}: tensor {quoted(name)} holds NaN or infinity")
            found[int(number)] = values
        if not found:
            raise FormatError(f"{shown(path)}: holds no direction")
        if len({len(v) for v in found.values()}) > 1:
            raise FormatError(f"{shown(path)}: its directions have different lengths")
        return SteeringVector(dict(sorted(found.items())), file.get(f"{ARCHITECTURE}.model_hint", str, ""))


def steering_vector(model: Core, positive: Any, negative: Any, layers: Any = None, positions: Any = "last") -> SteeringVector:
    """See `Model.steering_vector`."""
    chosen = [layer for layer in layers_of(model, layers) if layer >= 0] if layers is not None else list(range(1, model.config.n_layers))
    if not chosen:
        raise OptionError("a steering vector needs layers from 0 on")
    every = catalogue(model.config)
    named = [_place(model, every, layer) for layer in chosen]
    where = Positions(positions)
    a, b = (_means(model, texts, named, where, what) for texts, what in ((positive, "positive"), (negative, "negative")))
    return SteeringVector({layer: (a[place.name] - b[place.name]).astype(np.float32) for layer, place in zip(chosen, named)}, model.config.architecture)


def _place(model: Core, every: dict[str, Place], layer: int) -> Place:
    name = f"blocks.{layer}.hook_resid_post"
    if name not in every:
        raise OptionError(f"{model.path}: has no {name} to steer")
    return every[name]


def _means(model: Core, texts: Any, named: list[Place], where: Positions, what: str) -> dict[str, np.ndarray]:
    """Each text counts the same, whatever its length."""
    given, _ = several(texts)
    sums, n = {place.name: np.zeros(place.shape) for place in named}, 0
    for _, at, found in stream(model, given, named, where):
        if len(at):
            n += 1
            for name, rows in found.items():
                sums[name] += rows.mean(axis=0, dtype=np.float64)
    if not n:
        raise OptionError(f"there are no {what} texts (or none of their positions): a mean needs at least one")
    return {name: total / n for name, total in sums.items()}


def steer(model: Core, vector: Any, strength: Any = 1.0, layers: Any = None, positions: Any = None) -> AbstractContextManager[None]:
    """See `Model.steer`."""
    where = Positions(positions)
    where.ahead()
    added = additions(model, vector, strength, layers)
    return watched(model.scheduler, Hooks(model, [(place, _adder(v, where, float(strength))) for place, v in added]))


def control(model: Core, vectors: list[tuple[Any, Any]], layers: Any = None) -> None:
    """See `Model.control`."""
    sums: dict[str, np.ndarray] = {}
    for vector, strength in vectors:
        if not isinstance(vector, SteeringVector):
            vector = load_steering_vector(vector)
        for place, v in additions(model, vector, strength, layers):
            if strength:
                sums[place.site.name] = sums[place.site.name] + v if place.site.name in sums else v
    with model.scheduler.alone() as runtime:
        runtime.adapters.control(sums)


def additions(model: Core, vector: Any, strength: Any, layers: Any) -> list[tuple[Place, np.ndarray]]:
    """What is added where: float32 [dim] at each layer's output. OptionError."""
    if isinstance(strength, (bool, np.bool_)) or not isinstance(strength, (int, float, np.integer, np.floating)) or not np.isfinite(strength):
        raise OptionError(f"strength must be a finite number, found {quoted(strength)}")
    every, dim = catalogue(model.config), model.config.dim
    if isinstance(vector, SteeringVector):
        directions = {i: v for i, v in vector.directions.items() if layers is None or i in layers_of(model, layers)}
    else:
        if layers is None:
            raise OptionError("a vector alone doesn't say where it is added: give layers")
        directions = dict.fromkeys(layers_of(model, layers), vector)
    if not directions:
        raise OptionError(f"the steering vector has no direction for these layers; it has {', '.join(map(str, vector.directions))}")
    found: list[tuple[Place, np.ndarray]] = []
    for layer, direction in directions.items():
        if not 0 <= layer < model.config.n_layers:
            raise OptionError(f"the steering vector has a direction for layer {layer}, {model.path} has layers 0 to {model.config.n_layers - 1}")
        try:
            v = np.asarray(direction, np.float32)
        except (TypeError, ValueError):
            raise OptionError(f"a steering vector must be numbers, found {quoted(direction)}") from None
        if v.shape != (dim,) or not np.isfinite(v).all():
            raise OptionError(f"a steering vector must be {dim} finite numbers for this model, found {list(v.shape)} for layer {layer}")
        found.append((_place(model, every, layer), np.float32(strength) * v))
    return found


def _adder(add: np.ndarray, where: Positions, strength: float) -> Hook:
    def hook(array: np.ndarray, spot: Spot) -> np.ndarray | None:
        at = where.among(spot.positions)
        if strength == 0.0 or not at.any():
            return None
        array = array.copy()
        array[at] += add
        return array
    return hook


@dataclass
class Steered:
    """One prompt's answers at several strengths: texts[i] at strengths[i]."""

    prompt: str
    strengths: list[float]
    texts: list[str]

    def __repr__(self) -> str:
        return "\n".join(f"{s:+g}: {text!r}" for s, text in zip(self.strengths, self.texts))

    def _repr_html_(self) -> str:
        from .pictures import steered_html
        return steered_html(self)


def steered(model: Core, prompt: str, vector: Any, strengths: Any, layers: Any, options: Mapping[str, Any]) -> Steered:
    """See `Model.steered`."""
    texts, given = [], [float(s) for s in strengths]
    for strength in given:
        with steer(model, vector, strength, layers):
            texts.append(model.generate(prompt, **{"max_tokens": 40, "temperature": 0.0, **options}).text())
    return Steered(prompt, given, texts)
