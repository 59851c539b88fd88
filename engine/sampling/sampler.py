"""From logits to a token, exactly: the same seed and logits give the same token on every CPU.

    bias -> penalties -> dry -> top_n_sigma -> top_k -> typical -> top_p -> min_p -> xtc -> temperature -> draw     (`order` changes it)

Every stage is a small function in engine/sampling/; most do nothing unless asked for. Randomness is Philox's raw output keyed by (seed, sample index,
position), so a draw can be repeated out of order. Ties go to the lowest id. The one state there is, mirostat's, is a table by position, too. A position
is a token's index in the whole text, prompt and answer: what a context shift dropped counts, so no random number ever comes twice in an answer.
"""
from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...kernels.float_env import in_default_floats
from ..errors import NumericError, OptionError
from . import stages
from .arithmetic import MANY, draw, exp, log, log_probabilities, relative, running_sum, temper, total, uniform
from .candidates import Candidates, Scores
from .filters import min_p, top_k, top_p
from .options import MAX_SEED, SamplingOptions
from .penalties import add, dry_penalties, penalize, recent

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

__all__ = ["MAX_SEED", "Sampler", "SamplingOptions", "TokenLogprob", "draw", "exp", "log", "min_p", "penalize", "recent", "running_sum", "temper",
           "token_logprob", "top_k", "top_p", "uniform"]
_XTC_STREAM = 1  # the number that decides whether xtc acts; the draw's is 0


class Sampler:
    """Chooses tokens by `options`. `sample_index` tells apart several answers drawn with one seed. `seed` is the one in use.

    tokenizer: resolves the texts among the options (logit_bias, dry_breakers). OptionError: an id outside the vocabulary, or a text without tokenizer.

    mirostat's mu for a position is written by the draw before it, and 2 tau where there was none: so a draw can be repeated, and after a rewind the
    next draws overwrite what the dropped ones wrote. `state(position)` and `restore` carry it to another process.
    """

    def __init__(self, options: SamplingOptions, sample_index: int = 0, tokenizer: Tokenizer | None = None) -> None:
        self.options = options
        self.seed: int = secrets.randbits(32) if options.seed is None else options.seed
        self.sample_index = sample_index
        self._bias = _resolve_bias(options, tokenizer)
        self._breakers = breaker_tokens(options.dry_breakers, tokenizer) if options.dry_multiplier and tokenizer else None
        self._mu: dict[int, float] = {}
        known: dict[str, tuple[bool, Callable[[Candidates], None]]] = {
            "bias": (bool(self._bias), self._add_bias),
            "penalties": (bool(options.repeat_last_n) and (options.repeat_penalty, options.presence_penalty, options.frequency_penalty) != (1, 0, 0),
                          self._penalties),
            "dry": (options.dry_multiplier > 0 and options.dry_last_n != 0, self._dry),
            "top_n_sigma": (options.top_n_sigma > 0, lambda c: stages.top_n_sigma(c, options.top_n_sigma)),
            "top_k": (options.top_k > 0, lambda c: c.keep(top_k(c.logits, options.top_k))),
            "typical": (options.typical_p < 1, lambda c: stages.typical(c, options.typical_p)),
            "top_p": (options.top_p < 1, lambda c: stages.top_p(c, options.top_p)),
            "min_p": (options.min_p > 0, lambda c: c.keep(min_p(relative(c.logits), options.min_p))),
            "xtc": (options.xtc_probability > 0 and options.xtc_threshold <= 0.5, self._xtc),
            "temperature": (True, lambda c: stages.temperature(c, options.temperature, options.dynatemp_range, options.dynatemp_exponent)),
            "mirostat": (options.mirostat == 2, lambda c: stages.mirostat(c, self._mu_at(c.position))),
        }
        names = [name for name in options.stages if known[name][0]]
        if options.temperature == 0:
            names = [name for name in names if name in ("bias", "penalties", "dry")]
        self._stages = [known[name][1] for name in names]
        self._mirostat = "mirostat" in names

    @in_default_floats
    def sample(self, logits: np.ndarray, position: int, history: Sequence[int], banned: Collection[int] = (),
               allowed: np.ndarray | None = None) -> int:
        """The id to follow at `position` of the whole text, given float32 logits [n_vocab] (left unchanged) and the ids before it that the model saw.
        banned: ids it shall not be; allowed: bool [n_vocab], which it may be.

        Pure but for mirostat's table: equal arguments, equal id. NumericError if a logit is not finite, OptionError if no token is left."""
        c = self._candidates(logits, position, history, banned, allowed)
        if self.options.temperature == 0:
            return c.id(int(np.argmax(c.logits)))  # the first of equals
        index = stages.draw(c, uniform(self.seed, self.sample_index, position))
        if self._mirostat:
            self._mu[position + 1] = self._mu_at(position) - self.options.mirostat_eta * (stages.surprise(c, index) - self.options.mirostat_tau)
        id = c.id(index)
        c.give_back()
        return id

    @in_default_floats
    def distribution(self, logits: np.ndarray, position: int, history: Sequence[int]) -> dict[int, float]:
        """{id: probability} that `sample` draws from, ids ascending. Greedy: of its temperature's limit, 1 for one id."""
        c = self._candidates(logits, position, history)
        if self.options.temperature == 0:
            return {c.id(int(np.argmax(c.logits))): 1.0}
        weights = exp(relative(c.logits))
        whole = total(weights)
        return {c.id(i): float(w / whole) for i, w in enumerate(weights)}

    @in_default_floats
    def chances(self, logits: np.ndarray, position: int, history: Sequence[int], id: int, n: int, banned: Collection[int] = (),
                allowed: np.ndarray | None = None, tokenizer: Tokenizer | None = None) -> TokenLogprob:
        """As `token_logprob`, but of the distribution that `sample` draws from with these arguments: after all stages. What these left out, or left without
        any chance, is not among the n most likely."""
        c = self._candidates(logits, position, history, banned, allowed)
        greedy = self.options.temperature == 0
        weights = np.zeros(len(c.logits)) if greedy else exp(relative(c.logits))
        if greedy:
            weights[int(np.argmax(c.logits))] = 1.0
        whole = total(weights)
        best = top_k(c.logits, n) if n else np.zeros(0, np.int64)
        best = best[np.argsort(-c.logits[best], kind="stable")]
        top = [(c.id(int(i)), log(float(weights[i] / whole))) for i in best if weights[i] / whole > 0]
        at = id if c.ids is None else int(np.searchsorted(c.ids, id))
        found = TokenLogprob(id, log(float(weights[at] / whole)), top)
        return found if tokenizer is None else with_texts(found, tokenizer)

    def _candidates(self, logits: np.ndarray, position: int, history: Sequence[int], banned: Collection[int] = (),
                    allowed: np.ndarray | None = None) -> Candidates:
        """What the stages leave."""
        if not np.isfinite(logits).all():
            bad = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise NumericError(f"logits at position {position}: token {bad} has {logits[bad]}, expected finite numbers: the weights may be damaged")
        c = Candidates(logits, position, history)
        if banned or allowed is not None:
            logits = add(logits, dict.fromkeys(banned, -math.inf))
            self._drop(c, logits if allowed is None else np.where(allowed, logits, -np.inf))
        for stage in self._stages:
            stage(c)
        return c

    def state(self, position: int) -> dict[str, float]:
        """What the draw at `position` needs to know of those before it: {"mu": …} with mirostat, else nothing."""
        return {"mu": self._mu_at(position)} if self._mirostat else {}

    def restore(self, position: int, state: dict[str, float]) -> None:
        """The state at `position` of another sampler with the same options."""
        if "mu" in state:
            self._mu[position] = state["mu"]

    # -- stages ---------------------------------------------------------------------------------------------------------------------------

    def _add_bias(self, c: Candidates) -> None:
        self._drop(c, add(c.logits, self._bias, c.ids))

    def _penalties(self, c: Candidates) -> None:
        o = self.options
        tokens = recent(c.history, o.repeat_last_n)
        logits, c.shift = (c.logits + c.shift if c.shift else c.logits), 0.0  # after a temperature: what the model said, divided by it
        c.logits = _finite(c, penalize(logits, tokens, o.repeat_penalty, o.presence_penalty, o.frequency_penalty, c.ids))

    def _dry(self, c: Candidates) -> None:
        o = self.options
        history = np.asarray(recent(c.history, o.dry_last_n), np.int64)
        found = dry_penalties(history, o.dry_multiplier, o.dry_base, o.dry_allowed_length, self._breakers)
        c.logits = _finite(c, add(c.logits, {token: -penalty for token, penalty in found.items()}, c.ids))

    def _xtc(self, c: Candidates) -> None:
        if uniform(self.seed, self.sample_index, c.position, _XTC_STREAM) < self.options.xtc_probability:
            stages.xtc(c, self.options.xtc_threshold)

    def _mu_at(self, position: int) -> float:
        return self._mu.get(position, 2 * self.options.mirostat_tau)

    def _drop(self, c: Candidates, logits: np.ndarray) -> None:
        """Go on with these logits, without what is -inf among them."""
        c.logits = logits
        if logits.min() == -np.inf:
            left = np.flatnonzero(logits > -np.inf)
            if not len(left):
                raise OptionError(f"position {c.position}: every token is forbidden by logit_bias, banned texts or the grammar: allow some")
            c.keep(left)
        _finite(c, c.logits)


def _finite(c: Candidates, logits: np.ndarray) -> np.ndarray:
    """`logits`, or NumericError: a penalty or bias went beyond float32."""
    if not np.isfinite(logits).all():
        bad = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise NumericError(f"logits at position {c.position}: token {c.id(bad)} has {logits[bad]} after penalties or biases: use smaller ones")
    return logits


def _resolve_bias(options: SamplingOptions, tokenizer: Tokenizer | None) -> dict[int, float]:
    """{id: what to add}; several biases of one token add up, in the order given."""
    found: dict[int, float] = {}
    for key, bias in options.logit_bias:
        if isinstance(key, str):
            if tokenizer is None:
                raise OptionError(f"logit_bias for the text {key!r} needs a tokenizer: give token ids")
            ids = list(dict.fromkeys(tokenizer.encode(key, bos=False, eos=False)))
        else:
            ids = [int(key)]
        for id in ids:
            if id < 0 or tokenizer is not None and id >= tokenizer.n_vocab:
                raise OptionError(f"logit_bias: token id {id} is outside the vocabulary{'' if tokenizer is None else f' of {tokenizer.n_vocab}'}")
            found[id] = found.get(id, 0.0) + bias
    return found


def breaker_tokens(breakers: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """bool [n_vocab]: tokens whose text contains one of `breakers`, and control tokens."""
    raw = [text.encode() for text in breakers]
    tokens = (tokenizer.token_bytes(id) for id in range(tokenizer.n_vocab))
    return np.array([not token or any(text in token for text in raw) for token in tokens], bool)


class _Likely(NamedTuple):
    id: int
    logprob: float


class LikelyToken(_Likely):
    """(id, logprob), and .text: of the token alone; bytes that are no whole characters show as U+FFFD, special tokens by their names."""

    text: str = ""


class _TokenLogprob(NamedTuple):
    id: int
    logprob: float
    top: list[tuple[int, float]]


class TokenLogprob(_TokenLogprob):
    """(id, logprob, top): natural logarithms of the model's own probabilities (softmax of all logits, before any stage). top: the most likely ids with
    theirs, most likely first, lowest id among equals: LikelyToken. .text: as of LikelyToken."""

    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain data: {"id", "logprob", "text", "top": [[id, logprob, text], …]}."""
        return {"id": self.id, "logprob": self.logprob, "text": self.text, "top": [[*entry, getattr(entry, "text", "")] for entry in self.top]}


def with_texts(entry: TokenLogprob, tokenizer: Tokenizer) -> TokenLogprob:
    """The same with the tokens' texts."""
    def text(id: int) -> str:
        return tokenizer.token_bytes(id).decode(errors="replace") or tokenizer.token_text(id)
    top: list[tuple[int, float]] = []
    for id, logprob in entry.top:
        top.append(likely := LikelyToken(id, logprob))
        likely.text = text(id)
    found = TokenLogprob(entry.id, entry.logprob, top)
    found.text = text(entry.id)
    return found


@in_default_floats
def token_logprob(logits: np.ndarray, id: int, n: int, tokenizer: Tokenizer | None = None) -> TokenLogprob:
    """Of float32 logits [n_vocab]: for token `id`, and for the n most likely ones; with a tokenizer, with their texts."""
    best = top_k(logits, n) if n else np.zeros(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    places = [int(id), *best.tolist()]
    if len(logits) >= MANY:
        many = Scores(logits)
        whole = log(many.weigh())
        scores = many.of(logits[places])
    else:
        scores, whole = log_probabilities(logits)
        scores = scores[places]
    chosen, *top = (float(score - whole) for score in scores)
    found = TokenLogprob(id, chosen, list(zip(places[1:], top)))
    return found if tokenizer is None else with_texts(found, tokenizer)
