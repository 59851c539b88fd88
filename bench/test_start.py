"""Process start to first token, loading, opening; what each start and each request pays once."""
from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from llamina.bench.speed import Work
from llamina.bench.suite import ROUNDS, THREADS, model, record
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.gguf.file import open_gguf
from llamina.engine.model import load_vocabulary
from llamina.engine.run.runtime import Runtime
from llamina.engine.text.chat_template import ChatTemplate
from llamina.kernels import compile_cache


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


def test_open(benchmark: Any) -> None:
    """Header and tensor table, no weights."""
    def opened() -> None:
        open_gguf(model("q4_0")).close()
    benchmark(opened)


def test_fingerprint(benchmark: Any) -> None:
    """Of the sources, which names the cache of compiled code."""
    def fingerprint() -> str:
        compile_cache.fingerprint.cache_clear()
        return compile_cache.fingerprint()
    assert benchmark(fingerprint)


def test_render(benchmark: Any) -> None:
    """A chat template in its child process, warm: most is the way there and back."""
    template = ChatTemplate("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", load_vocabulary("demo"))
    assert benchmark(template.render, [{"role": "user", "content": "Hello!"}])
