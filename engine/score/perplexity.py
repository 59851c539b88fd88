"""Perplexity of a text, and the divergence of a model from a reference model, window by window as llama.cpp's perplexity tool does it.

    text -> ids -> windows of `context` tokens, no overlap, the first token of each replaced by BOS -> log-probabilities of the second half's tokens

Source: llama.cpp, tools/perplexity/perplexity.cpp (`-c`, without `--ppl-stride`); the same file gives the same number within the models' arithmetic.
Sums are float64. These are reports, outside the exactness promise: NumPy's logarithms are good enough here.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ...kernels.float_env import in_default_floats
from ..errors import OptionError

if TYPE_CHECKING:
    from ..answers.core import Core

Progress = Callable[[str, int, int], None]
T = TypeVar("T")
LEAST = 8
"""Tokens of the smallest window."""
_PIECE = 128
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


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [n, n_vocab] -> float64 log-probabilities."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


class _Window:
    """One model's way through a window: the log-probabilities at the positions that are scored, a piece at a time."""

    def __init__(self, model: Core, ids: np.ndarray):
        self.model, self.ids = model, ids
        self.first = len(ids) // 2
        self.sequence = model.runtime.new_sequence()

    def pieces(self) -> Any:
        """Yields (targets int64 [k], log-probabilities float64 [k, n_vocab])."""
        ids, last = self.ids, len(self.ids) - 1
        try:
            self.model.feed(self.sequence, [int(i) for i in ids[:self.first]], "none")
            for start in range(self.first, last, _PIECE):
                end = min(start + _PIECE, last)
                yield ids[start + 1:end + 1], log_softmax(self.model.feed(self.sequence, [int(i) for i in ids[start:end]], "all"))
        finally:
            self.sequence.close()


@in_default_floats
def _summary(nll: np.ndarray, n_windows: int, context: int) -> Perplexity:
    mean = float(nll.mean())
    spread = float(nll.std() / np.sqrt(max(1, len(nll) - 1)))
    return Perplexity(float(np.exp(mean)), float(np.exp(mean) * spread), mean, len(nll), n_windows, context)


@dataclass(frozen=True)
class Running(Generic[T]):
    """How far a measurement is: `done` of `total` windows; perplexity: of the model, so far; result(): of the windows so far."""

    done: int
    total: int
    perplexity: float
    result: Callable[[], T]


def running_perplexity(model: Core, text: str, context: int = 512, most: int | None = None, special: bool = False) -> Iterator[Running[Perplexity]]:
    """Perplexity of a text, window by window: the last is `perplexity`'s. Errors as of `perplexity`."""
    cut, nll = windows(model, text, context, most, special), np.empty(0)
    for i, ids in enumerate(cut):
        nll = np.concatenate([nll, _window_nll(model, ids)])
        result = functools.partial(_summary, nll, i + 1, context)
        yield Running(i + 1, len(cut), result().perplexity, result)


@in_default_floats
def _window_nll(model: Core, ids: np.ndarray) -> np.ndarray:
    """float64 [scored tokens of the window]"""
    return np.concatenate([-logp[np.arange(len(targets)), targets] for targets, logp in _Window(model, ids).pieces()])


def perplexity(model: Core, text: str, context: int = 512, progress: Progress | None = None, most: int | None = None, special: bool = False) -> Perplexity:
    """Perplexity of a text, of its first `most` windows. special: as of `windows`. OptionError (window, text too short), TokenizerError, NumericError."""
    return _last(running_perplexity(model, text, context, most, special), progress)


def running_divergence(model: Core, reference: Core, text: str, context: int = 512, most: int | None = None,
                       special: bool = False) -> Iterator[Running[Divergence]]:
    """Divergence of `model` from `reference`, window by window: the last is `divergence`'s. OptionError if their vocabularies differ."""
    if model.tokenizer.vocab_digest() != reference.tokenizer.vocab_digest():
        raise OptionError(f"{model.path} and {reference.path} have different vocabularies: their tokens can't be compared")
    cut, scored = windows(model, text, context, most, special), np.empty((4, 0))
    for i, ids in enumerate(cut):
        scored = np.concatenate([scored, _window_divergence(model, reference, ids)], axis=1)
        yield Running(i + 1, len(cut), _summary(scored[0], i + 1, context).perplexity, functools.partial(_divergence, scored, i + 1, context))


@in_default_floats
def _window_divergence(model: Core, reference: Core, ids: np.ndarray) -> np.ndarray:
    """float64 [4, scored tokens of the window]: negative log-likelihoods of model and reference, KL, whether the first choices are the same."""
    found = []
    for (targets, p), (_, q) in zip(_Window(model, ids).pieces(), _Window(reference, ids).pieces()):
        rows = np.arange(len(targets))
        found.append(np.array([-p[rows, targets], -q[rows, targets], (np.exp(q) * (q - p)).sum(axis=1), p.argmax(axis=1) == q.argmax(axis=1)]))
    return np.concatenate(found, axis=1)


def divergence(model: Core, reference: Core, text: str, context: int = 512, progress: Progress | None = None, most: int | None = None,
               special: bool = False) -> Divergence:
    """KL divergence of `model` from `reference` on a text, with both perplexities. OptionError if their vocabularies differ."""
    return _last(running_divergence(model, reference, text, context, most, special), progress)


@in_default_floats
def _divergence(scored: np.ndarray, n_windows: int, context: int) -> Divergence:
    ours, theirs, each, same = scored
    marks = {k: float(np.percentile(each, k)) for k in (50, 90, 95, 99, 100)}
    return Divergence(_summary(ours, n_windows, context), _summary(theirs, n_windows, context), float(each.mean()),
                      float(each.std() / np.sqrt(max(1, len(each) - 1))), marks, float(same.mean()))


def _last(steps: Iterator[Running[T]], progress: Progress | None) -> T:
    for step in steps:
        if progress:
            progress("windows", step.done, step.total)
    return step.result()
