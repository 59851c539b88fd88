"""`llamina embed` as work on a file's rows: texts in, an array of their embeddings (.npy) out, or the same rows with them (.jsonl).

    .csv, .tsv, .jsonl, lines -> Row -> ids -> Embedder.embed_ids -> record -> float32 [rows, dim], or the row's own keys and "embedding"

A record holds the float32 numbers themselves, in base64. A text that the model can't take stops the command before anything is computed.
"""
from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import FileError, OptionError
from .embedding import Embedder
from .job import Records
from .table import Row
from .texts_work import TextsWork

if TYPE_CHECKING:
    from ..answers.core import Core

FORMATS = ("npy", "jsonl")


@dataclass
class EmbedWork(TextsWork):
    """kind … max_tokens: as of Model.embed."""

    kind: str | None = None
    prompt: str | None = None
    pooling: str | None = None
    truncate_dim: int | None = None
    normalize: bool = True
    max_tokens: int | None = None

    def prepare(self) -> None:
        if self.pooling == "none" and self.out_format != "jsonl":
            raise OptionError("pooling none gives a row for each token: write them to a .jsonl file")
        super().prepare()

    def embedder(self, model: Core) -> Embedder:
        """Bound to a model. OptionError, UnsupportedError: what the model has no answer to."""
        found = Embedder(model, self.kind, pooling=self.pooling, truncate_dim=self.truncate_dim, normalize=self.normalize, truncate=self.cut,
                         prompt=self.prompt, max_tokens=self.max_tokens)
        if found.pooling == "none" and self.out_format != "jsonl":
            raise OptionError(f"{model.path}: says pooling none, a row for each token: write a .jsonl file, or say which pooling")
        return found

    # -- Work -----------------------------------------------------------------------------------------------------------------------------

    def bound(self) -> Mapping[str, Any]:
        return {"command": "embed", **super().bound(), "kind": self.kind, "prompt": self.prompt, "pooling": self.pooling, "truncate": self.truncate_dim,
                "normalize": self.normalize, "max_tokens": self.max_tokens}

    def records(self, model: Core, rows: Iterable[Row]) -> Records:
        embedder = self.embedder(model)
        if self.looking:
            yield from self.looked_at(rows, embedder.ids)
            return
        taken: deque[tuple[int, int, bool]] = deque()

        def texts() -> Iterator[list[int]]:
            for row in rows:
                before = embedder.truncated
                ids = embedder.ids(self.text_of(row), f"line {row.line}")
                taken.append((row.number, len(ids), embedder.truncated > before))
                yield ids
        for vector in embedder.embed_ids(texts()):
            number, tokens, cut = taken.popleft()
            yield number, {"tokens": tokens, "cut": cut, "shape": list(vector.shape), "float32": base64.b64encode(vector.astype("<f4").tobytes()).decode()}

    def write(self, file: BinaryIO, records: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """FileError: a row without embedding, which an array has no place for."""
        counted = self.counted(records())
        if self.out_format == "npy":
            self._write_array(file, counted)
            return
        for row, record in zip(self.rows(), counted):
            own = {"error": record["error"]} if "error" in record else {"embedding": self._vector(record).tolist()}
            file.write(json.dumps({**row.fields, **own}, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def _write_array(self, file: BinaryIO, records: Iterable[dict[str, Any]]) -> None:
        for number, record in enumerate(records):
            if "error" in record:
                raise FileError(f"{self.name}: row {number} has no embedding ({record['error']}): an .npy file has no place for that, a .jsonl file has")
            vector = self._vector(record)
            if not number:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (self.count, *vector.shape)})
            file.write(vector.tobytes())

    @staticmethod
    def _vector(record: Mapping[str, Any]) -> np.ndarray:
        return np.frombuffer(base64.b64decode(record["float32"]), "<f4").reshape(record["shape"])
