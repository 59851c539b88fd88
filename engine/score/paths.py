"""Many texts whose ends are scored, as a tree of what they share: every shared beginning is computed once, and many edges share a step.

    groups of paths ──► blocks of some hundreds ──► sorted, a tree: an edge is a run of tokens ──► a Job each, forked where it branches ──► log-probabilities

A path is the ids of a text and where its scored tokens begin; a group is what belongs together, such as the choices of one question. Edges begin where their
parent's pages end, depth first, so that few sequences are open; the scheduler puts as many of them into a step as it has room for. Which paths share an edge or
a step never changes a bit of a result (docs/exactness.md). Rows of logits are looked at where they are made, some at a time, and never kept.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..answers.core import common_prefix
from ..errors import LlaminaError, OutOfMemoryError
from ..run.scheduler import Job
from .likelihood import row_of

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.kv_cache import Sequence

BLOCK = 256
"""Groups among which shared beginnings are looked for."""
LEAST = 4
"""Tokens of an edge that several paths share; of fewer each computes its own, which is sooner done than a fork."""
LIVE = 64
"""Most edges under way at once."""


@dataclass(eq=False)
class Path:
    """ids[first:] are scored, given all before them; 1 <= first < len(ids)."""

    ids: list[int]
    first: int
    logprobs: list[float] = field(default_factory=list)
    """Of ids[first:], once the group is done."""
    said: list[bool] = field(default_factory=list)
    """Whether greedy sampling says each of them."""

    def __post_init__(self) -> None:
        assert 1 <= self.first < len(self.ids)
        n = len(self.ids) - self.first
        self.logprobs, self.said = [0.0] * n, [False] * n


@dataclass(eq=False)
class Group:
    """Paths that are done together. key: the caller's own. error: why there are no results."""

    key: Any
    paths: list[Path]
    error: LlaminaError | None = None
    left: int = 0


@dataclass(eq=False)
class _Edge:
    """Tokens [start, end) of its paths, after its parent's. wants: position -> (path, number of the scored token that its row predicts)."""

    paths: list[Path]
    start: int
    end: int
    parent: _Edge | None
    wants: dict[int, list[tuple[Path, int]]] = field(default_factory=dict)
    children: list[_Edge] = field(default_factory=list)
    sequence: Sequence | None = None
    waiting: int = 0
    """Children that have not begun."""

    @property
    def ids(self) -> list[int]:
        return self.paths[0].ids[self.start:self.end]

    def look(self, rows: np.ndarray, positions: np.ndarray) -> None:
        for logits, position in zip(rows, positions.tolist()):
            if wanted := self.wants.get(position):
                row = row_of(logits)
                for path, i in wanted:
                    target = path.ids[path.first + i]
                    path.logprobs[i] = row.log_probability(float(logits[target]))
                    path.said[i] = row.best == target


def _tree(paths: list[Path]) -> list[_Edge]:
    """The edges that begin the texts. The last token of a path is never fed: nothing follows it."""
    top: list[_Edge] = []
    work: list[tuple[list[Path], int, int, _Edge | None, list[_Edge]]] = [(sorted(paths, key=lambda p: p.ids), 0, 0, None, top)]
    # sorted paths that share `known` tokens; edges for them begin at `start`
    while work:
        some, start, known, parent, edges = work.pop()
        for _, same in itertools.groupby(some, key=lambda p: p.ids[known]):
            group = list(same)
            end = min(common_prefix(group[0].ids, group[-1].ids), min(len(p.ids) for p in group) - 1)
            longer = [p for p in group if len(p.ids) - 1 > end]
            if longer and end - start < LEAST:
                if len(longer) < len(group):
                    edges.append(_chain([p for p in group if len(p.ids) - 1 == end], start, end, parent))
                work.append((longer, start, end, parent, edges))
                continue
            edge = _chain(group, start, end, parent)
            edges.append(edge)
            if longer:
                last = edge.children[0] if edge.children else edge
                work.append((longer, end, end, last, last.children))
    return top


def _chain(paths: list[Path], start: int, end: int, parent: _Edge | None) -> _Edge:
    """One edge, or two, so that rows before the first scored token are not made."""
    wants: dict[int, list[tuple[Path, int]]] = {}
    for path in paths:
        for position in range(max(start, path.first - 1), min(end, len(path.ids) - 1)):
            wants.setdefault(position, []).append((path, position + 1 - path.first))
    since = min(wants, default=end - 1)
    if not start < since < end - 1:
        return _Edge(paths, start, end, parent, wants)
    edge = _Edge(paths, start, since + 1, parent, {since: wants.pop(since)})
    edge.children = [_Edge(paths, since + 1, end, edge, wants)]
    return edge


class Walk:
    """Takes groups as there is room, and gives them back as they are done, in no particular order: `for group in Walk(model, groups)`. Close it if it is left
    before its end."""

    def __init__(self, model: Core, groups: Iterable[Group]):
        self._model, self._source = model, iter(groups)
        self._ready: list[_Edge] = []
        self._running: dict[Job, _Edge] = {}
        self._group_of: dict[Path, Group] = {}
        self._done: list[Group] = []
        self._unfinished: dict[Path, int] = {}  # path -> rows that are yet to come
        self._alone = False  # memory is short: one text at a time
        self._exhausted = False
        self.computed = 0
        """Tokens fed so far: those that were shared count once."""

    def __iter__(self) -> Iterator[Group]:
        try:
            while True:
                self._fill()
                yield from self._given()
                if not self._running:
                    if self._exhausted and not self._ready:
                        return
                    continue
                self._model.scheduler.run(list(self._running), first=True)
                for job in [job for job in self._running if job.finished]:
                    self._finish(job, self._running.pop(job))
                yield from self._given()
        finally:
            self.close()

    def _given(self) -> list[Group]:
        done, self._done = self._done, []
        return done

    # -- beginning ------------------------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Begin edges until two steps are full."""
        room = 2 * self._model.runtime.max_batch
        while len(self._running) < (1 if self._alone else LIVE) and sum(job.left for job in self._running) < room:
            if not self._ready and not self._next_block():
                return
            edge = self._ready.pop()
            try:
                self._begin(edge)
            except OutOfMemoryError as error:
                self._ready.append(edge)
                if not self._running:
                    self._make_room(error)
                return

    def _next_block(self) -> bool:
        if self._exhausted:
            return False
        block = list(itertools.islice(self._source, BLOCK))
        self._exhausted = len(block) < BLOCK
        self._alone = False
        paths = []
        for group in block:
            group.left = len(group.paths)
            for path in group.paths:
                self._group_of[path], self._unfinished[path] = group, len(path.logprobs)
            paths += group.paths
            if not group.paths:
                self._done.append(group)
        self._ready = _tree(paths)[::-1]
        return bool(self._ready)

    def _begin(self, edge: _Edge) -> None:
        """Give the edge a sequence and a job. OutOfMemoryError: then nothing has changed."""
        parent = edge.parent
        every = len(edge.wants) > 1
        if parent is None:
            sequence = self._model.runtime.new_sequence(cached=True, slides=False)
            sequence.begin([] if every else edge.ids[:-1], edge.end, back_to=None)
        else:
            assert parent.sequence is not None
            last = parent.waiting == 1
            sequence = parent.sequence if last else parent.sequence.fork()
            try:
                sequence.promise(edge.end, back_to=None)
            except OutOfMemoryError:
                if not last:
                    sequence.close()
                raise
            parent.waiting -= 1
            if last:
                parent.sequence = None
        edge.sequence, edge.waiting = sequence, len(edge.children)
        ids = edge.paths[0].ids[sequence.length:edge.end]
        self.computed += len(ids)
        job = Job(sequence, ids, "all" if every else "last" if edge.wants else "none", look=edge.look)
        self._running[job] = edge

    def _make_room(self, error: OutOfMemoryError) -> None:
        """Nothing runs, and yet there is no memory for the next edge: what is left of the block is computed one text after the other, sharing nothing."""
        edges, self._ready = self._ready, []
        if self._alone:
            failed = edges.pop()
            self._fail(failed.paths, error)
            self._ready = edges
            return
        for edge in edges:
            while edge.parent is not None:
                edge = edge.parent
                if edge.sequence is not None:
                    edge.sequence.close()
                    edge.sequence = None
        self._alone = True
        left = dict.fromkeys(path for edge in edges for path in edge.paths if path in self._unfinished)
        for path in left:
            self._unfinished[path] = len(path.logprobs)
            edge = _chain([path], 0, len(path.ids) - 1, None)
            self._ready.append(edge)

    # -- the end --------------------------------------------------------------------------------------------------------------------------

    def _finish(self, job: Job, edge: _Edge) -> None:
        if job.error is not None:
            error = job.error if isinstance(job.error, LlaminaError) else OutOfMemoryError(str(job.error))
            self._close(edge)
            self._fail(edge.paths, error)
            return
        for wanted in edge.wants.values():
            for path, _ in wanted:
                self._row(path)
        if edge.children:
            self._ready += edge.children[::-1]
        else:
            self._close(edge)

    @staticmethod
    def _close(edge: _Edge) -> None:
        if edge.sequence is not None:
            edge.sequence.close()
            edge.sequence = None

    def _row(self, path: Path) -> None:
        if path not in self._unfinished:
            return  # it failed
        self._unfinished[path] -= 1
        if not self._unfinished[path]:
            self._over(path)

    def _over(self, path: Path) -> None:
        del self._unfinished[path]
        group = self._group_of.pop(path)
        group.left -= 1
        if not group.left:
            self._done.append(group)

    def _fail(self, paths: list[Path], error: LlaminaError) -> None:
        for path in paths:
            if path in self._unfinished:
                self._group_of[path].error = error
                self._over(path)

    def close(self) -> None:
        """Give up what is under way. Harmless twice."""
        for edge in [*self._running.values(), *self._ready]:
            here: _Edge | None = edge
            while here is not None:
                self._close(here)
                here = here.parent
        self._running, self._ready, self._exhausted = {}, [], True
