"""One answer, token by token: prompt ids -> steps of the runtime -> sampler -> streaming detokeniser -> stop strings -> pieces of text.

    piece = next(generation):   feed what the KV cache lacks -> logits of the last position -> id -> text -> hold back what may be a stop string

A generation owns its sequence's KV pages from the first piece on and gives them back when it ends, is closed, or is dropped half-way.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .banned import BannedTexts
from .errors import ContextFullError, OptionError
from .sampling import Sampler, SamplingOptions, TokenLogprob, token_logprob
from .speculation import DraftModel, Speculator

if TYPE_CHECKING:
    from . import kv_cache
    from .grammar import Grammar
    from .model import Model
    from .tokenizer.stream import StreamDecoder


class StopStrings:
    """Finds the first stop string in a stream of text pieces, wherever the borders between pieces lie.

    Text that could be the beginning of a stop string is held back. The string that is complete first wins (of two that end together the longer),
    so the result does not depend on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown now, whether a stop string was found: it and what follows are dropped)."""
        text = self.held + text
        found = [(i + len(s), i) for s in self.stops if (i := text.find(s)) >= 0]
        if found:
            self.held = ""
            return text[:min(found)[1]], True
        longest = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self.held = text[len(text) - longest:]
        return text[:len(text) - longest], False

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self.held = self.held, ""
        return held


@dataclass(frozen=True)
class Stats:
    """What an answer took so far; seconds are those spent inside the generation, not between its pieces. None: not known or not yet."""

    prompt_tokens: int
    reused_tokens: int
    """Of the prompt: those whose keys and values were in the KV cache already."""
    generated_tokens: int
    prompt_seconds: float
    """From the first step to the logits after the prompt."""
    generate_seconds: float
    prompt_tokens_per_second: float | None
    """Of the tokens that were computed."""
    generated_tokens_per_second: float | None
    """Steps after the prompt's; the first token comes with the prompt."""
    load_seconds: float
    compile_seconds: float
    kv_bytes: int
    peak_memory_bytes: int | None
    """Of this process, ever."""
    seed: int
    finish_reason: str | None
    drafted_tokens: int = 0
    """Guessed by speculation and verified."""
    accepted_tokens: int = 0
    """Of those: chosen, so that they cost no step of their own."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Generation:
    """An iterator over pieces of text (never empty, whole UTF-8 characters), made by `Model.generate`.

    .ids: tokens generated so far, without the end-of-sequence token that ended them; .text(): runs to the end, all pieces as one string.
    .finish_reason: None while it can go on, then "eos", "stop" (a stop string), "length" (max_tokens), "context" (the context is full; a
    prompt that fills it exactly still gives one token), "interrupted" (closed early, or an exception, which was passed on). .stats: see `Stats`.
    .logprobs: if asked for, a TokenLogprob for each of .ids.
    Steps may raise OutOfMemoryError, NumericError, ClosedError.
    """

    def __init__(self, model: Model, prompt: Sequence[int], options: SamplingOptions, *, max_tokens: int | None = None, stop: Sequence[str] = (),
                 stop_ids: frozenset[int] = frozenset(), ignore_eos: bool = False, sample_index: int = 0, sequence: kv_cache.Sequence | None = None,
                 logprobs: int | None = None, speculate: bool = True, grammar: Grammar | None = None):
        """prompt: ids, at least one, checked. stop_ids: end the answer too, like end-of-sequence. sequence: the caller's, whose KV holds the
        first `sequence.length` ids of the prompt (fewer than all); it stays open at the end. logprobs: of how many of the most likely tokens, besides
        the chosen one. speculate: guess and verify where that is faster; changes nothing else. grammar: what the answer must obey."""
        if len(prompt) > model.context:
            raise ContextFullError(
                f"the prompt has {len(prompt)} tokens, the context {model.context}: shorten it or raise the context (nothing was cut off)")
        self.history = list(prompt)
        """The prompt's ids and those generated so far."""
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self._model = model
        self._sampler = Sampler(options, sample_index, model.tokenizer)
        self.logprobs: list[TokenLogprob] = []
        self._n_logprobs = logprobs
        self._constraint = grammar.start(len(prompt)) if grammar else None
        self._banned = BannedTexts(options.banned)
        speculate = speculate and model.speculate
        draft = DraftModel(model.draft, self._sampler) if speculate and model.draft else None
        self._speculator = Speculator(model.costs, draft) if speculate else None
        self._limit = sys.maxsize if max_tokens is None else max_tokens
        self._end_ids = frozenset() if ignore_eos else model.tokenizer.eog_ids | stop_ids
        self._stops = StopStrings(stop)
        self._sequence, self._owned = sequence, sequence is None
        self._reused = sequence.length if sequence else 0
        self._decoder: StreamDecoder | None = None
        self._pieces: list[str] = []
        self._steps, self._kv_bytes = 0, 0
        self._prompt_seconds, self._generate_seconds = 0.0, 0.0

    # -- iteration ------------------------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            while self.finish_reason is None:
                piece = self._advance()
                if piece:
                    self._pieces.append(piece)
                    return piece
        except BaseException:
            self._finish("interrupted")
            raise
        raise StopIteration

    def _advance(self) -> str:
        """One token further. Its text, as far as it may be shown; sets finish_reason at the end."""
        if len(self.ids) >= self._limit:
            return self._finish("length")
        if len(self.history) > self._model.context:
            return self._finish("context")
        start = time.perf_counter()
        logits = self._next_logits()
        id = self._sampler.sample(logits, len(self.history), self.history, self._banned.at(len(self.history)),
                                  self._constraint.allowed(self.history) if self._constraint else None)
        seconds = time.perf_counter() - start
        if self._steps:
            self._generate_seconds += seconds
        else:
            self._prompt_seconds = seconds
        self._steps += 1
        if id in self._end_ids:
            return self._finish("eos")
        self.ids.append(id)
        self.history.append(id)
        if self._n_logprobs is not None:
            self.logprobs.append(token_logprob(logits, id, self._n_logprobs))
        if self._decoder is None:  # after the prompt: the answer's text is what it adds to the prompt's (leading space, a character begun)
            self._decoder = self._stream(self.history[:-1])
        text = self._decoder.push(id)
        if self._banned.texts:
            text, n_back = self._banned.push(text)
            if n_back:
                self._go_back(n_back)
        text, stopped = self._stops.push(text)
        return text + self._finish("stop") if stopped else text

    def _stream(self, ids: Sequence[int]) -> StreamDecoder:
        """What makes text of the tokens after these."""
        return self._model.tokenizer.stream(ids, at_start=self._constraint is None)

    def _go_back(self, n: int) -> None:
        """Drop the last n tokens, and don't begin with the first of them again."""
        assert self._sequence is not None
        keep = len(self.history) - n
        self._banned.forbid(keep, self.history[keep])
        del self.history[keep:], self.ids[len(self.ids) - n:], self.logprobs[len(self.ids):]
        if self._speculator:
            self._speculator.stop(self._sequence, self.history)
        self._sequence.truncate(min(self._sequence.length, keep - 1))  # the last id is always fed: its logits are wanted
        self._decoder = self._stream(self.history)

    def _next_logits(self) -> np.ndarray:
        """Bring the KV cache up to date with the history -> logits float32 [n_vocab] after its last id."""
        if self._sequence is None:
            self._sequence = self._model.runtime.new_sequence()
        if self._speculator:
            room = min(self._limit - len(self.ids) - 1, self._model.context - len(self.history))
            return self._speculator.next_logits(self._model, self._sequence, self.history, room)
        return self._model.feed(self._sequence, self.history[self._sequence.length:])[-1]

    def _finish(self, reason: str) -> str:
        """End here, give the KV pages back, and return the text still held."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = reason
        if self._sequence is not None:
            if self._speculator:
                self._speculator.stop(self._sequence, self.history)
                self._speculator.close()
            self._kv_bytes = self._sequence.kv_bytes
            if self._owned:
                self._sequence.close()
                self._sequence = None
        if reason in ("stop", "interrupted"):
            return ""
        text, stopped = self._stops.push(self._banned.flush() + (self._decoder.flush() if self._decoder else ""))
        if stopped:
            self.finish_reason = "stop"
        return text + self._stops.flush()

    # -- results --------------------------------------------------------------------------------------------------------------------------

    @property
    def so_far(self) -> str:
        """The pieces given out so far, as one string."""
        return "".join(self._pieces)

    def text(self) -> str:
        """Run to the end; all pieces, also those taken before, as one string."""
        for _ in self:
            pass
        return self.so_far

    @property
    def stats(self) -> Stats:
        prompt_tokens = len(self.history) - len(self.ids)
        return Stats(
            prompt_tokens=prompt_tokens, reused_tokens=self._reused, generated_tokens=len(self.ids),
            prompt_seconds=self._prompt_seconds, generate_seconds=self._generate_seconds,
            prompt_tokens_per_second=(prompt_tokens - self._reused) / self._prompt_seconds if self._prompt_seconds else None,
            generated_tokens_per_second=(self._steps - 1) / self._generate_seconds if self._generate_seconds else None,
            load_seconds=self._model.load_seconds, compile_seconds=self._model.compile_seconds,
            kv_bytes=self._sequence.kv_bytes if self._sequence is not None else self._kv_bytes, peak_memory_bytes=peak_memory(),
            seed=self._sampler.seed, finish_reason=self.finish_reason,
            drafted_tokens=self._speculator.drafted if self._speculator else 0, accepted_tokens=self._speculator.accepted if self._speculator else 0,
        )

    # -- the end --------------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop here and give the KV pages back. Harmless twice and after the end."""
        self._finish("interrupted")

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_owned"):  # not if the constructor refused its arguments
            self.close()


def peak_memory() -> int | None:
    """Most resident memory this process has had, in bytes; None where the system doesn't tell."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # getrusage's number survives exec on Linux
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def check_max_tokens(max_tokens: Any) -> int | None:
    """None or -1 (until the context is full) -> None; else a count from 0 on. OptionError."""
    if max_tokens is None:
        return None
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer)) or max_tokens < -1:
        raise OptionError(f"max_tokens must be a whole number from 0 on, or -1 (until the context is full), found {max_tokens!r}")
    return None if max_tokens == -1 else int(max_tokens)


def check_logprobs(n: Any) -> int | None:
    """None (no log-probabilities) or of how many of the most likely tokens. OptionError."""
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0):
        raise OptionError(f"logprobs must be a whole number from 0 on, found {n!r}")
    return None if n is None else int(n)


def check_stop(stop: Any) -> tuple[str, ...]:
    """One stop string or several. OptionError if one is empty or not a string."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ()) if isinstance(stop or (), Iterable) else (stop,)
    for s in stops:
        if not isinstance(s, str) or not s:
            raise OptionError(f"stop must be non-empty strings, found {s!r}")
    return stops
