"""PEFT on transformers and PyTorch as a child process (child.py) that trains, run by the Python of an environment that has them.

The model is one of the same shape with random weights, in float32 or bfloat16 (the pairs of the same type: faster here than PEFT's float32 pairs beside a
bfloat16 base). No activations are recomputed: faster than gradient checkpointing, for more memory.
"""
from __future__ import annotations

import time
from typing import Any

import peft
import torch
import transformers
from child import peak_memory, serve


class Trainer:
    def load(self, shape: dict[str, Any], dtype: str, rank: int) -> dict[str, Any]:
        transformers.logging.set_verbosity_error()
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
        finally:
            torch.set_default_dtype(before)
        lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = peft.get_peft_model(base, lora, autocast_adapter_dtype=False).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
        return {"version": f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
                "system": f"{dtype}, {torch.backends.cpu.get_cpu_capability()}", "trained": sum(p.numel() for p in trained)}

    def step(self, rows: int, tokens: int, threads: int) -> dict[str, Any]:
        """One step of the optimiser -> its seconds."""
        torch.set_num_threads(threads)
        ids = torch.randint(3, self.model.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))
        start = time.perf_counter()
        self.optimiser.zero_grad()
        self.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimiser.step()
        return {"seconds": time.perf_counter() - start, "peak_memory": peak_memory()}


if __name__ == "__main__":
    trainer = Trainer()
    serve({"load": trainer.load, "step": trainer.step})
