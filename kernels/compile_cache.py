"""Where compiled code is kept between processes, and the two decorators that every compiled function of the package uses.

`@jit()` is numba.njit and `@compiled(signature)` a lazily compiled numba.cfunc (called from other compiled code through `.address`), both
nogil, with NumPy's division rules and without fastmath. Both look for machine code in `cache_folder()/<name>.<key>.nbc` before they
compile; the key holds signature, bytecode, closure values, options and the CPU that Numba compiles for, and the folder's name a
fingerprint of all kernel sources and library versions, because Numba itself does not notice edits in imported files.

Numba's own disk cache is not used, for three reasons seen in its source (0.61-0.68): its index lets two processes that compile two
variants of one function at once swap their machine code; a closure over another compiled function gets a new key in every process; a
truncated file raises. Here a file is written beside its place and renamed, and believed only if its checksum is right and nobody but this user can have
written it (trusted.py): what is loaded is run.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import pickle
import re
import sys
import time
import types as python_types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import native_code, trusted
from .deferred import JIT_OPTIONS, Deferred, NumbaType, numba_ready
from .interrupts import raised_at_the_end
from .new_file import LEFTOVER, write_bytes
from .pipeline import kernel_compiler, without_collector
from .room import COMPILE, need_room
from .turns import turn

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = ("kernels/*.py", "kernels/formats/*.py", "kernels/backward/*.py", "engine/run/forward.py", "engine/run/ops/*.py", "engine/run/rope.py")
KEPT_FOLDERS = 8  # fingerprints (versions, CPUs, edits) whose folders may lie side by side
MARKER, MARKED = "this-is-a-compile-cache-of-llamina", b"Machine code that llamina made. It may be removed at any time.\n"
"""A file in each folder, and what it says: only what has it is ever removed."""
_PREFIX = "llamina-"
_NAME = re.compile(r"llamina-[0-9a-f]{20}")

_listeners: list[Callable[[str], None]] = []


class CompileStats:
    """What this process did so far: functions compiled, functions loaded from disk, seconds spent compiling."""
    def __init__(self) -> None:
        self.compiled = 0
        self.loaded = 0
        self.seconds = 0.0


stats = CompileStats()


def on_compile(callback: Callable[[str], None]) -> Callable[[], None]:
    """Call `callback(name)` just before a function is really compiled, not when it is loaded from disk. Returns a function that ends this.

    The callback runs under Numba's compiler lock: it should only print. An exception in it (Ctrl-C) ends the compilation.
    """
    _listeners.append(callback)
    return lambda: _listeners.remove(callback) if callback in _listeners else None


@contextlib.contextmanager
def telling(progress: Callable[[str, int, int], None] | None) -> Iterator[None]:
    """Tell `progress` meanwhile of each function about to be compiled: ("compiling NAME", n, n), the n-th. How many will follow is not known."""
    so_far = itertools.count(1)

    def compiling(name: str) -> None:
        if progress:
            n = next(so_far)
            progress(f"compiling {name}", n, n)
    unsubscribe = on_compile(compiling)
    try:
        yield
    finally:
        unsubscribe()


# ---------------------------------------------------------------------------------------------------------------- the folder

@functools.cache
def fingerprint() -> str:
    """20 hex digits over the kernels' sources, the versions of what compiles them, and the CPU that Numba compiles for."""
    facts = numba_facts()
    digest = hashlib.sha256(repr((native_code.versions(), facts["cpu"], facts["settings"])).encode())
    for pattern in SOURCES:
        for path in sorted(PACKAGE.glob(pattern)):
            source = path.read_bytes()
            digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:20]


@functools.cache
def numba_facts() -> dict[str, Any]:
    """native_code.ask_numba's answer, honouring NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, without importing Numba if it is on disk."""
    return native_code.numba_facts(_places())


def user_folder() -> Path | None:
    """The user's own cache folder for this package, by the custom of the system; None without a home."""
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base) / "llamina" / "cache" if base else None
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "llamina"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / "Library" / "Caches" / "llamina" if sys.platform == "darwin" else home / ".cache" / "llamina"


def _ready(folder: Path) -> str | None:
    """Make the folder, with our marker in it -> None, or why it can't be used, in a few words."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        if (why := trusted.why_not(folder)) is not None:
            return why
        if (folder / MARKER).is_file() and os.access(folder, os.W_OK):
            os.utime(folder)  # used now
        else:
            write_bytes(folder / MARKER, MARKED, 0o600, sync=False)
    except OSError as error:
        return f"cannot write to {folder.parent} ({error.strerror or error})"
    return None


def _places() -> list[Path]:
    """Folders that may hold ours, best first, at their real paths."""
    asked, user, own = os.environ.get("LLAMINA_COMPILE_CACHE"), user_folder(), PACKAGE / "kernels" / "__pycache__"
    users = [user] if user else []
    # An installed package's folder must be empty but for what pip knows: pip leaves what else is there, and Python takes the rest for the package
    in_order = [own, *users] if (PACKAGE / "setup.cfg").exists() else [*users, own]
    return [Path(os.path.realpath(place)) for place in ([Path(asked)] if asked else []) + in_order]


@functools.cache
def _choose() -> tuple[Path | None, str | None]:
    """(folder, note): the first place that can be written, and what the user should know about the choice."""
    name = _PREFIX + fingerprint()
    asked = os.environ.get("LLAMINA_COMPILE_CACHE")
    reasons: list[str] = []
    for i, place in enumerate(_places()):
        why = _ready(place / name)
        if why is None:
            _forget_old(place, keep=name)
            return place / name, f"LLAMINA_COMPILE_CACHE={asked} is not used: {reasons[0]}; compiled code goes to {place}" if asked and i else None
        reasons.append(why)
    return None, f"no folder for compiled code can be used, so every start compiles anew ({'; '.join(reasons)}; set LLAMINA_COMPILE_CACHE)"


def cache_folder() -> Path | None:
    """The folder that holds this version's compiled code; None if none can be written. Chosen once per process, on first use.

    In order: $LLAMINA_COMPILE_CACHE; in a checkout the package's own __pycache__; the user's cache folder; the own one of an installed package.
    """
    return _choose()[0]


def cache_note() -> str | None:
    """One line for the user if compiled code can't be kept, or not where they asked; else None."""
    return _choose()[1]


def _forget_old(place: Path, keep: str) -> None:
    """Remove the longest unused folders beyond KEPT_FOLDERS: of those with our marker, the files that we write. Another process there just compiles again."""
    with contextlib.suppress(OSError):
        others = [p for p in place.glob(_PREFIX + "*") if p.name != keep and _NAME.fullmatch(p.name) and not p.is_symlink() and _marked(p)]
        others.sort(key=lambda p: p.stat().st_mtime, reverse=True)
        for folder in others[KEPT_FOLDERS - 1:]:
            with contextlib.suppress(OSError):
                for path in sorted(folder.iterdir(), key=lambda p: p.name == MARKER):  # the marker last: what is left half way is still ours
                    if path.name == MARKER or path.suffix in (".nbc", ".native") or LEFTOVER.fullmatch(path.name):
                        path.unlink()
                folder.rmdir()


def _marked(folder: Path) -> bool:
    """Whether this package made a folder."""
    try:
        return trusted.read_own(folder / MARKER) == MARKED
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------- one function's key

@functools.cache
def _file_digest(path: str) -> str:
    """Of the file that defines a function: tests and plug-ins lie outside the fingerprinted sources."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return ""


def _describe(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """A nested tuple with the same repr in every process, for whatever a closure may hold."""
    import numpy
    from llvmlite import ir

    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return type(value).__name__, repr(value)
    if id(value) in seen:
        return "recursive"
    seen = (*seen, id(value))
    if isinstance(value, (tuple, list, frozenset, set)):
        parts = [_describe(v, seen) for v in value]
        return type(value).__name__, sorted(parts, key=repr) if isinstance(value, (set, frozenset)) else parts
    if isinstance(value, dict):
        return "dict", [(_describe(k, seen), _describe(v, seen)) for k, v in value.items()]
    if isinstance(value, python_types.CodeType):
        constants = [_describe(c, seen) for c in value.co_consts]
        return "code", value.co_code.hex(), value.co_names, constants
    if isinstance(value, python_types.FunctionType):
        origin = value.__module__, value.__qualname__, _file_digest(value.__code__.co_filename)
        cells = [_describe(c.cell_contents, seen) for c in value.__closure__ or ()]
        return "function", origin, _describe(value.__code__, seen), cells, _describe((value.__defaults__, value.__kwdefaults__), seen)
    made_from = [getattr(value, name, None) for name in ("py_func", "_defn", "__wrapped__")]
    for function in made_from:  # a compiled function or an intrinsic: what it was made from, and how
        if isinstance(function, python_types.FunctionType):
            return type(value).__name__, repr(getattr(value, "targetoptions", None)), _describe(function, seen)
    if isinstance(value, python_types.ModuleType):
        return "module", value.__name__
    numba_type = sys.modules["numba.core.types"].Type if "numba.core.types" in sys.modules else NumbaType
    if isinstance(value, (NumbaType, numba_type, type, numpy.dtype, ir.Type, ir.Value)):  # llvmlite's types remember things: never pickle them
        return type(value).__name__, str(value)
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return type(value).__name__, str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    from numba.core import serialize
    return "pickled", type(value).__name__, hashlib.sha256(serialize.dumps(value)).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- the store

@functools.cache
def _name_functions_apart() -> None:
    """Number functions from a random start, in every process.

    Numba tells closures of one name apart (the `body` of two formats' kernels) by a number in their symbols that counts compilations in a process.
    Code loaded from two other processes may hold the same symbol twice, and the linker takes the first it meets: a kernel with another one's body.
    """
    from numba.core.bytecode import FunctionIdentity

    def restart() -> None:
        FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(7), "little"))
    restart()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=restart)


class _Store:
    """The disk cache of one function, in the place of Numba's own (numba.core.caching._Cache): Numba calls load_overload under its
    compiler lock, compiles if that gave None, then calls save_overload. So a miss *is* the start of a compilation."""

    cache_path: str | None = None

    def __init__(self, function: Any, options: dict[str, Any]):
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self.options = sorted(options.items())
        self.started: dict[str, tuple[float, float]] = {}

    @functools.cached_property
    def identity(self) -> str:
        # not at decoration: a recursive function's own cell is still empty then, and most functions are never asked for
        return repr((_describe(self.function), _describe(self.options)))

    def path(self, signature: Any, cpu: Any, suffix: str = ".nbc") -> Path | None:
        """cpu: the codegen's magic tuple."""
        folder = cache_folder()
        if folder is None:
            return None
        key = hashlib.sha256(repr((self.identity, str(signature), tuple(cpu))).encode()).hexdigest()[:24]
        name = "".join(c for c in self.name if c.isalnum() or c in "._")[-80:]
        return folder / f"{name}.{key}{suffix}"

    def native(self, signature: str) -> int | None:
        """Address of the C function, from disk and without Numba; None if it isn't there."""
        if not native_code.SUPPORTED:
            return None
        path = self.path(signature, numba_facts()["cpu"], ".native")
        if path is None:
            return None
        try:
            address = native_code.link(trusted.read_own(path))
        except OSError:
            return None
        except Exception:  # damaged: compile again, which replaces the file
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        stats.loaded += 1
        return address

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        _name_functions_apart()
        target_context.refresh()
        path = self.path(signature, target_context.codegen().magic_tuple())
        if path is not None:
            try:
                blob = trusted.read_own(path)
                if hashlib.sha256(blob[32:]).digest() == blob[:32]:
                    result = self.rebuild(target_context, pickle.loads(blob[32:]))
                    stats.loaded += 1
                    return result
            except OSError:
                pass
            except Exception:  # whatever an unpickler may raise: compile again, which replaces the file
                with contextlib.suppress(OSError):
                    path.unlink()
        need_room(COMPILE)
        self.started[str(signature)] = time.perf_counter(), stats.seconds
        stats.compiled += 1
        for callback in list(_listeners):
            callback(self.name)
        return None

    @staticmethod
    def rebuild(target_context: Any, payload: Any) -> Any:
        from numba.core.compiler import CompileResult
        return CompileResult._rebuild(target_context, *payload)

    def save_overload(self, signature: Any, result: Any) -> None:
        start, before = self.started.pop(str(signature), (time.perf_counter(), stats.seconds))
        stats.seconds = before + time.perf_counter() - start  # functions compiled on the way are inside this time: not counted twice
        cpu = result.codegen.magic_tuple() if hasattr(result, "codegen") else None
        path = self.path(signature, cpu) if cpu is not None else None
        if path is None or result.lifted or result.library.has_dynamic_globals:
            return
        from numba.core.serialize import dumps
        payload = result._reduce()
        (_, kind, code), descriptor = payload[:2]
        if ("cfunc", True) in self.options and kind == "object" and (packed := native_code.pack(descriptor.llvm_cfunc_wrapper_name, code[0])):
            self.write(path.with_suffix(".native"), packed)
        else:
            blob = dumps(payload)
            self.write(path, hashlib.sha256(blob).digest() + blob)

    @staticmethod
    def write(path: Path, blob: bytes) -> None:
        with contextlib.suppress(OSError):  # disk full, folder removed: the compiled function works all the same
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            write_bytes(path, blob, 0o600, sync=False)

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...


# ---------------------------------------------------------------------------------------------------------------- the decorators

def jit(signature: Any = None, *, cache: bool = True, **options: Any) -> Any:
    """`@jit()`: numba.njit(nogil=True, error_model="numpy", **options), kept on disk unless cache=False.

    With a signature (or a list) it is compiled at once, else on first call for the argument types met.
    """
    options = {**JIT_OPTIONS, **options}

    def make(function: Any) -> Any:
        import numba
        dispatcher = numba.njit(**options, pipeline_class=kernel_compiler())(function)
        if cache and hasattr(dispatcher, "_cache"):  # not under NUMBA_DISABLE_JIT
            dispatcher._cache = _Store(function, options)
        return dispatcher

    def decorate(function: Any) -> Any:
        deferred = Deferred(function, make, options)
        for one in signature if isinstance(signature, (list, tuple)) else [signature] if signature is not None else []:
            deferred.numba.compile(one)
        return deferred
    return decorate


_CTYPES: dict[str, Any] = {"int64": ctypes.c_int64, "int32": ctypes.c_int32, "float64": ctypes.c_double, "float32": ctypes.c_float, "void": None}
_PRINTED = {"void": "none"}


class Compiled:
    """A function with C calling convention, compiled (or loaded from disk) when its address is first asked for."""

    def __init__(self, function: Any, signature: Any, options: dict[str, Any]):
        self.__wrapped__ = function
        self.__name__ = function.__name__
        self.signature, self.options = signature, options

    @functools.cached_property
    def address(self) -> int:
        """Where its machine code lies in this process."""
        if isinstance(self.signature, str) and "cfunc" not in self.__dict__:
            address = self._store.native(self._key)
            if address is not None:
                return address
            with turn(cache_folder(), MARKER, f"{self._store.identity} {self._key}") as waited:
                return waited and self._store.native(self._key) or self.cfunc.address
        return self.cfunc.address

    @functools.cached_property
    def ctypes(self) -> Any:
        """The function for ctypes, which lets go of the GIL meanwhile."""
        names = [name.strip() for name in self.signature.rstrip(")").replace("(", ",").split(",") if name.strip()]
        return ctypes.CFUNCTYPE(*(_CTYPES[name] for name in names))(self.address)

    @functools.cached_property
    def _store(self) -> _Store:
        return _Store(self.__wrapped__, {**self.options, "cfunc": True})

    @property
    def _key(self) -> str:
        """The signature as Numba prints it: "(int64, int64) -> int64"; a test compares."""
        result, _, arguments = self.signature.partition("(")
        names = [a.strip() for a in arguments.rstrip(")").split(",")]
        return f"({', '.join(names)}{',' if len(names) == 1 else ''}) -> {_PRINTED.get(result, result)}"

    @functools.cached_property
    def cfunc(self) -> Any:
        """The numba CFunc, compiled: .ctypes, .inspect_llvm()."""
        numba_ready()
        from numba.core import sigutils
        from numba.core.ccallback import CFunc
        cfunc: Any = CFunc(self.__wrapped__, sigutils.normalize_signature(self.signature), locals={}, options=dict(self.options),
                           pipeline_class=kernel_compiler())
        cfunc._cache = self._store
        with raised_at_the_end(), without_collector():
            cfunc.compile()
        return cfunc

    def __call__(self, *args: Any) -> Any:
        """The Python function, uncompiled (for tests of pure arithmetic)."""
        return self.__wrapped__(*args)

    def __repr__(self) -> str:
        return f"<compiled {self.__name__} {self.signature}>"


def compiled(signature: Any, **options: Any) -> Callable[[Any], Compiled]:
    """`@compiled("int64(int64, int64)")`: a lazily compiled C function; other compiled code calls it through `.address`."""
    options = {"error_model": "numpy", **options}
    return lambda function: Compiled(function, signature, options)
