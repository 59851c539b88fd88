"""The conversion: a source's tensors, decoded by rows, encoded in the formats that a recipe chooses, into a GGUF file.

    convert(source, out, type) -> open_source -> recipes.choose -> pieces of rows, read and encoded by all threads, written in order -> Report

Pieces of a few MB are in flight, some for each thread, so memory does not grow with the model. The result does not depend on the number of threads, the
time, or where the files lie: the same source and options give the same bytes.
"""
from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..engine.errors import FileError, FormatError, OptionError
from ..engine.gguf.header import quote
from ..kernels.float_env import in_default_floats
from ..kernels.threads import usable_threads
from .recipes import ENCODABLE, KEEP, RECIPES, Choice, Sizes, choose, format_name, parse_overrides, recipe_name
from .sources import Source, SourceTensor, open_source
from .sources.base import size_label
from .writer import Output, OutTensor, check_target

if TYPE_CHECKING:
    from .fit import Plan

PIECE_BYTES = 4 << 20
"""Of float32, of a piece of rows."""
LARGEST_F16 = 65504.0
QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION
Progress = Callable[[str, int, int], None]


@dataclass
class TensorReport:
    """One tensor of the result. `wanted`: the format that did not fit; zeroed: NaN and infinite weights replaced by 0 (allow_nan)."""

    name: str
    shape: tuple[int, ...]
    source: str
    format: str
    bytes: int
    wanted: str | None = None
    copied: bool = False
    zeroed: int = 0


@dataclass(repr=False)
class Report:
    """What a conversion did. `bits_per_weight` counts tensor data only; `verification` is filled in by verify.py."""

    source: str
    kind: str
    type: str
    paths: list[Path]
    tensors: list[TensorReport]
    notes: list[str]
    seconds: float = 0.0
    bytes: int = 0
    verification: Any = None
    plan: Plan | None = None
    source_files: dict[str, str] = field(default_factory=dict)  # name -> sha256

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(t.bytes for t in self.tensors) / max(1, sum(int(np.prod(t.shape)) for t in self.tensors))

    def __repr__(self) -> str:
        return (f"<llamina.convert.Report {self.source} to {', '.join(str(path) for path in self.paths)}: {self.type}, {len(self.tensors)} tensors, "
                f"{self.bytes / 2**20:.1f} MiB, {self.bits_per_weight:.2f} bits per weight>")

    def _repr_html_(self) -> str:
        """For notebooks: a bar for the bytes of each format, and a table of the tensors."""
        from .report_html import report_html
        return report_html(self)

    @property
    def mix(self) -> dict[str, int]:
        """Format -> number of tensors."""
        return dict(Counter(t.format for t in self.tensors).most_common())


@dataclass(frozen=True)
class _Piece:
    tensor: SourceTensor
    choice: Choice
    first: int
    last: int
    copied: bool
    weights: np.ndarray | None
    report: TensorReport


@in_default_floats
def convert(
    source: str | os.PathLike[str] | Source, out: str | os.PathLike[str], type: str = KEEP, *, kind: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None, overrides: Sequence[str] = (), output_type: str | None = None, embedding_type: str | None = None,
    formats: Mapping[str, str] | None = None, plan: Plan | None = None, importance: Mapping[str, np.ndarray] | None = None, threads: int | None = None,
    progress: Progress | None = None,
    split: int | None = None, allow_nan: bool = False, verify: bool | None = None, verify_text: str | None = None,
) -> Report:
    """Convert a checkpoint to GGUF.

    source: a path, or an open Source (left open). out: the file to write. type: a recipe (recipes.RECIPES) or "keep". kind, tokenizer: as of open_source.
    overrides: "REGEX=FORMAT". formats: tensor name -> format instead of the recipe's choice; plan: the same by fit.plan, explained
    in the report. importance: matrix name -> float32 [columns], weights of the
    columns' squared errors. threads: default all that may be used. progress: called as progress(what, bytes done, bytes in all). split: most bytes of data in
    a shard. allow_nan: NaN and infinite weights become 0 instead of an error. verify: check the result and write a report beside it (default: if it is
    smaller than 1 GB). verify_text: a text for the divergence from the source.
    Raises FileError, FormatError, UnsupportedError, TokenizerError, OptionError. Whatever happens, `out` is either as before or complete.
    """
    start = time.perf_counter()
    recipe = recipe_name(type)
    if split is not None and split < 1 << 10:
        raise OptionError(f"shards of at most {split} bytes: expected at least 1024")
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, found {threads}")
    chosen = parse_overrides(overrides)
    output_type, embedding_type = (t and format_name(t) for t in (output_type, embedding_type))
    planned = {name: format_name(f) for name, f in (formats or (plan.formats if plan else {})).items()}
    out = Path(out)
    check_target(out, [])
    opened = source if isinstance(source, Source) else open_source(source, kind, tokenizer)
    try:
        if verify_text is not None:
            _check_text(opened, verify_text)
        sizes = _sizes(opened, importance is not None)
        listed = [(t.name, t.shape, t.dtype) for t in opened.tensors]
        choices = choose(sizes, listed, recipe, chosen, output_type, embedding_type, planned)
        report = _write(opened, out, recipe, choices, dict(importance or {}), threads or usable_threads(), progress, split, allow_nan)
        report.seconds, report.plan = time.perf_counter() - start, plan
        if verify or verify is None and report.bytes < 1_000_000_000 or verify_text is not None:
            from .verify import verify as check
            report.verification = check(opened, report, verify_text, threads, progress)
    finally:
        if opened is not source:
            opened.close()
    return report


def _check_text(source: Source, text: str) -> None:
    """OptionError, before the work rather than after it, for a text too short to compare models on."""
    from ..engine.score.perplexity import LEAST
    from ..engine.text.tokenizer import load_tokenizer
    if (n := len(load_tokenizer(source.metadata, source.path).encode(text))) < LEAST:
        raise OptionError(f"the text to verify with has {n} tokens, expected at least {LEAST}: give a longer one")


def _sizes(source: Source, importance: bool) -> Sizes:
    meta = source.metadata
    n_layers, n_heads = int(meta["llama.block_count"]), _first(meta["llama.attention.head_count"])
    n_kv_heads = _first(meta.get("llama.attention.head_count_kv", n_heads))
    return Sizes(n_layers, n_heads, n_kv_heads, any(t.name == "output.weight" for t in source.tensors), importance)


def _first(value: Any) -> int:
    """Of one number, or of an array with one for each layer."""
    return int(np.asarray(value).flat[0])


def _write(
    source: Source, out: Path, recipe: str, choices: list[Choice], importance: Mapping[str, np.ndarray], threads: int, progress: Progress | None,
    split: int | None, allow_nan: bool,
) -> Report:
    reports, pieces = [], []
    for tensor, choice in zip(source.tensors, choices):
        copied = tensor.dtype == choice.format and choice.format not in ("F32", "F16", "BF16") and tensor.copy is not None
        if choice.format not in ENCODABLE and not copied:
            raise OptionError(f"tensor {quote(tensor.name)} would be {choice.format}, which llamina can't encode: choose another type")
        out_tensor = OutTensor(choice.name, tensor.shape, choice.format)
        r = TensorReport(tensor.name, tensor.shape, tensor.dtype, choice.format, out_tensor.n_bytes, choice.wanted, copied)
        reports.append(r)
        weights = importance.get(tensor.name)
        if weights is not None and weights.shape != tensor.shape[-1:]:
            raise OptionError(f"the importance matrix has {weights.size} columns for {tensor.name!r}, the tensor has {tensor.shape[-1]}: "
                              "it belongs to another model")
        step = max(1, PIECE_BYTES // (4 * tensor.shape[-1]))
        pieces += [_Piece(tensor, choice, i, min(i + step, tensor.n_rows), copied, weights, r) for i in range(0, tensor.n_rows, step)]
    _compile({c.format for c, r in zip(choices, reports) if not r.copied})
    notes = [*source.notes, *(c.fallback for c in choices if c.fallback)]
    if importance and (missing := [r.name for r in reports if len(r.shape) > 1 and r.name not in importance and r.format not in ("F32", "F16", "BF16")]):
        notes.append(f"{len(missing)} matrices are not in the importance matrix, such as {missing[0]}: their errors count alike in all columns")
    total = sum(r.bytes for r in reports)
    with ThreadPoolExecutor(threads) as pool:
        digests = [pool.submit(_sha256, path) for path in source.files]
        placeholders = [hashlib.sha256(f"{i} of {out.name}".encode()).hexdigest() for i in range(len(digests))]
        metadata = _metadata(source, recipe, choices, placeholders, importance, total)
        tensors = [OutTensor(r.name, r.shape, r.format) for r in reports]
        with Output(out, metadata, tensors, split, source.files) as output:
            try:
                done = 0
                for data in _in_order(pool, pieces, 2 * threads + 2, allow_nan):
                    output.write(data)
                    done += data.nbytes
                    if progress:
                        progress("converting", done, total)
                hashes = [d.result() for d in digests]
                for old, new in zip(placeholders, hashes):
                    output.patch(old.encode(), new.encode())
                source.check()
                paths = output.finish()
            except BaseException as error:
                pool.shutdown(wait=True, cancel_futures=True)
                if isinstance(error, FormatError):
                    source.check()  # that somebody writes it says more than what it holds for the moment
                raise
    if zeroed := [r for r in reports if r.zeroed]:
        notes += [f"{r.name}: {r.zeroed} weights that were NaN or infinite are 0 now" for r in zeroed]
    files = {path.name: digest for path, digest in zip(source.files, hashes)}
    return Report(source.path.name, source.kind, recipe, paths, reports, notes, bytes=sum(p.stat().st_size for p in paths), source_files=files)


def _in_order(pool: ThreadPoolExecutor, pieces: list[_Piece], ahead: int, allow_nan: bool) -> Iterator[np.ndarray]:
    """Encoded pieces in their order; at most `ahead` exist at once."""
    waiting: deque[tuple[_Piece, Future[tuple[np.ndarray, int]]]] = deque()
    for piece in [*pieces, *[None] * ahead]:
        if len(waiting) == ahead or piece is None and waiting:
            first, result = waiting.popleft()
            data, zeroed = result.result()
            first.report.zeroed += zeroed
            yield data
        if piece is not None:
            waiting.append((piece, pool.submit(_encode, piece, allow_nan)))


def _encode(piece: _Piece, allow_nan: bool) -> tuple[np.ndarray, int]:
    """(bytes of a piece's rows, weights that were not finite). FormatError."""
    from ..kernels.formats.encoders import encode
    tensor, format = piece.tensor, piece.choice.format
    if piece.copied:
        raw = tensor.raw(piece.first, piece.last)
        assert raw is not None
        return raw, 0
    x = tensor.rows(piece.first, piece.last)
    zeroed = 0
    if not np.isfinite(x).all():
        bad = ~np.isfinite(x)
        row = piece.first + int(bad.any(axis=1).argmax())
        zeroed = int(bad.sum())
        if not allow_nan:
            raise FormatError(f"{tensor.path}: tensor {quote(tensor.name)} holds NaN or infinity in row {row}: the checkpoint is damaged; "
                              "--allow-nan converts it with 0 there")
        x[bad] = 0
    if format not in ("F32", "BF16") and x.size and max(float(x.max()), -float(x.min())) > LARGEST_F16:
        row = piece.first + int((np.abs(x) > LARGEST_F16).any(axis=1).argmax())
        raise FormatError(f"{tensor.path}: tensor {quote(tensor.name)} has a weight beyond {LARGEST_F16:.0f} in row {row}, which {format} can't hold: "
                          "convert to bf16 or f32")
    return encode(format, x, piece.weights), zeroed


def _compile(formats: set[str]) -> None:
    """All encoders, here in one thread rather than by several that find them missing."""
    from ..kernels.formats.encoders import encoder
    for name in sorted(formats - {"F32"}):
        encoder(name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


def _metadata(source: Source, recipe: str, choices: list[Choice], digests: list[str], importance: Mapping[str, Any], total: int) -> dict[str, Any]:
    """The source's keys, and ours: nothing of time or place."""
    meta = {key: value for key, value in source.metadata.items() if not key.startswith("llamina.")}
    meta.setdefault("general.type", "model")
    meta.setdefault("general.name", source.path.name.removesuffix(".gguf"))
    if not meta.get("general.size_label"):
        meta["general.size_label"] = size_label(sum(int(np.prod(t.shape)) for t in source.tensors))
    common: Counter[str] = Counter()
    for t, c in zip(source.tensors, choices):
        common[c.format] += int(np.prod(t.shape))
    by_base = {r.base: r.file_type for r in reversed(RECIPES.values())}  # the _s of several: every matrix alike
    if recipe != KEEP:
        meta["general.file_type"] = RECIPES[recipe].file_type
    elif "general.file_type" not in meta:
        meta["general.file_type"] = by_base.get(common.most_common(1)[0][0], 0)
    meta["general.quantization_version"] = QUANTIZATION_VERSION
    if importance:
        meta["quantize.imatrix.entries_count"] = len(importance)
    meta["llamina.version"] = __version__
    meta["llamina.type"] = recipe
    meta["llamina.source.kind"] = source.kind
    meta["llamina.source.files"] = [path.name for path in source.files]
    meta["llamina.source.sha256"] = digests
    return meta
