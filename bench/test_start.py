"""Process start to first token, and loading."""
from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from llamina.bench.speed import Work
from llamina.bench.suite import ROUNDS, THREADS, model, record
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.gguf.file import open_gguf
from llamina.engine.run.runtime import Runtime


def first_token(path: str) -> None:
    """Start the command line and wait for the first byte of its answer."""
    command = [sys.executable, "-m", "llamina", "generate", path, "-p", "Once upon a time", "-n", "1", "--temperature", "0", "--threads", str(THREADS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.read(1), "no answer"


def test_start(benchmark: Any) -> None:
    path = str(model("q4_0"))
    benchmark.pedantic(first_token, (path,), rounds=ROUNDS, warmup_rounds=1)
    record(benchmark, Work(2.0 * os.path.getsize(path)))


def test_load(benchmark: Any) -> None:
    path = model("q4_0")

    def load() -> None:
        with open_gguf(path) as gguf:
            Runtime(gguf, ModelConfig.from_gguf(gguf), threads=THREADS).close()
    benchmark.pedantic(load, rounds=ROUNDS, warmup_rounds=1)
    record(benchmark, Work(2.0 * path.stat().st_size))
