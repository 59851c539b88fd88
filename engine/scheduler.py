"""The scheduler: what many answers want computed -> steps of the runtime that hold a bit of each.

    threads ── run(jobs) ──► queue ──► one of them leads: next tokens of all streams + a bounded chunk of the waiting prompts ──► Runtime.step ──► logits

There is no thread of its own: whoever waits for a job computes, for everybody, while the others wait; so one caller alone pays nothing, and streams of several
threads share steps (eight tokens cost 1.4 times one). While somebody streams, prompts get only as many tokens of a step as take about a tenth of a second,
shared evenly, so that no long prompt stalls a stream or a short prompt. What shares a step never changes a bit of the result (docs/exactness.md).
"""
from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from . import kv_cache
from .errors import LlaminaError
from .runtime import Feed, Runtime

SMALL = 8
"""Up to this many tokens are a stream's next ones; more are a prompt."""
STALL_SECONDS = 0.1
"""What prompts may add to a step that streams wait for."""
_GATHER_SECONDS = 0.003  # after a step its threads sample; so long the next step waits for them to come back


class Job:
    """Tokens to append to a sequence, and which logits after them are wanted; `rows` are these when it is `finished`."""

    def __init__(self, sequence: kv_cache.Sequence, ids: Sequence[int], logits: Literal["none", "last", "all"] = "last") -> None:
        self.sequence, self.ids, self.logits = sequence, ids, logits
        self.done = 0
        self.thread = threading.get_ident()
        self.error: BaseException | None = None
        self._parts: list[np.ndarray] = []

    @property
    def left(self) -> int:
        return len(self.ids) - self.done

    @property
    def finished(self) -> bool:
        return self.error is not None or not self.left

    def feed(self, n: int) -> Feed:
        """Its next n tokens."""
        last = n == self.left
        return Feed(self.sequence, self.ids[self.done:self.done + n], self.logits if last or self.logits != "last" else "none")

    def fed(self, n: int, rows: np.ndarray) -> None:
        self.done += n
        self._parts.append(rows)

    @property
    def rows(self) -> np.ndarray:
        """float32 [0, 1 or len(ids), n_vocab]. Raises what its step raised."""
        if self.error is not None:
            raise self.error
        return self._parts[-1] if len(self._parts) == 1 or self.logits == "last" else np.concatenate(self._parts)


class Scheduler:
    """Takes the steps of one runtime, for any number of threads."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._changed = threading.Condition()
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._busy = False
        self._expected: set[int] = set()  # threads that got logits from the last step and will want more
        self._step_ended = 0.0
        self._streamed: dict[int, float] = {}  # thread -> when it last got a stream's logits
        self.tokens_per_second = 640.0
        """Of steps with many tokens, measured; it bounds the chunk."""

    def run(self, jobs: Sequence[Job], *, first: bool = False) -> None:
        """Compute until all jobs (first: at least one) are finished; the unfinished ones stop between two chunks and can be run again. A job's own
        error is kept in it. KeyboardInterrupt and our own bugs are raised."""
        if not jobs:
            return
        enough = any if first else all
        with self._changed:
            self._queue += [job for job in jobs if not job.finished]
            self._expected -= {job.thread for job in jobs}
            self._changed.notify_all()
        try:
            while True:
                with self._changed:
                    while self._busy and not enough(job.finished for job in jobs):
                        self._changed.wait()
                    if enough(job.finished for job in jobs):
                        return
                    self._busy = True
                try:
                    self._step()
                finally:
                    with self._changed:
                        self._busy, self._running = False, []
                        self._queue = [job for job in self._queue if not job.finished]
                        self._changed.notify_all()
        finally:
            mine = set(map(id, jobs))
            with self._changed:
                self._queue = [job for job in self._queue if id(job) not in mine]
                while any(id(job) in mine for job in self._running):
                    self._changed.wait()

    def left(self) -> None:
        """This thread's stream has ended: nobody need wait for it."""
        self._expected.discard(threading.get_ident())
        self._streamed.pop(threading.get_ident(), None)

    def close(self) -> None:
        """Stop the running step and close the runtime; waiting threads get ClosedError."""
        self._runtime.abort()
        with self._changed:
            while self._busy:
                self._changed.wait()
            self._runtime.close()

    # -- one step -------------------------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        with self._changed:
            end = self._step_ended + _GATHER_SECONDS
            while self._expected and (wait := end - time.perf_counter()) > 0:
                self._changed.wait(wait)
            parts = self._plan()
            self._running = [job for job, _ in parts]
        start = time.perf_counter()
        try:
            self._compute(parts)
        except LlaminaError as error:
            if len(parts) == 1:
                parts[0][0].error = error
            for job, n in parts if len(parts) > 1 else []:  # whose fault was it? No sequence has changed
                try:
                    self._compute([(job, n)])
                except LlaminaError as own:
                    job.error = own
        self._step_ended = end = time.perf_counter()
        tokens = sum(n for _, n in parts)
        if tokens >= 2 * SMALL:
            self.tokens_per_second += 0.3 * (tokens / (end - start) - self.tokens_per_second)
        self._expected = {job.thread for job, _ in parts if job.finished}
        self._streamed.update({job.thread: end for job, n in parts if job.finished and len(job.ids) <= SMALL})

    def _plan(self) -> list[tuple[Job, int]]:
        """Which jobs get how many tokens of the next step: streams all they want, prompts even shares of what is left for them."""
        room = self._runtime.max_batch
        parts = [(job, job.left) for job in self._queue if job.left <= SMALL][:room // SMALL]
        prompts = sorted((job for job in self._queue if job.left > SMALL), key=lambda job: job.left)
        room -= sum(n for _, n in parts)
        if parts or self._others_stream({job.thread for job in prompts}):
            room = min(room, self.chunk)
        for i, job in enumerate(prompts):
            n = min(job.left, room // (len(prompts) - i) or room)
            if n:
                parts.append((job, n))
                room -= n
        return parts

    @property
    def chunk(self) -> int:
        """Tokens of prompts in a step that streams wait for."""
        return max(2 * SMALL, min(self._runtime.max_batch, int(self.tokens_per_second * STALL_SECONDS) // 8 * 8))

    def _others_stream(self, threads: set[int]) -> bool:
        """Whether a thread beside these, just now sampling or showing a token, is in the middle of an answer."""
        now = time.perf_counter()
        return any(now - t < 1.0 and thread not in threads for thread, t in list(self._streamed.items()))

    def _compute(self, parts: list[tuple[Job, int]]) -> None:
        feeds = [job.feed(n) for job, n in parts]
        rows: Any = self._runtime.step(feeds)
        start = 0
        for (job, n), feed in zip(parts, feeds):
            count = {"none": 0, "last": 1, "all": n}[feed.logits]
            job.fed(n, rows[start:start + count])
            start += count
