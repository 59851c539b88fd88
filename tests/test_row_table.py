"""A per-layer table that stays in the file: which rows are read, what is kept, and a file that is cut short, changed or damaged under it."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from llamina.engine.errors import FileError, FormatError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.model import load
from llamina.engine.run.runtime import Feed, Runtime
from page_cases import write_case
from runs import open_runtime

NAME = "per_layer_token_embd.weight"


def step(runtime: Runtime, ids: list[int]) -> np.ndarray:
    sequence = runtime.new_sequence()
    try:
        return runtime.step([Feed(sequence, ids, "all")]).copy()
    finally:
        assert sequence.length in (0, len(ids))
        sequence.close()


def table(runtime: Runtime) -> object:
    return runtime._per_layer


def place(path: Path) -> tuple[int, int, int]:
    """(where the table begins in the file, bytes of a row, rows)"""
    with open_gguf(path) as file:
        info = file.tensors[NAME]
        return info.offset, info.n_bytes // info.rows, info.rows


def test_a_row_is_read_once(tmp_path: Path) -> None:
    with open_runtime(write_case(tmp_path / "m.gguf", "gemma4", "Q8_0"), 1, 256) as runtime:
        before = table(runtime).reads  # type: ignore[attr-defined]
        first = step(runtime, [5, 9, 5, 7])
        assert table(runtime).reads - before == 3  # type: ignore[attr-defined]
        assert np.array_equal(step(runtime, [5, 9, 5, 7]), first)
        assert table(runtime).reads - before == 3  # type: ignore[attr-defined]


def test_few_kept_rows_give_the_same(tmp_path: Path) -> None:
    with open_runtime(write_case(tmp_path / "m.gguf", "gemma4", "Q4_0"), 1, 256) as runtime:
        ids = [*range(3, 60), *range(3, 20)]
        expected = step(runtime, ids)
        table(runtime)._most = 2  # type: ignore[attr-defined]
        table(runtime)._kept.clear()  # type: ignore[attr-defined]
        assert np.array_equal(step(runtime, ids), expected) and np.array_equal(step(runtime, ids), expected)
        assert len(table(runtime)._kept) == 2  # type: ignore[attr-defined]


def test_the_loaded_model_reads_on_when_the_file_is_gone(tmp_path: Path) -> None:
    path = write_case(tmp_path / "m.gguf", "gemma4")
    with load(path, threads=1, context=128) as model:
        expected = model.logits([1, 40, 50])
        path.unlink()
        assert np.array_equal(model.logits([1, 40, 50]), expected)
        model.logits([1, 60, 70, 80])


@pytest.mark.parametrize("how", ["cut", "written", "touched"])
def test_a_file_that_changes(tmp_path: Path, how: str) -> None:
    """A FileError of one line that names the file; no sequence has changed, and rows that are kept go on."""
    path = write_case(tmp_path / "m.gguf", "gemma4")
    with open_runtime(path, 1, 256) as runtime:
        kept = step(runtime, [5, 6])
        offset, row_bytes, _ = place(path)
        if how == "cut":
            os.truncate(path, offset + 10 * row_bytes)
        elif how == "written":
            with open(path, "r+b") as file:
                file.seek(offset + 40 * row_bytes)
                file.write(b"\x01" * row_bytes)
            os.utime(path, ns=(1, 1))
        else:
            os.utime(path, ns=(1, 1))
        with pytest.raises(FileError) as error:
            step(runtime, [40, 41])
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        assert np.array_equal(step(runtime, [5, 6]), kept)


def test_not_a_number(tmp_path: Path) -> None:
    path = write_case(tmp_path / "m.gguf", "gemma4")
    offset, row_bytes, _ = place(path)
    with open(path, "r+b") as file:
        file.seek(offset + 40 * row_bytes + 8)
        file.write(np.float32(np.nan).tobytes())
    with open_runtime(path, 1, 256) as runtime:
        step(runtime, [5, 6])
        with pytest.raises(FormatError, match="per_layer_token_embd.*row 40"):
            step(runtime, [5, 40])
