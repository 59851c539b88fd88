"""The scheduler: what many answers want computed -> steps of the runtime that hold a bit of each.

    threads ── run(jobs) ──► queue ──► one of them leads: next tokens of all streams + a bounded chunk of the waiting prompts ──► Runtime.step ──► logits

There is no thread of its own: whoever waits for a job computes, for everybody, while the others wait; so one caller alone pays nothing, and streams of several
threads share steps (eight tokens cost 1.4 times one). While somebody streams, prompts get only as many tokens of a step as take about a tenth of a second, so
that no long prompt stalls a stream. Prompts that begin with the same pages compute them once: the others wait for the first and take its pages over.
What shares a step never changes a bit of the result (docs/exactness.md).
"""
from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...kernels import forks
from ..errors import ClosedError, LlaminaError, OptionError, OutOfMemoryError, memory_errors
from .costs import Costs
from .twins import without_twins
from .watch import Watch, merged, watching

if TYPE_CHECKING:
    from . import kv_cache
    from .runtime import Look, Runtime

STALL_SECONDS = 0.1
"""What prompts may add to a step that streams wait for."""
QUANTUM = 32
"""A prompt that gets anything of a step gets so many tokens, if there is room."""
_MACS_PER_SECOND = 300e9  # a first guess, for the first chunk
_GATHER_SECONDS = 0.003  # after a step its threads sample; so long the next step waits for them to come back
_IDLE_SECONDS = 1.0  # without a step: then nobody is at work
_MOST_OBSERVED = 64  # tokens of a step whose price speculation may want to know
_order = itertools.count()


class Job:
    """Tokens to append to a sequence, and which logits after them are wanted. stream: an answer's next ones, that somebody waits for; else a prompt,
    which may take a while. `rows` are the logits when it is `finished`; with a `look`, it gets them instead, some at a time, perhaps again after an error."""

    def __init__(self, sequence: kv_cache.Sequence, ids: Sequence[int], logits: Literal["none", "last", "all"] = "last", stream: bool = False,
                 look: Look | None = None) -> None:
        if not ids:
            raise OptionError("there must be at least one token to feed")
        self.sequence, self.ids, self.logits, self.stream, self.look = sequence, ids, logits, stream, look
        self.thread = threading.get_ident()
        self.order = next(_order)
        self.error: BaseException | None = None
        self.seconds, self.others = 0.0, 0
        """Of the steps it was in; tokens of others in the last one."""
        self._start = sequence.length
        self._parts: list[np.ndarray] = []

    @property
    def done(self) -> int:
        return self.sequence.length - self._start

    @property
    def left(self) -> int:
        return len(self.ids) - self.done

    @property
    def finished(self) -> bool:
        return self.error is not None or not self.left

    def rest(self) -> Sequence[int]:
        return self.ids[self.done:]

    def wanted(self, n: int) -> Literal["none", "last", "all"]:
        """Which logits of its next n tokens."""
        return self.logits if n == self.left or self.logits != "last" else "none"

    def rows_of(self, n: int) -> int:
        """How many rows of logits its next n tokens give, all at once."""
        return 0 if self.look else {"none": 0, "last": 1, "all": n}[self.wanted(n)]

    def most(self, n: int, rows: int) -> int:
        """n, or fewer tokens if only so many rows of logits are left in a step; 0: not this time."""
        return n if self.rows_of(n) <= rows else min(n, rows) if self.logits == "all" else 0

    def fed(self, rows: np.ndarray) -> None:
        if len(rows):
            self._parts.append(rows)

    @property
    def rows(self) -> np.ndarray:
        """float32 [0, 1 or len(ids), n_vocab]. Raises what its step raised."""
        if self.error is not None:
            raise copy.copy(self.error)  # what is raised gets a traceback, whose frames hold this job: with the error itself, a circle that keeps KV pages
        return self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts) if self._parts else np.zeros((0, 0), np.float32)


class Scheduler:
    """Takes the steps of one runtime, for any number of threads. costs: what steps were measured to take; speculation goes by it."""

    def __init__(self, runtime: Runtime, clock: Callable[[], float] = time.perf_counter) -> None:
        self.costs = Costs()
        self.clock = clock
        self.reading: Callable[[int, int], None] | None = None
        """Called while a prompt is read with how many of its tokens are, and how many it has, by whichever thread computes."""
        self._runtime = runtime
        self._changed = threading.Condition()
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._busy = self._closed = False
        self._expected: set[int] = set()  # threads that got logits from the last step and will want more
        self._step_ended = self._step_seconds = 0.0
        self._streamed: dict[int, float] = {}  # thread -> when it last got a stream's logits
        self.tokens_per_second = _MACS_PER_SECOND / runtime.macs_per_token
        """Of steps with many tokens, measured; it bounds the chunk."""
        self._leader = 0  # the thread that takes the step
        forks.watch(self, 0)

    def run(self, jobs: Sequence[Job], *, first: bool = False, until: Callable[[], bool] | None = None) -> None:
        """Compute until all jobs (first: at least one) are finished, or after a step `until()` is true; the unfinished ones stop between two chunks and can
        be run again. A job's own error is kept in it. KeyboardInterrupt and our own bugs are raised."""
        if not jobs:
            return
        if watches := watching(self):
            return self._run_watched(jobs, watches, first, until)
        enough = any if first else all
        me = threading.get_ident()
        with self._changed:
            self._check_outside(me)
            self._queue += [job for job in jobs if not job.finished]
            self._expected.discard(me)
            self._changed.notify_all()
        try:
            while True:
                with self._changed:
                    while self._busy and not enough(job.finished for job in jobs):
                        self._changed.wait()
                    if enough(job.finished for job in jobs):
                        return
                    self._busy, self._leader = True, me
                try:
                    self._step()
                finally:
                    with self._changed:
                        self._busy, self._running = False, []
                        self._queue = [job for job in self._queue if not job.finished]
                        self._changed.notify_all()
                if until is not None and until():
                    return
        finally:
            self._leave(jobs)

    # -- watched steps --------------------------------------------------------------------------------------------------------------------

    def _check_outside(self, me: int) -> None:
        if self._busy and self._leader == me:
            raise OptionError("a hook can't run the model that it looks at: it is called in the middle of a step; do that after the block")

    @contextlib.contextmanager
    def alone(self) -> Iterator[Runtime]:
        """The runtime for this thread alone within the block, which comes between two steps of others: they wait, so it should be short. OptionError: within a
        step already; ClosedError."""
        me = threading.get_ident()
        with self._changed:
            self._check_outside(me)
            while self._busy:
                self._changed.wait()
            if self._closed:
                raise ClosedError("the model was closed: load it again")
            self._busy, self._leader = True, me
        try:
            yield self._runtime
        finally:
            with self._changed:
                self._busy = False
                self._step_ended = self.clock()
                self._changed.notify_all()

    def _run_watched(self, jobs: Sequence[Job], watches: Sequence[Watch], first: bool, until: Callable[[], bool] | None) -> None:
        """Jobs of a thread that watches its steps: each in steps of its own, which this thread takes itself. What a hook raises that is none of our errors is
        raised here, and the job can be run again."""
        for job in jobs:
            while not job.finished:
                try:
                    self._watched_step(job, watches)
                except (LlaminaError, MemoryError) as error:
                    job.error = error
                if until is not None and until():
                    return
            if first:
                return

    def _watched_step(self, job: Job, watches: Sequence[Watch]) -> None:
        from .runtime import Feed
        with self.alone() as runtime, memory_errors("a step"):
            n, start, before = job.most(min(job.left, runtime.max_batch), runtime.max_logits), self.clock(), job.sequence.length
            feed = Feed(job.sequence, job.rest()[:n], job.wanted(n))
            runtime.on_layers = None
            try:
                rows: Any = runtime.step([feed], merged([watch.observers([feed]) for watch in watches]))
            except BaseException:
                job.sequence.truncate(min(job.sequence.length, before))
                raise
            job.fed(rows)
            job.seconds += self.clock() - start

    def _leave(self, jobs: Sequence[Job]) -> None:
        """Take jobs out of the queue, and wait for the step that holds one, even through Ctrl-C: their sequences may be closed next."""
        mine, interrupt = set(map(id, jobs)), None
        while True:
            try:
                with self._changed:
                    self._queue = [job for job in self._queue if id(job) not in mine]
                    while any(id(job) in mine for job in self._running):
                        self._changed.wait()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt:
            raise interrupt

    @property
    def at_work(self) -> bool:
        """Whether steps are taken: whoever holds memory will come to an end. Not if nothing was computed for a second."""
        return self._busy or self.clock() - self._step_ended < _IDLE_SECONDS

    def left(self) -> None:
        """This thread's stream has ended: nobody need wait for it."""
        self._expected.discard(threading.get_ident())
        self._streamed.pop(threading.get_ident(), None)

    def close(self, closing: Callable[[], None]) -> None:
        """Stop the running step, then do `closing`; waiting threads get ClosedError."""
        self._closed = True
        self._runtime.abort()
        with self._changed:
            while self._busy:
                self._changed.wait()
            closing()

    def fork_locks(self) -> list[Any]:
        """For forks.py."""
        return [self._changed]

    def after_fork_in_child(self) -> None:
        """Only the thread that forked is there: steps and jobs of others are not."""
        me = threading.get_ident()
        self._queue = [job for job in self._queue if job.thread == me]
        if self._leader != me:
            self._busy, self._running = False, []
        self._expected.clear()
        self._streamed.clear()
        self._changed.notify_all()

    # -- one step -------------------------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        with self._changed:
            if self._closed:
                for job in self._queue:
                    job.error = ClosedError("the model was closed: load it again")
                return
            end = self._step_ended + min(_GATHER_SECONDS, self._step_seconds)
            while self._expected and (wait := end - self.clock()) > 0:
                self._changed.wait(wait)
            parts = self._plan()
            self._running = [job for job, _ in parts]
        before = [job.sequence.length for job, _ in parts]
        start = self.clock()
        try:
            self._attempt(parts)
        except BaseException:  # Ctrl-C between the step and its results: nobody may believe in tokens whose logits were lost
            for (job, _), length in zip(parts, before):
                job.sequence.truncate(min(job.sequence.length, length))
            raise
        end = self.clock()
        self._learn(parts, end - start)
        self._step_ended, self._step_seconds = end, end - start
        self._expected = {job.thread for job, _ in parts if job.finished}
        self._streamed.update({job.thread: end for job, n in parts if job.finished and job.stream})

    def _attempt(self, parts: list[tuple[Job, int]]) -> None:
        """A step; if it fails, each part for itself: whose fault was it?"""
        try:
            self._compute(parts)
        except (LlaminaError, MemoryError) as error:
            if len(parts) == 1 or self._closed:
                own = error if isinstance(error, LlaminaError) else OutOfMemoryError("the system has no more memory for a step")
                if self._closed:
                    own = ClosedError("the model was closed: load it again")
                own.__context__ = own.__cause__ = None
                for job, _ in parts:
                    job.error = own.with_traceback(None)  # whose frames would hold other jobs' sequences
                return
            for job, n in parts:  # no sequence has changed
                self._attempt([(job, n)])

    def _compute(self, parts: list[tuple[Job, int]]) -> None:
        from .runtime import Feed
        feeds = [Feed(job.sequence, job.rest()[:n], job.wanted(n), job.look) for job, n in parts]
        prompt = max(((job, n) for job, n in parts if not job.stream), key=lambda part: part[0].left, default=None)
        self._runtime.on_layers = self._read(*prompt) if self.reading and prompt else None
        with memory_errors("a step"):
            rows: Any = self._runtime.step(feeds)
        start = 0
        for (job, n), feed in zip(parts, feeds):
            count = 0 if feed.look else {"none": 0, "last": 1, "all": n}[feed.logits]
            job.fed(rows[start:start + count] if len(parts) == 1 else rows[start:start + count].copy())  # not all rows for the sake of one
            start += count

    def _read(self, job: Job, n: int) -> Callable[[float], None]:
        """What the runtime calls in a step that reads n tokens of a prompt."""
        tell, done, total = self.reading, job.done, len(job.ids)
        return lambda share: tell(done + int(share * n), total) if tell else None

    def _learn(self, parts: list[tuple[Job, int]], seconds: float) -> None:
        tokens = sum(n for _, n in parts)
        for job, n in parts:
            job.seconds += seconds
            job.others = tokens - n
        if tokens >= 2 * QUANTUM and seconds > 0:
            self.tokens_per_second += 0.3 * (tokens / seconds - self.tokens_per_second)
        if tokens <= _MOST_OBSERVED and all(job.stream and job.error is None for job, _ in parts):
            self.costs.observe(tokens, seconds)

    def _plan(self) -> list[tuple[Job, int]]:
        """Which jobs get how many tokens of the next step: streams all they want, then prompts, the oldest first, then those that are soonest done."""
        room, rows = self._runtime.max_batch, self._runtime.max_logits
        streams = [job for job in self._queue if job.stream]
        prompts = sorted((job for job in self._queue if not job.stream), key=lambda job: job.order)
        prompts[1:] = sorted(prompts[1:], key=lambda job: job.left)
        streams_room = room - min(room // 4, QUANTUM) if prompts else room
        parts: list[tuple[Job, int]] = []
        for job in streams:
            if n := job.most(min(job.left, streams_room), rows):
                parts.append((job, n))
                streams_room, room, rows = streams_room - n, room - n, rows - job.rows_of(n)
        if parts or self._others_stream({job.thread for job in prompts}):
            room = min(room, self.chunk)
        prompts = without_twins(prompts)
        for i, job in enumerate(prompts):
            if n := job.most(min(job.left, room, max(QUANTUM, room // (len(prompts) - i))), rows):
                parts.append((job, n))
                room, rows = room - n, rows - job.rows_of(n)
        return parts

    @property
    def chunk(self) -> int:
        """Tokens of prompts in a step that streams wait for."""
        return max(16, min(self._runtime.max_batch, int(self.tokens_per_second * STALL_SECONDS) // 8 * 8))

    def _others_stream(self, threads: set[int]) -> bool:
        """Whether a thread beside these, just now sampling or showing a token, is in the middle of an answer."""
        now = self.clock()
        return any(now - t < 1.0 and thread not in threads for thread, t in list(self._streamed.items()))
