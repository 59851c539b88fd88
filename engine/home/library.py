"""The models folder: short names for model files, and what is there.

    "tiny" -> find() -> FOLDER/tiny.gguf, FOLDER/tiny, the only file of that name (or first shard) in a subfolder, or the only one whose name has "tiny" in it

The folder is $LLAMINA_HOME, else llamina/models in the user's data folder. What exists as a path is that path, whatever the folder holds.
"""
from __future__ import annotations

import difflib
import glob
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileError, LlaminaError, OptionError

_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


def models_folder() -> Path:
    """Where models lie; it need not exist."""
    name = os.environ.get("LLAMINA_HOME")
    if name:
        return Path(name).expanduser()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "llamina" / "models"


def is_hub_name(name: str) -> bool:
    """Whether it can only be a name of the hub (hub.py), or an address of it as copied from a browser."""
    return name.startswith(("hf:", "https://", "http://"))


def short_name(path: Path, folder: Path) -> str:
    """What `find` takes for a file of the folder: its path there, without the suffix and the shard's number."""
    stem = path.relative_to(folder).with_suffix("").as_posix()
    match = _SHARD.fullmatch(stem)
    return match[1] if match else stem


def model_files(folder: Path) -> list[Path]:
    """The .gguf files in the folder and below, of split ones the first shard, sorted by name. Links to folders are not followed, so it ends."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            match = _SHARD.fullmatch(name[:-5]) if name.endswith(".gguf") else None
            if name.endswith(".gguf") and not name.startswith(".") and (match is None or int(match[2]) == 1):
                found.append(Path(parent, name))
    return sorted(found)


def find(name: str) -> Path:
    """MODEL as users write it, not "demo" and not hf:… -> the file's path, which may not exist if it is more than a name. FileError: a name that is nowhere;
    OptionError: several files of the models folder could be meant."""
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    try:
        if "\0" in name or path.is_absolute() or name.startswith(".") or path.exists() and not path.is_dir():
            return path
        folder = models_folder()
        wanted = name.removesuffix(".gguf")
        files = {short_name(file, folder): file for file in model_files(folder)}
    except (OSError, RuntimeError):  # no home, say
        return path
    if wanted in files:
        return files[wanted]
    matches = [file for short, file in files.items() if short.rpartition("/")[2] == wanted]
    if not matches and not name.endswith(".gguf") and not path.exists():
        matches = [files[short] for short in like(name, files)]
    if len(matches) > 1:
        raise OptionError(f"{name}: could be {' or '.join(short_name(file, folder) for file in matches)} in {folder}: say which")
    if not matches and _HUB.fullmatch(name) and not name.endswith(".gguf") and not path.parent.exists():
        raise FileError(f"{name}: no such file; if it is a model of the Hugging Face hub, say hf:{name}, or fetch it with llamina pull {name}")
    if not matches and not path.exists() and Path(name).name == name:
        close = difflib.get_close_matches(wanted, [*files, "demo"], 1)
        known = ", ".join(list(files)[:8]) + (", …" if len(files) > 8 else "")
        hint = f": did you mean {close[0]}?" if close else f", which has {known}" if known else ": llamina pull fetches models, demo is always there"
        raise FileError(f"{name}: no such file, and no model of that name in {folder}{hint}")
    return matches[0] if matches else path


def like(name: str, known: Iterable[str]) -> list[str]:
    """The short names that hold every part of `name` ("smollm2", "smollm2:q4_k_m"), in any case; of several the one that is it but for the case."""
    parts = [part for part in name.lower().split(":") if part]
    found = [short for short in known if parts and all(part in short.lower() for part in parts)]
    same = [short for short in found if short.lower() == name.lower()]
    return same if len(same) == 1 else found


def files_of(name: str) -> list[Path]:
    """The file of a short name in the models folder, or its shards. FileError if there is none: here the whole name must be given."""
    folder = models_folder()
    files = {short_name(file, folder): file for file in model_files(folder)}
    first = files.get(name.removesuffix(".gguf"))
    if first is None:
        close = like(name, files) or difflib.get_close_matches(name, files, 3)
        hint = f": did you mean {' or '.join(close[:3])}?" if close else ""
        raise FileError(f"{name}: no model of that name in {folder}{hint}")
    match = _SHARD.fullmatch(first.stem)
    return sorted(first.parent.glob(f"{glob.escape(match[1])}-?????-of-{match[3]}.gguf")) if match else [first]


@dataclass(frozen=True)
class Entry:
    """A model of the folder. bytes: of all shards; problem: why it does not run, or None; memory: bytes that running it takes, about."""

    name: str
    path: Path
    bytes: int
    architecture: str | None
    parameters: int | None
    formats: str | None
    problem: str | None
    memory: int | None = None
    chat: str | None = None


def describe(path: Path, name: str) -> Entry:
    """Read a file's header, nothing more."""
    from ..gguf.file import open_gguf
    from .verdict import judge, without_path
    try:
        with open_gguf(path) as gguf:
            found = judge(gguf, deep=False)
        return Entry(name, path, found.bytes, found.architecture, found.parameters, found.format, found.problem, found.memory, found.chat)
    except LlaminaError as error:
        problem = without_path(error, path)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    try:
        n_bytes = path.stat().st_size
    except OSError:
        n_bytes = 0
    return Entry(name, path, n_bytes, None, None, None, problem)


def entries() -> list[Entry]:
    """All models of the folder."""
    folder = models_folder()
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder}: is not a folder: set LLAMINA_HOME to one")
    return [describe(path, short_name(path, folder)) for path in model_files(folder)]
