"""PyTorch's zip files (.pth, .pt, .bin) read without torch, and without running anything that they ask for.

    zip directory -> archive/data.pkl -> a small stack machine over its opcodes -> dict with `Stored` tensors, at archive/data/0, 1, ...

A pickle is a program. This interpreter knows the opcodes that torch.save writes, and its values are plain data: a GLOBAL is but a name, looked up in a
fixed table of what tensors are made of; there is nothing to import, call or subclass. Any other opcode or name is refused by its name. Keys of
dicts are strings or whole numbers, every length is checked against the file, and the number of opcodes and of what they spell out is bounded, so that
hostile files cost little time and memory. Storages must be stored uncompressed, as torch does, which rules out zip bombs.

Sources: pickletools' documentation of the opcodes; torch/serialization.py and torch/_utils.py (persistent ids, _rebuild_tensor_v2).
"""
from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ..engine.errors import FormatError, UnsupportedError
from ..engine.gguf.header import quote
from .sources.base import SourceFile, Stored

MAX_PICKLE = 64 << 20  # bytes; that of a 405B model's shard has less than one million
MAX_OPCODES = 500_000
MAX_ENTRIES = 200_000
MAX_PLAIN, MAX_DEPTH = 10_000, 8  # of settings beside the weights
MAX_KEY = 1 << 32  # whole numbers as keys: larger ones can be chosen so that all meet in one place of a dict
MAX_ELEMENTS = 1 << 40
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before 1.6 begins with this number, pickled

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "ByteStorage": "U8", "CharStorage": "I8",
    "ShortStorage": "I16", "IntStorage": "I32", "LongStorage": "I64", "BoolStorage": "BOOL",
}
_TORCH_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint8": "U8",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "bool": "BOOL", "uint16": "U16", "uint32": "U32", "uint64": "U64",
}
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}  # the others: 1


@dataclass(frozen=True)
class Global:
    """A name that the pickle would import: never more than the name."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A run of bytes in the zip; dtype "" if untyped."""

    key: str
    dtype: str
    offset: int  # bytes into the file
    n_bytes: int


class Ordered(dict):
    """What a pickled OrderedDict becomes; torch sets an attribute (_metadata) on it, which is ignored."""


_MARK = object()


def load_checkpoint(file: SourceFile) -> Any:
    """The object that torch.save wrote: dicts, lists, numbers, strings, and tensors as `Stored` without a name.

    FormatError: damaged or hostile. UnsupportedError: old or TorchScript files, and whatever is no tensor, dict, list or number, by its name."""
    entries, prefix = _directory(file)
    pickle = entries[prefix + "data.pkl"]
    if pickle[1] > MAX_PICKLE:
        raise FormatError(f"{file.path}: data.pkl has {pickle[1]} bytes, expected at most {MAX_PICKLE}")
    order = entries.get(prefix + "byteorder")
    if order and file.read(order[0], min(order[1], 16)) != b"little":
        raise UnsupportedError(f"{file.path}: its numbers are big-endian; save it again on a little-endian machine")
    return _Machine(file, entries, prefix).run(file.read(*pickle))


def load_state_dict(file: SourceFile) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The tensors of a state dict, or of a training checkpoint that has one as "model", "state_dict" or "module"; and the checkpoint's other values.
    Prefixes that torch.compile and DataParallel put before names are taken off. Raises what load_checkpoint does, FormatError if there is none."""
    found = load_checkpoint(file)
    rest: dict[str, Any] = {}
    if isinstance(found, dict):
        inner = next((key for key in ("model", "state_dict", "module") if isinstance(found.get(key), dict)), None)
        if inner:
            left = [MAX_PLAIN]
            rest = {key: _plain(value, left) for key, value in found.items() if isinstance(key, str) and key != inner}
            found = found[inner]
    tensors: dict[str, Stored] = {}
    for key, value in found.items() if isinstance(found, dict) else ():
        if not isinstance(value, Stored):
            continue
        name = str(key).removeprefix("_orig_mod.").removeprefix("module.")
        if name in tensors:
            raise FormatError(f"{file.path}: tensor {quote(name)} is there twice, with and without a prefix")
        tensors[name] = replace(value, name=name)
    if not tensors:
        raise FormatError(f"{file.path}: holds no state dict (a dict of tensors), found a {type(found).__name__}")
    return tensors, rest


def _plain(value: Any, left: list[int], depth: int = 0) -> Any:
    """Settings beside the weights, copied as far as they are plain and small: a pickle's values may share parts, so that a few bytes of it spell out more
    than memory holds, or nest without end. left: how many more values; what goes beyond is but named."""
    left[0] -= 1
    if value is None or isinstance(value, (bool, float, str)) or isinstance(value, int) and abs(value) < 1 << 64:
        return value
    if left[0] > 0 and depth < MAX_DEPTH:
        if isinstance(value, dict) and len(value) <= left[0]:
            return {key: _plain(item, left, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)) and len(value) <= left[0]:
            return type(value)(_plain(item, left, depth + 1) for item in value)
    return f"({type(value).__name__})"


def _directory(file: SourceFile) -> tuple[dict[str, tuple[int, int]], str]:
    """Every entry of the zip: name -> (offset of its bytes in the file, how many); and the folder that holds data.pkl."""
    path = file.path
    head = file.read(0, min(32, file.size))
    if head[:4] != b"PK\x03\x04":
        if LEGACY_MAGIC in head:
            raise UnsupportedError(f"{path}: is a PyTorch file of before version 1.6 (a bare pickle): load and save it again with a newer PyTorch")
        if head[:1] == b"\x80":
            raise UnsupportedError(f"{path}: is a bare pickle, not a zip file as PyTorch writes since 1.6: it is not opened, save it again with PyTorch")
        raise FormatError(f"{path}: is no PyTorch file (it does not begin as a zip file)")
    entries: dict[str, tuple[int, int]] = {}
    try:
        with open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, UnicodeDecodeError, EOFError, OverflowError) as error:
        raise FormatError(f"{path}: is a damaged zip file ({error}): get it again") from None
    if len(infos) > MAX_ENTRIES:
        raise FormatError(f"{path}: holds {len(infos)} zip entries, expected at most {MAX_ENTRIES}")
    for info in infos:
        what = f"{path}: zip entry {quote(info.filename)}"
        if info.filename in entries:
            raise FormatError(f"{what} is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise UnsupportedError(f"{what} is compressed ({info.compress_size} bytes for {info.file_size}); PyTorch never compresses: refused")
        if info.flag_bits & 1:
            raise UnsupportedError(f"{what} is encrypted")
        at = info.header_offset
        header = file.read(at, 30) if 0 <= at <= file.size - 30 else b""
        if header[:4] != b"PK\x03\x04":
            raise FormatError(f"{what} has no header at byte {at}: the file is damaged or truncated")
        name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
        start = at + 30 + name_bytes + extra_bytes
        if start + info.file_size > file.size:
            raise FormatError(f"{what} ends at byte {start + info.file_size} of {file.size}: the file is truncated")
        entries[info.filename] = (start, info.file_size)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FormatError(f"{path}: a PyTorch file holds one data.pkl, found {len(pickles)}")
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in entries or any(name.startswith(prefix + "code/") for name in entries):
        raise UnsupportedError(f"{path}: is a TorchScript program, not a state dict: save model.state_dict() instead")
    return entries, prefix


class _Machine:
    """Interprets one pickle; `run` gives its value."""

    def __init__(self, file: SourceFile, entries: dict[str, tuple[int, int]], prefix: str) -> None:
        self.file, self.entries, self.prefix = file, entries, prefix
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.filled = 0

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.file.path}: damaged or hostile pickle: {message}")

    def run(self, pickle: bytes) -> Any:
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
                if count >= MAX_OPCODES:
                    self.fail(f"more than {MAX_OPCODES} opcodes")
                if opcode.name == "STOP":
                    if len(self.stack) != 1:
                        self.fail(f"{len(self.stack)} values at its end, expected one")
                    return self.stack[0]
                if opcode.name in _CONSTANTS:
                    self.stack.append(argument if opcode.arg else _CONSTANTS[opcode.name]())
                elif opcode.name in _ACTIONS:
                    _ACTIONS[opcode.name](self, argument)
                elif opcode.name not in ("PROTO", "FRAME"):
                    raise UnsupportedError(f"{self.file.path}: its pickle uses opcode {opcode.name}, which no state dict needs: refused, nothing was run")
        except (ValueError, IndexError, struct.error, UnicodeError, MemoryError, OverflowError) as error:
            self.fail(" ".join(str(error).split())[:120] or type(error).__name__)
        self.fail("it has no end")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            self.fail("a mark where a value was expected")
        return value

    def items(self) -> list[Any]:
        """What lies above the last mark, which goes too."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        self.fail("no mark")

    def fill(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            self.fail("items for something that is no dict")
        self.filled += len(pairs)
        if self.filled > 4 * MAX_OPCODES:  # an OrderedDict's list can be said again and again
            self.fail(f"more than {4 * MAX_OPCODES} items of dicts")
        for key, value in zip(pairs[::2], pairs[1::2]):
            if not isinstance(key, (str, int)) or isinstance(key, int) and abs(key) > MAX_KEY:
                self.fail(f"a dict's key is a {type(key).__name__}, expected a text or a number up to {MAX_KEY}")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            self.fail("items for something that is no list")
        self.stack[-1].extend(items)

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.fail(f"memo {index} was never set")
        self.stack.append(self.memo[index])

    def find(self, name: str) -> None:
        """GLOBAL: `name` is "module attribute"."""
        known = name in _CALLS or name in _TYPES or name.startswith("torch ") and name[6:] in _TORCH_DTYPES
        if not known:
            dotted = quote(name.replace(" ", ".", 1))
            raise UnsupportedError(f"{self.file.path}: its pickle asks for {dotted}, which is no part of a tensor: refused, nothing was run")
        self.stack.append(Global(name))

    def find_on_stack(self) -> None:
        attribute, module = self.pop(), self.pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            self.fail("STACK_GLOBAL without a name")
        self.find(f"{module} {attribute}")

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or function.name not in _CALLS or not isinstance(arguments, tuple):
            self.fail("it calls something that is no function known to build tensors")
        self.stack.append(_CALLS[function.name](self, arguments))

    def set_state(self) -> None:
        self.pop()
        if not isinstance(self.stack[-1], Ordered):
            self.fail("it sets attributes of something that is no OrderedDict")

    # ---- what GLOBALs build

    def ordered(self, arguments: tuple[Any, ...]) -> Ordered:
        built = Ordered()
        pairs = arguments[0] if arguments else []
        if not isinstance(pairs, (list, tuple)) or len(arguments) > 1 or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
            self.fail("an OrderedDict of something else than pairs")
        self.stack.append(built)
        self.fill([x for pair in pairs for x in pair])
        return self.stack.pop()

    def size(self, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        if len(arguments) != 1:
            self.fail("torch.Size of something that is no shape")
        return self.integers(arguments[0], "torch.Size")

    def dtype(self, value: Any) -> str:
        if not isinstance(value, Global) or not value.name.startswith("torch ") or value.name[6:] not in _TORCH_DTYPES:
            self.fail("a tensor's dtype is none")
        return _TORCH_DTYPES[value.name[6:]]

    def integers(self, value: Any, what: str) -> tuple[int, ...]:
        if not isinstance(value, (tuple, list)) or len(value) > 8 or not all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in value):
            self.fail(f"{what} must be at most 8 numbers from 0 to {MAX_ELEMENTS}, found {quote(value) if _flat(value) else 'something else'}")
        return tuple(value)

    def storage(self, id: Any) -> None:
        """BINPERSID: ("storage", storage type, key, device, number of elements)."""
        if not isinstance(id, tuple) or len(id) != 5 or id[0] != "storage" or not isinstance(id[1], Global) or not isinstance(id[2], str):
            self.fail("a persistent id that is no storage")
        dtype = _TYPES.get(id[1].name)
        if dtype is None:
            self.fail(f"a storage of type {quote(id[1].name)}")
        name = f"{self.prefix}data/{id[2]}"
        if name not in self.entries:
            self.fail(f"its storage {quote(name)} is not in the zip file")
        offset, n_bytes = self.entries[name]
        [claimed] = self.integers((id[4],), "a storage's size")
        if claimed * (_ITEM_BYTES.get(dtype, 1) if dtype else 1) > n_bytes:
            self.fail(f"storage {quote(name)} claims {claimed} elements, but has {n_bytes} bytes")
        self.stack.append(Storage(id[2], dtype, offset, n_bytes))

    def tensor_v2(self, arguments: tuple[Any, ...]) -> Stored:
        """(storage, offset, size, stride, requires_grad, backward hooks[, metadata]), in elements."""
        if not 6 <= len(arguments) <= 7 or not isinstance(arguments[0], Storage) or not arguments[0].dtype:
            self.fail("a tensor without its storage")
        return self.tensor(arguments[0], arguments[0].dtype, *arguments[1:4])

    def tensor_v3(self, arguments: tuple[Any, ...]) -> Stored:
        """(untyped storage, offset, size, stride, requires_grad, backward hooks, dtype[, metadata])."""
        if not 7 <= len(arguments) <= 8 or not isinstance(arguments[0], Storage):
            self.fail("a tensor without its storage")
        return self.tensor(arguments[0], self.dtype(arguments[6]), *arguments[1:4])

    def tensor(self, storage: Storage, dtype: str, offset: Any, size: Any, stride: Any) -> Stored:
        shape, strides = self.integers(size, "a tensor's size"), self.integers(stride, "a tensor's stride")
        [offset] = self.integers((offset,), "a tensor's offset")
        item = _ITEM_BYTES.get(dtype, 1)
        held = storage.n_bytes // item
        if len(shape) != len(strides):
            self.fail(f"a tensor of size {list(shape)} has strides {list(strides)}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides)) if 0 not in shape else offset - 1
        # fewer elements than the shape has: an expanded tensor, which no weight is, and which could claim any size
        if last >= held or math.prod(shape) > held:
            self.fail(f"a tensor of size {list(shape)}, strides {list(strides)}, offset {offset} reaches beyond its storage of {held} elements")
        return Stored(self.file, "", dtype, shape, storage.offset + offset * item, strides)

    def parameter(self, arguments: tuple[Any, ...]) -> Stored:
        if not 1 <= len(arguments) <= 3 or not isinstance(arguments[0], Stored):
            self.fail("a parameter that is no tensor")
        return arguments[0]


def _flat(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) <= 8 and all(isinstance(n, (int, float, str)) for n in value)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda: None),
}
"""Opcodes that push their argument or, if they have none, this."""


def _tuple(n: int) -> Callable[[_Machine, Any], None]:
    def build(machine: _Machine, _: Any) -> None:
        values = tuple(machine.pop() for _ in range(n))
        machine.stack.append(values[::-1])
    return build


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "BINPUT": lambda m, n: m.remember(n), "LONG_BINPUT": lambda m, n: m.remember(n), "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "BINGET": lambda m, n: m.recall(n), "LONG_BINGET": lambda m, n: m.recall(n),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.items())), "TUPLE1": _tuple(1), "TUPLE2": _tuple(2), "TUPLE3": _tuple(3),
    "SETITEM": lambda m, _: m.fill([m.pop(), m.pop()][::-1]), "SETITEMS": lambda m, _: m.fill(m.items()),
    "APPEND": lambda m, _: m.extend([m.pop()]), "APPENDS": lambda m, _: m.extend(m.items()),
    "GLOBAL": lambda m, name: m.find(name), "STACK_GLOBAL": lambda m, _: m.find_on_stack(),
    "BINPERSID": lambda m, _: m.storage(m.pop()), "REDUCE": lambda m, _: m.call(), "BUILD": lambda m, _: m.set_state(),
}
_CALLS: dict[str, Callable[[_Machine, tuple[Any, ...]], Any]] = {
    "collections OrderedDict": _Machine.ordered, "torch Size": _Machine.size, "torch._utils _rebuild_tensor_v2": _Machine.tensor_v2,
    "torch._utils _rebuild_tensor_v3": _Machine.tensor_v3, "torch._utils _rebuild_parameter": _Machine.parameter,
}
_TYPES: dict[str, str] = {f"torch {name}": dtype for name, dtype in _STORAGES.items()} | {"torch.storage UntypedStorage": "", "torch UntypedStorage": ""}
