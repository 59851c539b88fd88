"""Perplexity of a text, and the divergence of a model from a reference model, window by window as llama.cpp's perplexity tool does it.

    text -> ids -> windows of `context` tokens, no overlap, the first token of each replaced by BOS -> log-probabilities of the second half's tokens

Source: llama.cpp, tools/perplexity/perplexity.cpp (`-c`, without `--ppl-stride`); the same file gives the same number within the models' arithmetic.
Sums are float64. These are reports, outside the exactness promise: NumPy's logarithms are good enough here.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.float_env import in_default_floats
from ..errors import OptionError

if TYPE_CHECKING:
    from ..model import Model

Progress = Callable[[str, int, int], None]
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


def windows(model: Model, text: str, context: int, most: int | None = None, special: bool = False) -> np.ndarray:
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

    def __init__(self, model: Model, ids: np.ndarray):
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


def _summary(nll: np.ndarray, n_windows: int, context: int) -> Perplexity:
    mean = float(nll.mean())
    spread = float(nll.std() / np.sqrt(max(1, len(nll) - 1)))
    return Perplexity(float(np.exp(mean)), float(np.exp(mean) * spread), mean, len(nll), n_windows, context)


@in_default_floats
def perplexity(model: Model, text: str, context: int = 512, progress: Progress | None = None, most: int | None = None, special: bool = False) -> Perplexity:
    """Perplexity of a text, of its first `most` windows. special: as of `windows`. OptionError (window, text too short), TokenizerError, NumericError."""
    cut, nll = windows(model, text, context, most, special), []
    for i, ids in enumerate(cut):
        for targets, logp in _Window(model, ids).pieces():
            nll.append(-logp[np.arange(len(targets)), targets])
        if progress:
            progress("windows", i + 1, len(cut))
    return _summary(np.concatenate(nll), len(cut), context)


@in_default_floats
def divergence(model: Model, reference: Model, text: str, context: int = 512, progress: Progress | None = None, most: int | None = None,
               special: bool = False) -> Divergence:
    """KL divergence of `model` from `reference` on a text, with both perplexities. OptionError if their vocabularies differ."""
    if model.tokenizer.vocab_digest() != reference.tokenizer.vocab_digest():
        raise OptionError(f"{model.path} and {reference.path} have different vocabularies: their tokens can't be compared")
    cut = windows(model, text, context, most, special)
    ours, theirs, kl, same = [], [], [], []
    for i, ids in enumerate(cut):
        for (targets, p), (_, q) in zip(_Window(model, ids).pieces(), _Window(reference, ids).pieces()):
            rows = np.arange(len(targets))
            ours.append(-p[rows, targets])
            theirs.append(-q[rows, targets])
            kl.append((np.exp(q) * (q - p)).sum(axis=1))
            same.append(p.argmax(axis=1) == q.argmax(axis=1))
        if progress:
            progress("windows", i + 1, len(cut))
    each = np.concatenate(kl)
    marks = {k: float(np.percentile(each, k)) for k in (50, 90, 95, 99, 100)}
    return Divergence(_summary(np.concatenate(ours), len(cut), context), _summary(np.concatenate(theirs), len(cut), context), float(each.mean()),
                      float(each.std() / np.sqrt(max(1, len(each) - 1))), marks, float(np.concatenate(same).mean()))
