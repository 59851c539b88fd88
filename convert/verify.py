"""Check a converted file against its source, and write what was found beside it.

    verify(source, report) -> reopen with the engine's reader -> vocabulary on hard strings -> every tensor's error -> KL on a text -> NAME.report.md, .json

Nothing here is taken from the conversion but the file: the tensors are decoded by the reference decoders and compared with the source's rows, the vocabulary
is rebuilt from the file and compared with the one rebuilt from the source (which vocabulary_check.py compares with its own library, before the weights).
"""
from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.architectures.config import ModelConfig, check_tensors
from ..engine.errors import FormatError, LlaminaError
from ..engine.files import write_file
from ..engine.gguf.file import GGUFFile, open_gguf
from ..engine.panics import panics_are
from ..engine.text.tokenizer import load_tokenizer
from ..kernels.float_env import in_default_floats
from .sources import Source, SourceTensor
from .sources.tokenizer_check import HARD_STRINGS
from .vocabulary_check import VocabularyCheck, check_vocabulary

if TYPE_CHECKING:
    from .convert import Report

LIMITS = {
    "F32": 0.0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 0.02, "Q6_K": 0.05, "Q5_K": 0.09, "Q5_1": 0.09, "Q5_0": 0.12, "Q4_K": 0.18, "Q4_1": 0.18, "Q4_0": 0.25,
    "IQ4_NL": 0.2, "IQ4_XS": 0.2, "Q3_K": 0.35, "Q2_K": 0.6,
}
"""Most relative error (root mean square of the difference by that of the source) of a matrix: about twice what Gaussian weights have."""
ROW_LIMIT = 0.98
"""Of one row: more than this is worse than leaving it out."""
CONTEXT = 512

@dataclass
class TensorError:
    """relative: root mean square of (result - source) by that of the source; worst_row: the same of the worst row."""

    name: str
    format: str
    relative: float
    worst_row: float


@dataclass
class Verification:
    """problems: one line each; empty if everything is as it should be."""

    problems: list[str] = field(default_factory=list)
    tensors: list[TensorError] = field(default_factory=list)
    strings: int = 0
    reference: str | None = None  # the tokenizer file that the vocabulary was compared with
    unchecked: str | None = None  # why llamina can't use the vocabulary itself
    divergence: Any = None  # engine.perplexity.Divergence
    text: str | None = None
    files: list[Path] = field(default_factory=list)  # the report

    @property
    def passed(self) -> bool:
        return not self.problems


@in_default_floats
def verify(source: Source, report: Report, text: str | None = None, threads: int | None = None,
           progress: Callable[[str, int, int], None] | None = None, vocabulary: VocabularyCheck | None = None) -> Verification:
    """Check report.paths against the open source; with a `text`, run both. Writes the report. Problems are in the result, not raised; FileError if the
    report cannot be written, OptionError for a text too short. vocabulary: the source's own, if it was checked already."""
    result = Verification()
    checked = vocabulary or check_vocabulary(source)
    result.problems += checked.problems
    result.reference, result.unchecked = checked.reference, checked.unknown
    try:
        with open_gguf(report.paths[0]) as file:
            config = ModelConfig.from_gguf(file)
            check_tensors(file, config)
            _compare_vocabulary(result, source, file)
            done, total = 0, sum(t.n_bytes for t in file.tensors.values())
            for tensor in source.tensors:
                if tensor.name not in file.tensors:
                    result.problems.append(f"tensor {tensor.name} is missing")
                    continue
                _compare_tensor(result, tensor, file)
                done += file.tensors[tensor.name].n_bytes
                if progress:
                    progress("verifying", done, total)
    except LlaminaError as error:
        result.problems.append(str(error))
    if text is not None and result.passed:
        result.text = f"{len(text)} characters"
        result.divergence = _divergence(source, report, text, threads, progress)
    write_report(report, result)
    return result


@panics_are(FormatError, "the vocabulary cannot be compared")
def _compare_vocabulary(result: Verification, source: Source, file: GGUFFile) -> None:
    """The file's own against the source's: ids of hard strings; of one that llamina can't use, all that is stored."""
    if result.unchecked:
        for key in (k for k in source.metadata if k.startswith("tokenizer.")):
            if key not in file.metadata or not np.array_equal(np.asarray(file.metadata[key]), np.asarray(source.metadata[key])):
                result.problems.append(f"the result's {key} is not the source's")
        return
    ours = load_tokenizer(file.metadata, file.path)
    theirs = load_tokenizer(source.metadata, source.path)
    for text in HARD_STRINGS:
        ids = ours.encode(text, bos=False)
        result.strings += 1
        if ids != theirs.encode(text, bos=False) or ours.decode(ids) != theirs.decode(ids):
            result.problems.append(f"the result's vocabulary tokenises {text[:20]!r} otherwise than the source's")


def _compare_tensor(result: Verification, tensor: SourceTensor, file: GGUFFile) -> None:
    from ..kernels.formats.registry import decode
    info = file.tensors[tensor.name]
    squares = differences = worst = 0.0
    step = max(1, (1 << 20) // info.cols)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for first in range(0, info.rows, step):
        x = tensor.rows(first, min(first + step, info.rows))
        x[~np.isfinite(x)] = 0  # allowed by --allow-nan, or the conversion would have stopped
        y = decode(info.format.name, file.data(tensor.name, first, first + len(x)))
        square, difference = np.square(x, dtype=np.float64).sum(axis=1), np.square(y.astype(np.float64) - x).sum(axis=1)
        rows.append((square, difference))
    square, difference = (np.concatenate(parts) for parts in zip(*rows))
    squares, differences = float(square.sum()), float(difference.sum())
    relative = float(np.sqrt(differences / squares)) if squares else float(differences > 0)
    counted = square > 1e-6 * max(squares / len(square), 1e-300)  # not rows that are all but zero
    if counted.any():
        worst = float(np.sqrt((difference[counted] / square[counted]).max()))
    name = info.format.name
    result.tensors.append(TensorError(tensor.name, name, relative, worst))
    same = tensor.dtype == name  # copied: nothing may change
    limit = 0.0 if same else LIMITS.get(name, 0.0)
    if not relative <= limit:  # NaN, too
        result.problems.append(f"tensor {tensor.name} ({name}) has a relative error of {relative:.3g}, expected at most {limit:g}")
    elif not worst <= ROW_LIMIT:
        row = int(np.where(counted, difference / np.maximum(square, 1e-300), 0).argmax())
        result.problems.append(f"tensor {tensor.name} ({name}) has a relative error of {worst:.3g} in row {row}, expected at most {ROW_LIMIT:g}")


def _divergence(source: Source, report: Report, text: str, threads: int | None, progress: Callable[[str, int, int], None] | None) -> Any:
    """The result against the source: a GGUF source as it is, another in its own precision (written to a temporary file)."""
    from ..engine.model import load
    from ..engine.score.perplexity import LEAST, divergence
    with contextlib.ExitStack() as stack:
        reference = source.files[0]
        if source.kind != "gguf":
            from .convert import convert
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".llamina-verify-", dir=report.paths[0].parent))
            reference = convert(source, Path(folder) / "source.gguf", "keep", threads=threads, verify=False, allow_nan=True).paths[0]
        model, original = (stack.enter_context(load(path, threads=threads)) for path in (report.paths[0], reference))
        context = min(CONTEXT, model.context, max(LEAST, len(model.tokenize(text))))
        return divergence(model, original, text, context, progress)


def write_report(report: Report, result: Verification) -> None:
    """NAME.report.json and .md beside the result, and NAME.report.png if matplotlib is there. FileError."""
    base = report.paths[0].with_name(report.paths[0].name.removesuffix(".gguf") + ".report")
    plot = _plot(base.with_name(base.name + ".png"), result)
    as_text = json.dumps(as_json(report, result), indent=1, ensure_ascii=False) + "\n"
    for suffix, content in (".json", as_text), (".md", as_markdown(report, result, plot)):
        path = base.with_name(base.name + suffix)
        write_file(path, content)
        result.files.append(path)
    if plot:
        result.files.append(plot)


def as_json(report: Report, result: Verification) -> dict[str, Any]:
    errors = {e.name: e for e in result.tensors}
    return {
        "source": report.source, "kind": report.kind, "source_sha256": report.source_files, "type": report.type, "files": [p.name for p in report.paths],
        "bytes": report.bytes, "bits_per_weight": report.bits_per_weight, "seconds": report.seconds, "mix": report.mix, "notes": report.notes,
        "passed": result.passed, "problems": result.problems, "tokenizer": {"strings": result.strings, "compared_with": result.reference},
        "divergence": asdict(result.divergence) if result.divergence else None,
        "plan": report.plan.as_json() if report.plan else None,
        "tensors": [{**asdict(t), "relative_error": e and e.relative, "worst_row_error": e and e.worst_row}
                    for t in report.tensors for e in [errors.get(t.name)]],
    }


def as_markdown(report: Report, result: Verification, plot: Path | None = None) -> str:
    lines = [f"# {report.paths[0].name}", "",
             f"Converted from {report.source} ({report.kind}) to {report.type} in {report.seconds:.1f} s: {report.bytes} bytes, "
             f"{report.bits_per_weight:.2f} bits per weight; " + ", ".join(f"{n} {f}" for f, n in report.mix.items()) + ".", ""]
    lines += ["**Verified: everything is as it should be.**" if result.passed else "**Problems were found:**", *(f"- {p}" for p in result.problems), ""]
    against = f", and as by {result.reference}" if result.reference else ""
    if result.unchecked:
        lines.append(f"- Vocabulary: copied, not tried: {result.unchecked}.")
    elif result.passed:
        lines.append(f"- Vocabulary: {result.strings} hard strings become the same ids as by the source's vocabulary{against}.")
    lines += [f"- {note}" for note in report.notes]
    if d := result.divergence:
        lines += ["", "| | perplexity | mean KL, nats | median | 99 % | largest | same top token |", "|---|---:|---:|---:|---:|---:|---:|",
                  f"| source | {d.reference.perplexity:.4f} | | | | | |",
                  f"| result | {d.model.perplexity:.4f} | {d.mean_kl:.6f} | {d.percentiles[50]:.6f} | {d.percentiles[99]:.6f} | {d.percentiles[100]:.6f} "
                  f"| {100 * d.top1_agreement:.2f} % |", "", f"On {d.model.tokens} tokens in windows of {d.model.context}."]
    if plot:
        lines += ["", f"![error per layer]({plot.name})"]
    lines += ["", "Relative error: root mean square of (result - source), by that of the source.", "",
              "| tensor | source | format | bytes | relative error | worst row |", "|---|---|---|---:|---:|---:|"]
    errors = {e.name: e for e in result.tensors}
    for t in report.tensors:
        e = errors.get(t.name)
        lines.append(f"| {t.name} | {t.source} | {t.format}{f' (for {t.wanted})' if t.wanted else ''} | {t.bytes} | "
                     + (f"{e.relative:.3g} | {e.worst_row:.3g} |" if e else "| |"))
    if report.plan:
        lines += ["", *report.plan.as_markdown()]
    return "\n".join(lines) + "\n"


def _plot(path: Path, result: Verification) -> Path | None:
    """Relative error per layer, a line for each kind of matrix; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return None
    lines: dict[str, list[tuple[int, float]]] = {}
    for e in result.tensors:
        parts = e.name.split(".")
        if parts[0] == "blk" and "norm" not in parts[2]:
            lines.setdefault(parts[2], []).append((int(parts[1]), e.relative))
    if not lines:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=path.name.removesuffix(".report.png"), xlabel="layer", ylabel="relative error")
    for (name, points), marker in zip(lines.items(), cycle("osv^D<>P")):  # hollow: of lines that lie on each other, both are seen
        axes.plot(*zip(*points), marker=marker, markerfacecolor="none", linewidth=1, label=name)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper", fontsize="small")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    write_file(path, drawn.getvalue())
    return path
