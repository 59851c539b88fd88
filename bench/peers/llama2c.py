"""karpathy/llama2.c's float and int8 programs, written anew in their manner (llama2c.c), compiled here if there is a C compiler. Generation only, as theirs.

The model is the same GGUF file: its matrices are decoded and written as float32, or quantised to int8 with a scale for 32 columns.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.architectures.config import ModelConfig
from ...engine.gguf.file import GGUFFile, open_gguf
from ...kernels.formats import registry
from .child import PeerError

FLAGS = ("-Ofast", "-march=native", "-fopenmp")
LAYER_ORDER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")
GROUP = 32


def export(gguf: GGUFFile, target: Path, int8: bool) -> None:
    """Write the file that llama2c.c reads. PeerError: a model of a kind that it does not compute."""
    c = ModelConfig.from_gguf(gguf)
    if c.architecture != "llama" or any(m.bias for m in c.matrices()):
        raise PeerError("llama2.c computes Llama models without biases")
    if c.head_dim * c.n_heads != c.dim or (int8 and (c.dim % GROUP or c.ffn_dim % GROUP)):
        raise PeerError("llama2.c computes heads that fill the width, and int8 in groups of 32 columns")
    names = ["token_embd.weight", *(f"blk.{i}.{m}.weight" for i in range(c.n_layers) for m in LAYER_ORDER)]
    names.append("token_embd.weight" if c.tied_output else "output.weight")
    gains = [f"blk.{i}.{n}.weight" for i in range(c.n_layers) for n in ("attn_norm", "ffn_norm")] + ["output_norm.weight"]

    def decode(name: str) -> np.ndarray:
        return registry.decode(gguf.tensors[name].format.name, gguf.data(name))

    with open(target, "wb") as out:
        np.array([c.dim, c.ffn_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.n_vocab, 1024], np.int32).tofile(out)
        for name in names:
            w = decode(name)
            if int8:
                blocks = w.reshape(-1, GROUP)
                scale = np.abs(blocks).max(axis=1) / np.float32(127)
                np.round(blocks / np.where(scale, scale, 1)[:, None]).astype(np.int8).tofile(out)
                scale.astype(np.float32).tofile(out)
            else:
                w.astype(np.float32).tofile(out)
        for name in gains:
            decode(name).astype(np.float32).tofile(out)


class Llama2c:
    """One of the two programs; as bench.compare wants an engine."""

    def __init__(self, int8: bool):
        self.int8, self.name = int8, "llama2.c int8" if int8 else "llama2.c float"
        self.best: dict[str, dict[str, Any]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="llamina-llama2c-")
        self._binary, self._model = Path(self._folder.name) / "run", Path(self._folder.name) / "model.bin"

    def ask(self, do: str, model: str, threads: int) -> dict[str, Any]:
        """"load" alone: compile, export. PeerError."""
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if not compiler:
            raise PeerError("llama2.c needs a C compiler (cc), and there is none here")
        command = [compiler, *FLAGS, *(["-DINT8"] if self.int8 else []), str(Path(__file__).with_name("llama2c.c")), "-lm", "-o", str(self._binary)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"{compiler}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        with open_gguf(model) as gguf:
            export(gguf, self._model, self.int8)
        self.threads = threads
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
        return {"load_seconds": None, "version": f"{self.name} (bench/peers/llama2c.c)", "system": f"{version}, {' '.join(FLAGS)}"}

    def measure(self, what: str, n: int, sequences: int = 8) -> dict[str, Any]:
        """With the number of threads, 1 to `threads`, that was fastest at first. PeerError for anything but "generate"."""
        if what != "generate":
            raise PeerError(f"{self.name} has no {what}")

        def run(threads: int) -> float:
            done = subprocess.run([str(self._binary), str(self._model), str(n)], capture_output=True, text=True,
                                  env={**os.environ, "OMP_NUM_THREADS": str(threads)})
            if done.returncode:
                raise PeerError(f"{self.name}: {done.stderr.strip()}")
            return float(done.stdout)
        if what not in self.best:
            self.best[what] = {"threads": max(range(1, self.threads + 1), key=run)}
        return {"tokens_per_second": run(self.best[what]["threads"]), "peak_memory": None}

    def __enter__(self) -> Llama2c:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
