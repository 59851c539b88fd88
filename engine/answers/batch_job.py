"""A batch job: a file of prompts, a line of JSON each, to a file of answers in the same order.

    lines (batch_line.py) -> those that the journal lacks -> BatchWork.records (batch_work.py), here or on other machines -> Journal -> the output file

A record depends on nothing but its line, the model and the options (docs/exactness.md), and holds no time: so a run that was interrupted anywhere and a run
that wasn't write the same bytes.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..files import open_regular
from ..run.adapters import described
from .batch_line import MAX_LINE, OPTIONS, Line, count_lines, lines_of, parse_line
from .batch_work import BatchWork, Raw, Records

if TYPE_CHECKING:
    from .batch_journal import Journal
    from .batch_stream import RecordStream
    from .core import Core

__all__ = ["MAX_LINE", "OPTIONS", "BatchJob", "Line", "Progress", "bound_to", "count_lines", "fingerprint", "lines_of", "parse_line"]

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Progress:
    """How far a job is. done, errors: of `lines`, those of earlier runs too; tokens: generated in this run."""

    lines: int
    done: int
    errors: int
    tokens: int
    resumed: int


def fingerprint(path: Path) -> str:
    """Tells models apart: SHA-256 over a file's size, its first MiB, and 64 pieces of 64 KiB spread over it. A whole digest would take seconds a start."""
    try:
        with open_regular(path, "a model") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            digest.update(file.read(1 << 20))
            for i in range(64):
                file.seek(size * i // 64)
                digest.update(file.read(_CHUNK))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def bound_to(model: Core) -> dict[str, Any]:
    """What a job's records depend on of a model, for the journal."""
    return {"model": fingerprint(model.path), "context": model.context, **bound_adapters(model)}


def bound_adapters(model: Core) -> dict[str, Any]:
    """What a journal says of adapters and control vectors, if there are any."""
    table = model.runtime.adapters
    found = {name: [loaded.digest, loaded.scale] for name, loaded in table.by_name.items()}
    control = {"control": table.control_digest} if table.control_digest else {}
    return {"adapters": found, "default_adapters": described(table.default), **control} if found else control


class BatchJob:
    """Runs a job: `run()` yields after every record. kv: as given to `load`, for the journal.
    options: of all lines; a line's own go before them. seed: of the first line, the next has the next."""

    def __init__(self, model: Core | None, source: Path, journal: Journal | RecordStream, lines: int, digest: str, options: Mapping[str, Any], *,
                 seed: int | None = None, kv: str | None = None, chat: bool = False, system: str | None = None,
                 parallel: int | None = None, template: str | None = None, bound: Mapping[str, Any] | None = None) -> None:
        """template: that was given instead of the model's own, for the journal. model: None if it is elsewhere; then `bound` is what `bound_to` says of it,
        and `run` is told who makes the records."""
        assert set(options) <= set(OPTIONS), set(options) - set(OPTIONS)  # or every line would be an error
        self._model, self._source, self._journal = model, source, journal
        self.lines, self.resumed = lines, len(journal.done)
        known = (journal.header or {}).get("seed") if seed is None else None
        self.seed: int = known if isinstance(known, int) else int.from_bytes(os.urandom(4), "little") if seed is None else seed
        self._errors, self._tokens = sum("error" in record for record in journal.records()), 0
        self.work = BatchWork(dict(options), self.seed, chat, system, parallel)
        if bound is None:
            assert model is not None
            bound = bound_to(model)
        journal.begin({"input": digest, **bound, "kv": kv, "chat": chat, "system": system,
                       "options": self.work.options, "seed": self.seed, **({"template": template} if template is not None else {})})

    def run(self, records: Callable[[Iterable[Raw]], Records] | None = None) -> Iterator[Progress]:
        """Journal every record, then write the output. records: makes them of lines; by default the model does. FileError; ClosedError; whatever stops it,
        the journal stays."""
        if records is None:
            model = self._model
            assert model is not None
            found = self.work.records(model, self._rows())
        else:
            found = records(self._rows())
        for number, record in found:
            self._errors += "error" in record
            self._tokens += record.get("generated_tokens", 0)
            self._journal.add(number, record)
            yield self.progress
        if len(self._journal.done) != self.lines:
            raise FileError(f"{self._source}: has changed while it was read: remove {self._journal.path} and run again")
        self._journal.finish(self.lines)
        yield self.progress

    @property
    def progress(self) -> Progress:
        return Progress(self.lines, len(self._journal.done), self._errors, self._tokens, self.resumed)

    def _rows(self) -> Iterator[Raw]:
        """What is left to do, in the input's order."""
        done, number = self._journal.done, -1
        for at, raw in lines_of(self._source):
            if not raw.strip():
                continue
            number += 1
            if number not in done:
                yield Raw(number, at, raw)
