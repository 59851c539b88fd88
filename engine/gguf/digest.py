"""The full SHA-256 of a model file, computed when it is first needed and kept by path, size and time of writing.

    full_digest(stamps) -> the user's cache folder knows it ─► told;  else the file is read once (seconds per gigabyte)

What a session or a prefix cache carries is the quick digest of file.py (`model_digest`), which is computed while a model is loaded; this one is for
whoever must tell files apart for good: a server's fingerprint, files of results. A file that has changed since it was loaded is a FileError.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence

from ...kernels.compile_cache import user_folder
from ...kernels.new_file import write_bytes
from ...kernels.trusted import read_own
from ..errors import FileError
from ..files import StableFile, Stamp

MOST_KEPT = 1000
_CHUNK = 1 << 22


def full_digest(stamps: Sequence[Stamp]) -> str:
    """Hex digits of the SHA-256 of a model's file; of a split one, of its shards' SHA-256s in order. FileError."""
    found = [_of_file(stamp) for stamp in stamps]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def _of_file(stamp: Stamp) -> str:
    path = os.path.realpath(stamp.path)
    key = f"{path} {stamp.size} {stamp.written}"
    known = _known()
    if isinstance(value := known.get(key), str) and len(value) == 64:
        with StableFile(stamp.path, "a GGUF file") as file:
            _same(stamp, file)
        return value
    digest = hashlib.sha256()
    with StableFile(stamp.path, "a GGUF file") as file:
        _same(stamp, file)
        for at in range(0, file.size, _CHUNK):
            digest.update(file.read(at, min(_CHUNK, file.size - at)))
        file.check()
    known[key] = digest.hexdigest()
    _keep(known)
    return digest.hexdigest()


def _same(stamp: Stamp, file: StableFile) -> None:
    if (file.stamp.size, file.stamp.written, file.stamp.identity) != (stamp.size, stamp.written, stamp.identity):
        raise FileError(f"{stamp.path}: has changed since the model was loaded, so its digest can't be told: load it again")


def _known() -> dict[str, object]:
    """What earlier processes kept; nothing if the file can't be trusted or read."""
    folder = user_folder()
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_own(folder / "digests.json")) if folder else {}
        if isinstance(found, dict):
            return found
    return {}


def _keep(known: dict[str, object]) -> None:
    folder = user_folder()
    if folder is not None:
        with contextlib.suppress(OSError, FileError):
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / "digests.json", json.dumps(dict(list(known.items())[-MOST_KEPT:])).encode())
