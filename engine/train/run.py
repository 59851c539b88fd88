"""A training run from beginning to end: model and files -> plan -> loop -> the file of the adapter, or of the model.

    Reading, Options ─► data, new adapter (full: the model's weights), gradients, checkpoints ─► Run: .plan, .records() ─► .finish() -> Trained
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import kernels
from ...kernels.low_rank import ORDER
from ..errors import OptionError, OutOfMemoryError, quoted
from ..files import shown
from ..run.adapters import memory_of
from ..run.memory import parse_memory
from ..run.weights import available_memory
from ..units import duration, size
from . import curve
from .checkpoint import Checkpoints
from .data import Reading, lengths, open_data
from .fresh import new_adapter, weights
from .full import FullGradients
from .gradients import Gradients
from .log import Log
from .loop import Loop, Progress
from .model_weights import ModelWeights
from .optimiser import OPTIMISERS
from .options import Options
from .order import KEPT_TOKENS, MICRO_TOKENS
from .store import KEEP, parse_keep

if TYPE_CHECKING:
    from ..answers.core import Core
    from .adapter import Adapter

Data = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


@dataclass
class Trained:
    """What came of a run: .adapter, for `model.add_adapter`, or, where all weights were trained (full), .weights; .history: a record for each step (loss,
    accuracy, lr, norm, …) and each validation (valid_loss, valid_accuracy); a notebook draws it."""

    learned: Adapter | ModelWeights
    history: list[dict[str, Any]] = field(repr=False)
    path: Path | None = None

    @property
    def adapter(self) -> Adapter:
        """OptionError: all weights were trained."""
        if isinstance(self.learned, ModelWeights):
            raise OptionError("all weights were trained, there is no adapter: .save(path) writes the model")
        return self.learned

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """{tensor: float32}. OptionError: an adapter was trained."""
        if not isinstance(self.learned, ModelWeights):
            raise OptionError("an adapter was trained: .adapter has its numbers")
        return self.learned.arrays

    def save(self, path: str | os.PathLike[str]) -> None:
        """The adapter, as llama.cpp's GGUF file; or the whole model, as its own file with other numbers. FileError."""
        self.learned.save(path)

    def plot(self, path: str) -> None:
        """The loss curve as a picture. UnsupportedError (extra `plot` is missing), FileError."""
        curve.draw(self.history, path)

    def _repr_html_(self) -> str:
        return curve.html(self.history, f"{self.learned!r}")


@dataclass(frozen=True)
class Plan:
    """What a run will take. parts: "42 pairs". seconds: of all its steps, by measurement, or None. memory: bytes beside the model, by what they are for."""

    rows: int
    tokens: int
    targets: int
    median: int
    longest: int
    steps: int
    left: int
    epochs: float
    parameters: int
    parts: str
    memory: dict[str, int]
    seconds: float | None = None

    def lines(self) -> list[str]:
        """For people."""
        epochs = f"{self.epochs:.3g} epoch{'' if self.epochs == 1 else 's'}"
        total = sum(self.memory.values())
        left = f", {self.left} of them left" if self.left < self.steps else ""
        parts = ", ".join(f"{name} {size(n)}" for name, n in self.memory.items())
        found = [f"data: {self.rows} examples, {self.tokens} tokens, {self.targets} of them targets; half have up to {self.median} tokens, the longest "
                 f"{self.longest}",
                 f"plan: {self.steps} step{'' if self.steps == 1 else 's'} ({epochs}){left}; {self.parts}, {self.parameters} numbers are trained; "
                 f"memory {size(total)} beside the model ({parts})"]
        if self.seconds is not None:
            found.append(f"expected time: {duration(self.seconds)}, by a measured step")
        return found


class Run:
    """A context manager. data, valid: files, or rows. output: where the adapter (full: the model) goes (None: nowhere; then nothing is kept of an interrupted
    run). log: a .jsonl file. memory: most bytes beside the model; keep: of them, for layers, which are not computed a second time then. seen: told
    how far it is. FileError, FormatError, OptionError, UnsupportedError."""

    def __init__(self, model: Core, data: Data, output: str | os.PathLike[str] | None, reading: Reading, options: Options, *, valid: Data | None = None,
                 log: str | os.PathLike[str] | None = None, memory: int | str | None = None, keep: int | str | None = None, threads: int | None = None,
                 seen: Callable[[Progress], object] = lambda progress: None, reads: Callable[[int], object] = lambda done: None) -> None:
        if reading.context > model.context:
            raise OptionError(f"{shown(model.path)}: rows of {reading.context} tokens are allowed, the model was loaded with a context of {model.context}: "
                              f"load it with context={reading.context}")
        if model.runtime.adapters.default:
            raise OptionError(f"{shown(model.path)}: has adapters that count for everything: training begins from the model alone: remove_adapter them")
        if model.runtime.adapters.control_digest:
            raise OptionError(f"{shown(model.path)}: has control vectors, which no checkpoint is bound to: training begins from the model alone: take them "
                              "away by control()")
        wanted = parse_keep(keep)
        asked = KEEP if wanted is None else wanted
        self.model, self.options, self.output = model, options, None if output is None else Path(output)
        self._stack = contextlib.ExitStack()
        self.learned: Adapter | ModelWeights
        self.gradients: Gradients | FullGradients
        try:
            if options.full:
                self.learned = ModelWeights(model, 2 + self._moments)
                self._stack.callback(self.learned.put_back)
                self.gradients, arrays = FullGradients(self.learned, threads=threads), self.learned.arrays
            else:
                self.learned = adapter = new_adapter(model.config, options, Path(model.path).stem)
                self.gradients, arrays = Gradients(model, adapter, dropout=options.dropout, seed=options.seed, threads=threads,
                                                   backward=options.backward), weights(adapter)
                self._stack.callback(self.gradients.close)
            self.checkpoints = None if self.output is None else self._stack.enter_context(Checkpoints(self.output))
            self.data = open_data(model, data, reading, seen=reads)
            self.valid = None if valid is None else open_data(model, valid, replace(reading, labels=self.data.labels or reading.labels),
                                                              None if isinstance(valid, (str, os.PathLike)) else "valid", seen=reads)
            if isinstance(self.gradients, FullGradients):
                self.gradients.step_rows = min(options.batch, len(self.data.examples))
            ropes = sorted({a.rope.factors_for(model.context) for a in model.config.attentions() if a.rope})  # which of them, hangs on the context
            bound = {"base": model.digest, "rope_factors": ropes, "kv": model.runtime.kv_name, "arithmetic": [kernels.ARITHMETIC_VERSION, ORDER],
                     "data": self.data.bound(), "valid": self.valid.bound() if self.valid else None, "reading": reading.bound(), "options": options.bound()}
            budget = self._budget(memory)
            most = self._most_tokens(budget, asked)
            self.loop = Loop(self.gradients, arrays, self.data, self.valid, options, bound=bound, checkpoints=self.checkpoints, most_tokens=most,
                             most_pages=self.gradients.most_pages, seen=seen)
            tokens, rows = self.loop.largest()
            room = budget - self._fixed() - self.gradients.memory(tokens, self._longest(), rows)
            self.gradients.keep = self.gradients.kept(tokens, min(asked, room))[1]  # what is planned for the largest is enough for all
            head = {"model": Path(model.path).name, "steps": self.loop.steps, **bound}
            self.log = None if log is None else self._stack.enter_context(Log(Path(log), head, self.loop.history))
        except BaseException:
            self._stack.close()
            raise

    def _budget(self, memory: int | str | None) -> int:
        """Bytes beside the model: what is allowed, and half of what is free beside weights, moments and gradients. OutOfMemoryError."""
        allowed, free, fixed = parse_memory(memory), available_memory(), self._fixed()
        longest = self._longest()
        least = fixed + self.gradients.memory(longest, longest)
        if allowed is not None and allowed < least:
            fewer = "" if self.options.full else "fewer matrices (--targets, --layers), a lower rank, or "
            raise OutOfMemoryError(f"training takes {size(least)} beside the model, {size(allowed)} are allowed: allow more, or {fewer}shorter rows "
                                   "(--context, --long cut)")
        return min(n for n in (allowed, None if free is None else fixed + (free - fixed) // 2, 1 << 62) if n is not None)

    def _most_tokens(self, budget: int, keep: int) -> int:
        """Of a micro-batch: as many as speed asks for, if memory allows; fewer if all layers of those can be kept, or more of them at least."""
        longest, rows, room = self._longest(), min(self.options.micro_batch or self.options.batch, self.options.batch), budget - self._fixed()
        most = max(MICRO_TOKENS, longest)
        while most > longest and self.gradients.memory(most, longest, rows) > room:
            most = max(longest, most // 2)

        def kept(tokens: int) -> int:
            return self.gradients.kept(tokens, min(keep, room - self.gradients.memory(tokens, longest, rows)))[0]
        fewer = max(KEPT_TOKENS, longest)
        return fewer if fewer < most and kept(most) < self.gradients.layers() and kept(fewer) else most

    def _longest(self) -> int:
        return max(lengths(data)[1] for data in (self.data, self.valid) if data is not None)

    def _fixed(self) -> int:
        """Bytes of weights, the copy of an adapter that runs, moments and gradients."""
        return self.learned.n_parameters * 4 * (2 + self._moments) + self._copy()

    def _copy(self) -> int:
        return 0 if isinstance(self.learned, ModelWeights) else memory_of(self.learned, self.model.config)

    @property
    def _moments(self) -> int:
        """Of each weight."""
        return len(OPTIMISERS[self.options.optimizer].kept)

    def plan(self, measured: bool = True) -> Plan:
        """What it will take; measured: compute a part of a step, and forget it, to tell the time."""
        data, order = self.data, self.loop.order
        median, longest = lengths(data)
        most, rows = self.loop.largest()
        left = self.loop.steps - self.loop.step
        seconds = self.loop.measure() * order.tokens * left / self.loop.steps + self.loop.between() * left if measured and left else None
        n, full = self.learned.n_parameters, isinstance(self.learned, ModelWeights)
        parts = f"{len(self.learned.arrays)} tensors" if isinstance(self.learned, ModelWeights) else f"{len(self.learned.pairs)} pairs"
        memory = {"weights" if full else "adapter": 4 * n + self._copy(), "gradients": 4 * n, "moments": self._moments * 4 * n,
                  "micro-batch": self.gradients.memory(most, longest, rows)}
        kept, size_kept = self.gradients.kept(most)
        memory |= {f"{kept} of {self.gradients.layers()} layers kept": size_kept} if kept else {}
        return Plan(len(data.examples), data.tokens, data.targets, median, longest, self.loop.steps, left, order.epochs, n, parts, memory, seconds)

    def records(self) -> Iterator[dict[str, Any]]:
        """Train; see `Loop.run`."""
        with contextlib.closing(self.loop.run()) as records:
            for record in records:
                if self.log is not None:
                    self.log.add(record)
                yield record

    def finish(self) -> Trained:
        """Write the adapter, or the model, when all steps are done; the checkpoints go. FileError: they stay."""
        assert self.loop.step == self.loop.steps
        if self.output is not None:
            self.learned.save(self.output)
        if self.checkpoints is not None:
            self.checkpoints.remove()
        return Trained(self.learned, self.loop.history, self.output)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()


def train(model: Core, data: Data, output: str | os.PathLike[str] | None = None, *, valid: Data | None = None, log: str | os.PathLike[str] | None = None,
          memory: int | str | None = None, keep: int | str | None = None, progress: Callable[[Progress], object] | None = None, **options: Any) -> Trained:
    """See `Model.train`. options: of Reading and Options."""
    about_rows = {f.name for f in fields(Reading)}
    known = about_rows | {f.name for f in fields(Options)}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise OptionError(f"train knows no option {quoted(unknown[0])}: it has {', '.join(sorted(known))}")
    reading = Reading(**{"context": min(Reading.context, model.context), **{name: value for name, value in options.items() if name in about_rows}})
    rest = Options(**{name: value for name, value in options.items() if name not in about_rows})
    with Run(model, data, output, reading, rest, valid=valid, log=log, memory=memory, keep=keep, seen=progress or (lambda state: None)) as run:
        for _ in run.records():
            pass
        return run.finish()
