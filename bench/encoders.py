"""Encoding error and speed of every format, against llama.cpp's quantiser: the table in the README.

    LLAMINA_PEER_LLAMACPP=/path/to/venv/bin/python python -m llamina.bench.encoders [MODEL.gguf]

The other side runs in a Python that has llama-cpp-python, through ggml's own ggml_quantize_chunk, one thread each. Data: Gaussian rows, and the matrices of a
GGUF file if one is given. Error: mean squared error over mean square, without importance (ratio 0.000: neither errs).
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ..convert.sources import open_source
from ..engine.errors import FileError
from ..kernels.formats import registry
from ..kernels.formats.encoders import encode
from ..kernels.formats.table import FORMATS

NAMES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K")

_CHILD = """
import ctypes, glob, os, sys, time, numpy as np, llama_cpp
lib = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "libggml-base.*"))[0])
f = lib.ggml_quantize_chunk
f.restype, f.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
x = np.load(sys.argv[1])
for job in sys.argv[3:]:
    name, number, size = job.split(":")
    out = np.zeros(int(size), np.uint8)
    start = time.perf_counter()
    f(int(number), x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], None)
    print(name, time.perf_counter() - start)
    out.tofile(os.path.join(sys.argv[2], name))
"""


def _peer(x: np.ndarray, names: list[str]) -> dict[str, tuple[np.ndarray, float]]:
    """llama.cpp's blocks and seconds for each format. FileError: no such Python, or it fails."""
    python = os.environ.get("LLAMINA_PEER_LLAMACPP", "")
    if not python:
        raise FileError("LLAMINA_PEER_LLAMACPP is not set: give the Python of an environment with llama-cpp-python")
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", x)
        jobs = [f"{n}:{FORMATS[n].ggml_id}:{len(x) * FORMATS[n].row_bytes(x.shape[1])}" for n in names]
        child = subprocess.run([python, "-c", _CHILD, str(Path(folder) / "x.npy"), folder, *jobs], capture_output=True, text=True, timeout=600)
        if child.returncode:
            raise FileError(f"{python}: {child.stderr.strip().splitlines()[-1]}")
        seconds = {line.split()[0]: float(line.split()[1]) for line in child.stdout.splitlines()}
        return {n: (np.fromfile(Path(folder) / n, np.uint8).reshape(len(x), -1), seconds[n]) for n in names}


def _error(name: str, x: np.ndarray, blocks: np.ndarray) -> float:
    y = registry.decode(name, blocks).astype(np.float64)
    return float(np.square(x - y).mean() / np.square(x.astype(np.float64)).mean())


def compare(x: np.ndarray) -> list[str]:
    """Markdown rows for one matrix, float32 [rows, columns]."""
    names = [n for n in NAMES if x.shape[1] % FORMATS[n].columns == 0]
    peer, rows = _peer(x, names), []
    for n in names:
        encode(n, x[:1])
        start = time.perf_counter()
        ours = encode(n, x)
        seconds = time.perf_counter() - start
        a, b = _error(n, x, ours), _error(n, x, peer[n][0])
        rows.append(f"| {n} | {a:.3e} | {b:.3e} | {a / b if b else float(a > 0):.3f} | {x.size / seconds / 1e6:.0f} | {x.size / peer[n][1] / 1e6:.0f} |")
    return rows


def main() -> None:
    matrices = {"Gaussian": (np.random.default_rng(0).standard_normal((256, 4096)) * 0.02).astype(np.float32)}
    if sys.argv[1:]:
        source = open_source(sys.argv[1])
        parts = [t.rows(0, t.shape[0]) for t in source.tensors if len(t.shape) == 2]
        columns = max({p.shape[1] for p in parts}, key=lambda c: sum(p.size for p in parts if p.shape[1] == c))
        matrices[Path(sys.argv[1]).name] = np.concatenate([p for p in parts if p.shape[1] == columns])
    for title, x in matrices.items():
        print(f"\n{title}, {x.shape[0]} x {x.shape[1]}\n\n| format | error | llama.cpp's | ratio | M weights/s | llama.cpp's |\n|---|---|---|---|---|---|")
        print("\n".join(compare(x)))


if __name__ == "__main__":
    main()
