"""Machine code from disk into this process without Numba, whose import takes longer than everything else at a warm start.

    after a compilation: object file (from Numba's library) ──► <key>.native: checksum, symbol, external names, object
    at the next start:   <key>.native ──► llvmlite's linker ──► address

A kernel is a C function on addresses and numbers: it needs nothing of Numba at run time. Its wrapper still names what Numba would call to report an
exception; kernels raise none, so these names are bound to abort(). A file with any other name that this process lacks is left to Numba. Also here: what the
compile cache must know of Numba's settings, remembered on disk under a key of everything they come from. Linux only; other systems go through Numba.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

from .new_file import write_bytes
from .trusted import read_own, why_not

SUPPORTED = sys.platform == "linux" and struct.calcsize("P") == 8 and sys.byteorder == "little"
REPORTERS = ("NRT_Free", "numba_do_raise", "numba_gil_ensure", "numba_gil_release", "numba_runtime_build_excinfo_struct", "numba_unpickle")
"""What a C wrapper of Numba calls if the function within raised."""


# -- object files ---------------------------------------------------------------------------------------------------------------------------

def undefined_symbols(elf: bytes) -> set[str] | None:
    """Names that a 64-bit little-endian ELF object expects from elsewhere; None for anything else."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return None
    sections_at, = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + i * size) for i in range(count)]
    names: set[str] = set()
    for section in sections:
        if section[1] == 2:  # SHT_SYMTAB
            strings_at = sections[section[6]][4]
            for at in range(section[4] + section[9], section[4] + section[5], section[9]):  # not the first, which is empty
                name, _, _, where = struct.unpack_from("<IBBH", elf, at)
                if where == 0:  # SHN_UNDEF
                    names.add(elf[strings_at + name:elf.index(b"\0", strings_at + name)].decode())
    return names


def pack(symbol: str, elf: bytes) -> bytes | None:
    """The file for a function whose C wrapper is `symbol` in an object; None if it can't do without Numba."""
    needs = undefined_symbols(elf) if SUPPORTED else None
    if needs is None:
        return None
    process = ctypes.CDLL(None)
    if not all(name in REPORTERS or hasattr(process, name) for name in needs):
        return None
    body = json.dumps([symbol, sorted(needs)]).encode() + b"\n" + elf
    return hashlib.sha256(body).digest() + body


def link(blob: bytes) -> int:
    """Address of the function in a file made by `pack`. ValueError, or whatever reading nonsense raises: it is damaged, or of another system."""
    if hashlib.sha256(blob[32:]).digest() != blob[:32]:
        raise ValueError("damaged")
    header, _, elf = blob[32:].partition(b"\n")
    symbol, needs = json.loads(header)
    import llvmlite.binding as llvm
    engine, process = _engine(), ctypes.CDLL(None)
    for name in needs:  # the linker ends the process if one is missing
        if name not in REPORTERS and not hasattr(process, name):
            raise ValueError(f"this process has no {name}")
    engine.add_object_file(llvm.ObjectFileRef.from_data(elf))
    engine.finalize_object()
    address = engine.get_function_address(symbol)
    if not address:
        raise ValueError(f"no function {symbol}")
    return address


@functools.cache
def _engine() -> Any:
    """LLVM's linker. It lives as long as the process, like the code it holds."""
    import llvmlite.binding as llvm
    with contextlib.suppress(RuntimeError):  # does itself what it was for, in newer versions
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    end = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in REPORTERS:
        if not llvm.address_of_symbol(name):  # Numba, when it comes, registers its own over these
            llvm.add_symbol(name, end)
    module = llvm.parse_assembly(f'target triple = "{llvm.get_process_triple()}"')
    return llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())


# -- what Numba would say -------------------------------------------------------------------------------------------------------------------

def ask_numba() -> dict[str, Any]:
    """What compiled code depends on, of Numba's settings: {"cpu": [triple, CPU, features], "settings": [...], "features": text}."""
    from numba.core import config
    from numba.core.codegen import get_host_cpu_features
    from numba.core.registry import cpu_target
    names = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")
    return {"cpu": list(cpu_target.target_context.codegen().magic_tuple()), "settings": [str(getattr(config, name, None)) for name in names],
            "features": config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()}


def numba_facts(places: list[Path]) -> dict[str, Any]:
    """`ask_numba`, or what it said to an earlier process under the same versions, CPU and environment, kept in one of these folders."""
    key = _facts_key() if SUPPORTED and "numba.core.config" not in sys.modules else None
    if key is None:
        return ask_numba()
    for place in places:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads(read_own(place / key))
            return {"cpu": [str(x) for x in facts["cpu"]], "settings": [str(x) for x in facts["settings"]], "features": str(facts["features"])}
    facts = ask_numba()
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if why_not(place) is not None:
                continue
            write_bytes(place / key, json.dumps(facts).encode(), 0o600, sync=False)
            break
    return facts


def versions() -> list[str]:
    """Of Python and what compiles and runs kernels; Numba's without importing it: the text of its version module."""
    import llvmlite
    import numpy
    numba = sys.modules.get("numba")
    spec = importlib.util.find_spec("numba") if numba is None else None
    file = numba.__file__ if numba is not None else spec.origin if spec is not None else None
    if file is None:
        raise ImportError("llamina needs numba: pip install numba")
    return [sys.version, llvmlite.__version__, numpy.__version__, Path(file).with_name("_version.py").read_text()]


def _facts_key() -> str | None:
    """A file name; None if Numba's settings may come from elsewhere."""
    import llvmlite.binding as llvm
    if os.path.exists(".numba_config.yaml"):
        return None
    try:
        host = [llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
        everything = [versions(), host, sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))]
    except (RuntimeError, OSError):
        return None
    return "llamina-cpu-" + hashlib.sha256(repr(everything).encode()).hexdigest()[:20] + ".json"
