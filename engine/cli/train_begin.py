"""`llamina train config.json --full`: the model that training begins with, drawn and written where it can be loaded from, until the run ends.

    config.json, tokenizer, seed ──► OUTPUT.training/start.gguf (the same bytes each time), or with --show, a temporary folder
"""
from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import OptionError
from ..files import shown, writing
from ..train.checkpoint import check_new, folder_of
from .progress import Progress

START = "start.gguf"


def is_config(model: str) -> bool:
    return model.endswith(".json")


@contextlib.contextmanager
def begun(config: str, tokenizer: str | None, seed: int, full: bool, output: str | None, progress: Progress) -> Iterator[str]:
    """The file's name. OptionError, FileError, FormatError, UnsupportedError."""
    if not full:
        raise OptionError(f"{shown(config)}: is a configuration, of a model without weights: train all of them with --full")
    if output is None:
        with tempfile.TemporaryDirectory(prefix="llamina-") as folder:
            yield _written(config, tokenizer, seed, Path(folder), progress)
        return
    check_new(Path(output))
    place = folder_of(Path(output))
    with writing(place, "the checkpoint"):
        place.mkdir(exist_ok=True)
    try:
        yield _written(config, tokenizer, seed, place, progress)
    finally:
        with contextlib.suppress(OSError):
            (place / START).unlink()
        with contextlib.suppress(OSError):
            place.rmdir()  # where no checkpoint is


def _written(config: str, tokenizer: str | None, seed: int, folder: Path, progress: Progress) -> str:
    from ...convert.convert import convert
    from ...convert.sources import open_config
    with contextlib.closing(open_config(config, tokenizer, seed)) as source:
        progress.stage("drawing the first weights")
        convert(source, folder / START, "f32", verify=False)
        for note in source.notes:
            progress.note(note)
    return os.fspath(folder / START)
