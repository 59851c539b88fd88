"""llamina itself as a child process (child.py), measured as its peers are: `python -m llamina.bench.peers.ours_child`."""
from __future__ import annotations

import time
from typing import Any

import numpy as np

from ... import __version__
from .child import peak_memory, serve


class Engine:
    _deep_key: Any = None

    def load(self, model: str, threads: int) -> dict[str, Any]:
        from ...engine.architectures.config import ModelConfig, check_tensors
        from ...engine.gguf.file import open_gguf
        from ...engine.run.runtime import Runtime
        from ...kernels.target import TARGET
        start = time.perf_counter()
        gguf = open_gguf(model)
        config = ModelConfig.from_gguf(gguf)
        check_tensors(gguf, config)
        self._open = lambda **more: Runtime(gguf, config, threads=threads, **more)
        self.runtime = self._open()
        return {"load_seconds": time.perf_counter() - start - self.runtime.compile_seconds, "version": f"llamina {__version__}", "system": f"target {TARGET}"}

    def measure(self, what: str, n: int, sequences: int = 8, depth: int = 0, kv: str | None = None) -> dict[str, Any]:
        """Tokens a second: "prompt" of n tokens into an empty context; "generate" n tokens one by one; "batch": n steps of one token for each sequence;
        "deep": generate after `depth` positions of made-up keys and values."""
        from ...engine.run.runtime import Feed
        if what == "deep":
            return self._deep(n, depth, kv)
        runtime = self.runtime
        ids = np.random.default_rng(0).integers(3, runtime.config.n_vocab, n).tolist()
        several = [runtime.new_sequence() for _ in range(sequences if what == "batch" else 1)]
        start = time.perf_counter()
        if what == "prompt":
            for i in range(0, n, runtime.max_batch):
                runtime.step([Feed(several[0], ids[i:i + runtime.max_batch], "last" if i + runtime.max_batch >= n else "none")])
        else:
            for id in ids:
                runtime.step([Feed(sequence, [id]) for sequence in several])
        seconds = time.perf_counter() - start
        for sequence in several:
            sequence.close()
        return {"tokens_per_second": n * len(several) / seconds, "peak_memory": peak_memory()}

    def _deep(self, n: int, depth: int, kv: str | None) -> dict[str, Any]:
        from ..speed import Test, run
        if self._deep_key != (depth, kv):
            self.runtime.close()
            self.runtime, self._deep_key = self._open(context=depth + n, **({"kv": kv} if kv else {})), (depth, kv)
        speed = run(self.runtime, Test("generate", n, 1, depth), 1, warm_up=False)
        return {"tokens_per_second": speed.mean, "peak_memory": peak_memory()}


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "measure": engine.measure})
