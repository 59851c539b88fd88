"""What the model reads before it answers a row of a task: shots, template, chat.

    plain   system, shots and row, each by the template, blank lines between them       "Q: 1+1\\nA: 2\\n\\nQ: 2+3\\nA:"
    chat    the same as messages: system, user and assistant in turn, user; written by the chat template

Shots are the same rows for all, so that their tokens are computed once; drawn by lot (seed) from another file, or from the task's own rows, of which none is
shown its own answer.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .task import Item, Task
from .template import filled

if TYPE_CHECKING:
    from ..answers.core import Core
    from .table import Row

BETWEEN = "\n\n"


@dataclass
class Prompts:
    """shots: how many rows are shown; pool: one more than that, if they are the task's own. own: whether they are."""

    task: Task
    shots: int = 0
    pool: list[Row] = field(default_factory=list)
    own: bool = False
    chat: bool = False
    system: str | None = None
    delimiter: str = " "
    seed: int = 0

    @classmethod
    def open(cls, source: str, *, name: str | None = None, shots: int = 0, shots_from: str | None = None, seed: int = 0, chat: bool = False,
             system: str | None = None, delimiter: str = " ", **options: Any) -> Prompts:
        """Of a task's file. shots_from: another file of the same kind; else shots are the task's own rows. options: of `Task`. FileError, FormatError,
        OptionError."""
        if shots < 0:
            raise OptionError(f"shots must be a whole number from 0 on, found {shots}")
        own = shots_from is None
        task = Task.open(source, name=name, draw=shots + 1 if own and shots else 0, seed=seed, **options)
        pool = task.sample
        if shots_from is not None and shots:
            more = {k: v for k, v in options.items() if k not in ("limit", "labels")}
            other = Task.open(shots_from, kind=task.kind, draw=shots, seed=seed, **{**more, "template": task.template, "labels": task.labels or None})
            pool = other.sample
        if len(pool) < shots + (own and shots > 0):
            raise OptionError(f"{shots_from or task.name}: has {len(pool)} rows, too few for {shots} shots{' of the rest' if own else ''}")
        return cls(task, shots, pool, own, chat, system, delimiter, seed)

    def _asked(self, item: Item) -> str:
        return filled(self.task.template or "", item.fields)

    def gap(self, context: str) -> str:
        """What stands between a context and its answer."""
        return "" if self.chat or context[-1:].isspace() else self.delimiter

    def shown(self, row: Row | None) -> list[Item]:
        """The shots of a row."""
        rows = [shot for shot in self.pool if not (self.own and row is not None and shot.number == row.number)]
        return [self.task.item(shot) for shot in rows[:self.shots]]

    def messages(self, item: Item, shots: Sequence[Item]) -> list[dict[str, Any]]:
        """As a conversation that waits for its answer."""
        found = [{"role": "system", "content": self.system}] if self.system is not None else []
        for shot in shots:
            found += [{"role": "user", "content": self._asked(shot)}, {"role": "assistant", "content": shot.gold[0]}]
        return [*found, {"role": "user", "content": self._asked(item)}]

    def text(self, item: Item, shots: Sequence[Item]) -> str:
        """As plain text."""
        parts = [self.system] if self.system is not None else []
        for shot in shots:
            asked = self._asked(shot)
            parts.append(asked + self.gap(asked) + shot.gold[0])
        return BETWEEN.join([*parts, self._asked(item)])

    def context(self, model: Core, item: Item, row: Row | None) -> str | list[int]:
        """A text, or with a chat template ids."""
        shots = self.shown(row)
        if self.chat:
            return model.chat_template.encode(self.messages(item, shots))
        return self.text(item, shots)

    def bound(self) -> dict[str, Any]:
        """What prompts depend on beside the rows."""
        return {"shots": self.shots, "shown": [row.fields for row in self.pool], "chat": self.chat, "system": self.system, "delimiter": self.delimiter,
                "seed": self.seed if self.shots else None, "template": self.task.template}
