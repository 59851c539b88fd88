"""The header of a GGUF file on the hub, without the file: enough to say whether the model would run.

    hf:org/repo:Q4_K_M -> listing, its files -> the first MB of each shard, by range requests -> files of the right length with holes -> open_gguf

More is asked for until the header is complete. A transfer of a header is a few MB; of a vocabulary of 128,000 tokens about 8.
"""
from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..errors import FormatError, LlaminaError, UnsupportedError
from ..gguf.file import GGUFFile, open_gguf
from .hub_client import Listing, RemoteFile, beginning
from .verdict import Verdict, judge

STEPS = (1 << 20, 8 << 20, 40 << 20)
"""Bytes of a file's beginning, tried one after the other; a header has at most so many (gguf/header.py)."""
MAX_SHARDS = 32
"""Of a file with more, nothing is asked beforehand."""


@contextlib.contextmanager
def remote_gguf(listing: Listing, files: Sequence[RemoteFile]) -> Iterator[GGUFFile]:
    """The GGUF file `files` (one, or all shards), open, with holes where its weights would be. Errors as of open_gguf and hub_client.fetch."""
    with tempfile.TemporaryDirectory(prefix="llamina-") as folder:
        paths = [Path(folder, PurePosixPath(file.path).name) for file in files]
        before = ""
        for i, n in enumerate(STEPS):
            for file, path in zip(files, paths):
                if i == 0 or STEPS[i - 1] < file.size:
                    path.write_bytes(beginning(listing, file, n))
                    with open(path, "r+b") as whole:
                        whole.truncate(file.size)
            try:
                gguf = open_gguf(paths[0])
            except (FormatError, UnsupportedError) as error:  # damaged, or not all of the header
                if n >= max(file.size for file in files) or n == STEPS[-1] or str(error) == before:
                    raise
                before = str(error)
                continue
            if n == STEPS[-1] or all(min((t.offset for t in gguf.tensors.values() if t.path == path), default=0) <= min(n, file.size)
                                     for file, path in zip(files, paths)):
                with gguf:
                    yield gguf
                return
            gguf.close()


def judge_remote(listing: Listing, files: Sequence[RemoteFile], context: int | None = None) -> Verdict | None:
    """Whether a GGUF file of the hub would run here; None if that can't be told beforehand (too many shards)."""
    if len(files) > MAX_SHARDS:
        return None
    total = sum(file.size for file in files)
    try:
        with remote_gguf(listing, files) as gguf:
            return judge(gguf, context, total)
    except (FormatError, UnsupportedError) as error:
        return Verdict(_clean(error, files), total)


def check_before_download(name: str) -> None:
    """UnsupportedError for a model of the hub that would not run here and is not on this disk yet, before it is downloaded. Errors as of hub.model_file."""
    from .hub import cached_file, find_gguf
    listing, files = find_gguf(name)
    if listing.cached or cached_file(listing, files):
        return
    verdict = judge_remote(listing, files)
    if verdict is not None and verdict.problem:
        raise UnsupportedError(f"{listing.name}: {files[0].path} would not run here: {verdict.problem}; nothing was downloaded")


def _clean(error: LlaminaError, files: Sequence[RemoteFile]) -> str:
    """An error's text without the temporary file's path."""
    text = str(error)
    name = PurePosixPath(files[0].path).name
    at = text.find(f"{name}: ")
    return text[at + len(name) + 2:] if at >= 0 else text
