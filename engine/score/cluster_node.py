"""What runs on a node of a cluster: a model, and work on rows with it.

    Loading (which model, how) -> Worker.load -> Facts, which must be the same on every node -> Worker.work(rows) -> records

Errors go back as text: what a node raises may be of a class that the driver lacks.
"""
from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...kernels import ARITHMETIC_VERSION
from ..answers.batch import own_error
from ..answers.batch_job import bound_adapters, fingerprint
from ..errors import quoted

if TYPE_CHECKING:
    from ..answers.core import Core
    from .dispatch import ClusterWork


class Loading(Protocol):
    """How a node gets its model: plain data, sent to it."""

    def __call__(self, threads: int) -> tuple[Core, dict[str, Any]]:
        """(the model, sampling options that its file recommends)"""


@dataclass(frozen=True)
class Facts:
    """What results depend on, and what the driver would know if the model were its own. model: its fingerprint. sampling: what the file recommends.
    adapters: batch_job.bound_adapters. template: of conversations, None unless it was asked for."""

    arithmetic: int
    model: str
    name: str
    context: int
    kv: str
    sampling: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, Any] = field(default_factory=dict)
    template: str | None = None

    @classmethod
    def of(cls, model: Core, sampling: dict[str, Any], template: bool) -> Facts:
        path = Path(model.path)
        return cls(ARITHMETIC_VERSION, fingerprint(path), path.name, model.context, model.runtime.kv_name, sampling,
                   bound_adapters(model), model.chat_template.source if template else None)

    def bound(self) -> dict[str, Any]:
        """What a job's records depend on of the model, for the journal."""
        return {"model": self.model, "context": self.context, **self.adapters}

    def differs(self, other: Facts) -> str | None:
        """What of another node's is different, for people."""
        for f in fields(self):
            mine, its = getattr(self, f.name), getattr(other, f.name)
            if mine != its and f.name != "name":  # the same file may be called something else
                return f"{_NAMES.get(f.name, f.name)} ({quoted(its, 60)}, elsewhere {quoted(mine, 60)})"
        return None


_NAMES = {"arithmetic": "version of llamina", "model": "model file", "context": "context, for want of memory: give --context"}


class Worker:
    """A node's model. `load` first."""

    def __init__(self) -> None:
        self._model: Core | None = None
        self._work: ClusterWork | None = None

    def load(self, loading: Loading, threads: int, template: bool) -> Facts | str:
        """What it has loaded, or why it couldn't."""
        try:
            self._model, sampling = loading(threads)
            return Facts.of(self._model, sampling, template)
        except Exception as error:
            return str(own_error(error))

    def digest(self) -> str:
        """SHA-256 of the model's file, which for a large one takes a while."""
        assert self._model is not None
        return self._model.digest

    def work(self, attempt: int, work: ClusterWork, rows: list[Any]) -> tuple[int, list[tuple[int, dict[str, Any]]] | str]:
        """(the attempt, the rows' records, or why there are none). The same work comes with every chunk: what it knows of the model is kept."""
        model = self._model
        assert model is not None
        try:
            if self._work != work:
                self._work = work
            return attempt, list(self._work.records(model, rows))
        except Exception as error:
            return attempt, str(own_error(error))
