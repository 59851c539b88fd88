"""Fit: the format of every matrix, chosen so that the expected error is least within a budget of bytes.

    source ──sample of rows, encoded and decoded in every candidate format──► error table [matrix][format]
    error table, sizes, budget ──knapsack: one price per byte, then the remainder──► plan {tensor: format}, explained line by line

The error of a matrix W in a format is the relative error of its output, sum (W - Wq)^2 a^2 / sum W^2 a^2, with a^2 the mean squared activation of each column
where an importance matrix is given (1 where not), times the sensitivity of its kind: how much KL divergence of the model's predictions a unit of that
relative error causes. The sensitivities are measured (bench/sensitivity.py, on the demo model); they are an average, so a plan is an expectation, not a proof.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.errors import OptionError
from ..kernels.float_env import in_default_floats
from ..kernels.formats import registry
from ..kernels.formats.encoders import encode
from ..kernels.formats.table import FORMATS
from .sources import Source, SourceTensor

CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
"""For columns that 256 divides, by rising size."""
CANDIDATES_32 = ("IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")
_SAMPLE = 1 << 18
"""Weights of a matrix that are tried."""
SENSITIVITY = {
    "attn_q": 1.25, "attn_k": 1.15, "attn_v": 2.1, "attn_output": 1.55, "ffn_gate": 1.25, "ffn_up": 1.0, "ffn_down": 2.25, "output": 4.4, "token_embd": 1.0,
}
"""KL divergence per unit of relative output error, for all matrices of a kind, relative to ffn_up's: means of two small models (demo: Q3_K on its own
stories; a 0.66M TinyStories model: Q4_0; they agree to within a third). The tied embedding counts as output; the untied one was not measured."""


@dataclass(frozen=True)
class Option:
    """One matrix in one format: bytes in the file, and its share of the expected error."""

    format: str
    bytes: int
    error: float


@dataclass(frozen=True)
class Planned:
    """A matrix's place in the plan: what was chosen, among what."""

    name: str
    shape: tuple[int, ...]
    chosen: Option
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Plan:
    """formats: what convert() takes; budget, bytes: of tensor data; error: expected, uniform: {format: (bytes, error)} with all matrices alike."""

    matrices: list[Planned]
    budget: int
    bytes: int
    error: float
    uniform: dict[str, tuple[int, float]]

    @property
    def formats(self) -> dict[str, str]:
        return {m.name: m.chosen.format for m in self.matrices}

    def explain(self) -> list[str]:
        """The plan in short: totals, and what the same budget buys with one format for all."""
        affordable = [(f, b, e) for f, (b, e) in self.uniform.items() if b <= self.budget]
        lines = [f"budget {self.budget} bytes of tensor data, used {self.bytes} ({100 * self.bytes / self.budget:.1f} %); expected error {self.error:.4g}"]
        if affordable:
            f, b, e = min(affordable, key=lambda x: x[2])
            lines.append(f"all matrices {f}: {b} bytes, expected error {e:.4g} ({e / max(self.error, 1e-300):.2f} times the plan's)")
        return lines

    def as_markdown(self) -> list[str]:
        """Each matrix: what was chosen, and what the next smaller and larger format would have cost or gained."""
        lines = ["## How the formats were chosen", "",
                 "The expected error is what the matrix's output loses (squared error over square, weighted by the columns' importance if that was given),",
                 "times how much that matters for a matrix of its kind. The choice minimises the sum within the budget: a matrix gets a larger format where a",
                 "byte buys more than elsewhere.", "", *(f"- {line}" for line in self.explain()), "",
                 "| matrix | format | bytes | expected error | share | next smaller | next larger |", "|---|---|---:|---:|---:|---|---|"]
        for m in self.matrices:
            smaller = max((o for o in m.options if o.bytes < m.chosen.bytes), key=lambda o: o.bytes, default=None)
            larger = min((o for o in m.options if o.bytes > m.chosen.bytes and o.error < m.chosen.error), key=lambda o: o.bytes, default=None)
            told = [f"{o.format}: {o.bytes - m.chosen.bytes:+d} bytes, {o.error - m.chosen.error:+.3g}" if o else "" for o in (smaller, larger)]
            share = 100 * m.chosen.error / self.error if self.error > 0 else 0.0
            lines.append(f"| {m.name} | {m.chosen.format} | {m.chosen.bytes} | {m.chosen.error:.3g} | {share:.1f} % | {told[0]} | {told[1]} |")
        return lines

    def as_json(self) -> dict[str, Any]:
        return {
            "budget": self.budget, "bytes": self.bytes, "expected_error": self.error,
            "uniform": {f: {"bytes": b, "expected_error": e} for f, (b, e) in self.uniform.items()},
            "matrices": [{"name": m.name, "shape": list(m.shape), "format": m.chosen.format, "bytes": m.chosen.bytes, "expected_error": m.chosen.error,
                          "options": [o.__dict__ for o in m.options]} for m in self.matrices],
        }


def sensitivity(name: str, tied: bool) -> float:
    """Of a tensor, by its kind; tied: the embedding is the output matrix, too."""
    kind = name.split(".")[-2]
    return SENSITIVITY["output"] if tied and kind == "token_embd" else SENSITIVITY.get(kind, 1.0)


def measure(tensor: SourceTensor, weights: np.ndarray | None, tied: bool, threads: ThreadPoolExecutor | None = None) -> tuple[Option, ...]:
    """What a matrix costs in every candidate format: bytes of the whole, error on a sample of its rows."""
    rows, columns = tensor.shape
    n = max(1, min(rows, _SAMPLE // columns))
    starts = np.unique(np.linspace(0, rows - 1, n).astype(np.int64))
    x = np.concatenate([tensor.rows(int(r), int(r) + 1) for r in starts]) if n < rows else tensor.rows(0, rows)
    importance = np.ones(columns) if weights is None else weights.astype(np.float64)
    energy = float((x.astype(np.float64) ** 2 * importance).sum())
    options = []
    for name in CANDIDATES if columns % 256 == 0 else CANDIDATES_32 if columns % 32 == 0 else ("F16",):
        y = registry.decode(name, encode(name, x, weights, threads))
        error = float((np.square(x.astype(np.float64) - y) * importance).sum()) / energy if energy > 0 else 0.0
        options.append(Option(name, rows * FORMATS[name].row_bytes(columns), error * sensitivity(tensor.name, tied)))
    return tuple(options)


def _cheapest(options: tuple[Option, ...], price: float) -> Option:
    return min(options, key=lambda o: (o.error + price * o.bytes, o.bytes))


def allocate(table: list[tuple[Option, ...]], budget: int) -> list[Option]:
    """One option of each row, their bytes within the budget, their summed error near the least.

    A price per byte, found by bisection, gives the lower convex hull's best choice; what is left is spent where a byte takes away most error. OptionError if
    even the smallest formats do not fit.
    """
    least = sum(min(o.bytes for o in options) for options in table)
    if least > budget:
        raise OptionError(f"the budget leaves {budget} bytes for the matrices, the smallest formats need {least}: raise the budget")
    low, high = 0.0, 1.0
    while sum(_cheapest(options, high).bytes for options in table) > budget:
        high *= 4
    for _ in range(100):
        middle = (low + high) / 2
        if sum(_cheapest(options, middle).bytes for options in table) > budget:
            low = middle
        else:
            high = middle
    chosen = [_cheapest(options, high) for options in table]
    left = budget - sum(o.bytes for o in chosen)
    while True:
        best = None
        for i, options in enumerate(table):
            for o in options:
                more = o.bytes - chosen[i].bytes
                if 0 <= more <= left and o.error < chosen[i].error:
                    gain = (chosen[i].error - o.error) / max(1, more)
                    if best is None or gain > best[0]:
                        best = gain, i, o
        if best is None:
            return chosen
        left -= best[2].bytes - chosen[best[1]].bytes
        chosen[best[1]] = best[2]


@in_default_floats
def plan(source: Source, *, file_bytes: int | None = None, bits: float | None = None, importance: Mapping[str, np.ndarray] | None = None,
         threads: int | None = None, progress: Callable[[str, int, int], None] | None = None) -> Plan:
    """Formats for a source's matrices within a file size, or a mean number of bits per weight. OptionError: an impossible budget."""
    if (file_bytes is None) == (bits is None):
        raise OptionError("give either a file size to fit into or a number of bits per weight")
    importance = importance or {}
    matrices = [t for t in source.tensors if len(t.shape) == 2]
    vectors = sum(4 * int(np.prod(t.shape)) for t in source.tensors if len(t.shape) != 2)
    weights = sum(int(np.prod(t.shape)) for t in source.tensors)
    if bits is not None:
        if not 0 < bits <= 32:
            raise OptionError(f"bits per weight must be above 0 and at most 32, found {bits:g}")
        budget = int(bits * weights / 8) - vectors
    else:
        assert file_bytes is not None
        budget = file_bytes - vectors - header_bytes(source)
    tied = all(t.name != "output.weight" for t in matrices)
    with ThreadPoolExecutor(threads) as pool:
        table = []
        for i, tensor in enumerate(matrices):
            table.append(measure(tensor, importance.get(tensor.name), tied, pool))
            if progress:
                progress("measuring formats", i + 1, len(matrices))
    chosen = allocate(table, budget)
    uniform = {}
    for name in dict.fromkeys((*CANDIDATES, *CANDIDATES_32)):
        same = [next((o for o in options if o.format == name), None) for options in table]
        if all(same):
            uniform[name] = sum(o.bytes for o in same if o), sum(o.error for o in same if o)
    planned = [Planned(t.name, t.shape, o, options) for t, o, options in zip(matrices, chosen, table)]
    return Plan(planned, budget, sum(o.bytes for o in chosen), sum(o.error for o in chosen), uniform)


def header_bytes(source: Source) -> int:
    """An upper bound of a file's bytes beside its tensors' data: metadata, tensor table, padding, what convert adds."""
    total = 4096 + 256 * len(source.files)
    for key, value in source.metadata.items():
        total += len(key.encode()) + 32 + _value_bytes(value)
    return total + sum(len(t.name) + 64 + 64 for t in source.tensors)


def _value_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode()) + 8
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, (list, tuple)):
        return sum(_value_bytes(v) for v in value)
    return 8


def parse_bits(text: str) -> float:
    """ "4.2" -> 4.2. OptionError."""
    if not re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        raise OptionError(f"--bits wants a number such as 4.2, found {text!r}")
    return float(text)
