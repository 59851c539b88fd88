"""Speculation: guess the next tokens cheaply, verify all of them in one step, keep those that would have been chosen anyway.

    history ──► draft: what followed the same n-gram before (prompt lookup), or a small model's choice ──► one step over [last id, *draft], all logits
            ──► row 0 is the logits after the last id; row i + 1 is right as long as draft[i] is the token that was chosen from row i

Logits don't depend on what else is in a step, and each position has its own random number: so tokens and logits are those of decoding one by one, greedy or
sampled. What is at stake is time alone, so the length of a draft follows from measurements: how often drafts were accepted, and what a step of M tokens
costs in steps of one (`Costs`). Losses are bounded by an account: a draft is taken only if, were all of it rejected, no more than 2 % of the time were lost.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NumericError, OptionError, OutOfMemoryError
from ..gguf.file import GGUFFile, open_gguf
from ..run.costs import Costs, mix
from ..sampling.sampler import Sampler

if TYPE_CHECKING:
    from ..architectures.config import ModelConfig
    from ..run import kv_cache
    from ..run.scheduler import Job
    from .core import Core

MAX_DRAFT = 23
"""Most tokens of a draft."""
_NGRAMS = (4, 3, 2)  # longest first
_PRIORS = {4: 0.7, 3: 0.5, 2: 0.25, 0: 0.7}  # share of tokens expected to be accepted, by n-gram; 0: the draft model
_SHARE, _FIRST_CREDIT, _MOST_CREDIT = 0.02, 0.3, 6.0  # of the account: of the time; of a step of one


class PromptLookup:
    """What followed the last occurrence of the text's last 4, 3 or 2 tokens."""

    def __init__(self) -> None:
        self._ends: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in _NGRAMS}
        self._indexed = 0

    def find(self, history: Sequence[int]) -> tuple[int, int]:
        """(n, where the continuation of the last n tokens begins), (0, 0) if they are new."""
        if self._indexed > len(history) - 1:  # rewound
            self._ends = {n: {} for n in _NGRAMS}
            self._indexed = 0
        for end in range(self._indexed + 1, len(history)):
            for n in _NGRAMS:
                if n <= end:
                    self._ends[n][tuple(history[end - n:end])] = end
        self._indexed = max(0, len(history) - 1)
        for n in _NGRAMS:
            end = self._ends[n].get(tuple(history[-n:]), 0) if n <= len(history) else 0
            if end:
                return n, end
        return 0, 0


def continuation(history: Sequence[int], start: int, n: int) -> list[int]:
    """n ids from `start` on; a text that repeats itself goes on repeating."""
    period = len(history) - start
    return [history[start + i % period] for i in range(n)]


class DraftModel:
    """A small model of the same vocabulary; chooses by the same options and random numbers as the large one, so that both often agree."""

    def __init__(self, model: Core, sampler: Sampler) -> None:
        self.model, self._main = model, sampler
        self._sampler = Sampler(sampler.options, sampler.sample_index, model.tokenizer)
        self._sampler.seed = sampler.seed
        self._sequence: kv_cache.Sequence | None = None
        self._fed: list[int] = []

    def propose(self, history: Sequence[int], n: int, dropped: int = 0) -> list[int]:
        """n ids that may follow; fewer where the draft model's context or KV memory ends. dropped: ids that a context shift took from the history, which
        count in the positions of random numbers."""
        text, position = list(history), len(history)
        self._sampler.restore(position + dropped, self._main.state(position + dropped))
        same = 0
        while same < min(len(self._fed), position - 1) and self._fed[same] == text[same]:
            same += 1
        del self._fed[same:]
        try:
            if self._sequence is None:
                self._sequence = self.model.runtime.new_sequence()
            self._sequence.truncate(same)
            for _ in range(min(n, self.model.context - position + 1)):
                new = text[len(self._fed):]
                logits = self.model.feed(self._sequence, new)[-1]
                self._fed += new
                text.append(self._sampler.sample(logits, len(text) + dropped, text))
        except (OutOfMemoryError, NumericError):
            pass
        return text[position:]

    def close(self) -> None:
        if self._sequence is not None:
            self._sequence.close()
            self._sequence = None


def check_draft(model: Core, draft: Core) -> None:
    """OptionError unless both models have one vocabulary."""
    if draft.tokenizer.vocab_digest() != model.tokenizer.vocab_digest() or draft.config.n_vocab != model.config.n_vocab:
        raise OptionError(f"the draft model {draft.path} has another vocabulary than {model.path} ({draft.config.n_vocab} and {model.config.n_vocab} tokens, "
                          "or other texts or ids): use a smaller model of the same family")


class Speculator:
    """Says what one answer feeds next, and hands out logits row by row; drafts where that pays.

    row(…) -> the logits, if a draft's step has computed them already; else job(…) -> a step -> result(…) -> the logits
    drafted, accepted: tokens. others: tokens that others had in the last step, which they share the price of.
    """

    def __init__(self, costs: Costs, draft: DraftModel | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.drafted, self.accepted, self.others = 0, 0, 0
        self._costs, self._model, self._clock = costs, draft, clock
        self._lookup = PromptLookup()
        self._rates = dict(_PRIORS)
        self._credit = _FIRST_CREDIT  # all in steps without a draft
        self._rows: np.ndarray | None = None  # of the draft under way
        self._draft: list[int] = []
        self._start, self._taken, self._source, self._cost, self._drafting, self._base = 0, 0, 0, 0.0, 0.0, 1

    def row(self, sequence: kv_cache.Sequence, history: Sequence[int]) -> np.ndarray | None:
        """Logits float32 [n_vocab] after the last id of `history`, which goes on from what it was before; None if they must be computed."""
        if self._rows is not None:
            if history[-1] == self._draft[self._taken - 1] and len(history) == self._start + self._taken:
                row = self._rows[self._taken]
                self._taken += 1
                if self._taken == len(self._rows):
                    self._settle()
                    sequence.tentative = False
                return row
            self.stop(sequence, history)
        return None

    def job(self, sequence: kv_cache.Sequence, history: Sequence[int], room: int, dropped: int = 0) -> Job:
        """What to compute for the logits after the last id of `history`, with as much of a draft as pays, room tokens at most. dropped: see `propose`."""
        from ..run.scheduler import Job
        ids, before = history[sequence.length:], self._clock()
        self._draft = self._propose(history, room, dropped) if len(ids) == 1 else []
        self._drafting = self._clock() - before
        sequence.tentative = bool(self._draft)
        return Job(sequence, [*ids, *self._draft], "all", stream=True) if self._draft else Job(sequence, ids, stream=len(ids) == 1)

    def result(self, job: Job, history: Sequence[int]) -> np.ndarray | None:
        """Its first row; None if it failed where a job without the draft might not. Raises what else its step raised."""
        self.others = job.others if job.stream else 0
        if not self._draft:
            if job.stream:
                self._credit = min(self._credit + _SHARE, _MOST_CREDIT)
            return job.rows[-1]
        if isinstance(job.error, (OutOfMemoryError, NumericError)):
            self._draft, job.sequence.tentative = [], False
            return None
        self._rows, self._start, self._taken, self._base = job.rows, len(history), 1, job.others + 1
        self._cost = (self._drafting + job.seconds) / (self._costs.one * self._costs.ratio(self._base))
        self.drafted += len(self._draft)
        return self._rows[0]

    def _propose(self, history: Sequence[int], room: int, dropped: int) -> list[int]:
        """A draft as long as it pays; mostly none."""
        if room <= 0 or not self._costs.one:
            return []
        n, start = self._lookup.find(history)
        use_model = self._model is not None and n < _NGRAMS[0]
        if not n and not use_model:
            return []
        self._source = 0 if use_model else n
        length = self._length(min(room, MAX_DRAFT))
        if length == 0:  # be ready to try again when the text has changed
            self._rates[self._source] += 0.02 * (_PRIORS[self._source] - self._rates[self._source])
            return []
        if not use_model:
            return continuation(history, start, length)
        assert self._model is not None
        before = self._clock()
        draft = self._model.propose(history, length, dropped)
        if draft:
            seconds = (self._clock() - before) / len(draft)
            self._costs.draft = mix(self._costs.draft, seconds, 0.25) if self._costs.draft else seconds
        return draft

    def _length(self, most: int) -> int:
        """The length with the most tokens per time expected, all answers in the step counted; 0 if drafting does not pay or the account does not cover it."""
        rate, best, length = self._rates[self._source], 1.02, 0
        base = self._costs.ratio(1 + self.others)
        drafting = (self._costs.draft / self._costs.one if self._costs.draft else 0.1) if self._source == 0 else 0.0
        expected, power = 1.0, 1.0
        for d in range(1, most + 1):
            power *= rate
            expected += power
            cost = (self._costs.ratio(1 + self.others + d) + d * drafting) / base
            gain = (self.others + expected) / (self.others + 1) / cost
            if cost - 1 <= self._credit and gain > best:
                best, length = gain, d
        return length

    def _settle(self) -> None:
        """Account for the draft: taken - 1 of its tokens were accepted."""
        accepted = self._taken - 1
        self.accepted += accepted
        self._credit = min(self._credit + 1 + accepted / self._base - self._cost, _MOST_CREDIT)
        for i in range(min(accepted + 1, len(self._draft))):
            self._rates[self._source] += 0.12 * ((i < accepted) - self._rates[self._source])
        self._rows = None

    def stop(self, sequence: kv_cache.Sequence, history: Sequence[int]) -> None:
        """Drop what was drafted and not chosen; also at an answer's end, and when it was rewound."""
        if self._rows is not None:
            n = 0
            while n < len(self._draft) and self._start + n < len(history) and history[self._start + n] == self._draft[n]:
                n += 1
            self._settle()
            sequence.truncate(min(sequence.length, self._start + n))
        sequence.tentative = False

    def close(self) -> None:
        if self._model is not None:
            self._model.close()


def share_with_draft(gguf: GGUFFile, config: ModelConfig, path: Path, context: int | None, memory: int, kv: str | None,
                     threads: int | None) -> tuple[int, int]:
    """(bytes of a common budget that the draft model at `path` gets, its context). OutOfMemoryError."""
    from ..architectures.config import ModelConfig, check_tensors
    from ..run.memory import draft_share
    from ..run.thread_choice import most_threads
    with open_gguf(path) as draft:
        draft_config = ModelConfig.from_gguf(draft)
        check_tensors(draft, draft_config)
        return draft_share(gguf, config, draft, draft_config, context, memory, kv, most_threads(gguf, threads))
