"""`llamina eval` as work on a task's rows: what the model answers, or how likely it finds each choice.

    Row -> Item (task.py) -> context (prompts.py) -> choices scored (paths.py), or an answer generated (answers/batch.py) -> record

A record is what the metrics need, no more; with `samples` also the prompt's ids.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..answers.batch import LIVE
from ..errors import LlaminaError
from ..sampling.arithmetic import log
from .border import join
from .classify import NO_CONTENT
from .job import Records, Work
from .likelihood import mean, probabilities
from .paths import Group, Path, Walk
from .prompts import Prompts
from .scoring import score, score_of
from .task import SCORED, Item
from .template import Same

if TYPE_CHECKING:
    from ..answers.core import Core
    from .table import Row


@dataclass
class EvalWork(Work):
    """max_tokens, stop: of generated answers. calibrate: of labels, as in classify.py. samples: keep the prompts' ids."""

    prompts: Prompts
    max_tokens: int = 256
    stop: list[str] = field(default_factory=list)
    calibrate: str = "none"
    samples: bool = False

    @property
    def count(self) -> int:  # type: ignore[override]
        return self.prompts.task.count

    @property
    def kind(self) -> str:
        return self.prompts.task.kind

    def bound(self) -> Mapping[str, Any]:
        task = self.prompts.task
        return {"command": "eval", "input": task.digest, "limit": task.limit, "labels": task.labels, "match": task.match, **self.prompts.bound(),
                "max_tokens": self.max_tokens, "stop": self.stop, "calibrate": self.calibrate, "samples": self.samples}

    def rows(self) -> Iterator[Row]:
        return self.prompts.task.rows()

    def records(self, model: Core, rows: Iterable[Row]) -> Records:
        return self._scored(model, rows) if self.kind in SCORED else self._generated(model, rows)

    # -- choices --------------------------------------------------------------------------------------------------------------------------

    def _scored(self, model: Core, rows: Iterable[Row]) -> Records:
        bad: list[tuple[int, dict[str, Any]]] = []
        spans: dict[int, list[bool]] = {}
        offsets = self.of_model(model, self._offsets)

        def groups() -> Iterator[Group]:
            for row in rows:
                try:
                    item = self.prompts.task.item(row)
                    context = self.prompts.context(model, item, row)
                    joined = [join(model, context, c) for c in self._continuations(context, item)]
                except LlaminaError as error:
                    bad.append((row.number, self.failed(row, error)))
                    continue
                spans[row.number] = [j.spans for j in joined]
                yield Group(row, [Path(j.ids, j.first) for j in joined])
        for group in Walk(model, groups()):
            yield from bad
            bad.clear()
            over = spans.pop(group.key.number)
            yield group.key.number, self.failed(group.key, group.error) if group.error else self._record(group, over, offsets)
        yield from bad

    def _continuations(self, context: str | list[int], item: Item) -> list[str]:
        gap = self.prompts.gap(context) if isinstance(context, str) else ""
        return [choice if gap and choice[:1].isspace() else gap + choice for choice in item.choices]

    def _record(self, group: Group, spans: list[bool], offsets: list[float] | None) -> dict[str, Any]:
        scores = [score_of(path) for path in group.paths]
        record: dict[str, Any] = {"logprobs": [s.logprob for s in scores], "tokens": [len(s.ids) for s in scores], "greedy": [s.greedy for s in scores]}
        if offsets is not None:
            record["calibrated"] = [a - b for a, b in zip(record["logprobs"], offsets)]
        if any(spans):
            record["spans"] = spans
        if self.samples:
            record |= {"prompt_ids": group.paths[0].ids[:group.paths[0].first], "choice_ids": [s.ids for s in scores],
                       "token_logprobs": [s.logprobs for s in scores]}
        return record

    def _offsets(self, model: Core) -> list[float] | None:
        """What calibration takes from each label, as classify.py does it: the prompt with its shots, its text replaced."""
        if self.calibrate == "none" or self.kind != "label":
            return None
        labels = list(self.prompts.task.labels.values())

        def of(text: str) -> list[float]:
            item = Item(Same(text), labels, 0, labels[:1])
            context = self.prompts.context(model, item, None)
            return [s.logprob for s in score(model, context, self._continuations(context, item))]
        if self.calibrate == "pmi":
            return of("")
        rows = [probabilities(of(text)) for text in NO_CONTENT]
        return [log(mean(column)) for column in zip(*rows)]

    # -- generated ------------------------------------------------------------------------------------------------------------------------

    def _generated(self, model: Core, rows: Iterable[Row]) -> Records:
        bad: list[tuple[int, dict[str, Any]]] = []
        asked: dict[int, tuple[Row, list[int]]] = {}

        def requests() -> Iterator[dict[str, Any]]:
            index = 0
            for row in rows:
                try:
                    item = self.prompts.task.item(row)
                    context = self.prompts.context(model, item, row)
                    ids = model.tokenizer.encode(context, eos=False) if isinstance(context, str) else context
                except LlaminaError as error:
                    bad.append((row.number, self.failed(row, error)))
                    continue
                asked[index] = row, ids
                index += 1
                if self.prompts.chat:
                    yield {"messages": self.prompts.messages(item, self.prompts.shown(row))}
                else:
                    yield {"prompt": ids}
        with model.generate_many(requests(), live=LIVE, max_tokens=self.max_tokens, stop=self.stop, temperature=0.0) as results:
            for result in results:
                yield from bad
                bad.clear()
                row, ids = asked.pop(result.index)
                if result.error is not None:
                    text = str(result.error).removeprefix(f"prompt {result.index}: ")
                    yield row.number, self.failed(row, LlaminaError(text))
                    continue
                record: dict[str, Any] = {"text": result.text, "finish_reason": result.finish_reason, "tokens": len(result.ids)}
                yield row.number, {**record, "prompt_ids": ids, "answer_ids": result.ids} if self.samples else record
        yield from bad
