"""Rows to many machines, which may be slow, lie, or die: who works on what, and whose results count.

    rows ──► chunks ──► attempts, one a node at a time ──► outcomes ──► records, in any order

A chunk's size follows its node's speed, so that a lost node takes some seconds of work with it. What fails is cut in pieces, so that one bad row doesn't take
its neighbours along; a piece that has failed ATTEMPTS times becomes error records. An attempt has a number: an outcome whose attempt was given up, or whose
chunk another attempt has done, is dropped. Nothing here knows of Ray (cluster.py): tests bring nodes of their own.
"""
from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import ClosedError, LlaminaError

Records = Iterator[tuple[int, dict[str, Any]]]

ATTEMPTS = 3
"""Failures of a chunk after which its rows are errors."""
PIECES = 4
FIRST, LEAST, MOST = 32, 8, 1024
"""Rows of a chunk: of a node whose speed isn't known, the fewest, the most."""
SECONDS = 30.0
"""What a chunk should take."""
WEIGHT = 8 << 20
"""Bytes of a chunk, roughly."""
LATE = 60.0
"""Seconds, or three times what was expected, after which an idle node tries the same chunk."""
WAIT = 120.0
"""Seconds without any node, after which the job stops."""


class Numbered(Protocol):
    """A row."""

    @property
    def number(self) -> int: ...


class ClusterWork(Protocol):
    """What is sent along with the rows: `Work` (job.py) and `BatchWork`."""

    def records(self, model: Any, rows: Iterable[Any]) -> Records: ...

    def failed(self, row: Any, error: LlaminaError) -> dict[str, Any]:
        """The record of a row that can't be computed."""

    def weight(self, row: Any) -> int:
        """Bytes, roughly."""


@dataclass(frozen=True)
class Outcome:
    """Of an attempt. records: None if it failed; why: of that."""

    node: str
    attempt: int
    records: list[tuple[int, dict[str, Any]]] | None
    why: str = ""


class Nodes(Protocol):
    """Machines that are ready to work."""

    def ready(self) -> Collection[str]:
        """Names of those that are."""

    def name(self, node: str) -> str:
        """For people."""

    def coming(self) -> bool:
        """Whether others are starting."""

    def begin(self, node: str, attempt: int, rows: list[Any]) -> None:
        """Have a node work on rows."""

    def outcomes(self, seconds: float) -> list[Outcome]:
        """What has ended, waiting so long for something to; also of nodes that died, which are ready no more."""


@dataclass(eq=False)
class _Chunk:
    rows: list[Any]
    failures: int = 0
    done: bool = False


@dataclass(eq=False)
class _Attempt:
    chunk: _Chunk
    node: str
    begun: float
    expected: float | None


@dataclass
class Dispatch:
    """`for number, record in Dispatch(…)`. total: how many rows there are, or more. note: told of what went wrong. WAIT etc. can be set for a test."""

    nodes: Nodes
    work: ClusterWork
    rows: Iterator[Any]
    total: int
    note: Callable[[str], None] = lambda text: None
    clock: Callable[[], float] = time.monotonic
    _again: deque[_Chunk] = field(default_factory=deque)
    _attempts: dict[int, _Attempt] = field(default_factory=dict)
    _speed: dict[str, float] = field(default_factory=dict)
    """Rows a second, of each node."""
    _taken: int = 0
    _ended: bool = False
    _last: int = 0

    def __iter__(self) -> Records:
        alone: float | None = None
        while True:
            self._begin()
            if self._ended and not self._again and all(attempt.chunk.done for attempt in self._attempts.values()):
                return  # a node that hangs is left hanging
            if self.nodes.ready() or self.nodes.coming():
                alone = None
            elif alone is None:
                alone = self.clock()
            elif self.clock() - alone > WAIT:
                raise ClosedError("no node of the cluster is left: start some again, and give the same command, which goes on from here")
            for outcome in self.nodes.outcomes(1.0):
                attempt = self._attempts.pop(outcome.attempt, None)
                if attempt is None or attempt.node != outcome.node:
                    continue
                if not attempt.chunk.done:
                    yield from self._ends(attempt, outcome)

    # -- beginning ------------------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Give every idle node something to do."""
        busy = {attempt.node for attempt in self._attempts.values()}
        for node in self.nodes.ready():
            if node not in busy and (chunk := self._next(node)) is not None:
                self._last += 1
                speed = self._speed.get(node)
                self._attempts[self._last] = _Attempt(chunk, node, self.clock(), len(chunk.rows) / speed if speed else None)
                self.nodes.begin(node, self._last, chunk.rows)

    def _next(self, node: str) -> _Chunk | None:
        if self._again:
            return self._again.popleft()
        if not self._ended and (rows := self._take(self._size(node))):
            return _Chunk(rows)
        newest = {a.chunk: a for a in sorted(self._attempts.values(), key=lambda a: a.begun)}
        late = [a for chunk, a in newest.items() if not chunk.done and self.clock() - a.begun > max(LATE, 3 * (a.expected or 0))]
        return late[0].chunk if late else None  # its node, and those that tried before, are busy with it

    def _size(self, node: str) -> int:
        left = max(0, self.total - self._taken)
        share = math.ceil(left / (2 * max(1, len(self.nodes.ready()))))
        speed = self._speed.get(node)
        return max(LEAST, min(share, FIRST if speed is None else min(MOST, int(speed * SECONDS))))

    def _take(self, most: int) -> list[Any]:
        found, weight = [], 0
        while len(found) < most and weight < WEIGHT:
            row = next(self.rows, None)
            if row is None:
                self._ended = True
                break
            found.append(row)
            weight += self.work.weight(row)
        self._taken += len(found)
        return found

    # -- the end --------------------------------------------------------------------------------------------------------------------------

    def _ends(self, attempt: _Attempt, outcome: Outcome) -> Records:
        """What an attempt comes to: records that are those of its rows, or a failure."""
        chunk, why = attempt.chunk, outcome.why
        if outcome.records is not None:
            if sorted(number for number, _ in outcome.records) == sorted(row.number for row in chunk.rows):
                chunk.done = True
                self._speed[attempt.node] = len(chunk.rows) / max(self.clock() - attempt.begun, 1e-3)
                yield from outcome.records
                return
            why = "its records are not those of the rows it was given"
        chunk.done = True  # its pieces take its place, or errors
        chunk.failures += 1
        name = self.nodes.name(attempt.node)
        self.note(f"{name}: {why or 'nobody knows why'} ({len(chunk.rows)} rows, failure {chunk.failures} of {ATTEMPTS})")
        if chunk.failures < ATTEMPTS:
            size = math.ceil(len(chunk.rows) / PIECES)
            self._again += [_Chunk(chunk.rows[i:i + size], chunk.failures) for i in range(0, len(chunk.rows), size)]
            return
        error = LlaminaError(f"failed {ATTEMPTS} times on the cluster, at last on {name}: {why}")
        for row in chunk.rows:
            yield row.number, self.work.failed(row, error)
