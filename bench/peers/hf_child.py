"""Hugging Face transformers on PyTorch's CPU kernels as a child process (child.py), run by the Python of an environment that has both.

The model is one of the same shape with random weights, in bfloat16 or float32: it does not run on quantised weights, so the file's numbers don't matter.
"""
from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from child import peak_memory, serve


class Engine:
    def load(self, shape: dict[str, Any], threads: int, dtype: str) -> dict[str, Any]:
        start = time.perf_counter()
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        config = transformers.LlamaConfig(**shape)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            self.model = transformers.LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)
        return {"load_seconds": time.perf_counter() - start, "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
                "system": f"{dtype}, {torch.backends.cpu.get_cpu_capability()}"}

    @torch.inference_mode()
    def measure(self, what: str, n: int, sequences: int = 8) -> dict[str, Any]:
        ids = torch.randint(3, self.model.config.vocab_size, (sequences if what == "batch" else 1, n), generator=torch.Generator().manual_seed(0))
        start, cache = time.perf_counter(), transformers.DynamicCache()
        if what == "prompt":
            self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        else:
            for i in range(n):
                self.model(ids[:, i:i + 1], past_key_values=cache, use_cache=True)
        return {"tokens_per_second": ids.numel() / (time.perf_counter() - start), "peak_memory": peak_memory()}


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "measure": engine.measure})
