"""onnxruntime-genai as a child process (child.py), run by the Python of an environment that has it and, for its builder, onnx, onnx-ir, PyTorch, transformers.

It reads no GGUF file: its builder makes a model of the same shape with random weights, 4 bits in blocks of 32 columns, activations in int8 (accuracy level 4,
its fastest).
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import torch
import transformers
from child import peak_memory, serve
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

LONGEST = 1024


class Engine:
    def load(self, shape: dict[str, Any], threads: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            source, made = str(Path(folder, "hf")), str(Path(folder, "onnx"))
            transformers.logging.set_verbosity_error()
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval().save_pretrained(source)
            words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>"))
            transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(source)
            builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", source, "-o", made, "-p", "int4", "-e", "cpu", "-c", folder,
                       "--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
            subprocess.run(builder, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # here lies a folder "kernels"
            start = time.perf_counter()
            config = onnxruntime_genai.Config(made)
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
            self.model = onnxruntime_genai.Model(config)
            seconds = time.perf_counter() - start
        return {"load_seconds": seconds, "version": f"onnxruntime-genai {onnxruntime_genai.__version__}", "system": "int4, blocks of 32, accuracy level 4"}

    def measure(self, what: str, n: int, sequences: int = 8) -> dict[str, Any]:
        rows = sequences if what == "batch" else 1
        options = onnxruntime_genai.GeneratorParams(self.model)
        options.set_search_options(max_length=LONGEST, min_length=LONGEST, batch_size=rows, do_sample=False)
        generator = onnxruntime_genai.Generator(self.model, options)
        ids = np.random.default_rng(0).integers(3, 200, (rows, n), dtype=np.int32)
        start = time.perf_counter()
        if what == "prompt":
            generator.append_tokens(ids)
            generator.get_logits()
        else:
            generator.append_tokens(ids[:, :1])
            for _ in range(n):
                generator.generate_next_token()
        return {"tokens_per_second": ids.size / (time.perf_counter() - start), "peak_memory": peak_memory()}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    engine = Engine()
    serve({"load": engine.load, "measure": engine.measure})
