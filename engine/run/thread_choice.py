"""How many threads to compute with, if nobody says: measured on the model itself in half a second at first use, then kept for machine and model size.

    $LLAMINA_THREADS, else what was kept, else `candidates` are timed on one token through some layers and the fastest is kept

threads.py's answer (physical performance cores within affinity and quota) is where it starts from; fewer are better where memory or a hypervisor's barriers
are the limit, more where efficiency cores help. Nothing is kept from a measurement that other processes disturbed. The bits don't depend on it.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from ...kernels import compile_cache, threads
from ...kernels.new_file import write_bytes
from ...kernels.target import TARGET
from ...kernels.trusted import read_own
from ..errors import OptionError, quoted
from ..gguf.file import GGUFFile

VARIABLE = "LLAMINA_THREADS"
SECONDS = 0.5
ROUNDS = 12
SMALL = 32 << 20
"""Bytes of weights below which nothing is measured: that would take longer than many an answer."""
BETTER = 0.95
"""Of the time of threads.py's choice: what a different one must do to be preferred."""


def asked() -> int | None:
    """$LLAMINA_THREADS. OptionError: no whole number between 1 and 256."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    try:
        if 1 <= int(text) <= 256:
            return int(text)
    except ValueError:
        pass
    raise OptionError(f"{VARIABLE} must be a whole number between 1 and 256, found {quoted(text)}")


def gguf_bytes(gguf: GGUFFile) -> int:
    """Of all tensors."""
    return sum(tensor.n_bytes for tensor in gguf.tensors.values())


def known_threads(gguf: GGUFFile, wanted: int | None) -> int:
    """Threads that were asked for, or chosen before; 0: to be measured."""
    return wanted or asked() or lookup(gguf_bytes(gguf)) or 0


def most_threads(gguf: GGUFFile, wanted: int | None) -> int:
    """Most threads that a model's runtime may have: what its memory is planned for."""
    return known_threads(gguf, wanted) or max(candidates(threads.default_threads(), threads.usable_threads()))


def candidates(cores: int, usable: int) -> list[int]:
    """cores first: what is measured against it."""
    return [cores, *sorted({n for n in (usable, cores - 1, 3 * cores // 4, cores // 2) if 1 <= n <= 256 and n != cores}, reverse=True)]


def key(weight_bytes: int) -> str:
    """Of this machine as this process may use it, and the model's size to the next power of two."""
    machine = repr((compile_cache.numba_facts()["cpu"], TARGET, threads.default_threads(), threads.usable_threads(), os.cpu_count()))
    return f"{hashlib.sha256(machine.encode()).hexdigest()[:12]}-{max(1, weight_bytes).bit_length()}"


def _file() -> Path | None:
    folder = compile_cache.cache_folder()
    return folder.parent / "llamina-threads.json" if folder is not None else None


def _kept() -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        path = _file()
        if path is not None:
            return {str(k): int(n) for k, n in json.loads(read_own(path)).items() if 1 <= int(n) <= 256}
    return {}


def lookup(weight_bytes: int) -> int | None:
    """What an earlier process found; None: to be measured. A choice of one is none, and for a small model none is made."""
    found = candidates(threads.default_threads(), threads.usable_threads())
    return _kept().get(key(weight_bytes)) if len(found) > 1 and weight_bytes >= SMALL else found[0]


def keep(weight_bytes: int, n: int) -> None:
    path = _file()
    if path is not None:
        with contextlib.suppress(OSError):
            write_bytes(path, json.dumps({**_kept(), key(weight_bytes): n}).encode(), 0o600, sync=False)


def fastest(run: Callable[[int], object], choices: list[int], seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter) -> int:
    """Of the choices, by timing run(choice) in turns for so long; the first is kept unless another is clearly better."""
    times: dict[int, list[float]] = {n: [] for n in choices}
    end = clock() + seconds
    for _ in range(ROUNDS):
        for n in choices:
            start = clock()
            run(n)  # wakes the threads that the run before left asleep
            if len(choices) * (clock() - start) < seconds / 4:  # else there is no time to warm up
                start = clock()
                run(n)
            times[n].append(clock() - start)
        if clock() > end:
            break
    typical = {n: statistics.median(t) for n, t in times.items()}
    best = min(typical, key=typical.__getitem__)
    return best if typical[best] < BETTER * typical[choices[0]] else choices[0]
