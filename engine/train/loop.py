"""The loop: steps of the optimiser, validation, checkpoints.

    Order: rows of a step ─► Gradients.accumulate, micro-batch by micro-batch ─► norm, clip ─► Optimiser.step ─► record ─► checkpoint, now and then
                                                                                                      the end ─► the adapter's file, or the model's

The same model, data and options give the same file, bit for bit, however a step is cut, on any number of threads, and whether the run was killed and begun
again or not: a checkpoint holds all that a step depends on, and what it does not hold is a function of the seed and the step's number.
"""
from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import FileError, LlaminaError, NumericError
from .checkpoint import Checkpoints, State
from .data import DataSet
from .optimiser import clip_factor, gradient_norm, make
from .options import Options
from .order import Order, micro_batches, rows_of
from .rows import Row, RowLosses
from .schedule import rate, warmup_steps

if TYPE_CHECKING:
    from collections.abc import Mapping

SAVE_SECONDS = 60.0
_SOME = 1 << 20


class Gradient(Protocol):
    """What gradients.py's and full.py's classes are to the loop."""

    @property
    def arrays(self) -> dict[str, np.ndarray]: ...

    def zero(self) -> None: ...

    def accumulate(self, rows: Sequence[Row], divisor: float, step: int) -> RowLosses: ...

    def losses(self, rows: Sequence[Row]) -> RowLosses: ...

    def run(self, entry: int, args: int) -> int:
        """Compiled work on the threads that it has (Team.run)."""


@dataclass
class Progress:
    """How far a run is. step: done; tokens: of this process's steps (since `begun`), in `seconds`; part: how much of the step under way."""

    step: int
    steps: int
    tokens: int = 0
    seconds: float = 0.0
    part: float = 0.0
    doing: str = "training"
    begun: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Tokens a second; 0 before anything was done."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Loop:
    """One run. weights: the arrays that are trained, which change in place (vectors don't decay); gradients: of them, by the same names. bound: what the run
    depends on.

    most_tokens, most_pages: of a micro-batch. seen: called with Progress after each micro-batch. UnsupportedError, OptionError, FormatError, FileError.
    """

    def __init__(self, gradients: Gradient, weights: Mapping[str, np.ndarray], data: DataSet, valid: DataSet | None, options: Options, *,
                 bound: Mapping[str, Any] | None = None, checkpoints: Checkpoints | None = None, most_tokens: int = 1024, most_pages: int = 1 << 62,
                 seen: Callable[[Progress], object] = lambda progress: None) -> None:
        assert set(gradients.arrays) == set(weights)
        self.gradients, self.weights, self.valid, self.options = gradients, weights, valid, options
        self.order = Order(data, options)
        self.steps = self.order.steps
        self.optimiser = make(options.optimizer, weights, weight_decay=options.weight_decay, plain={name for name, w in weights.items() if w.ndim < 2},
                              run=gradients.run)
        self.history: list[dict[str, Any]] = []
        self._bound, self._checkpoints, self._seen = dict(bound or {}), checkpoints, seen
        self._most_tokens, self._most_pages = most_tokens, most_pages
        self._warm = warmup_steps(options.warmup, self.steps)
        self._saved, self._saved_at = -1, time.monotonic()
        if checkpoints is not None:
            arrays = {**weights, **self.optimiser.moments}
            state = checkpoints.load(self._bound, {name: a.shape for name, a in arrays.items()}, self.steps)
            if state is not None:
                for name, array in arrays.items():
                    array[...] = state.arrays[name]
                self.optimiser.steps, self.history, self._saved = state.step, state.history, state.step
        self.resumed = self.step
        self.progress = Progress(self.step, self.steps, history=self.history, begun=self.step)

    @property
    def step(self) -> int:
        """How many are done."""
        return self.optimiser.steps

    @property
    def kept(self) -> int:
        """From where another run would go on: the step of the newest checkpoint, 0 without one."""
        return max(0, self._saved)

    def run(self) -> Generator[dict[str, Any], None, None]:
        """Records as they are made: of each step, and of validations, which have "valid_loss". NumericError (a loss that isn't finite): the last checkpoint is
        kept. FileError: a checkpoint could not be written; the one before is kept."""
        try:
            while True:
                if self._to_validate():
                    yield self._add(self._validation())
                if self.step == self.steps:
                    break
                yield self._add(self._one())
                if self._checkpoints is not None and self._save_now():
                    self.save()
        except GeneratorExit:
            with contextlib.suppress(FileError):  # whoever closes us early has something else to tell
                self._save_what_is_done()
            raise
        except (KeyboardInterrupt, SystemExit):
            self._save_what_is_done()
            raise
        if self._checkpoints is not None and self._saved < self.step:
            self.save()

    def save(self) -> None:
        """A checkpoint of this step."""
        assert self._checkpoints is not None
        self._checkpoints.save(self._bound, State(self.step, self.history, {**self.weights, **self.optimiser.moments}))
        self._saved, self._saved_at = self.step, time.monotonic()

    def _save_what_is_done(self) -> None:
        if self._whole and self._checkpoints is not None and self.step > self.kept:
            self.save()

    def measure(self) -> float:
        """Seconds a token, by the next step's first micro-batch, whose gradients are forgotten again. What must be compiled is compiled before."""
        rows = self.order.rows(self.step)
        part = next(self._parts(rows))
        for _ in range(2):
            self.gradients.zero()
            start = time.perf_counter()
            self._accumulated(part, self._targets(rows), self.step)
            seconds = time.perf_counter() - start
        return seconds / sum(len(row.ids) for row in part)

    def between(self) -> float:
        """Seconds that a step takes beside its tokens, for norm and optimiser: of some weights, as many times as there are more."""
        total = sum(w.size for w in self.weights.values())
        some = {"w": np.full(min(total, _SOME), 0.1, np.float32)}
        optimiser, seconds = make(self.options.optimizer, some, weight_decay=self.options.weight_decay, run=self.gradients.run), 0.0
        for _ in range(2):
            start = time.perf_counter()
            optimiser.step(some, 1e-3, clip_factor(gradient_norm(some), 1e-3))
            seconds = time.perf_counter() - start
        return seconds * total / some["w"].size

    def largest(self) -> tuple[int, int]:
        """Tokens, and rows, of a micro-batch, at most."""
        rows = min(self.options.micro_batch or self.options.batch, self.options.batch)
        sizes = sorted((len(e.ids) for e in self.order.data.examples), reverse=True)[:rows]
        return sum(sizes) if self.options.micro_batch else min(sum(sizes), max(self._most_tokens, sizes[0])), len(sizes)

    # -- a step ---------------------------------------------------------------------------------------------------------------------------

    _whole = True
    """Whether weights, moments, step and history belong together, which they do but for a moment."""

    def _one(self) -> dict[str, Any]:
        step, start = self.step, time.perf_counter()
        rows = self.order.rows(step)
        targets, tokens = self._targets(rows), sum(len(row.ids) for row in rows)
        self.gradients.zero()
        found, done = [], 0
        for part in self._parts(rows):
            found.append(self._accumulated(part, targets, step))
            done += sum(len(row.ids) for row in part)
            self._tell("training", done / tokens)
        norm = gradient_norm(self.gradients.arrays)
        if not math.isfinite(norm):
            raise self._stopped(rows, "the gradients are not finite")
        lr = rate(self.options.schedule, self.options.lr, step, self.steps, self._warm)
        self._whole = False
        if not self.optimiser.step(self.gradients.arrays, lr, clip_factor(norm, self.options.clip)):
            self.optimiser.steps = step
            raise self._stopped(rows, "the weights are not finite any more")
        seconds = time.perf_counter() - start
        self.progress.tokens, self.progress.seconds = self.progress.tokens + tokens, self.progress.seconds + seconds
        return {"step": self.step, "epoch": round(self.step / self.order.per_epoch, 4), "loss": mean(found), "accuracy": hits(found), "lr": lr, "norm": norm,
                "tokens": tokens, "targets": targets}

    def _parts(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        return micro_batches(rows, self.options.micro_batch, self._most_tokens, self._most_pages)

    @staticmethod
    def _targets(rows: Sequence[Row]) -> int:
        return sum(row.targets for row in rows)

    def _accumulated(self, part: Sequence[Row], targets: int, step: int) -> RowLosses:
        try:
            found = self.gradients.accumulate(part, float(targets), step)
        except NumericError as error:
            raise self._stopped(part, str(error)) from None
        if not np.isfinite(found.nll).all():
            raise self._stopped(part, "the loss is not finite")
        return found

    def _stopped(self, rows: Sequence[Row], why: str) -> LlaminaError:
        """What to say when numbers went wrong."""
        names = ", ".join(dict.fromkeys(row.name for row in rows))
        names = names if len(names) <= 300 else names[:300] + "…"
        kept = "nothing was saved before" if self._saved < 1 else f"the checkpoint of step {self._saved} is kept"
        return NumericError(f"step {self.step + 1} of {self.steps} ({names}): {why}; {kept}. Train with a lower learning rate (--lr, now {self.options.lr:g})")

    # -- the rest -------------------------------------------------------------------------------------------------------------------------

    def _validation(self) -> dict[str, Any]:
        assert self.valid is not None
        rows = rows_of(self.valid, range(len(self.valid.examples)))
        found, done = [], 0
        for part in self._parts(rows):
            try:
                found.append(self.gradients.losses(part))
            except NumericError as error:
                raise self._stopped(part, str(error)) from None
            done += len(part)
            self._tell("validating", done / len(rows))
        if not all(np.isfinite(f.nll).all() for f in found):
            raise self._stopped(rows, "the loss of the validation data is not finite")
        return {"step": self.step, "valid_loss": mean(found), "valid_accuracy": hits(found), "valid_targets": sum(f.tokens for f in found)}

    def _to_validate(self) -> bool:
        """At the beginning, when it is time, and at the end; each once, in whichever process."""
        if self.valid is None or self.step and not self._due(self.options.eval_every or self.order.per_epoch):
            return False
        return not any(record["step"] == self.step and "valid_loss" in record for record in self.history[-2:])

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps

    def _save_now(self) -> bool:
        if self.options.save_every:
            return self._due(self.options.save_every)
        return time.monotonic() - self._saved_at > SAVE_SECONDS

    def _add(self, record: dict[str, Any]) -> dict[str, Any]:
        self.history.append(record)
        self._whole = True
        self.progress.step = self.step
        self._tell("training", 0.0)
        return record

    def _tell(self, doing: str, part: float) -> None:
        self.progress.doing, self.progress.part = doing, part
        self._seen(self.progress)


def mean(found: Sequence[RowLosses]) -> float:
    """Of the losses of all targets: their sum, rounded once, by their number."""
    return math.fsum(x for f in found for x in f.nll.tolist()) / max(1, sum(f.tokens for f in found))


def hits(found: Sequence[RowLosses]) -> float:
    """The share of targets that were the likeliest token."""
    return sum(f.hits for f in found) / max(1, sum(f.tokens for f in found))
