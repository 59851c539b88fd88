"""The engine thread of a served model: it alone drives the scheduler, for all answers under way.

    Ticket (answers of one request) ─► waiting, bounded ─► as many as `parallel` and memory allow ─► jobs ─► Scheduler.run until one is finished or somebody
    comes or leaves ─► a token further ─► events into the ticket, on the event loop ─► a route

A ticket that is cancelled (a client left, a deadline, a slow reader) is out of the engine within a step, whether it waits, computes its prompt or streams. An
answer's error is its own. What goes wrong in a step itself ends the answers of that step, never the loop.
"""
from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..answers.batch import own_error
from ..errors import ClosedError, LlaminaError, OutOfMemoryError
from .counters import Counters
from .errors import ApiError

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model
    from ..run.scheduler import Job
    from ..sampling.sampler import TokenLogprob

MOST_UNREAD = 8192
"""Events that a client may leave unread; then it is taken for gone."""


@dataclass
class Event:
    """What one step made of an answer. error: why it ended instead."""

    index: int
    """Of the answer within its request."""
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    error: LlaminaError | ApiError | None = None
    prompt: tuple[int, int, int, float] | None = None
    """(tokens of the prompt that are computed, those among them that the prefix cache gave, all, seconds since it was begun), while it is read."""


class Ticket:
    """The answers of one request, on their way through the engine. An asynchronous iterator over events until all have ended; `cancel` from any thread."""

    def __init__(self, generations: Sequence[Generation], loop: asyncio.AbstractEventLoop, most_unread: int | None = MOST_UNREAD) -> None:
        self.generations = list(generations)
        self.cancelled = False
        self.began: float | None = None
        self.made = time.perf_counter()
        self._loop, self._events, self._open = loop, asyncio.Queue[Event](), len(self.generations)
        self._posted = self._read = 0  # each counted by one thread alone
        self._most_unread = most_unread
        self._engine: Engine | None = None

    def post(self, event: Event) -> None:
        """From the engine's thread."""
        self._posted += 1
        unread = self._posted - self._read
        if self._most_unread is not None and unread > self._most_unread and event.finish_reason is None and event.error is None:
            self.cancel()
            event = Event(event.index, error=ApiError(408, "the client reads too slowly: the answer was given up", code="slow_reader"))
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the event loop has ended
            self.cancelled = True

    def cancel(self) -> None:
        """Nobody waits for the answers any more. Harmless twice and after the end."""
        self.cancelled = True
        if self._engine is not None:
            self._engine.wake()

    def abandon(self) -> None:
        """`cancel`, from a destructor: takes no lock."""
        self.cancelled = True
        if self._engine is not None:
            self._engine._news = True

    def give_up(self, error: ApiError) -> None:
        """End all answers with this error. On the event loop."""
        for i in range(len(self.generations)):
            self._read -= 1
            self._events.put_nowait(Event(i, error=error))
        self.cancel()

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None: all answers have ended. TimeoutError."""
        if not self._open:
            return None
        event = await asyncio.wait_for(self._events.get(), timeout)
        self._read += 1
        if event.finish_reason is not None or event.error is not None:
            self._open -= 1
        return event

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.next()) is not None:
            yield event


class _Live:
    def __init__(self, ticket: Ticket, index: int) -> None:
        self.ticket, self.index = ticket, index
        self.generation = ticket.generations[index]
        self.job: Job | None = None
        self.told_ids = self.told_logprobs = 0
        self.told_prompt: tuple[int, int, int] | None = None
        self.began = 0.0


class Engine:
    """One model's answers. parallel: most under way at once; queue: most that wait beside them."""

    def __init__(self, model: Model, parallel: int, queue: int, turn: threading.Lock | None = None) -> None:
        self.model, self.parallel, self.queue = model, parallel, queue
        self.failure: str | None = None
        """Why the thread has died, if it has."""
        self.counters = Counters()
        self._turn = turn or threading.Lock()  # several models take turns: a step wants all cores
        self._changed = threading.Condition()
        self._waiting: deque[_Live] = deque()
        self._live: list[_Live] = []
        self._news = self._stopping = self._draining = False
        self._thread = threading.Thread(target=self._main, name=f"llamina engine {model.path}", daemon=True)
        self._thread.start()

    # -- from other threads ---------------------------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        """ApiError 429: too many wait; 503: it is stopping."""
        with self._changed:
            if self._stopping or self._draining or self.failure:
                raise ApiError(503, self.failure or "the server is stopping: try another one", code="stopping")
            n = len(ticket.generations)
            if n > self.parallel + self.queue:
                raise ApiError(400, f"{n} answers are asked for at once, this server takes {self.parallel + self.queue} (--parallel, --queue)", "n")
            if len(self._live) + len(self._waiting) + n > self.parallel + self.queue:
                raise ApiError(429, f"{len(self._live)} answers are under way and {len(self._waiting)} wait already: try again later", code="queue_full",
                               headers={"Retry-After": str(self.wait_estimate)})
            ticket._engine = self
            self._waiting += [_Live(ticket, i) for i in range(n)]
            self._news = True
            self._changed.notify_all()

    @property
    def wait_estimate(self) -> int:
        """Seconds after which a refused client may try again."""
        return max(1, min(60, (len(self._live) + len(self._waiting)) // max(1, self.parallel) * 2))

    @property
    def counts(self) -> tuple[int, int]:
        """(answers under way, answers that wait)"""
        return len(self._live), len(self._waiting)

    def live(self) -> list[Generation]:
        """The answers under way, for /slots."""
        return [live.generation for live in list(self._live)]

    def wake(self) -> None:
        """Somebody came or left: look, after the step at hand."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Take nothing new; return when all answers have ended, or after so many seconds, when the rest gets an error."""
        self._draining = True
        end = time.monotonic() + seconds
        with self._changed:
            while (self._live or self._waiting) and self._thread.is_alive() and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.2))

    def close(self) -> None:
        """End the thread and give up what is under way. Harmless twice."""
        self._stopping = True
        self.wake()
        if self._thread is not threading.current_thread():
            self._thread.join()

    # -- the thread -----------------------------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while not self._stopping:
                with self._changed:
                    while not (self._news or self._live or self._waiting or self._stopping):
                        self._changed.wait()
                    self._news = False
                self._drop_cancelled()
                self._admit()
                if self._live:
                    self._advance()
                elif self._waiting and not self._stopping:
                    time.sleep(0.005)  # memory is held by callers outside the server
        except BaseException as error:  # our own fault: say so on /health instead of hanging
            self.failure = f"the engine has failed ({type(error).__name__}): restart the server"
            traceback.print_exc(file=sys.stderr)
        finally:
            with self._changed:  # whoever comes after this is refused
                self._stopping = True
                left, self._live, self._waiting = [*self._live, *self._waiting], [], deque()
            for live in left:
                self._end(live, ClosedError("the server is stopping") if self.failure is None else ApiError(500, self.failure))

    def _drop_cancelled(self) -> None:
        for live in [x for x in self._live if x.ticket.cancelled]:
            live.generation.close()
            self._live.remove(live)
            self.counters.ended(live.generation, "cancelled")
            live.ticket.post(Event(live.index, finish_reason="cancelled"))
        if any(x.ticket.cancelled for x in self._waiting):
            with self._changed:
                gone = [x for x in self._waiting if x.ticket.cancelled]
                self._waiting = deque(x for x in self._waiting if not x.ticket.cancelled)
            for live in gone:
                live.generation.close()
                self.counters.ended(live.generation, "cancelled")
                live.ticket.post(Event(live.index, finish_reason="cancelled"))

    def _admit(self) -> None:
        """Begin answers in the order they came, while there is room."""
        while self._waiting and len(self._live) < self.parallel:
            live = self._waiting[0]
            try:
                live.generation.open(wait=False)
            except OutOfMemoryError as error:
                if self._live or self.model.scheduler.at_work:
                    return
                self._waiting.popleft()
                self._end(live, error)
                continue
            except Exception as error:
                self._waiting.popleft()
                self._end(live, own_error(error))
                continue
            live.ticket.began = live.ticket.began or time.perf_counter()
            with self._changed:
                self._waiting.popleft()
                self._live.append(live)

    def _advance(self) -> None:
        """A step for all, and what follows from it."""
        for live in list(self._live):
            if live.job is None:
                self._go(live)
        jobs = [live.job for live in self._live if live.job is not None]
        if not jobs:
            return
        since = time.perf_counter()
        try:
            with self._turn:
                self.model.scheduler.run(jobs, first=True, until=lambda: self._news or self._stopping)
        except Exception as error:  # a fault in the step itself: nobody's own
            traceback.print_exc(file=sys.stderr)
            for live in list(self._live):
                self._finish(live, own_error(error))
            return
        self.counters.step(len(jobs), time.perf_counter() - since)
        for live in list(self._live):
            self._tell_prompt(live)
            if live.job is not None and live.job.finished:
                self._go(live)

    @staticmethod
    def _tell_prompt(live: _Live) -> None:
        """How much of the prompt is read."""
        if live.job is None or live.generation.ids:
            return
        total, sequence = live.generation.stats.prompt_tokens, live.job.sequence
        now = (min(total, sequence.length), sequence.reused, total)
        if now != live.told_prompt:
            live.began = live.began or time.perf_counter()
            live.ticket.post(Event(live.index, prompt=(*now, time.perf_counter() - live.began if live.told_prompt else 0.0)))
            live.told_prompt = now

    def _go(self, live: _Live) -> None:
        """As far as an answer gets until a step is needed."""
        generation = live.generation
        try:
            while True:
                if live.job is not None:
                    live.job = None
                    self._tell(live, generation.advance())
                if generation.finish_reason is not None:
                    break
                job = generation.prepare()
                if job is not None:
                    live.job = job
                    self._tell_prompt(live)
                    return
                self._tell(live, generation.advance())
                if generation.finish_reason is not None:
                    break
        except Exception as error:
            self._finish(live, own_error(error))
        else:
            self._finish(live, None)

    def _tell(self, live: _Live, text: str) -> None:
        g = live.generation
        if len(g.ids) < live.told_ids:  # it went back over a banned text
            live.told_ids, live.told_logprobs = len(g.ids), min(live.told_logprobs, len(g.logprobs))
        ids, logprobs = g.ids[live.told_ids:], g.logprobs[live.told_logprobs:]
        live.told_ids, live.told_logprobs = len(g.ids), len(g.logprobs)
        if g.finish_reason is not None or text or ids:
            live.ticket.post(Event(live.index, text, ids, logprobs, g.finish_reason))

    def _finish(self, live: _Live, error: LlaminaError | None) -> None:
        self._live.remove(live)
        if error is not None:
            self._end(live, error)
        else:
            self.counters.ended(live.generation, "finished")
        with self._changed:
            self._changed.notify_all()

    def _end(self, live: _Live, error: LlaminaError | ApiError) -> None:
        live.generation.close()
        self.counters.ended(live.generation, "failed")
        live.ticket.post(Event(live.index, error=error))
