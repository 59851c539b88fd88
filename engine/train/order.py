"""Which rows each step takes, and how they are cut into micro-batches.

    examples, options -> Order: steps; step -> numbers of examples (every epoch in an order of its own) -> Rows -> micro-batches

An epoch's last step takes what is left. How a step is cut changes nothing but memory and speed.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..run.kv_cache import PAGE
from .data import DataSet
from .options import Options
from .philox import permutation
from .rows import Row

MICRO_TOKENS = 1024
"""Of a micro-batch, where memory allows: weights that are unpacked serve so many at once; more gain little."""
KEPT_TOKENS = 512
"""Where there is no memory to keep all layers of so many: of half as many, more layers are kept, which saves more than unpacking costs."""


@dataclass
class Order:
    """steps: of the whole run; per_epoch: of an epoch."""

    data: DataSet
    options: Options

    def __post_init__(self) -> None:
        self.per_epoch = -(-len(self.data.examples) // self.options.batch)
        self.steps = self.options.steps or self.options.epochs * self.per_epoch
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @property
    def epochs(self) -> float:
        """How often a row is met."""
        return self.steps / self.per_epoch

    def numbers(self, step: int) -> list[int]:
        """Of the examples of a step, in the order in which their gradients are summed."""
        epoch, at = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.options.seed, epoch, len(self.data.examples))
        return self._order[at * self.options.batch:(at + 1) * self.options.batch].tolist()

    def rows(self, step: int) -> list[Row]:
        """Of a step."""
        return rows_of(self.data, self.numbers(step))

    @property
    def tokens(self) -> int:
        """Of all steps together."""
        sizes = np.array([len(e.ids) for e in self.data.examples])
        whole, rest = divmod(self.steps, self.per_epoch)
        return int(whole * sizes.sum() + sum(sizes[self.numbers(whole * self.per_epoch + s)].sum() for s in range(rest)))


def rows_of(data: DataSet, numbers: Sequence[int]) -> list[Row]:
    """Examples as a step has them, tokens counted through."""
    rows, first = [], 0
    for number in numbers:
        example = data.examples[number]
        rows.append(Row(example.ids, example.mask, first, data.row_name(number)))
        first += len(example.ids)
    return rows


def micro_batches(rows: Sequence[Row], most_rows: int | None, most_tokens: int, most_pages: int = 1 << 62) -> Iterator[list[Row]]:
    """Rows in their order, at most so many at once; without a number of rows, at most so many tokens. most_pages: of the KV cache, of which a row takes whole
    ones. One row at least."""
    part: list[Row] = []
    tokens = pages = 0
    for row in rows:
        more = -(-len(row.ids) // PAGE)
        if part and (pages + more > most_pages or (len(part) >= most_rows if most_rows else tokens + len(row.ids) > most_tokens)):
            yield part
            part, tokens, pages = [], 0, 0
        part.append(row)
        tokens, pages = tokens + len(row.ids), pages + more
    if part:
        yield part
