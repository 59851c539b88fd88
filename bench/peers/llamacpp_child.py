"""llama.cpp as a child process (child.py), through the low-level API of llama-cpp-python; run by the Python of an environment that has it:

    python llamacpp_child.py    then  {"do": "load", "model": ..., "threads": 2}   {"do": "measure", "what": "prompt", "n": 512}   ...

Speeds are of llama_decode alone, as llama-bench measures: no sampling, no text.
"""
from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from typing import Any

import llama_cpp
import numpy as np
from child import peak_memory, serve

L: Any = llama_cpp.llama_cpp
DEFAULT, OFF, ON = "auto", "off", "on"
FLASH = {DEFAULT: -1, OFF: 0, ON: 1}
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
FTYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
          "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "q2_k_s": 21, "iq3_xs": 22, "iq3_xxs": 23,
          "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq3_m": 27, "iq2_s": 28, "iq2_m": 29, "iq4_xs": 30, "iq1_m": 31, "bf16": 32, "tq1_0": 36,
          "tq2_0": 37}


@L.llama_log_callback
def _log(level: int, text: bytes, data: Any) -> None:
    if level == 4 or os.environ.get("LLAMACPP_VERBOSE"):  # errors
        sys.stderr.write(text.decode(errors="replace"))


class Engine:
    """One open model; its contexts are made per measurement, and the last one is kept."""

    def __init__(self) -> None:
        L.llama_log_set(_log, None)
        L.llama_backend_init()
        self.model: Any = None
        self.context: Any = None
        self.batch: Any = None
        self.kept: Any = None  # the open context's settings
        self.threads = self.n_vocab = 0

    def load(self, model: str, threads: int, vocab_only: bool = False) -> dict[str, Any]:
        start = time.perf_counter()
        self.threads = threads
        self.free()
        params = L.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only = 0, vocab_only
        self.model = L.llama_model_load_from_file(os.fsencode(model), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp refuses {model}")
        self.n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))
        return {"load_seconds": time.perf_counter() - start, "version": f"llama.cpp in llama-cpp-python {llama_cpp.__version__}",
                "system": L.llama_print_system_info().decode().strip(" |")}

    def free(self) -> None:
        """Drop context and model."""
        if self.context:
            L.llama_free(self.context)
            L.llama_batch_free(self.batch)
        if self.model:
            L.llama_model_free(self.model)
        self.model = self.context = self.batch = self.kept = None

    def open(self, n_ctx: int, sequences: int = 1, flash: str = DEFAULT, batch: int = 512, unified: bool = False, kv: str = "f16", keep: bool = False) -> bool:
        """-> whether this very context was open already, with what it holds if `keep`."""
        key = n_ctx, sequences, flash, batch, unified, kv
        if self.kept == key:
            if not keep:
                L.llama_memory_clear(L.llama_get_memory(self.context), True)
            return True
        if self.context:
            L.llama_free(self.context)
            L.llama_batch_free(self.batch)
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, batch, batch, sequences
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type, params.kv_unified = FLASH[flash], unified
        params.type_k = params.type_v = KV_TYPES[kv]
        self.context = L.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.batch, self.kept = L.llama_batch_init(batch, 0, 1), key
        return False

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """One llama_decode of (id, position, sequence, wants logits)."""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, (id, position, sequence, wanted) in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = id, position, 1, sequence, wanted
        if status := L.llama_decode(self.context, b):
            raise RuntimeError(f"llama_decode: {status}")

    def measure(self, what: str, n: int, sequences: int = 8, flash: str = DEFAULT, batch: int = 512, unified: bool = False, prompt: int = 0, depth: int = 0,
                kv: str = "f16") -> dict[str, Any]:
        """Tokens a second: "prompt" of n tokens into an empty context; "generate" n tokens one by one; "batch": n steps of one token for each sequence,
        after a prompt for each, which counts as time, not as tokens; "deep": generate after `depth` tokens, which are read once for a setting."""
        if what == "deep":
            return self.deep(n, depth, flash, kv)
        ids = np.random.default_rng(0).integers(3, self.n_vocab, max(n, prompt)).tolist()
        several = sequences if what == "batch" else 1
        self.open(max(256, -(-(n + prompt) // 256) * 256) * (several if several > 1 else 1), several, flash, batch, unified)
        start = time.perf_counter()
        if what == "prompt":
            for i in range(0, n, batch):
                self.decode([(id, i + j, 0, i + j == n - 1) for j, id in enumerate(ids[i:i + batch])])
        else:
            fed = [(id, i, s, i == prompt - 1) for s in range(several) for i, id in enumerate(ids[:prompt])]
            for i in range(0, len(fed), batch):
                self.decode(fed[i:i + batch])
            for i in range(prompt, prompt + n):
                self.decode([(ids[i - prompt], i, s, True) for s in range(several)])
        L.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        return {"tokens_per_second": n * several / seconds, "peak_memory": peak_memory()}

    def deep(self, n: int, depth: int, flash: str, kv: str) -> dict[str, Any]:
        ids = np.random.default_rng(0).integers(3, self.n_vocab, depth + n).tolist()
        if not self.open(-(-(depth + n) // 256) * 256, flash=flash, kv=kv, keep=True):
            for i in range(0, depth, 512):
                self.decode([(id, i + j, 0, i + j == depth - 1) for j, id in enumerate(ids[i:min(i + 512, depth)])])
        L.llama_memory_seq_rm(L.llama_get_memory(self.context), 0, depth, -1)
        L.llama_synchronize(self.context)
        start = time.perf_counter()
        for i in range(n):
            self.decode([(ids[depth + i], depth + i, 0, True)])
        L.llama_synchronize(self.context)
        return {"tokens_per_second": n / (time.perf_counter() - start), "peak_memory": peak_memory()}

    def logits(self, ids: list[int], save: str, flash: str = OFF, kv: str = "f16", lora: str | None = None, scale: float = 1.0) -> dict[str, Any]:
        """Logits after each id, in batches of 512, saved as .npy: float32 [len(ids), n_vocab]. lora: an adapter's file."""
        self.open(-(-len(ids) // 256) * 256, flash=flash, kv=kv)
        if lora is not None:
            adapter = L.llama_adapter_lora_init(self.model, os.fsencode(lora))
            if not adapter:
                raise RuntimeError(f"llama.cpp refuses {lora}")
            if status := L.llama_set_adapters_lora(self.context, (L.llama_adapter_lora_p_ctypes * 1)(adapter), 1, (ctypes.c_float * 1)(scale)):
                raise RuntimeError(f"llama_set_adapters_lora: {status}")
        np.save(save, np.concatenate([self.window(ids, i) for i in range(0, len(ids), 512)]))
        return {"rows": len(ids)}

    def window(self, ids: list[int], start: int) -> np.ndarray:
        part = ids[start:start + 512]
        self.decode([(id, start + i, 0, True) for i, id in enumerate(part)])
        return np.ctypeslib.as_array(L.llama_get_logits(self.context), (len(part), self.n_vocab)).copy()

    def tokenize(self, text: str, special: bool = True, parse_special: bool = False) -> list[int]:
        raw, vocab = text.encode(), L.llama_model_get_vocab(self.model)
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        return list(ids[:L.llama_tokenize(vocab, raw, len(raw), ids, len(ids), special, parse_special)])

    def perplexity(self, path: str, context: int = 512, chunks: int = 0, ids: list[int] | None = None) -> dict[str, Any]:
        """As llama.cpp's perplexity tool: windows of `context` tokens, each begun with BOS in its first token's place; the second half of each is scored."""
        with open(path, encoding="utf-8") as file:
            ids = ids or self.tokenize(file.read())
        vocab = L.llama_model_get_vocab(self.model)
        bos = L.llama_vocab_bos(vocab) if L.llama_vocab_get_add_bos(vocab) else None
        count = min(len(ids) // context, chunks or len(ids))
        losses = []
        for c in range(count):
            window = ids[c * context:(c + 1) * context]
            self.open(max(256, context))
            rows = np.concatenate([self.window(window if bos is None else [bos, *window[1:]], i) for i in range(0, context, 512)])
            first = context // 2
            x = rows[first:context - 1].astype(np.float64)
            x -= x.max(axis=1, keepdims=True)
            losses.append(np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), window[first + 1:]])
        every = np.concatenate(losses)
        error = every.std(ddof=1) / math.sqrt(len(every)) * math.exp(every.mean())
        return {"perplexity": math.exp(every.mean()), "error": error, "tokens": len(every), "windows": count}

    def quantize(self, source: str, target: str, type: str, pure: bool = False, threads: int = 2, importance: str | None = None) -> dict[str, Any]:
        """Write `source` quantised by llama.cpp's own tool. importance: an .npz of tensor name -> float32 [columns]."""
        params = L.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize, params.pure = FTYPES[type], threads, True, pure
        weights = {name.encode(): np.ascontiguousarray(data, np.float32) for name, data in np.load(importance).items()} if importance else {}
        if weights:
            entries = (L.llama_model_imatrix_data * (len(weights) + 1))()  # ended by an entry without a name
            for entry, (name, data) in zip(entries, weights.items()):
                entry.name, entry.data, entry.size = name, data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), data.size
            params.imatrix = entries
        start = time.perf_counter()
        if status := L.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
            raise RuntimeError(f"llama_model_quantize: {status}")
        return {"bytes": os.path.getsize(target), "seconds": time.perf_counter() - start, "peak_memory": peak_memory()}


if __name__ == "__main__":
    engine = Engine()
    serve({name: getattr(engine, name) for name in ("load", "measure", "logits", "tokenize", "perplexity", "quantize")})
