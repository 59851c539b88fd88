"""One answer, token by token: prompt ids -> jobs for the scheduler -> sampler -> streaming detokeniser -> stop strings -> pieces of text.

    piece = next(generation):   prepare(): what the KV cache lacks, a job -> logits of the last position -> advance(): id -> text -> hold back what may be
                                a stop string

A generation owns its sequence's KV pages from the first piece on and gives them back when it ends, is closed, or is dropped half-way. Memory for all it may
need is promised before anything is computed.
"""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import check_max_tokens
from ..errors import ContextFullError, OptionError, OutOfMemoryError, UnsupportedError, quoted
from ..run.scheduler import Job
from ..run.watch import watching
from ..sampling.banned import BannedTexts
from ..sampling.sampler import Sampler, SamplingOptions, TokenLogprob, token_logprob
from ..text.marks import Marks
from ..text.stops import StopStrings, check_stop
from .speculation import DraftModel, Speculator
from .stats import Stats, peak_memory

if TYPE_CHECKING:
    from ..run import kv_cache
    from ..sampling.grammar import Grammar
    from ..text.tokenizer.stream import StreamDecoder
    from .core import Core

__all__ = ["Generation", "Stats", "StopStrings", "check_logprobs", "check_max_tokens", "check_stop", "peak_memory"]


class Generation:
    """An iterator over pieces of text (never empty, whole UTF-8 characters), made by `Model.generate`.

    .ids: tokens generated so far, without the end-of-sequence token that ended them; .text(): runs to the end, all pieces as one string.
    It can be iterated again when it has ended; str() and print() run to the end, too.
    .finish_reason: None while it can go on, then "eos", "stop" (a stop string), "length" (max_tokens), "context" (the context is full; a
    prompt that fills it exactly still gives one token), "interrupted" (closed early, or an exception, which was passed on). .stats: see `Stats`.
    .logprobs: if asked for, a TokenLogprob for each of .ids. .end_logprob: of the token that ended it, which is not among them.
    Steps may raise NumericError, ClosedError; the first one OutOfMemoryError, if there is no KV memory for so many tokens.
    """

    _written: frozenset[int] = frozenset()
    """Control tokens whose text stands in the answer."""

    def __init__(self, model: Core, prompt: Sequence[int], options: SamplingOptions, *, max_tokens: int | None = None, stop: Sequence[str] = (),
                 stop_ids: frozenset[int] = frozenset(), ignore_eos: bool = False, sample_index: int = 0, sequence: kv_cache.Sequence | None = None,
                 logprobs: int | None = None, speculate: bool = True, grammar: Grammar | None = None, keep: int | None = None, wait: float = 0.0,
                 adapters: Any = None):
        """prompt: ids, at least one, checked. stop_ids: end the answer too, like end-of-sequence. sequence: the caller's, whose KV holds the
        first `sequence.length` ids of the prompt (fewer than all); it stays open at the end. logprobs: of how many of the most likely tokens, besides
        the chosen one. speculate: guess and verify where that is faster; changes nothing else. grammar: what the answer must obey. keep: when the
        context is full, go on with so many of the first tokens and the newer half of the others (None: end there). wait: seconds for which the first step
        may wait for KV memory that others hold. adapters: as of Model.generate; of a sequence that is given, they are that one's."""
        if not model.config.output.matrix:
            raise UnsupportedError(f"{model.path}: is an encoder (architecture {model.config.architecture}): it can't generate; it embeds (llamina embed)")
        if len(prompt) > model.context:
            raise ContextFullError.of(f"the prompt has {len(prompt)} tokens, the context {model.context}: shorten it or raise the context "
                                      "(nothing was cut off)", len(prompt), model.context)
        if keep is not None and keep > model.context // 2:
            raise OptionError(f"{keep} tokens are to be kept when the context is full, at most half of its {model.context} can be")
        self.ids: list[int] = []
        self.window = list(prompt)
        """What the context holds: the prompt's ids and those generated so far, without what a context shift dropped."""
        self.finish_reason: str | None = None
        self._prompt = list(prompt)
        self._model = model
        self._sampler = Sampler(options, sample_index, model.tokenizer)
        self.logprobs: list[TokenLogprob] = []
        self.end_logprob: TokenLogprob | None = None
        self._n_logprobs = logprobs
        self._constraint = grammar.start(len(prompt)) if grammar else None
        self._asked = grammar.asked if grammar else {}
        self._marks = Marks(model.tokenizer.control, [*stop, *options.banned], self._written)
        banned = self._marks.spellings(options.banned)
        self._banned = BannedTexts(banned, [id for id, mark in self._marks.of.items() if mark in banned])
        speculate = speculate and model.speculate
        draft = DraftModel(model.draft, self._sampler) if speculate and model.draft else None
        self._speculator = Speculator(model.costs, draft) if speculate else None
        self._limit = sys.maxsize if max_tokens is None else max_tokens
        self._ignore_eos, self._stop_ids = ignore_eos, stop_ids
        self._end_ids = frozenset() if ignore_eos else model.tokenizer.eog_ids | stop_ids
        self._stop, self._stops = tuple(stop), StopStrings(self._marks.spellings(stop))
        self._keep, self._wait = keep, wait
        self.adapters = sequence.adapters if sequence else model.runtime.adapters.chosen(adapters)
        self._shifts, self._dropped = 0, 0
        self._sequence, self._owned = sequence, sequence is None
        self._opened = False
        self.cache_salt = b""
        """With whose answers it shares the prefix cache; to be set before the first piece, as the next two."""
        self.most = model.context + 1
        """Tokens of prompt and answer at which the context is full: the last one is never fed. A server counts as its clients do, without that one."""
        self.after_sampling = False
        """Whether .logprobs are of what tokens are drawn from, after all stages of sampling, instead of the model's own."""
        self._given = sequence.length - sequence.reused if sequence else 0  # tokens it begins with, but for those that the prefix cache gave
        self._reused = sequence.length if sequence else 0
        self._job: Job | None = None
        self._row: np.ndarray | None = None  # the next token's logits, if they are known
        self._decoder: StreamDecoder | None = None
        self._pieces: list[str] = []
        self._exhausted = False  # iterated to its end
        self._steps, self._kv_bytes = 0, 0
        self._since: float | None = None
        self._prompt_seconds, self._generate_seconds = 0.0, 0.0

    # -- iteration ------------------------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._pieces)) if self._exhausted else self  # a second iteration begins anew

    def __next__(self) -> str:
        try:
            while self.finish_reason is None:
                if job := self.prepare():
                    self._model.scheduler.run([job])
                piece = self.advance()
                if piece:
                    return piece
        except BaseException:
            self._finish("interrupted")
            raise
        self._exhausted = True
        raise StopIteration

    def prepare(self) -> Job | None:
        """What must be computed before `advance`, None if nothing. Whoever calls these two instead of iterating closes the generation on any exception."""
        self._since = self._since or time.perf_counter()
        if self.finish_reason is not None or self._end() or self._row is not None:
            return None
        sequence = self.open()
        if len(self.window) > self._model.context:
            self._shift()
        if watching(self._model.scheduler):
            self._be_watched(sequence)
        if self._speculator is None:
            ids = self.window[sequence.length:]
            self._job = Job(sequence, ids, stream=len(ids) == 1 and self._steps > 0)
        elif (row := self._speculator.row(sequence, self.window)) is not None:
            self._row = row
        else:
            room = min(self._limit - len(self.ids) - 1, self._model.context - len(self.window), self._model.runtime.max_batch - 1)
            self._job = self._speculator.job(sequence, self.window, room, self._dropped)
        return self._job if self._row is None else None

    def _be_watched(self, sequence: kv_cache.Sequence) -> None:
        """Hooks see the answer's tokens, no guesses, and what they change stays this answer's."""
        if self._speculator is not None:
            self._speculator.stop(sequence, self.window)
            self._speculator.close()
            self._speculator = None
        sequence.keep_private()

    def advance(self) -> str:
        """One token further, after the job was computed. Its text, as far as it may be shown; sets finish_reason at the end."""
        if self.finish_reason is not None:
            return ""
        if reason := self._end():
            return self._give(self._finish(reason))
        since = self._since or time.perf_counter()
        logits, self._row, self._job = self._take_row(), None, None
        position = len(self.window) + self._dropped  # in the whole text, so that a context shift repeats no random number
        banned, allowed = self._banned.at(position), self._constraint.allowed(self.history) if self._constraint else None
        id = self._sampler.sample(logits, position, self.window, banned, allowed)
        ends = id in self._end_ids and not self._banned.completes(self._marks.of.get(id, ""))
        if self._n_logprobs is not None:
            told = self._sampler.chances(logits, position, self.window, id, self._n_logprobs, banned, allowed, self._model.tokenizer) \
                if self.after_sampling else token_logprob(logits, id, self._n_logprobs, self._model.tokenizer)
            if ends:
                self.end_logprob = told
            else:
                self.logprobs.append(told)
        self._count(time.perf_counter() - since)
        return self._give(self._finish("eos") if ends else self._accept(id))

    def _filter(self, piece: str) -> str:
        """What of a piece is shown; called with every one, the last one when finish_reason is set."""
        return piece

    def _give(self, piece: str) -> str:
        self._since, piece = None, self._filter(self._marks.strip(piece))
        if piece:
            self._pieces.append(piece)
        return piece

    def _end(self) -> str | None:
        """Why it can't go on, if it can't."""
        if len(self.ids) >= self._limit:
            return "length"
        return "context" if self._keep is None and len(self.window) >= self.most else None

    def open(self, wait: bool = True) -> kv_cache.Sequence:
        """The sequence, with KV memory promised for all it may become; done by the first piece. wait: as long as was asked for, if others hold the memory.
        OutOfMemoryError: nothing is held, try again later."""
        if not self._opened:
            if self._sequence is None:
                private = bool(watching(self._model.scheduler))  # what hooks change is nobody else's, and what they are to see must be computed
                self._sequence = self._model.runtime.new_sequence(cached=not private, salt=self.cache_salt, slides=True, adapters=self.adapters)
            total = self._model.context if self._keep is not None else min(self._model.context, len(self.window) - len(self.ids) + self._limit)
            back_to = None  # or how far it may go back and grow again: to what a context shift keeps, or to the prompt's end, over a banned text
            if self._keep is not None or self._banned.texts:
                back_to = max(0, (len(self._prompt) if self._keep is None else self._keep) - 1)
            seconds = self._wait if wait else 0.0
            holds = self._sequence.length > 0  # whoever waits must hold nothing: the others might wait for that
            try:
                try:
                    self._sequence.begin(self.window[self._sequence.length:-1], total, back_to, seconds if self._model.runtime.awaited and not holds else 0.0)
                except OutOfMemoryError:
                    if self._owned:
                        self._sequence.truncate(0)  # what a resumed answer had computed: it may be just what is wanting
                    self._sequence.begin(self.window[self._sequence.length:-1], total, back_to, seconds)
            except BaseException:
                self._sequence = None if self._owned else self._sequence
                raise
            self._opened = True
        assert self._sequence is not None
        return self._sequence

    def _take_row(self) -> np.ndarray:
        """Logits float32 [n_vocab] after the window's last id. Raises what the step raised."""
        if self._row is not None:
            return self._row
        assert self._job is not None
        if self._speculator is None:
            return self._job.rows[-1]
        row = self._speculator.result(self._job, self.window)
        if row is None:  # a guess met what the tokens one by one might not meet
            assert self._sequence is not None
            job = Job(self._sequence, self.window[self._sequence.length:])
            self._model.scheduler.run([job])
            row = job.rows[-1]
        return row

    def _count(self, seconds: float) -> None:
        if self._steps:
            self._generate_seconds += seconds
        else:
            self._prompt_seconds = seconds
            if self._sequence is not None:
                self._reused = min(len(self._prompt), self._given + self._sequence.reused)
        self._steps += 1

    def _accept(self, id: int) -> str:
        """The answer grows by an id -> text that may be shown."""
        self.ids.append(id)
        self.window.append(id)
        if self._decoder is None:  # after the prompt: the answer's text is what it adds to the prompt's (leading space, a character begun)
            self._decoder = self._stream(self._prompt)
        text = self._decoder.push(id) + self._marks.of.get(id, "")
        if self._banned.texts:
            text, n_back = self._banned.push(text, self._decoder.pending)
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
        keep = len(self.window) - n
        self._banned.forbid(keep + self._dropped, self.window[keep])
        del self.window[keep:], self.ids[len(self.ids) - n:], self.logprobs[len(self.ids):]
        if self._speculator:
            self._speculator.stop(self._sequence, self.window)
        self._sequence.truncate(min(self._sequence.length, keep - 1))  # the last id is always fed: its logits are wanted
        self._decoder = self._stream(self.history)

    def _shift(self) -> None:
        """The context is full: go on as after a prompt of the tokens to keep and the newer half of the others. They are computed afresh, so the logits that
        follow are those after that prompt, bit for bit; the random numbers go on by the token's index in the whole text."""
        assert self._sequence is not None and self._keep is not None
        dropped = len(self.window) - self._keep - max(1, (self._model.context - self._keep) // 2)
        if self._speculator:
            self._speculator.stop(self._sequence, self.window)
        del self.window[self._keep:self._keep + dropped]
        self._sequence.truncate(min(self._sequence.length, self._keep))
        self._shifts, self._dropped = self._shifts + 1, self._dropped + dropped

    def _finish(self, reason: str) -> str:
        """End here, give the KV pages back, and return the text still held."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = reason
        if self._sequence is not None:
            self._sequence.unpromise()  # first: then nothing here takes a lock, which a destructor must not
            if self._speculator:
                self._speculator.stop(self._sequence, self.window)
                self._speculator.close()
            self._sequence.truncate(min(self._sequence.length, len(self.window)))  # a draft whose result nobody took
            self._kv_bytes = self._sequence.kv_bytes
            if self._owned:
                self._sequence.close()
                self._sequence = None
        self._job = self._row = None
        self._model.scheduler.left()
        if reason in ("stop", "interrupted"):
            return ""
        text, stopped = self._stops.push(self._banned.flush() + (self._decoder.flush() if self._decoder else ""))
        if stopped:
            self.finish_reason = "stop"
        return text + self._stops.flush()

    # -- several answers to one prompt ----------------------------------------------------------------------------------------------------

    def fork_prompt(self) -> tuple[kv_cache.Sequence, np.ndarray]:
        """After the prompt's job, before `advance`: (a sequence that shares the prompt's pages, the logits after it). OutOfMemoryError."""
        assert self._job is not None and self._sequence is not None and not self.ids
        rows = self._job.rows
        after = rows[0] if self._job.logits == "all" else rows[-1]  # all: a draft follows the prompt
        return self._sequence.fork(len(self.window)), after.copy()

    def begin_with(self, sequence: kv_cache.Sequence, row: np.ndarray) -> None:
        """Start from a prompt that was computed already; the sequence belongs to the generation from now on. OutOfMemoryError: then it doesn't."""
        self._sequence, self._owned = sequence, False
        try:
            self.open(wait=False)
        except OutOfMemoryError:
            self._sequence, self._owned = None, True
            raise
        self._row, self._owned = row, True
        self._given = self._reused = sequence.length - sequence.reused

    # -- results --------------------------------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether the next token, if one is asked for, fits into the context."""
        return self._end() != "context"

    @property
    def history(self) -> list[int]:
        """The prompt's ids and those generated so far."""
        return self._prompt + self.ids

    @property
    def so_far(self) -> str:
        """The pieces given out so far, as one string."""
        return "".join(self._pieces)

    @property
    def message(self) -> dict[str, Any] | None:
        """The answer as a message, if it answers messages (`Model.chat`)."""
        return None

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the answer."""
        return self._marks.strip(self._stops.found) if self._stops.found and self.finish_reason == "stop" else None

    def text(self) -> str:
        """Run to the end; all pieces, also those taken before, as one string."""
        for _ in self:
            pass
        return self.so_far

    def __str__(self) -> str:
        return self.text()

    @property
    def stats(self) -> Stats:
        prompt_tokens = len(self._prompt)
        return Stats(
            prompt_tokens=prompt_tokens, reused_tokens=self._reused, generated_tokens=len(self.ids),
            prompt_seconds=self._prompt_seconds, generate_seconds=self._generate_seconds,
            prompt_tokens_per_second=(prompt_tokens - self._reused) / self._prompt_seconds if self._prompt_seconds else None,
            generated_tokens_per_second=(self._steps - 1) / self._generate_seconds if self._generate_seconds else None,
            load_seconds=self._model.load_seconds, compile_seconds=self._model.compile_seconds,
            kv_bytes=self._sequence.kv_bytes if self._sequence is not None else self._kv_bytes, peak_memory_bytes=peak_memory(),
            threads=self._model.threads, seed=self._sampler.seed, finish_reason=self.finish_reason,
            drafted_tokens=self._speculator.drafted if self._speculator else 0, accepted_tokens=self._speculator.accepted if self._speculator else 0,
            context_shifts=self._shifts, dropped_tokens=self._dropped, context=self._model.context, wanted_context=self._model.runtime.wanted_context,
            experts_wanted=arena.use.wanted if (arena := self._model.runtime.arena) else 0, experts_read=arena.use.missed if arena else 0,
        )

    # -- sessions -------------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the answer as it is now, with what was computed for it; it can go on meanwhile. `Model.resume` goes on with it, also in another process.
        FileError: then a file that was there before is unchanged."""
        from . import answer_state, session
        if self._sequence is not None and self._speculator is not None:
            self._speculator.stop(self._sequence, self.window)
            self._sequence.truncate(min(self._sequence.length, len(self.window) - 1))  # the last id's logits went with the draft
        session.save(path, self._model, answer_state.KIND, answer_state.state_of(self), self.window, self._sequence, self.adapters)

    def _ipython_display_(self) -> None:
        """A notebook's cell that ends in an answer streams it."""
        from .display import stream
        stream(self)

    def _repr_html_(self) -> str:
        """For notebooks."""
        from .display import html
        return html(self)

    def __rich__(self) -> Any:
        from .display import renderable
        return renderable(self)

    def __repr__(self) -> str:
        from .display import summary
        return summary(self)

    # -- the end --------------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop here and give the KV pages back. Harmless twice and after the end."""
        self._finish("interrupted")

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_prompt_seconds"):  # not if the constructor refused its arguments
            self.close()


def check_logprobs(n: Any) -> int | None:
    """None (no log-probabilities) or of how many of the most likely tokens. OptionError."""
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0):
        raise OptionError(f"logprobs must be a whole number from 0 on, found {quoted(n)}")
    return None if n is None else int(n)
