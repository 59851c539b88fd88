"""AdamW and SGD, element by element, and the clipping before them: the same bits everywhere.

    running gradient sums (float32) ─► norm of all (float64, matrices in name order) ─► factor ─► step: weights and moments change in place

Weights and moments are float32; an element's new values are computed in float64 from + - * / and square root, one after the other as written here, and rounded
once. NumPy does these correctly rounded, element by element, and never joins two of them; what it would do in an order of its own (sums) is a chain here. The
step of Adam is PyTorch's: decay first, then the bias-corrected moments.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ...kernels.backward import adam
from ...kernels.float_env import in_default_floats
from ...kernels.team import Team

MANY = 64
"""Numbers of an array from which on a kernel does the same operations (kernels/backward/adam.py)."""
PIECE = 1 << 15  # elements at once: what is between two operations stays in the second-level cache
Arrays = Mapping[str, np.ndarray]
Run = Callable[[int, int], int]
"""(entry, address of its words) -> its status: as Team.run."""


Many = tuple[np.ndarray, np.ndarray, list[np.ndarray], dict[str, float]]
"""Weights, gradients, moments, numbers."""


def power(x: float, n: int) -> float:
    """x ** n by squaring, from multiplications alone: a library's own changes with the library. n >= 0."""
    result = 1.0
    while n:
        if n & 1:
            result *= x
        x *= x
        n >>= 1
    return result


@in_default_floats
def gradient_norm(gradients: Arrays) -> float:
    """Of all elements: one chain of s + g * g in float64 (g * g is exact), matrices in the order of their names, elements in that of memory. Not finite where a
    gradient isn't."""
    total = np.float64(0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        for name in sorted(gradients):
            flat = gradients[name].reshape(-1)
            if len(flat) >= MANY and flat.dtype == np.float32:
                total = np.float64(adam.squares.ctypes(flat.ctypes.data, len(flat), float(total)))
                continue
            for start in range(0, len(flat), PIECE):
                g = flat[start:start + PIECE].astype(np.float64)
                chain = np.empty(len(g) + 1, np.float64)
                chain[0] = total
                np.multiply(g, g, out=chain[1:])
                total = np.add.accumulate(chain)[-1]
    return float(np.sqrt(total))


def clip_factor(norm: float, most: float) -> float:
    """What every gradient is multiplied with: most / norm if that is below 1. most 0: never clipped."""
    return most / norm if most and norm > most else 1.0


class Optimiser(ABC):
    """weights: float32 arrays that `step` changes in place; those named in `plain` don't decay. moments: what it remembers of them, by name, for
    checkpoints. run: on which threads kernels run; None: on this one."""

    name = ""
    kept: tuple[str, ...] = ()
    """Moments of each weight."""
    compiled = False

    def __init__(self, weights: Arrays, weight_decay: float = 0.0, plain: Collection[str] = (), run: Run | None = None) -> None:
        self.weights, self.weight_decay, self.plain, self.steps = weights, weight_decay, plain, 0
        self._run = run or Team(1).run
        self.moments: dict[str, np.ndarray] = {f"{name}.{kind}": np.zeros_like(w) for name, w in weights.items() for kind in self.kept}

    @in_default_floats
    @np.errstate(over="ignore", invalid="ignore")
    def step(self, gradients: Arrays, rate: float, factor: float = 1.0) -> bool:
        """One step down. gradients: as weights; factor: they are multiplied with it first. -> Whether weights and moments are all finite after it."""
        self.steps += 1
        finite = True
        numbers = {plain: self._numbers(rate, 0.0 if plain else self.weight_decay) for plain in (False, True)}
        many: list[Many] = []
        for name in sorted(self.weights):
            n = numbers[name in self.plain]
            w, g = self.weights[name].reshape(-1), gradients[name].reshape(-1)  # contiguous: views
            moments = [self.moments[f"{name}.{kind}"].reshape(-1) for kind in self.kept]
            done = len(w) // 8 * 8 if self.compiled and len(w) >= MANY and g.dtype == np.float32 else 0
            if done:
                many.append((w[:done], g, moments, n))
            for start in range(done, len(w), PIECE):
                piece = slice(start, start + PIECE)
                gradient = g[piece].astype(np.float64)
                if factor != 1.0:
                    gradient *= factor
                self._piece(w[piece], gradient, [m[piece] for m in moments], n)
                finite = finite and all(bool(np.isfinite(x[piece]).all()) for x in (w, *moments))
        return self._many(many, factor) and finite

    def _many(self, arrays: list[Many], factor: float) -> bool:
        """As _piece, if it is compiled -> whether weights and moments are all finite after it."""
        assert not arrays
        return True

    @abstractmethod
    def _numbers(self, rate: float, decay: float) -> dict[str, float]:
        """What is the same for all elements of an array in a step."""

    @abstractmethod
    def _piece(self, w: np.ndarray, g: np.ndarray, moments: list[np.ndarray], n: dict[str, float]) -> None:
        """Change weights (float32) and moments in place, by gradients (float64)."""


class AdamW(Optimiser):
    """w = w (1 - rate decay) - (rate / c1) m / (sqrt(v) / sqrt(c2) + eps), m and v the moments after they have taken the gradient in."""

    name, kept, compiled = "adamw", ("m", "v"), True
    BETA1, BETA2, EPS = 0.9, 0.999, 1e-8

    def _numbers(self, rate: float, decay: float) -> dict[str, float]:
        c1, c2 = 1.0 - power(self.BETA1, self.steps), 1.0 - power(self.BETA2, self.steps)
        return {"size": rate / c1, "root": float(np.sqrt(np.float64(c2))), "keep": 1.0 - rate * decay}

    def _piece(self, w: np.ndarray, g: np.ndarray, moments: list[np.ndarray], n: dict[str, float]) -> None:
        m32, v32 = moments
        m = m32.astype(np.float64) * self.BETA1 + g * (1.0 - self.BETA1)
        v = v32.astype(np.float64) * self.BETA2 + (g * g) * (1.0 - self.BETA2)
        new = w.astype(np.float64)
        if n["keep"] != 1.0:
            new *= n["keep"]
        new -= (m * n["size"]) / (np.sqrt(v) / n["root"] + self.EPS)
        m32[:], v32[:], w[:] = m, v, new

    def _many(self, arrays: list[Many], factor: float) -> bool:
        if not arrays:
            return True
        rest = self.BETA1, 1.0 - self.BETA1, self.BETA2, 1.0 - self.BETA2, self.EPS
        numbers = np.array([(factor, n["keep"], n["size"], n["root"], *rest) for *_, n in arrays])
        words = np.array([len(arrays), *(word for (w, g, (m, v), _), own in zip(arrays, numbers) for word in (
            w.ctypes.data, g.ctypes.data, m.ctypes.data, v.ctypes.data, len(w), own.ctypes.data))], np.int64)
        return self._run(adam.adamw.address, words.ctypes.data) == 0


class SGD(Optimiser):
    """w = w - rate (g + decay w)."""

    name = "sgd"

    def _numbers(self, rate: float, decay: float) -> dict[str, float]:
        return {"rate": rate, "decay": decay}

    def _piece(self, w: np.ndarray, g: np.ndarray, moments: list[np.ndarray], n: dict[str, float]) -> None:
        old = w.astype(np.float64)
        w[:] = old - (g + old * n["decay"]) * n["rate"]


OPTIMISERS: dict[str, type[Optimiser]] = {kind.name: kind for kind in (AdamW, SGD)}


def make(name: str, weights: Arrays, **options: Any) -> Optimiser:
    """By its name."""
    return OPTIMISERS[name](weights, **options)
