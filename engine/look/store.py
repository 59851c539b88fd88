"""Activations in a folder: .npy files of bounded size and an index, which says what they are of; what was begun can be gone on with.

    index.json                       model digest, arithmetic version, KV type, names with shapes, positions, and the parts that are whole
    00000.ids.npy, .lengths.npy      the part's texts: their ids in a row, int32, and how many each has
    00000.blocks.3.hook_resid_post.npy   float32 [rows of all its texts, …]; of attention's maps: all numbers in a row

A part is written when some megabytes are together, its files first, then the index, by rename: killed anywhere, the folder holds whole parts. The next run with
the same model, names, positions and texts computes only what is missing.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels import ARITHMETIC_VERSION
from ..errors import FileError, FormatError, OptionError
from ..files import new_file, paths, read_file, shown, write_file, writing
from ..run.watch import watching
from .activations import stream
from .names import Place
from .spans import Positions
from .texts import ids_of

if TYPE_CHECKING:
    from ..answers.core import Core

VERSION = 1
INDEX = "index.json"
PART_BYTES = 64 << 20
_MOST_INDEX = 64 << 20


class Stored(Mapping[str, Any]):
    """Activations in a folder: name -> arrays as of `Activations`, read when they are asked for. .ids: of the text, or a sequence of such; .folder; .info: what
    the index says; rows(name): part by part. FileError, FormatError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.info = json.loads(read_file(folder / INDEX, _MOST_INDEX, "an index of activations"))
            if self.info["llamina_activations"] != VERSION:
                raise FormatError(f"{shown(folder / INDEX)}: is of version {self.info['llamina_activations']!r}, this llamina reads {VERSION}")
            self.single = bool(self.info["single"])
            self.names: dict[str, tuple[tuple[int, ...], str]] = {
                name: (tuple(int(n) for n in of["shape"]), str(of["map"])) for name, of in self.info["names"].items()}
            self.parts = [str(part["part"]) for part in self.info["parts"]]
            self._positions = Positions(_unwritten(self.info["positions"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{shown(folder / INDEX)}: is no index of activations: move it away, or choose another folder") from None
        self._lengths = [self._array(part, "lengths") for part in self.parts]
        self._offsets: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._where = [(part, i) for part, lengths in enumerate(self._lengths) for i in range(len(lengths))]

    def _array(self, part: str, name: str) -> np.ndarray:
        path = self.folder / f"{part}.{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise FileError(f"{shown(path)}: cannot be read ({error.strerror or type(error).__name__}): the folder lacks a part of its index") from None
        except ValueError:
            raise FormatError(f"{shown(path)}: is damaged: remove the folder and compute it again") from None

    def _places(self, part: int, i: int) -> tuple[int, np.ndarray, int, int]:
        """Of a text: (its length, positions, its first row, its first number of a map's for one head)."""
        if part not in self._offsets:
            lengths = self._lengths[part].astype(np.int64)
            rows = np.array([len(self._positions.of(int(n))) for n in lengths], np.int64)
            self._offsets[part] = np.concatenate([[0], np.cumsum(rows)]), np.concatenate([[0], np.cumsum(rows * lengths)])
        n = int(self._lengths[part][i])
        return n, self._positions.of(n), int(self._offsets[part][0][i]), int(self._offsets[part][1][i])

    def text(self, name: str, index: int) -> np.ndarray:
        """One text's array."""
        part, i = self._where[index]
        shape, map = self.names[name]
        n, positions, row, number = self._places(part, i)
        array = self._array(self.parts[part], name)
        if not map:
            return array[row:row + len(positions)]
        heads = shape[0]
        return array[heads * number:heads * (number + len(positions) * n)].reshape(heads, len(positions), n)

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """Part by part, all texts' rows one after the other: float32 [rows, …] (of a map: its numbers)."""
        return (self._array(part, name) for part in self.parts)

    @property
    def ids(self) -> Any:
        found = _Texts(len(self._where), self._ids)
        return found[0] if self.single else found

    @property
    def positions(self) -> Any:
        found = _Texts(len(self._where), lambda i: self._positions.of(len(self._ids(i))))
        return found[0] if self.single else found

    def _ids(self, index: int) -> list[int]:
        part, i = self._where[index]
        first = int(self._lengths[part][:i].sum())
        return [int(id) for id in self._array(self.parts[part], "ids")[first:first + int(self._lengths[part][i])]]

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        found = _Texts(len(self._where), lambda i: self.text(name, i))
        return found[0] if self.single else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<Activations of {len(self._where)} texts in {self.folder}: {', '.join(self)}>"


class _Texts(Sequence[Any]):
    """Something of each text, fetched when asked for."""

    def __init__(self, n: int, get: Any) -> None:
        self._n, self._get = n, get

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self._get(j) for j in range(*i.indices(self._n))]
        if not -self._n <= i < self._n:
            raise IndexError(i)
        return self._get(i % self._n)


class _Writer:
    """Texts as they come -> parts."""

    def __init__(self, folder: Path, header: dict[str, Any], chosen: list[Place]) -> None:
        self.folder, self._header, self._chosen = folder, header, chosen
        self._ids: list[list[int]] = []
        self._arrays: dict[str, list[np.ndarray]] = {place.name: [] for place in chosen}
        self._bytes = 0

    def add(self, ids: list[int], found: dict[str, np.ndarray]) -> None:
        self._ids.append(ids)
        for name, array in found.items():
            self._arrays[name].append(array)
            self._bytes += array.nbytes
        if self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """What is together becomes a part. FileError (a full disk …): the parts before are whole."""
        if not self._ids:
            return
        part = f"{len(self._header['parts']):05}"
        every = np.array([id for ids in self._ids for id in ids], np.int32)
        self._save(part, "ids", every)
        self._save(part, "lengths", np.array([len(ids) for ids in self._ids], np.int64))
        for place in self._chosen:
            arrays = self._arrays[place.name]
            self._save(part, place.name, np.concatenate([a.reshape(-1) for a in arrays] if place.map else arrays))
        self._header["parts"].append({"part": part, "texts": len(self._ids), "tokens": len(every), "ids": hashlib.sha256(every.tobytes()).hexdigest()})
        self.save_index()
        self._ids, self._bytes = [], 0
        self._arrays = {place.name: [] for place in self._chosen}

    def _save(self, part: str, name: str, array: np.ndarray) -> None:
        path = self.folder / f"{part}.{name}.npy"
        with writing(path), new_file(path) as new:
            np.save(new.file, array, allow_pickle=False)

    def save_index(self) -> None:
        write_file(self.folder / INDEX, json.dumps(self._header, indent=1) + "\n")


def write(model: Core, texts: Iterable[Any], single: bool, chosen: list[Place], positions: Positions, to: Any) -> Stored:
    """Activations of texts into a folder -> the folder, opened. FileError: it holds something else, or activations of another model, other names, positions or
    texts, or can't be written."""
    if watching(model.scheduler):
        raise OptionError("activations within a hooked block can't go to a folder: its index couldn't say what was changed; leave out `to`")
    header = {"llamina_activations": VERSION, "model": model.digest, "arithmetic": ARITHMETIC_VERSION, "kv": model.runtime.kv_name, "single": single,
              "names": {place.name: {"shape": list(place.shape), "map": place.map} for place in chosen}, "positions": _written(positions.asked), "parts": []}
    with paths(to):
        folder = Path(to)
        if folder.exists() and not folder.is_dir():
            raise FileError(f"{shown(folder)}: is not a folder: choose another place for activations")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        there = (folder / INDEX).exists()
        if not there and any(not path.name.startswith(".") and not _ours(path.name) for path in folder.iterdir()):
            raise FileError(f"{shown(folder)}: holds other files: choose an empty folder for activations")
    every = iter(texts)
    if there:
        _go_on(model, folder, header, every)
    writer = _Writer(folder, header, chosen)
    if not there:
        writer.save_index()
    try:
        for ids, _, found in stream(model, every, chosen, positions):
            writer.add(ids, found)
    finally:
        writer.flush()
    return Stored(folder)


def _ours(name: str) -> bool:
    """Of a part that was begun when a run was killed."""
    return name.endswith(".npy") and name[:5].isdigit()


def _go_on(model: Core, folder: Path, header: dict[str, Any], texts: Iterator[Any]) -> None:
    """Take over the parts that are there, and the texts that they hold. FileError: they are of something else."""
    stored = Stored(folder)
    for key, what in (("model", "of another model"), ("arithmetic", "of another version of llamina's arithmetic"), ("kv", "of another type of keys and values"),
                      ("names", "of other names"), ("positions", "of other positions"), ("single", "of texts given in another way")):
        if stored.info.get(key) != header[key]:
            raise FileError(f"{shown(folder)}: holds activations {what} ({key} {stored.info.get(key)!r}, now {header[key]!r}): choose another folder")
    known = stored._where and _Texts(len(stored._where), stored._ids)
    for i in range(len(stored._where)):
        text = next(texts, None)
        if text is None or ids_of(model, text) != known[i]:
            raise FileError(f"{shown(folder)}: holds activations of other texts (text {i} is not the same): choose another folder")
    header["parts"] = list(stored.info["parts"])


def _written(asked: Any) -> Any:
    return {"slice": [asked.start, asked.stop, asked.step]} if isinstance(asked, slice) else asked


def _unwritten(value: Any) -> Any:
    return slice(*value["slice"]) if isinstance(value, dict) else value


def load_activations(folder: Any) -> Stored:
    """Open a folder that `Model.activations(to=…)` wrote. FileError, FormatError."""
    with paths(folder):
        return Stored(Path(folder))
