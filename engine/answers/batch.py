"""Many answers at once: prompts -> as many live generations as KV memory and `live` allow -> results as they finish.

    begin (memory promised first) ──► prepare() of all ──► Scheduler.run(first=True) ──► advance() those that have logits ──► Result ──► begin the next

Prompts are taken one by one as there is room, so a million of them cost no more memory than a few. Each answer is, bit for bit, what `Model.generate` gives
alone (docs/exactness.md). Several answers to one prompt (`samples`) share its pages and differ by the sample index in the random numbers' key.
"""
from __future__ import annotations

import contextlib
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InternalError, LlaminaError, OptionError, OutOfMemoryError, quoted
from ..sampling.options import SamplingOptions

if TYPE_CHECKING:
    from ..run import kv_cache
    from ..run.scheduler import Job
    from ..sampling.sampler import TokenLogprob
    from .core import Core
    from .generation import Generation
    from .stats import Stats

LIVE = 16
"""Most answers under way at once, unless told otherwise."""
_POLL = 0.005  # seconds between two looks whether other threads' answers have left memory
_MOST_KEPT = 1024  # results that wait for an earlier one, when they are wanted in order


@dataclass(frozen=True)
class Request:
    """One prompt for `Model.generate_many`: text or ids for `Model.generate`, or messages (a list of mappings) for `Model.chat`; with options for it alone
    (`samples` among them)."""

    prompt: Any
    options: Mapping[str, Any] | SamplingOptions = field(default_factory=dict)


class Text(str):
    """A str that may also be called, so that `answer.text()` works for a Result as for a Generation."""

    def __call__(self) -> str:
        return str(self)


@dataclass(repr=False)
class Result:
    """One finished answer. `result.text()`, as of a Generation, is the same as `result.text`; print(result) shows it.

    index: of its prompt, from 0 on; sample: of the answers to that prompt. error: why there is no (whole) answer; then `text` and
    `ids` are what there was before, and `stats` is None if it never began."""

    index: int
    sample: int
    text: Text = Text("")
    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    message: dict[str, Any] | None = None
    """Of an answer to messages: {"role": "assistant", "content": …, "tool_calls": …}."""
    stats: Stats | None = None
    error: LlaminaError | None = None

    def __post_init__(self) -> None:
        self.text = Text(self.text)

    def __str__(self) -> str:
        return str(self.text)

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 60 else self.text[:60] + "…"
        return f"<llamina.Result {self.index}.{self.sample} {str(shown)!r}, {f'error: {self.error}' if self.error else self.finish_reason}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        from .display import results_html
        return results_html([self])


class _Prompt:
    """A prompt with answers yet to begin. The first one computes it; the others begin with its pages and its logits."""

    def __init__(self, index: int, prompt: Any, options: dict[str, Any], samples: int, sample_index: int) -> None:
        self.index, self.prompt, self.options, self.samples, self.sample_index = index, prompt, options, samples, sample_index
        self.begun = 0
        self.next: Generation | None = None  # made, waiting for memory
        self.leader: Generation | None = None  # computing the prompt
        self.sequence: kv_cache.Sequence | None = None
        self.row: np.ndarray | None = None

    def drop(self) -> None:
        """Give the computed prompt's memory back."""
        if self.sequence is not None:
            self.sequence.close()
            self.sequence = self.row = None


class _Answer:
    def __init__(self, generation: Generation, prompt: _Prompt, sample: int) -> None:
        self.generation, self.prompt, self.sample = generation, prompt, sample
        self.job: Job | None = None


class Batch(Iterator[Result]):
    """What `Model.generate_many` returns: an iterator, and a context manager. close(), or dropping it, gives up what is under way and frees its memory."""

    def __init__(self, model: Core, prompts: Iterable[Any], options: Mapping[str, Any], samples: int, ordered: bool, live: int) -> None:
        self._model, self._prompts, self._options, self._samples = model, enumerate(prompts), dict(options), samples
        self._ordered, self._most = ordered, live
        self._open: deque[_Prompt] = deque()  # with answers to begin, oldest first
        self._live: list[_Answer] = []
        self._results: deque[Result] = deque()
        self._kept: dict[int, dict[int, Result]] = {}  # when ordered: by prompt and sample
        self._n_kept, self._turn = 0, 0
        self._counts: dict[int, int] = {}  # prompt -> answers, when ordered
        self._exhausted = False
        self.shown = Results()
        """Those that a notebook has shown instead of handing them out."""

    def __next__(self) -> Result:
        try:
            while not self._results:
                self._begin_more()
                if self._live:
                    self._advance()
                elif not self._results and not self._open and self._exhausted:
                    raise StopIteration
        except BaseException:
            self.close()
            raise
        return self._results.popleft()

    # -- beginning ------------------------------------------------------------------------------------------------------------------------

    def _begin_more(self) -> None:
        """Begin answers while there is room for them."""
        while len(self._live) < self._most:
            prompt = next((p for p in self._open if p.leader is None), None)
            if prompt is None:
                if self._exhausted or self._n_kept >= _MOST_KEPT:
                    return
                self._take_prompt()
                continue
            if self._live and self._model.runtime.awaited:  # others wait for memory: it is their turn
                return
            sample = prompt.begun
            try:
                generation = self._begin(prompt, sample)
            except OutOfMemoryError as error:
                if self._live:  # wait until one ends; not `wait`, which would keep the others waiting
                    return
                if any(p.sequence for p in self._open):  # computed prompts are a luxury then
                    for p in self._open:
                        p.drop()
                    continue
                if self._model.scheduler.at_work:  # other threads' answers have the memory, and go on
                    time.sleep(_POLL)
                    continue
                self._finish(Result(prompt.index, sample, error=error))
            except Exception as error:
                self._finish(Result(prompt.index, sample, error=own_error(error)))
            else:
                self._live.append(_Answer(generation, prompt, sample))
                if sample == 0 and prompt.samples > 1:
                    prompt.leader = generation
            prompt.begun, prompt.next = sample + 1, None
            if prompt.begun == prompt.samples:
                self._open.remove(prompt)
                prompt.drop()

    def _take_prompt(self) -> None:
        """One more from the prompts."""
        item = next(self._prompts, None)
        if item is None:
            self._exhausted = True
            return
        index, given = item
        self._counts[index] = 1
        try:
            prompt, samples, options = given, self._samples, dict(self._options)
            if isinstance(given, Request):
                prompt, own = given.prompt, {} if isinstance(given.options, SamplingOptions) else dict(given.options)
                if isinstance(given.options, SamplingOptions):
                    own = {"options": given.options}
            elif isinstance(given, Mapping):
                own = dict(given)
                if ("prompt" in own) == ("messages" in own):
                    raise OptionError(f"prompt {index}: a mapping must have 'prompt' or 'messages', found {', '.join(map(repr, own)) or 'nothing'}")
                prompt = own.pop("prompt") if "prompt" in own else own.pop("messages")
            else:
                own = {}
            options.update(own)
            samples, sample_index = check_samples(options.pop("samples", samples)), options.pop("sample_index", 0)
        except Exception as error:
            self._finish(Result(index, 0, error=own_error(error)))
            return
        if samples > 1 and _seed(options) is None:
            options["seed"] = secrets.randbits(32)
        self._counts[index] = samples
        self._open.append(_Prompt(index, prompt, options, samples, sample_index))

    def _begin(self, prompt: _Prompt, sample: int) -> Generation:
        """The prompt's next answer, with memory promised. OutOfMemoryError: not now."""
        if prompt.next is None:
            try:
                make = self._model.chat if is_conversation(prompt.prompt) else self._model.generate
                prompt.next = make(prompt.prompt, sample_index=prompt.sample_index + sample, **prompt.options)
            except TypeError as error:  # most likely an option that doesn't exist
                raise OptionError(f"prompt {prompt.index}: {error}") from None
        generation = prompt.next
        if prompt.sequence is not None and prompt.row is not None:
            last = sample + 1 == prompt.samples
            sequence = prompt.sequence if last else prompt.sequence.fork()
            try:
                generation.begin_with(sequence, prompt.row)
            except OutOfMemoryError:
                if not last:
                    sequence.close()
                raise
            if last:
                prompt.sequence = None  # it is the answer's now
        else:
            generation.open(wait=not self._live and not any(p.sequence for p in self._open))  # who waits must hold nothing
        return generation

    # -- going on -------------------------------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """A step for all, and what follows from it."""
        for answer in list(self._live):
            if answer.job is None:
                self._go(answer)
        jobs = [answer.job for answer in self._live if answer.job is not None]
        self._model.scheduler.run(jobs, first=True)
        for answer in list(self._live):
            if answer.job is not None and answer.job.finished:
                self._go(answer)

    def _go(self, answer: _Answer) -> None:
        """As far as an answer gets until a step is needed."""
        generation = answer.generation
        try:
            if answer.job is not None:
                if answer.prompt.leader is generation:
                    self._share(answer.prompt)
                answer.job = None
                generation.advance()
            while generation.finish_reason is None and (job := generation.prepare()) is None:
                generation.advance()
            if generation.finish_reason is None:
                answer.job = job
                return
            result = self._result(answer, None)
        except Exception as error:
            generation.close()
            result = self._result(answer, own_error(error))
        self._finish(result)
        if answer.prompt.leader is generation:  # it ended before its prompt was computed: each of the others begins by itself
            answer.prompt.leader = None
        self._live.remove(answer)

    def _share(self, prompt: _Prompt) -> None:
        """The prompt has been computed: the other answers may begin. If it failed, or there is no page to spare, each begins by itself."""
        leader, prompt.leader = prompt.leader, None
        assert leader is not None
        if prompt.begun < prompt.samples:
            with contextlib.suppress(LlaminaError):
                prompt.sequence, prompt.row = leader.fork_prompt()

    @staticmethod
    def _result(answer: _Answer, error: LlaminaError | None) -> Result:
        g = answer.generation
        message = None if error else g.message
        return Result(answer.prompt.index, answer.sample, Text(g.so_far), g.ids, None if error else g.finish_reason, g.logprobs, message, g.stats, error)

    def _finish(self, result: Result) -> None:
        if not self._ordered:
            self._counts.pop(result.index, None)
            self._results.append(result)
            return
        self._kept.setdefault(result.index, {})[result.sample] = result
        self._n_kept += 1
        while len(self._kept.get(self._turn, ())) == self._counts.get(self._turn, -1):
            samples = self._kept.pop(self._turn)
            self._n_kept -= len(samples)
            self._results += [samples[i] for i in sorted(samples)]
            del self._counts[self._turn]
            self._turn += 1

    def all(self) -> Results:
        """Run to the end: the results that are left, in a list that notebooks show as a table."""
        return Results(self)

    def _ipython_display_(self) -> None:
        """A notebook's cell that ends in a batch shows its table, which grows; the results are in `.shown` afterwards."""
        from .display import stream_results
        self.shown = stream_results(self)

    # -- the end --------------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up what is under way. Harmless twice and after the end."""
        for answer in self._live:
            answer.generation.close()
        for prompt in self._open:
            prompt.drop()
        self._live, self._exhausted = [], True
        self._open.clear()
        self._results.clear()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_exhausted"):
            self.close()


def _seed(options: Mapping[str, Any]) -> Any:
    """What a prompt's options say about it, one by one or together."""
    together = options.get("options")
    found = together.seed if isinstance(together, SamplingOptions) else together.get("seed") if isinstance(together, Mapping) else None
    return options["seed"] if options.get("seed") is not None else found


class Results(list[Result]):
    """A list of results that notebooks show as a table."""

    def _repr_html_(self) -> str:
        from .display import results_html
        return results_html(self)


def own_error(error: BaseException) -> LlaminaError:
    """What one request or its answer ran into, as that answer's error; nobody else's business, even if it is a fault of ours."""
    if isinstance(error, LlaminaError):
        return error
    if isinstance(error, MemoryError):
        found: LlaminaError = OutOfMemoryError("the system has no more memory for this answer")
    else:
        text = " ".join(str(error).split())[:200]
        found = InternalError(f"this answer ran into a fault of llamina ({type(error).__name__}: {text}); others go on. Please report it")
    found.__cause__ = error
    return found


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def check_samples(n: Any) -> int:
    """How many answers to a prompt. OptionError."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise OptionError(f"samples must be a whole number above 0, found {quoted(n)}")
    return int(n)


def check_sample_index(index: Any) -> int:
    """OptionError unless it is a whole number from 0 on, below 2**64."""
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < 1 << 64:
        raise OptionError(f"sample_index must be a whole number from 0 to 2**64 - 1, found {quoted(index)}")
    return int(index)
