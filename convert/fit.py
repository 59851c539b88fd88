"""Fit: the format of every matrix, chosen so that the expected error is least within a budget of bytes.

    source ──sample of rows, encoded and decoded in every candidate format──► error table [matrix][format]
    error table, sizes, budget ──knapsack: one price per byte, then the remainder──► plan {tensor: format}, explained line by line

The error of a matrix W in a format is the relative error of its output, sum (W - Wq)^2 a^2 / sum W^2 a^2, with a^2 the mean squared activation of each column
where an importance matrix is given (1 where not), times the share of it that reaches the logits (SENSITIVITY, measured), times half the logits' mean square:
so it is about the KL divergence of the model's predictions, in nats. It is an expectation, not a proof; with a text, fit_trial.py measures.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.errors import OptionError
from ..kernels.float_env import in_default_floats
from ..kernels.formats import registry
from ..kernels.formats.encoders import encode
from ..kernels.formats.table import FORMATS
from .importance import usable_weights, weights_for
from .recipes import is_matrix
from .sources import Source, SourceTensor

CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
"""For columns that 256 divides, by rising size."""
CANDIDATES_32 = ("IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")
_SAMPLE = 1 << 18
"""Weights of a matrix that are tried."""
SENSITIVITY = {
    "attn_q": 0.2, "attn_k": 0.2, "attn_v": 0.5, "attn_qkv": 0.9, "attn_output": 0.25, "ffn_gate": 0.35, "ffn_up": 0.33, "ffn_down": 0.69, "output": 1.0,
    "token_embd": 0.5,
}
"""What share of a matrix's relative error reaches the logits, squared, as a share of theirs. For matrices of a layer: all layers' together, so that each
counts by the number of layers. The output matrix (a tied embedding, too) makes the logits themselves, so all of its error is there: it is one matrix
against n layers, which is why it deserves so many more bits than they. Layers': measured on SmolLM2 135M (30 layers, IQ4_NL, wiki.test.raw); smaller
models (demo, a 0.66M TinyStories one) have the same order, and shares up to twice as large. The untied embedding is a guess, fused
q, k and v have the sum of the three."""


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
    tried: dict[str, float] = field(default_factory=dict)  # with a text: name -> KL divergence measured, the least first

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
        if self.tried:
            lines.append("measured on the text, KL in nats: " + ", ".join(f"{name} {kl:.4g}" for name, kl in self.tried.items()) + "; the first is taken")
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
            "budget": self.budget, "bytes": self.bytes, "expected_error": self.error, "tried": self.tried,
            "uniform": {f: {"bytes": b, "expected_error": e} for f, (b, e) in self.uniform.items()},
            "matrices": [{"name": m.name, "shape": list(m.shape), "format": m.chosen.format, "bytes": m.chosen.bytes, "expected_error": m.chosen.error,
                          "options": [o.__dict__ for o in m.options]} for m in self.matrices],
        }


def sensitivity(name: str, tied: bool, n_layers: int) -> float:
    """Of a tensor, by its kind; tied: the embedding is the output matrix, too."""
    kind = name.split(".")[-2]
    if tied and kind == "token_embd":
        kind = "output"
    kind = kind.removesuffix("_exps").removesuffix("_shexp")
    return SENSITIVITY.get(kind, 0.5) / (n_layers if name.startswith("blk.") else 1)


def sample(tensor: SourceTensor, most: int = _SAMPLE) -> np.ndarray:
    """Rows spread over a matrix, about `most` weights: float32."""
    rows, columns = tensor.n_rows, tensor.shape[-1]
    n = max(1, min(rows, most // columns))
    starts = np.unique(np.linspace(0, rows - 1, n).astype(np.int64))
    return tensor.read(starts) if n < rows else tensor.rows(0, rows)


def logit_energy(source: Source, importance: Mapping[str, np.ndarray]) -> float:
    """Mean square of a logit, about: half of it, times a small relative error of all logits, is the KL divergence that this error causes, in nats
    (the second order of KL, errors of logits being independent). The output's input is normed, so a column's mean square is its gain's, unless measured."""
    tensors = {t.name: t for t in source.tensors}
    output = tensors.get("output.weight") or tensors.get("token_embd.weight")
    if output is None:
        return 1.0
    norm = tensors.get("output_norm.weight")
    squares = importance.get(output.name)
    if squares is None:
        squares = np.square(norm.rows(0, 1)[0]) if norm is not None else np.ones(output.shape[1])
    return float((np.square(sample(output), dtype=np.float64) * squares.astype(np.float64)).sum(axis=1).mean()) or 1.0


def measure(tensor: SourceTensor, weights: np.ndarray | None, weight: float, threads: ThreadPoolExecutor | None = None) -> tuple[Option, ...]:
    """What a matrix costs in every candidate format: bytes of the whole, error on a sample of its rows. weight: nats for a unit of relative error."""
    rows, columns = tensor.n_rows, tensor.shape[-1]
    x = sample(tensor)
    importance = np.ones(columns) if weights is None else weights.astype(np.float64)
    energy = float((x.astype(np.float64) ** 2 * importance).sum())
    options = []
    for name in CANDIDATES if columns % 256 == 0 else CANDIDATES_32 if columns % 32 == 0 else ("F16",):
        y = registry.decode(name, encode(name, x, weights, threads))
        error = float((np.square(x.astype(np.float64) - y) * importance).sum()) / energy if energy > 0 else 0.0
        options.append(Option(name, rows * FORMATS[name].row_bytes(columns), error * weight))
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
    return spend(table, [_cheapest(options, high) for options in table], budget)


def spend(table: list[tuple[Option, ...]], chosen: list[Option], budget: int) -> list[Option]:
    """The same or better formats, as long as the budget lasts: the step that takes most error away for its bytes first."""
    chosen = list(chosen)
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
         threads: int | None = None, progress: Callable[[str, int, int], None] | None = None, text: str | None = None, folder: Path | None = None) -> Plan:
    """Formats for a source's matrices within a file size, or a mean number of bits per weight. OptionError: an impossible budget.

    text: the plan and the largest recipes that fit are tried on it, in files in `folder`, and the one with the least KL divergence from the source is taken."""
    if (file_bytes is None) == (bits is None):
        raise OptionError("give either a file size to fit into or a number of bits per weight")
    importance = usable_weights(dict(importance or {}))
    matrices = [t for t in source.tensors if is_matrix(t.name, t.shape)]
    vectors = sum(4 * int(np.prod(t.shape)) for t in source.tensors if not is_matrix(t.name, t.shape))
    weights = sum(int(np.prod(t.shape)) for t in source.tensors)
    if bits is not None:
        if not 0 < bits <= 32:
            raise OptionError(f"bits per weight must be above 0 and at most 32, found {bits:g}")
        budget = int(bits * weights / 8) - vectors
    else:
        assert file_bytes is not None
        budget = file_bytes - vectors - header_bytes(source)
    tied = all(t.name != "output.weight" for t in matrices)
    n_layers = len({t.name.split(".")[1] for t in matrices if t.name.startswith("blk.")}) or 1
    nats = 0.5 * logit_energy(source, importance)
    with ThreadPoolExecutor(threads) as pool:
        table = []
        for i, tensor in enumerate(matrices):
            weights_of = weights_for(importance, tensor.name, tensor.shape[-1], tensor.shape[0] if len(tensor.shape) == 3 else 0)
            weights_of = weights_of if weights_of is None or weights_of.ndim == 1 else weights_of.mean(axis=0)
            table.append(measure(tensor, weights_of, nats * sensitivity(tensor.name, tied, n_layers), pool))
            if progress:
                progress("measuring formats", i + 1, len(matrices))
    chosen = allocate(table, budget)
    tried: dict[str, float] = {}
    if text is not None:
        from .fit_trial import best_of
        chosen, tried = best_of(source, [t.name for t in matrices], table, chosen, budget, importance, text, threads, folder, progress)
    uniform = {}
    for name in dict.fromkeys((*CANDIDATES, *CANDIDATES_32)):
        same = [next((o for o in options if o.format == name), None) for options in table]
        if all(same):
            uniform[name] = sum(o.bytes for o in same if o), sum(o.error for o in same if o)
    planned = [Planned(t.name, t.shape, o, options) for t, o, options in zip(matrices, chosen, table)]
    return Plan(planned, budget, sum(o.bytes for o in chosen), sum(o.error for o in chosen), uniform, tried)


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
