"""Perplexity of a text, and the divergence of a model from a reference model, window by window as llama.cpp's perplexity tool does it.

    text -> ids -> windows of `context` tokens, no overlap, the first token of each replaced by BOS -> log-probabilities of the second half's tokens

Source: llama.cpp, tools/perplexity/perplexity.cpp (`-c`, without `--ppl-stride`); the same file gives the same number within the models' arithmetic.
Log-probabilities are likelihood.py's, sums are rounded once: the same numbers on every CPU. What was found of each window can be kept, and given again.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ...kernels.float_env import in_default_floats
from ..errors import OptionError
from ..run.scheduler import Job
from .likelihood import deviation, divergence_of_rows, exponential, mean, row_of

if TYPE_CHECKING:
    from ..answers.core import Core

Progress = Callable[[str, int, int], None]
T = TypeVar("T")
LEAST = 8
"""Tokens of the smallest window."""
_PIECE = 32
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class Perplexity:
    """exp(mean negative log-likelihood) over the scored tokens; `error`: one standard error of the perplexity."""

    perplexity: float
    error: float
    nll: float
    tokens: int
    windows: int
    context: int


@dataclass(frozen=True)
class Divergence:
    """A model against a reference on the same windows. kl: nats per token of KL(reference || model); percentiles: {50: kl, 90: ..., 99: ..., 100: ...}."""

    model: Perplexity
    reference: Perplexity
    mean_kl: float
    kl_error: float
    percentiles: dict[int, float]
    top1_agreement: float


def windows(model: Core, text: str, context: int, most: int | None = None, special: bool = False) -> np.ndarray:
    """Ids of the text in at most `most` windows: int64 [n, context]. special: names of special tokens in the text are those tokens. OptionError if the
    text is too short for one."""
    if most is not None and most < 1:
        raise OptionError(f"there must be at least one window, found {most}")
    if not LEAST <= context <= model.context:
        raise OptionError(f"the window must be between {LEAST} and the context of {model.context} tokens, found {context}")
    ids = np.array(model.tokenize(text, special=special), np.int64)
    n = min(len(ids) // context, most or len(ids))
    if n == 0:
        raise OptionError(f"the text has {len(ids)} tokens, one window takes {context}: give a longer text or a smaller --context")
    cut = ids[:n * context].reshape(n, context).copy()
    if model.tokenizer.add_bos and model.tokenizer.bos_id is not None:
        cut[:, 0] = model.tokenizer.bos_id
    return cut


class _Window:
    """One of two models' way through a window: the logits at the positions that are scored, a piece at a time."""

    def __init__(self, model: Core, ids: np.ndarray):
        self.model, self.ids = model, ids
        self.first = len(ids) // 2
        self.sequence = model.runtime.new_sequence()

    def pieces(self) -> Any:
        """Yields (targets int64 [k], logits float32 [k, n_vocab])."""
        ids, last = self.ids, len(self.ids) - 1
        try:
            self.model.feed(self.sequence, [int(i) for i in ids[:self.first]], "none")
            for start in range(self.first, last, _PIECE):
                end = min(start + _PIECE, last)
                yield ids[start + 1:end + 1], self.model.feed(self.sequence, [int(i) for i in ids[start:end]], "all")
        finally:
            self.sequence.close()


@in_default_floats
def _summary(nll: list[float], n_windows: int, context: int) -> Perplexity:
    middle, spread = mean(nll), deviation(nll) / math.sqrt(max(1, len(nll) - 1))
    value = exponential(middle)
    return Perplexity(value, value * spread, middle, len(nll), n_windows, context)


Window = dict[str, list[float]]
"""What was found of each scored token of a window: "nll", and of a divergence "reference" (its nll), "kl", "same" (1: the same first choice)."""
Keep = Callable[[int, Window], object]


@dataclass(frozen=True)
class Running(Generic[T]):
    """How far a measurement is: `done` of `total` windows; perplexity: of the model, so far; result(): of the windows so far; windows(): the
    numbers of each."""

    done: int
    total: int
    perplexity: float
    result: Callable[[], T]
    windows: Callable[[], list[dict[str, Any]]]


def _running(cut: np.ndarray, measure: Callable[[np.ndarray], Window], result: Callable[[list[Window], int], T], known: Mapping[int, Window],
             keep: Keep | None) -> Iterator[Running[T]]:
    found: list[Window] = []
    nll: list[float] = []
    for i, ids in enumerate(cut):
        window = known.get(i)
        if window is None:
            window = measure(ids)
            if keep:
                keep(i, window)
        found.append(window)
        nll += window["nll"]
        yield Running(i + 1, len(cut), exponential(mean(nll)), functools.partial(result, list(found), i + 1), functools.partial(_each, list(found)))


def _each(found: list[Window]) -> list[dict[str, Any]]:
    names = {"nll": "nll", "reference": "reference_nll", "kl": "kl", "same": "same_first_choice"}
    return [{"tokens": len(w["nll"]), "perplexity": exponential(mean(w["nll"])), **{names[k]: mean(v) for k, v in w.items()}} for w in found]


def running_perplexity(model: Core, text: str, context: int = 512, most: int | None = None, special: bool = False,
                       known: Mapping[int, Window] = MappingProxyType({}), keep: Keep | None = None) -> Iterator[Running[Perplexity]]:
    """Perplexity of a text, window by window: the last is `perplexity`'s. known: windows that were measured before; keep: called with each that is measured
    now. Errors as of `perplexity`."""
    cut = windows(model, text, context, most, special)
    return _running(cut, functools.partial(_window_nll, model), lambda found, n: _summary(_joined(found, "nll"), n, context), known, keep)


def _joined(found: list[Window], name: str) -> list[float]:
    return [value for window in found for value in window[name]]


@in_default_floats
def _window_nll(model: Core, ids: np.ndarray) -> Window:
    nll, first = [0.0] * (len(ids) - 1 - len(ids) // 2), len(ids) // 2

    def look(rows: np.ndarray, positions: np.ndarray) -> None:
        for row, at in zip(rows, positions.tolist()):
            nll[at - first] = -row_of(row).log_probability(float(row[ids[at + 1]]))
    sequence = model.runtime.new_sequence()
    try:
        tokens = [int(i) for i in ids]
        model.feed(sequence, tokens[:first], "none")
        job = Job(sequence, tokens[first:-1], "all", look=look)
        model.scheduler.run([job])
        _ = job.rows  # or its error
    finally:
        sequence.close()
    return {"nll": nll}


def perplexity(model: Core, text: str, context: int = 512, progress: Progress | None = None, most: int | None = None, special: bool = False) -> Perplexity:
    """Perplexity of a text, of its first `most` windows. special: as of `windows`. OptionError (window, text too short), TokenizerError, NumericError."""
    return _last(running_perplexity(model, text, context, most, special), progress)


def running_divergence(model: Core, reference: Core, text: str, context: int = 512, most: int | None = None, special: bool = False,
                       known: Mapping[int, Window] = MappingProxyType({}), keep: Keep | None = None) -> Iterator[Running[Divergence]]:
    """Divergence of `model` from `reference`, window by window: the last is `divergence`'s. known, keep: as of `running_perplexity`. OptionError if their
    vocabularies differ."""
    if model.tokenizer.vocab_digest() != reference.tokenizer.vocab_digest():
        raise OptionError(f"{model.path} and {reference.path} have different vocabularies: their tokens can't be compared")
    cut = windows(model, text, context, most, special)
    return _running(cut, functools.partial(_window_divergence, model, reference), lambda found, n: _divergence(found, n, context), known, keep)


@in_default_floats
def _window_divergence(model: Core, reference: Core, ids: np.ndarray) -> Window:
    found: Window = {"nll": [], "reference": [], "kl": [], "same": []}
    for (targets, ours), (_, theirs) in zip(_Window(model, ids).pieces(), _Window(reference, ids).pieces()):
        for target, a, b in zip(targets, ours, theirs):
            p, q = row_of(a), row_of(b)
            found["nll"].append(-p.log_probability(float(a[target])))
            found["reference"].append(-q.log_probability(float(b[target])))
            found["kl"].append(divergence_of_rows(b, a))
            found["same"].append(1.0 if p.best == q.best else 0.0)
    return found


def divergence(model: Core, reference: Core, text: str, context: int = 512, progress: Progress | None = None, most: int | None = None,
               special: bool = False) -> Divergence:
    """KL divergence of `model` from `reference` on a text, with both perplexities. OptionError if their vocabularies differ."""
    return _last(running_divergence(model, reference, text, context, most, special), progress)


@in_default_floats
def _divergence(found: list[Window], n_windows: int, context: int) -> Divergence:
    each = _joined(found, "kl")
    marks = {k: float(np.percentile(each, k)) for k in (50, 90, 95, 99, 100)}
    return Divergence(_summary(_joined(found, "nll"), n_windows, context), _summary(_joined(found, "reference"), n_windows, context), mean(each),
                      deviation(each) / math.sqrt(max(1, len(each) - 1)), marks, mean(_joined(found, "same")))


def _last(steps: Iterator[Running[T]], progress: Progress | None) -> T:
    for step in steps:
        if progress:
            progress("windows", step.done, step.total)
    return step.result()
