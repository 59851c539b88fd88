"""ctransformers (an older llama.cpp behind a Python interface) as a child process (child.py), run by the Python of an environment that
has it. One sequence at a time."""
from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import ctransformers
from child import peak_memory, serve


class Engine:
    def load(self, model: str, threads: int) -> dict[str, Any]:
        start = time.perf_counter()
        self.model = ctransformers.AutoModelForCausalLM.from_pretrained(model, model_type="llama", threads=threads, context_length=1024)
        return {"load_seconds": time.perf_counter() - start, "version": f"ctransformers {version('ctransformers')}", "system": "AVX2 build from PyPI"}

    def measure(self, what: str, n: int, sequences: int = 8) -> dict[str, Any]:
        if what not in ("generate", "prompt"):
            raise ValueError(f"ctransformers has no {what}")
        self.model.reset()
        start = time.perf_counter()
        if what == "prompt":
            self.model.eval([3 + i % 200 for i in range(n)])
        else:
            for i in range(n):
                self.model.eval([3 + i % 200])
        return {"tokens_per_second": n / (time.perf_counter() - start), "peak_memory": peak_memory()}


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "measure": engine.measure})
