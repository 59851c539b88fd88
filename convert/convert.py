"""The conversion: a source's tensors, decoded by rows, encoded in the formats that a recipe chooses, into a GGUF file.

    convert(source, out, type) -> open_source -> recipes.choose -> pieces of rows, read and encoded by all threads, written in order -> Report

Pieces of a few MB are in flight, some for each thread, so memory does not grow with the model. The result does not depend on the number of threads, the
time, or where the files lie: the same source and options give the same bytes.
"""
from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.cli.progress import size
from ..engine.errors import FileError, FormatError, OptionError
from ..engine.gguf.header import quote
from ..kernels.float_env import in_default_floats
from ..kernels.formats.table import FORMATS
from ..kernels.room import THREAD, need_room
from ..kernels.threads import usable_threads
from .importance import usable_weights, weights_for
from .metadata import parse_meta, result_metadata, set_meta
from .recipes import ENCODABLE, FLOATS, KEEP, Choice, Sizes, choose, fallbacks, format_name, parse_overrides, recipe_name
from .sources import Source, SourceTensor, open_source
from .vocabulary_check import VocabularyCheck, check_vocabulary
from .writer import Output, OutTensor, check_target, divide, shard_paths

if TYPE_CHECKING:
    from .fit import Plan

PIECE_BYTES = 4 << 20
"""Of float32, of a piece of rows."""
LARGEST_F16 = 65504.0
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
    dry_run: bool = False  # nothing was written: bytes and seconds are estimates

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
    split: int | None = None, allow_nan: bool = False, verify: bool | None = None, verify_text: str | None = None, overwrite: bool = True,
    context: int | None = None, meta: Sequence[str] = (), vocab_only: bool = False, dry_run: bool = False,
) -> Report:
    """Convert a checkpoint to GGUF.

    source: a path, or an open Source (left open). out: the file to write. type: a recipe (recipes.RECIPES) or "keep".
    kind, tokenizer, context: as of open_source.
    overrides: "REGEX=FORMAT". formats: tensor name -> format instead of the recipe's choice; plan: the same by fit.plan, explained
    in the report. importance: matrix name -> float32 [columns], weights of the
    columns' squared errors. threads: default all that may be used. progress: called as progress(what, bytes done, bytes in all). split: most bytes of data in
    a shard. allow_nan: NaN and infinite weights become 0 instead of an error. verify: check the result and write a report beside it (default: if it is
    smaller than 1 GB; the vocabulary is always checked, before the weights, but with False). verify_text: a text for the divergence from the source.
    overwrite: False refuses an `out` that is there. meta: "KEY=VALUE" to set (metadata.py). vocab_only: no tensors. dry_run: write nothing; the report
    says what there would be, with `bytes` and `seconds` estimated.
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
    changes = parse_meta(meta)
    out = Path(out)
    check_target(out, [], overwrite)
    opened = source if isinstance(source, Source) else open_source(source, kind, tokenizer, context=context)
    try:
        if verify_text is not None:
            _check_text(opened, verify_text)
        if changes:
            opened = replace(opened, metadata=dict(opened.metadata), notes=list(opened.notes))
            set_meta(opened, changes)
        vocabulary = _checked_vocabulary(opened, verify is not False)
        if vocab_only:
            opened = replace(opened, tensors=[], notes=[*opened.notes, "vocabulary only: no tensors"])
        sizes = sizes_of(opened, importance is not None)
        listed = [(t.name, t.shape, t.dtype) for t in opened.tensors]
        choices = choose(sizes, listed, recipe, chosen, output_type, embedding_type, planned)
        job = _Job(opened, out, recipe, choices, usable_weights(importance or {}), threads or usable_threads(), progress, split, allow_nan, overwrite)
        if dry_run:
            report = job.estimate()
            report.plan = plan
            return report
        report = job.write()
        report.seconds, report.plan = time.perf_counter() - start, plan
        if not vocab_only and (verify or verify is None and report.bytes < 1_000_000_000 or verify_text is not None):
            from .verify import verify as check
            report.verification = check(opened, report, verify_text, threads, progress, vocabulary)
    finally:
        if not isinstance(source, Source):
            opened.close()
    return report


def _checked_vocabulary(source: Source, strict: bool) -> VocabularyCheck:
    """Before the weights: FormatError if the vocabulary does not give the ids that it should; not strict: a note."""
    found = check_vocabulary(source)
    if found.unknown:
        source.notes.append(f"the vocabulary is copied as it is, unchecked: {found.unknown}")
    if found.problems:
        problem = found.problems[0] + (f" (and {len(found.problems) - 1} more such texts)" if len(found.problems) > 1 else "")
        if strict:
            raise FormatError(f"{source.vocabulary.path if source.vocabulary else source.path}: the result would tokenise otherwise: {problem}; "
                              "please report this with the source's name; --no-verify converts it all the same")
        source.notes.append(f"the result tokenises otherwise than the source: {problem}")
    return found


def _check_text(source: Source, text: str) -> None:
    """OptionError, before the work rather than after it, for a text too short to compare models on."""
    from ..engine.score.perplexity import LEAST
    from ..engine.text.tokenizer import load_tokenizer
    if (n := len(load_tokenizer(source.metadata, source.path).encode(text))) < LEAST:
        raise OptionError(f"the text to verify with has {n} tokens, expected at least {LEAST}: give a longer one")


def sizes_of(source: Source, importance: bool) -> Sizes:
    meta = source.metadata
    arch = meta["general.architecture"]
    n_layers, n_heads = int(meta[f"{arch}.block_count"]), _first(meta[f"{arch}.attention.head_count"])
    n_kv_heads = _first(meta.get(f"{arch}.attention.head_count_kv", n_heads))
    return Sizes(n_layers, n_heads, n_kv_heads, any(t.name == "output.weight" for t in source.tensors), importance,
                 int(meta.get(f"{arch}.expert_count", 0)))


def _first(value: Any) -> int:
    """Of one number, or the largest of an array with one for each layer: of KV heads, recurrent layers have 0."""
    return int(np.asarray(value).max())


@dataclass
class _Job:
    """One conversion, decided: what is written, and how."""

    source: Source
    out: Path
    recipe: str
    choices: list[Choice]
    importance: Mapping[str, np.ndarray]
    threads: int
    progress: Progress | None
    split: int | None
    allow_nan: bool
    overwrite: bool

    def plan(self) -> tuple[list[TensorReport], list[_Piece]]:
        """Every tensor's line of the report, and all pieces in the order of the file. OptionError."""
        reports, pieces = [], []
        for tensor, choice in zip(self.source.tensors, self.choices):
            copied = tensor.dtype == choice.format and choice.format not in FLOATS and tensor.copy is not None
            if choice.format not in ENCODABLE and not copied:
                raise OptionError(f"tensor {quote(tensor.name)} would be {choice.format}, which llamina can't encode: choose another type")
            r = TensorReport(tensor.name, tensor.shape, tensor.dtype, choice.format, OutTensor(choice.name, tensor.shape, choice.format).n_bytes, choice.wanted,
                             copied)
            reports.append(r)
            experts = tensor.shape[0] if len(tensor.shape) == 3 else 0
            weights = weights_for(self.importance, tensor.name, tensor.shape[-1], experts)
            step = max(1, PIECE_BYTES // (4 * tensor.shape[-1]))
            each = tensor.shape[-2] if weights is not None and weights.ndim == 2 else tensor.n_rows  # rows with the same weights
            for first in range(0, tensor.n_rows, each):
                own = weights[first // each] if weights is not None and weights.ndim == 2 else weights
                pieces += [_Piece(tensor, choice, i, min(i + step, first + each), copied, own, r) for i in range(first, first + each, step)]
        return reports, pieces

    def notes(self, reports: list[TensorReport]) -> list[str]:
        """The source's, and what the choices mean."""
        notes = [*self.source.notes, *fallbacks(self.choices, {r.name: r.shape for r in reports})]
        quantised = Counter(r.source for r in reports if len(r.shape) > 1 and r.source in FORMATS and r.source not in ("F64", *FLOATS) and not r.copied)
        if quantised:
            kinds = ", ".join(quantised)
            notes.append(f"the source is quantised already ({kinds}): quantising twice loses more than once; better convert the F16 or BF16 original")
        if self.importance and (missing := [r.name for r in reports if len(r.shape) > 1 and r.name not in self.importance and r.format not in FLOATS
                                            and not r.copied]):
            notes.append(f"{len(missing)} matrices are not in the importance matrix, such as {missing[0]}: their errors count alike in all columns")
        return notes

    def size_note(self, written: int) -> list[str]:
        had = sum(path.stat().st_size for path in self.source.files if path.exists())
        return [f"the result ({size(written)}) is larger than the source ({size(had)})"] if written > 1.01 * had and self.source.tensors else []

    def estimate(self) -> Report:
        """What `write` would do: encodes one piece of each format to see how long it takes, and writes nothing."""
        from .fit import header_bytes
        reports, pieces = self.plan()
        _compile({p.choice.format for p in pieces if not p.copied})
        seconds = 0.0
        for format in dict.fromkeys(p.choice.format for p in pieces):
            of_format = [p for p in pieces if p.choice.format == format]
            tried = max(of_format, key=lambda p: (p.last - p.first) * p.tensor.shape[-1])
            start = time.perf_counter()
            _encode(tried, self.allow_nan)
            each = (time.perf_counter() - start) / ((tried.last - tried.first) * tried.tensor.shape[-1])
            seconds += each * sum((p.last - p.first) * p.tensor.shape[-1] for p in of_format) / self.threads
        written = sum(r.bytes for r in reports) + header_bytes(self.source)
        paths = shard_paths(self.out, len(divide([OutTensor(r.name, r.shape, r.format) for r in reports], self.split)))
        for path in paths:
            check_target(path, self.source.files, self.overwrite)
        return Report(self.source.path.name, self.source.kind, self.recipe, paths, reports, [*self.notes(reports), *self.size_note(written)], seconds, written,
                      dry_run=True)

    def write(self) -> Report:
        reports, pieces = self.plan()
        notes = self.notes(reports)
        source = self.source
        total = sum(r.bytes for r in reports)
        _compile({p.choice.format for p in pieces if not p.copied})
        need_room(THREAD * self.threads)
        with ThreadPoolExecutor(self.threads) as pool:
            digests = [pool.submit(_sha256, path) for path in source.files]
            placeholders = [secrets.token_hex(32) for _ in digests]  # nothing that the source could hold, too
            metadata = result_metadata(source, self.recipe, self.choices, placeholders, self.importance)
            tensors = [OutTensor(r.name, r.shape, r.format) for r in reports]
            with Output(self.out, metadata, tensors, self.split, source.files, self.overwrite) as output:
                try:
                    done = 0
                    for data in _in_order(pool, pieces, 2 * self.threads + 2, self.allow_nan):
                        output.write(data)
                        done += data.nbytes
                        if self.progress:
                            self.progress("converting", done, total)
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
        notes += [f"{r.name}: {r.zeroed} weights that were NaN or infinite are 0 now" for r in reports if r.zeroed]
        files = {path.name: digest for path, digest in zip(source.files, hashes)}
        written = sum(p.stat().st_size for p in paths)
        return Report(source.path.name, source.kind, self.recipe, paths, reports, [*notes, *self.size_note(written)], bytes=written, source_files=files)


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
        _ = encoder(name).ctypes


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()
