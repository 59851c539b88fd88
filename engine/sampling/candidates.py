"""What the stages of sampling hand on, and how many candidates go through compiled code.

    Candidates ── few ──► NumPy: filters.py            both do the same operations in the same order, hence leave the same candidates;
               └─ many ─► Scores: kernels/sampling.py  the latter without an array of scores or an order of all of them
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .arithmetic import MANY, relative, temper

_KEPT_ROOMS = 4
LOG2_E = 1.44269504088896340736
TINY = 2.0**-900
"""More than all estimates that are off by more than `doubt` add up to."""


class Room:
    """Arrays used again by one choice after the other: new ones of this size cost more, page by page, than what is computed in them."""

    _free: list[Room] = []

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}
        self._places = np.arange(0)

    def array(self, name: str, n: int, dtype: type) -> np.ndarray:
        """[n] of anything; the last one of this name is overwritten. There is room for n rounded up to 16."""
        n_bytes = -(-n // 16) * 128
        if name not in self._held or len(self._held[name]) < n_bytes:
            self._held[name] = np.empty(n_bytes, np.uint8)
        return self._held[name].view(dtype)[:n]

    def places(self, n: int) -> np.ndarray:
        """0, 1, …, n - 1."""
        if len(self._places) < n:
            self._places = np.arange(n)
        return self._places[:n]

    @classmethod
    def take(cls) -> Room:
        """One that nobody else uses: several threads may choose at once."""
        try:
            return cls._free.pop()
        except IndexError:
            return cls()

    def give_back(self) -> None:
        if len(self._free) < _KEPT_ROOMS:
            self._free.append(self)


class Cut(NamedTuple):
    """Which candidates stay: those whose key is below `limit`, or equal to it at a place up to `last`. The key is |(log_whole - score) - entropy|: minus the
    score, or the surprise, or how far that is from the entropy."""

    limit: float
    last: int = 1 << 62
    log_whole: float = 0.0
    entropy: float = 0.0


class Scores:
    """Of many candidates: (logits - greatest) / divisor, computed where they are needed.

    logits: float32 or float64 [n], contiguous, finite. What kernels/sampling.py's functions do, on arrays; and those of estimate.py, which tell sums and
    weights up to the share `doubt` of themselves.
    """

    def __init__(self, logits: np.ndarray, divisor: float = 1.0, greatest: float | None = None):
        from ...kernels import estimate, sampling
        self._kernels, self._estimates = sampling, estimate
        self.logits, self.divisor = np.ascontiguousarray(logits), divisor
        self.greatest = float(logits.max()) if greatest is None else greatest
        self._sums = np.empty(-(-len(logits) // sampling.BLOCK))
        self._weights = 0
        self.doubt = 0.0

    def _some(self, logits: np.ndarray) -> tuple[int, int, int, float]:
        """What every kernel wants to know first; divisor or factor follows."""
        return logits.ctypes.data, int(logits.dtype == np.float64), len(logits), self.greatest

    @property
    def _all(self) -> tuple[int, int, int, float, float]:
        return *self._some(self.logits), self.divisor

    def __getitem__(self, index: int) -> float:
        return (float(self.logits[index]) - self.greatest) / self.divisor

    def of(self, logits: np.ndarray) -> np.ndarray:
        """Scores, float64 [m], of some of the logits."""
        return temper(logits.astype(np.float64) - self.greatest, self.divisor)

    def weigh(self, weights: np.ndarray | None = None) -> float:
        """The sum of the weights, exp(scores), which are kept in `weights` (float64 [n], from a room) for `surprise` and `cut`."""
        return self._weigh(0.0, weights)

    def estimate(self, weights: np.ndarray | None = None) -> float:
        """The same, up to `doubt`."""
        return self._weigh(self._estimates_doubt(), weights)

    def _estimates_doubt(self) -> float:
        return self._estimates.DOUBT + len(self.logits) * 2.0**-51 if self.divisor > 1e-300 else 0.0

    def _weigh(self, doubt: float, weights: np.ndarray | None) -> float:
        self.doubt, self._weights = doubt, 0 if weights is None else weights.ctypes.data
        return self._add_up(doubt, self.logits, self._weights, self._sums)

    def _add_up(self, doubt: float, logits: np.ndarray, weights: int, sums: np.ndarray) -> float:
        """Of some of the logits, estimated if some doubt is allowed; weights: where to put theirs, or 0; sums: for the running sum after each block of them."""
        some = self._some(logits)
        if doubt:
            return float(self._estimates.estimate.ctypes(*some, LOG2_E / self.divisor, weights, sums.ctypes.data))
        return float(self._kernels.weigh.ctypes(*some, self.divisor, weights, sums.ctypes.data))

    def draw(self, u: float) -> int:
        """arithmetic.draw of the weights: by their estimates, unless the random number falls too near the border between two candidates."""
        index, sure = self._draw(u, self._estimates_doubt())
        return index if sure else self._draw(u, 0.0)[0]

    def _draw(self, u: float, doubt: float) -> tuple[int, bool]:
        """The candidate with which the running sum goes beyond a share u of the whole, and whether it is that in spite of the doubt."""
        block, sums = self._kernels.BLOCK, self._sums
        target = u * self._add_up(doubt, self.logits, 0, sums)
        b = int(np.searchsorted(sums, target, side="right"))
        part, weights = self.logits[b * block:(b + 1) * block], np.empty(1 + block)
        weights[0] = sums[b - 1] if b else 0.0
        self._add_up(doubt, part, weights.ctypes.data + 8, np.empty(1))
        running = np.add.accumulate(weights[:1 + len(part)])
        i = min(int(np.searchsorted(running[1:], target, side="right")), len(part) - 1)
        before, after = float(running[i]), float(running[i + 1])
        sure = target - before > doubt * (target + before) + TINY and after - target > doubt * (after + target) + TINY
        return b * block + i, not doubt or sure

    def surprise(self, log_whole: float) -> float:
        """The sum of weight * (log_whole - score), after `weigh` with room for weights."""
        assert self._weights
        return float(self._kernels.weighted_surprise.ctypes(*self._all, self._weights, log_whole))

    def deviation(self) -> float:
        """The standard deviation of the scores."""
        n = len(self.logits)
        mean = -float(self._kernels.moment.ctypes(*self._all, 1, 0.0)) / n
        return math.sqrt(float(self._kernels.moment.ctypes(*self._all, 2, mean)) / n)

    def estimated_deviation(self) -> float:
        """The same, up to a share of 1e-9."""
        return math.sqrt(float(self._estimates.squares.ctypes(*self._all)) / len(self.logits))

    def cut(self, target: float, room: np.ndarray, log_whole: float = 0.0, entropy: float = 0.0, farthest: float = math.inf) -> Cut | None:
        """The fewest candidates, by ascending key, whose weights add up to `target`; keys beyond `farthest` are known not to be needed. None: too close to
        tell without sorting, or from estimates. room: float64 [2 (n + 8)]. After `weigh` or `estimate` with room for weights."""
        assert self._weights
        # each of two sums of n positive numbers is off by less than n * 2**-53 of itself; both may be in doubt
        margin = target * (len(self.logits) * 2.0**-51 + 2 * self.doubt)
        found = np.zeros(2)
        clear = self._kernels.cut.ctypes(*self._all, self._weights, log_whole, entropy, target, margin, farthest, room.ctypes.data, found.ctypes.data)
        return Cut(float(found[0]), int(found.view(np.int64)[1]), log_whole, entropy) if clear else None

    def collect(self, cut: Cut, ids: np.ndarray | None, logits_out: np.ndarray, ids_out: np.ndarray) -> int:
        """Those within the cut -> how many; their logits and ids in the two arrays [n]."""
        return int(self._kernels.collect.ctypes(*self._all, cut.log_whole, cut.entropy, cut.limit, cut.last, 0 if ids is None else ids.ctypes.data,
                                                logits_out.ctypes.data, ids_out.ctypes.data))


class Candidates:
    """Those left by the stages so far.

    ids: int64 [n], ascending, or None for the whole vocabulary; position, history: the stages' other arguments. Of many candidates the temperature is only
    remembered, until somebody asks for `logits`.
    """

    def __init__(self, logits: np.ndarray, position: int, history: Sequence[int]):
        self.ids: np.ndarray | None = None
        self.position, self.history = position, history
        self._logits = logits
        self._temperature: float | None = None
        self._scores: Scores | None = None
        self._room: Room | None = None
        self._side = 0
        self.shift = 0.0
        """What a temperature took from all logits, divided by it: for stages that ask whether a logit is positive."""

    def __len__(self) -> int:
        return len(self._logits)

    @property
    def logits(self) -> np.ndarray:
        """float32 [n], or float64 once tempered."""
        if self._temperature is not None:
            self._logits, self._temperature, self._scores = temper(relative(self._logits), self._temperature), None, None
        return self._logits

    @logits.setter
    def logits(self, logits: np.ndarray) -> None:
        self._logits, self._temperature, self._scores = logits, None, None

    @property
    def many(self) -> Scores | None:
        """Their scores for compiled code, or None if they are few."""
        if self._scores is None and len(self._logits) >= MANY:
            if self._logits.dtype == np.float64 and not math.isfinite(float(self._logits.max()) - float(self._logits.min())):
                return None
            self._scores = Scores(self._logits, 1.0 if self._temperature is None else self._temperature)
        return self._scores

    @property
    def room(self) -> Room:
        if self._room is None:
            self._room = Room.take()
        return self._room

    def give_back(self) -> None:
        """The room: these candidates are looked at no more."""
        if self._room is not None:
            self._room.give_back()
            self._room = None

    def weigh(self) -> float:
        """Of many: the sum of their weights, which are kept for what comes next."""
        assert self.many
        return self.many.weigh(self.room.array("weights", len(self), np.float64))

    def estimate(self) -> float:
        """The same, up to `many.doubt`."""
        assert self.many
        return self.many.estimate(self.room.array("weights", len(self), np.float64))

    def room_to_cut(self) -> np.ndarray:
        return self.room.array("cut", 2 * (len(self) + 8), np.float64)

    def keep(self, indices: np.ndarray) -> None:
        """Only those, in the order of their ids."""
        if len(indices) < len(self._logits):
            self.logits = self.logits[indices]
            self.ids = indices if self.ids is None else self.ids[indices]

    def keep_within(self, cut: Cut, edge: float = 0.0) -> int | None:
        """Of many: only those within the cut -> how many; if none are, all stay. None, and nothing done: a key is within `edge` of the limit."""
        scores, n = self.many, len(self)
        assert scores
        logits, ids = self._other_side()
        count = scores.collect(cut._replace(limit=cut.limit + edge), self.ids, logits, ids)
        if edge and (np.abs((cut.log_whole - scores.of(logits[:count])) - cut.entropy) >= cut.limit - edge).any():
            return None
        if 0 < count < n:
            self._go_on(logits[:count], ids[:count])
        return count

    def within(self, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
        """Of many: (places, scores) of those within the cut; all stay."""
        scores = self.many
        assert scores
        logits, places = self._other_side()
        count = scores.collect(cut, None, logits, places)
        return places[:count], scores.of(logits[:count])

    def drop(self, indices: np.ndarray) -> None:
        """All but those few, ascending."""
        scores, n = self.many, len(self)
        if not len(indices):
            return
        if scores is None or len(indices) > 64:
            self.keep(np.delete(np.arange(n), indices))
            return
        starts, ends = [0, *(indices + 1).tolist()], [*indices.tolist(), n]
        left, sources = n - len(indices), (self._logits, self.room.places(n) if self.ids is None else self.ids)
        sides = tuple(side[:left] for side in self._other_side())
        for source, side in zip(sources, sides):
            np.concatenate([source[start:end] for start, end in zip(starts, ends)], out=side)
        self._go_on(*sides)

    def temper(self, temperature: float) -> None:
        """Scores divided by a temperature above 0; those of probability 0 left out."""
        logits, scores = self.logits, self.many
        with np.errstate(over="ignore"):
            self.shift = float((np.float64(logits.max()) + self.shift) / temperature)
        if scores and math.isfinite((float(logits.min()) - scores.greatest) / temperature):
            self._temperature, self._scores = temperature, Scores(logits, temperature, scores.greatest)
            return
        self.logits = tempered = temper(relative(logits), temperature)
        if not np.isfinite(tempered).all():
            self.keep(np.flatnonzero(np.isfinite(tempered)))

    def id(self, index: int) -> int:
        return index if self.ids is None else int(self.ids[index])

    def _other_side(self) -> tuple[np.ndarray, np.ndarray]:
        """(logits, ids) [n] to write to: of two pairs the one not in use."""
        return (self.room.array(f"logits {self._side}", len(self), self._logits.dtype.type), self.room.array(f"ids {self._side}", len(self), np.int64))

    def _go_on(self, logits: np.ndarray, ids: np.ndarray) -> None:
        """With these of them. Scores of tempered candidates are relative to the greatest one, which may have gone."""
        scores, temperature = self._scores, self._temperature
        self.logits, self.ids, self._side = logits, ids, 1 - self._side
        if temperature is None:
            return
        assert scores
        if float(logits.max()) == scores.greatest:
            self._temperature = temperature
        else:
            self.logits = scores.of(logits)
