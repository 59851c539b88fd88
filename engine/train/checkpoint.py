"""What a training run has come to, on disk: killed anywhere, the next run goes on from it, and ends with the same file.

    OUTPUT.training/  checkpoint-0, checkpoint-1: written in turn, each whole or not at all (fsync, rename), so that one is always there
                      lock: held by the run, as long as its process lives
    a checkpoint      SHA-256 of the rest | a line of JSON: what it is bound to, step, history, arrays' names and shapes | their numbers, float32

Bound to the base model, the data, and every option that changes a number: another run's is refused, and what differs is named.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..answers.batch_journal import difference
from ..errors import FileError, FormatError, LlaminaError, OptionError
from ..files import NewFile, held, open_regular, paths, reason, shown, writing

VERSION = 1
_MAX_HEADER = 1 << 28
_NAMES = ("checkpoint-0", "checkpoint-1")


@dataclass
class State:
    """step: how many were done. history: a record for each, and of validations. arrays: weights and moments, by name."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def folder_of(output: Path) -> Path:
    """Where the checkpoints of an output are."""
    return output.with_name(output.name + ".training")


def check_new(output: Path) -> None:
    """FileError: a directory, or it exists already and is not being trained."""
    with paths(output):
        if output.is_dir():
            raise FileError(f"{shown(output)}: is a directory: expected a file's name")
        if os.path.lexists(output) and not folder_of(output).is_dir():
            raise exists(output)


def exists(output: Path) -> FileError:
    return FileError(f"{shown(output)}: exists already: move it away, or choose another name")


class Checkpoints:
    """Of one output; a context manager that holds the lock. FileError: the output exists already, can't be written, or is being trained by another run."""

    def __init__(self, output: Path) -> None:
        if not output.name or output.name == "..":
            raise FileError(f"{shown(output)}: is a directory: expected a file's name")
        self.output, self.folder = output, folder_of(output)
        self._lock: int | None = None
        self._next = 0
        self.note: str | None = None
        """A line about a checkpoint that could not be used."""
        check_new(output)
        while not self._hold():
            pass
        if os.path.lexists(output) and not self._begun():  # done by a run that ended, or was killed, while we came: there is nothing to go on with
            self.close()
            raise exists(self.output)

    def _begun(self) -> bool:
        """Whether a checkpoint is there."""
        return any(os.path.lexists(self.folder / name) for name in _NAMES)

    def _hold(self) -> bool:
        """Whether the lock that the folder has is ours now. It is not where a run that ended took the folder away between two of our steps."""
        path = self.folder / "lock"
        with writing(self.folder, "the checkpoint"):
            try:
                self.folder.mkdir(exist_ok=True)
            except FileExistsError:  # something else is there; or the folder was, and went before mkdir could look what it is
                with contextlib.suppress(FileNotFoundError):
                    if not stat.S_ISDIR(os.lstat(self.folder).st_mode):
                        raise
                return False
        try:
            with writing(path):
                try:
                    self._lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
                except FileNotFoundError:
                    return False
                if not held(self._lock):
                    raise FileError(f"{shown(self.folder)}: another run is training it: wait for it, or choose another output")
                try:
                    ours = os.path.samestat(os.fstat(self._lock), os.stat(path, follow_symlinks=False))
                except FileNotFoundError:
                    ours = False
            if ours:
                return True
        except BaseException:
            self._let_go()
            raise
        self._let_go()
        return False

    def _let_go(self) -> None:
        """Of the lock, and of nothing else: the folder is the other run's, also where it holds no checkpoint yet."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- reading --------------------------------------------------------------------------------------------------------------------------

    def load(self, bound: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], steps: int) -> State | None:
        """The newest whole checkpoint; None if there is none. shapes: of all arrays; steps: of the whole run. OptionError names what another run did
        otherwise; FormatError: there are checkpoints, and none is whole."""
        found: list[tuple[int, int, dict[str, Any], dict[str, np.ndarray]]] = []
        damaged: list[str] = []
        for i, name in enumerate(_NAMES):
            path = self.folder / name
            if not os.path.lexists(path):
                continue
            try:
                header, arrays = _read(path)
                found.append((header["step"], i, header, arrays))
            except LlaminaError as error:
                damaged.append(str(error))
        if not found:
            if damaged:
                raise FormatError(f"{damaged[0]}; no other checkpoint is whole: remove {shown(self.folder)} to begin anew")
            return None
        step, i, header, arrays = max(found, key=lambda one: one[0])
        self._next = 1 - i
        began = header["bound"].get("options")
        if isinstance(began, dict) and "backward" in bound.get("options", ()):
            began.setdefault("backward", "float32")  # which it was before there was another
        if different := difference(header["bound"], json.loads(json.dumps(bound))):
            keys, values = different
            raise OptionError(f"{shown(self.output)}: was begun with other {keys[-1]} ({values}): go on as it was begun, or remove "
                              f"{shown(self.folder)} to begin anew")
        if {name: a.shape for name, a in arrays.items()} != dict(shapes) or step > steps:
            raise FormatError(f"{shown(self.folder / _NAMES[i])}: holds other arrays or steps than these options make: remove {shown(self.folder)} to begin "
                              "anew")
        if damaged:
            self.note = f"{damaged[0]}: going on from the one of step {step}"
        return State(step, header["history"], arrays)

    # -- writing --------------------------------------------------------------------------------------------------------------------------

    def save(self, bound: Mapping[str, Any], state: State) -> None:
        """In the place of the older one. FileError: then both are what they were."""
        head = json.dumps({"llamina_training": VERSION, "bound": bound, "step": state.step, "history": state.history,
                           "arrays": [[name, list(a.shape)] for name, a in state.arrays.items()]}, allow_nan=False).encode() + b"\n"
        digest = hashlib.sha256(head)
        for array in state.arrays.values():
            digest.update(np.ascontiguousarray(array, "<f4").data)
        path = self.folder / _NAMES[self._next]
        with writing(path, "the checkpoint"), NewFile(path) as new:
            new.file.write(digest.hexdigest().encode() + b"\n" + head)
            for array in state.arrays.values():
                new.file.write(np.ascontiguousarray(array, "<f4").data)
        self._next = 1 - self._next

    def remove(self) -> None:
        """When the output is there: nothing is left of them."""
        for name in _NAMES:
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()
        self.close()

    def close(self) -> None:
        """Give the lock back; a folder that holds no checkpoint goes."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            if not self._begun():
                (self.folder / "lock").unlink()
                self.folder.rmdir()
        self._let_go()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _entries(header: Any, size: int) -> list[tuple[str, tuple[int, ...]]] | None:
    """(name, shape) of a checkpoint's arrays; None if the header is none of ours, or has other than `size` bytes of them."""
    if not isinstance(header, dict) or header.get("llamina_training") != VERSION or not isinstance(header.get("bound"), dict):
        return None
    step, history, arrays = (header.get(key) for key in ("step", "history", "arrays"))
    if type(step) is not int or step < 0 or not isinstance(history, list) or not all(map(_is_record, history)) or not isinstance(arrays, list):
        return None
    found: list[tuple[str, tuple[int, ...]]] = []
    for entry in arrays:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or not isinstance(entry[1], list):
            return None
        name, shape = entry
        if len(shape) > 8 or not all(type(n) is int and 0 <= n <= size for n in shape):
            return None
        found.append((name, tuple(shape)))
    return found if sum(4 * math.prod(shape) for _, shape in found) == size and len(dict(found)) == len(found) else None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _is_record(record: Any) -> bool:
    """Of a step, or of a validation: what the loop and who shows it read of one."""
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0 or not ("loss" in record or "valid_loss" in record):
        return False
    numbers = [record[key] for key in ("loss", "valid_loss") if key in record] + ([record.get("valid_accuracy")] if "valid_loss" in record else [])
    return all(type(x) in (int, float) and math.isfinite(x) for x in numbers)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """FormatError unless it is whole."""
    where = shown(path)
    with open_regular(path, "a checkpoint") as file:
        try:
            said = file.readline(80)
            head = file.readline(_MAX_HEADER)
            digest = hashlib.sha256(head)
            left = os.fstat(file.fileno()).st_size - file.tell()
            try:
                header = json.loads(head, parse_constant=_no_constant)
                entries = _entries(header, left)
            except (ValueError, OverflowError, RecursionError):
                entries = None
            if entries is None:
                raise FormatError(f"{where}: is no whole checkpoint of this version of llamina")
            arrays = {}
            for name, shape in entries:
                array = np.empty(shape, "<f4")
                if array.size and file.readinto(memoryview(array.reshape(-1)).cast("B")) != array.nbytes:  # type: ignore[attr-defined, arg-type]
                    raise FormatError(f"{where}: ended while it was read")
                digest.update(array.data)
                arrays[name] = array.astype(np.float32, copy=False)
        except OSError as error:
            raise FileError(f"{where}: cannot be read ({reason(error)})") from None
    if said != digest.hexdigest().encode() + b"\n":
        raise FormatError(f"{where}: is damaged (its checksum is another)")
    return header, arrays
