"""`llamina rerank` as work on a file's rows: documents in, the same rows with their scores out, in their order or the best first.

    .csv, .tsv, .jsonl, lines -> Row -> pair with the query -> Reranker.scores_of -> record -> the row's own columns and "score"

Scores are float32, as of Model.rerank, and are written as such.
"""
from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .job import Records
from .rerank import Pair, Reranker
from .table import Row, cells_of, written
from .texts_work import TextsWork

if TYPE_CHECKING:
    from ..answers.core import Core


@dataclass
class RerankWork(TextsWork):
    """judge, instruction: as of Model.rerank. top: only so many, the best first; None: all, in their order."""

    query: str = ""
    judge: list[str] | None = None
    instruction: str | None = None
    top: int | None = None

    def reranker(self, model: Core) -> Reranker:
        """Bound to a model. UnsupportedError: it has no rank head, and nobody asked it to judge; OptionError."""
        return Reranker(model, judge=self.judge, instruction=self.instruction, truncate=self.cut)

    # -- Work -----------------------------------------------------------------------------------------------------------------------------

    def bound(self) -> Mapping[str, Any]:
        return {"command": "rerank", **super().bound(), "query": self.query, "judge": self.judge, "instruction": self.instruction}

    def records(self, model: Core, rows: Iterable[Row]) -> Records:
        reranker = self.reranker(model)
        if self.looking:
            yield from self.looked_at(rows, lambda text: reranker.pair(self.query, text))
            return
        taken: deque[tuple[int, int, bool]] = deque()

        def pairs() -> Iterator[Pair]:
            for row in rows:
                before = reranker.truncated
                pair = reranker.pair(self.query, self.text_of(row), f"line {row.line}")
                taken.append((row.number, len(pair[0]), reranker.truncated > before))
                yield pair
        for score in reranker.scores_of(pairs()):
            number, tokens, cut = taken.popleft()
            yield number, {"tokens": tokens, "cut": cut, "score": float(np.float32(score))}

    def write(self, file: BinaryIO, records: Callable[[], Iterator[dict[str, Any]]]) -> None:
        for _ in self.counted(records()):  # before the first line, which depends on whether there are errors
            pass
        rows: Iterable[tuple[Row, dict[str, Any]]] = zip(self.rows(), records())
        if self.top is not None:
            scored = (pair for pair in rows if "error" not in pair[1])
            rows = heapq.nsmallest(self.top, scored, key=lambda pair: -pair[1]["score"])  # of equals the first one first
        name = next(name for name in ("score", "rank_score") if name not in self.columns or self.out_format == "jsonl")
        if self.out_format != "jsonl":
            head = [*self.columns, name, *(["error"] if self.found["errors"] else [])]
            file.write(written(head, self.out_format).encode())
        for row, record in rows:
            file.write(self._line(row, record, name).encode(errors="backslashreplace"))

    def _line(self, row: Row, record: Mapping[str, Any], name: str) -> str:
        if self.out_format == "jsonl":
            own = {"error": record["error"]} if "error" in record else {name: record["score"]}
            return json.dumps({**row.fields, **own}, ensure_ascii=False) + "\n"
        cells = cells_of(row, self.columns)
        cells += ["", record["error"]] if "error" in record else [repr(record["score"]), *([""] if self.found["errors"] else [])]
        return written(cells, self.out_format)
