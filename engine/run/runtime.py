"""The runtime: weights, buffers, KV cache and thread team of one open model, and its one operation, the step.

    feeds [(sequence, ids, which logits)] ──► embedding rows ──► forward.py on all threads, some layers at a time ──► float32 [wanted, n_vocab]

A prompt chunk, one decoded token and many users' next tokens are the same operation with other numbers of tokens. Long steps are cut into ranges of
layers, so that Ctrl-C is seen between them; `abort()` stops a step from another thread.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...kernels import ARITHMETIC_VERSION, attention, compile_cache
from ...kernels.activations import GROUP, record_bytes
from ...kernels.elementwise import PAIRS
from ...kernels.float_env import in_default_floats
from ...kernels.pace import Pace
from ...kernels.team import ABORTED, Team
from ...kernels.threads import default_threads, usable_threads
from ..architectures.config import ModelConfig, read_vector
from ..errors import AbortedError, ClosedError, ContextFullError, NumericError, OptionError, OutOfMemoryError
from ..gguf.file import GGUFFile, model_digest
from . import forward as f
from . import kv_cache, thread_choice
from .kv_cache import PagePool, Sequence, pages_of
from .memory import MemoryPlan, plan
from .rope import RopeTable
from .weights import LAYER_MATRICES, Progress, Weights

_RANGE_MACS = 30e9
"""Multiply-adds of one call into compiled code: about 0.1 s on two cores; Ctrl-C is seen between calls."""

_ITEMS_A_THREAD = 8
"""Attention's blocks are split into spans if there are fewer pieces than this for each thread."""


@dataclass
class Feed:
    """Tokens to append to a sequence in a step, and which of their logits are wanted."""

    sequence: Sequence
    ids: Any
    """int [n], 1 <= n."""
    logits: Literal["none", "last", "all"] = "last"


def gguf_bytes(gguf: GGUFFile) -> int:
    """Of all tensors."""
    return sum(tensor.n_bytes for tensor in gguf.tensors.values())


def _round(n: int, to: int) -> int:
    return -(-n // to) * to


def known_threads(gguf: GGUFFile, threads: int | None) -> int:
    """Threads that were asked for, or chosen before; 0: to be measured."""
    return threads or thread_choice.asked() or thread_choice.lookup(gguf_bytes(gguf)) or 0


def most_threads(gguf: GGUFFile, threads: int | None) -> int:
    """Most threads that a model's runtime may have: what its memory is planned for."""
    return known_threads(gguf, threads) or max(thread_choice.candidates(default_threads(), usable_threads()))


class Runtime:
    """One model in memory. Not for concurrent steps: they are serialised by the caller.

    context: most positions of a sequence (default: the trained context, at most 4096). memory: bytes that weights and KV cache may take together
    (default: half of what is free beside the weights goes to the KV cache). kv: what keys and values are kept as, a name of kv_cache.KV_TYPES (default:
    f16; f32 for files that are float32 throughout). note: called with the memory plan before anything is loaded.
    Raises FormatError (NaN among the weights), OutOfMemoryError, OptionError.
    """

    @in_default_floats
    def __init__(self, gguf: GGUFFile, config: ModelConfig, threads: int | None = None, context: int | None = None,
                 progress: Progress | None = None, memory: int | None = None, note: Callable[[str], None] | None = None,
                 kv: str | None = None):
        start = time.perf_counter()
        if threads is not None and not 1 <= threads <= 256:
            raise OptionError(f"threads must be between 1 and 256, found {threads}")
        if context is not None and not 1 <= context <= 1 << 24:
            raise OptionError(f"context must be between 1 and {1 << 24} positions, found {context}")
        self.gguf, self.config = gguf, config
        choices = None
        self.n_threads = most_threads(gguf, threads)
        if not known_threads(gguf, threads):
            choices = thread_choice.candidates(default_threads(), usable_threads())
        self.kv = kv_cache.kv_type(config, kv)
        self.plan: MemoryPlan = plan(gguf, config, context, memory, kv, self.n_threads)
        if note:
            note(str(self.plan))
            if self.plan.shortage:
                note(self.plan.shortage)
        self.context, self.wanted_context = self.plan.context, self.plan.wanted
        self.max_batch, self.max_logits = self.plan.tokens, self.plan.logits
        self._pool = PagePool(self.plan.page_bytes, self.plan.pages, repr((gguf.stamps, ARITHMETIC_VERSION, self.kv.name)).encode())
        compiled_before = compile_cache.stats.seconds
        self._weights = Weights(gguf, config, _round(config.dim, 32), self.n_threads)
        try:
            self._prepare(gguf, config)
            self._weights.wait(progress)
            self.digest = model_digest(gguf)
            """What tells this model file from others."""
        except BaseException:
            self._weights.close()
            raise
        self._closed = False
        self.team.run(self._entry, self._step.ctypes.data)  # an empty step: everything is compiled and the threads are there
        if choices:
            self._choose_threads(choices)
        self.compile_seconds = compile_cache.stats.seconds - compiled_before
        self.load_seconds = time.perf_counter() - start - self.compile_seconds

    def _choose_threads(self, choices: list[int]) -> None:
        """The fastest of these numbers of threads for decoding a token; kept for the next time unless other processes disturbed it."""
        sequence = self.new_sequence()

        def run(threads: int) -> None:
            self._pace = Pace(threads)
            self.step([Feed(sequence, [0], "none")])
            sequence.truncate(0)
        best = choices[0]
        try:
            fastest = thread_choice.fastest(run, choices)
            if not self.team.busy or self.n_threads > usable_threads():
                best = fastest
                thread_choice.keep(gguf_bytes(self.gguf), best)
        except (OutOfMemoryError, NumericError):  # whoever generates will be told
            pass
        finally:
            sequence.close()
            self.n_threads, self._pace = best, Pace(best)

    def _prepare(self, gguf: GGUFFile, config: ModelConfig) -> None:
        """Everything beside the weights, while they are loaded."""
        self._entry = f.forward.address
        factors = None
        if config.rope_freq_factors:
            factors = read_vector(gguf, "rope_freqs.weight")
        self._rope = RopeTable(config, self.context, factors)
        self._buffers: dict[int, np.ndarray] = {}
        self._parts = np.empty(0, np.uint8)
        self._model = np.zeros(f.MODEL_WORDS, np.int64)
        self._step = np.zeros(f.STEP_WORDS, np.int64)
        self._lay_out()
        self.team, self._pace = Team(self.n_threads), Pace(self.n_threads)
        self._rope.fill(1)

    # -- memory ---------------------------------------------------------------------------------------------------------------------------

    @property
    def gains(self) -> dict[str, np.ndarray]:
        """The norms' gains by tensor name, float32 rows padded with zeros."""
        return self._weights.gains

    @property
    def weight_bytes(self) -> int:
        """Memory of the retiled matrices."""
        return self._weights.nbytes

    @property
    def kv_bytes(self) -> int:
        """Memory claimed by the KV cache so far."""
        return self._pool.claimed * self._pool.page_bytes

    @property
    def kv_bytes_per_sequence(self) -> int:
        """Memory of one sequence that fills the context."""
        return pages_of(self.context) * self._pool.page_bytes

    @property
    def page_bytes(self) -> int:
        """Memory of a page, 64 positions of all layers."""
        return self._pool.page_bytes

    @property
    def kv_name(self) -> str:
        """How keys and values are kept."""
        return self.kv.name

    @property
    def macs_per_token(self) -> int:
        """Multiply-adds of the layers' matrices for a token."""
        return self.config.n_layers * self._layer_macs

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for KV memory."""
        return self._pool.awaited

    def clear_prefix_cache(self) -> None:
        """Forget the beginnings kept of earlier sequences."""
        self._pool.clear_prefix_cache()

    def _buffer(self, word: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
        """A zeroed buffer whose address goes into a word of the model's block. Kernels may read up to 16 elements past a row's end."""
        raw = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 128, np.uint8)
        offset = -raw.ctypes.data % 64
        self._buffers[word] = raw[offset:offset + int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
        self._model[word // 8] = raw.ctypes.data + offset
        return self._buffers[word]

    def _lay_out(self) -> None:
        c, w, m = self.config, self._weights, self._model
        rows = self.max_batch
        ld_dim, ld_att = _round(c.dim, 32), _round(c.n_heads * c.head_dim, 32)
        ld_kv, ld_ffn = _round(c.n_kv_heads * c.head_dim, 32), _round(c.ffn_dim, 32)
        for word, value in ((attention.N_HEADS, c.n_heads), (attention.N_KV_HEADS, c.n_kv_heads), (attention.HEAD_DIM, c.head_dim),
                            (attention.V_DIM, attention.v_dim(c.head_dim)), (attention.QUERY_BYTES, self.kv.query_bytes(c.head_dim)),
                            (attention.VALUE_DIM, c.head_dim), (attention.LD_ATT, ld_att), (attention.LD_Q, ld_att), (attention.LD_KV, ld_kv),
                            (attention.LD_V, ld_kv), (attention.ROPE_DIM, c.rope_dim), (attention.ROPE_KIND, PAIRS),
                            (f.KV_TILES, 0 if c.head_dim % 16 else c.head_dim // 16), (f.DIM, c.dim), (f.LD_DIM, ld_dim), (f.LD_FFN, ld_ffn),
                            (attention.ROPE_TABLE, self._rope.rows.ctypes.data), (f.LAYER_KV_BYTES, self.kv.layer_bytes(c.n_kv_heads, c.head_dim, c.head_dim)),
                            (f.ATTEND, attention.attention_kernel(self.kv).address), (f.APPEND, attention.append_kernel(self.kv).address)):
            m[word // 8] = value
        floats = m.view(np.float32)
        floats[f.EPS // 4] = c.rms_eps
        floats[attention.SCALE // 4] = np.float32(1.0) / np.sqrt(np.float32(c.head_dim))
        self._x = self._buffer(f.X, rows, ld_dim)
        for word, ld in ((f.NORMED, ld_dim), (f.ADDEND, ld_dim), (attention.Q, ld_att), (attention.ATT, ld_att), (attention.K, ld_kv), (attention.V, ld_kv),
                         (f.GATE, ld_ffn), (f.UP, ld_ffn)):
            self._buffer(word, rows, ld)
        self._buffer(attention.RECORDS, record_bytes(rows, max(ld_dim, ld_att)), dtype=np.uint8)
        self._buffer(f.DOWN_RECORDS, record_bytes(rows, ld_ffn), dtype=np.uint8)
        scratch = _round(attention.scratch_bytes(self.kv, c.n_heads, c.n_kv_heads, c.head_dim), 128)
        self._buffer(f.SCRATCH, scratch * self.n_threads, dtype=np.uint8)
        m[f.SCRATCH_BYTES // 8] = scratch
        own = _round(2 * 4 * GROUP * ld_dim + record_bytes(GROUP, ld_dim), 128)
        self._buffer(f.OWN, own * self.n_threads, dtype=np.uint8)
        m[f.OWN_BYTES // 8] = own

        quantize_with_attention = c.n_heads // c.n_kv_heads * c.head_dim % 32 == 0  # what a piece of attention's work writes is whole blocks
        self._reads_floats = any(d[f.FLOAT_INPUT // 8] for d in w.descriptors.values())
        layers = self._buffer(f.LAYERS, c.n_layers, f.LAYER_BYTES // 8, dtype=np.int64)
        for i, words in enumerate(layers):
            words[f.ATTN_NORM // 8] = w.gains[f"blk.{i}.attn_norm.weight"].ctypes.data
            words[f.FFN_NORM // 8] = w.gains[f"blk.{i}.ffn_norm.weight"].ctypes.data
            matrices = [w.descriptors[f"blk.{i}.{name}.weight"] for name in LAYER_MATRICES]
            words[f.WQ // 8:] = np.concatenate(matrices)
            wants_records = [not matrix[f.FLOAT_INPUT // 8] for matrix in matrices]
            words[f.QUANTIZE_QKV // 8], words[f.QUANTIZE_ATT // 8] = any(wants_records[:3]), wants_records[3] and not quantize_with_attention
            m[attention.QUANTIZE // 8] |= wants_records[3] and quantize_with_attention
            words[f.QUANTIZE_FFN // 8], words[f.QUANTIZE_DOWN // 8] = any(wants_records[4:6]), wants_records[6]
        output = w.descriptors["token_embd.weight" if c.tied_output else "output.weight"]
        m[f.OUTPUT_NORM // 8] = w.gains["output_norm.weight"].ctypes.data
        m[f.OUTPUT // 8] = output.ctypes.data
        m[f.QUANTIZE_OUTPUT // 8] = not output[f.FLOAT_INPUT // 8]
        self._logit_columns = int(output[f.TILES // 8]) * 16
        self._layer_macs = sum(int(t[f.COLUMNS // 8] * t[f.TILES // 8]) * 16 for t in (w.descriptors[f"blk.0.{n}.weight"] for n in LAYER_MATRICES))
        self._tokens = np.zeros((4, rows), np.int64)
        """Of a step's tokens: ids, positions, page tables' addresses; which of their logits are wanted."""
        m[attention.POSITIONS // 8], m[attention.PAGE_TABLES // 8] = self._tokens[1].ctypes.data, self._tokens[2].ctypes.data
        s = self._step
        s[f.MODEL // 8], s[f.WANTED // 8], s[f.LD_LOGITS // 8] = m.ctypes.data, self._tokens[3].ctypes.data, self._logit_columns
        self._step_address = s.ctypes.data

    # -- the step -------------------------------------------------------------------------------------------------------------------------

    def new_sequence(self, cached: bool = False, salt: bytes = b"") -> Sequence:
        """An empty sequence of at most `context` positions. cached: its pages go to the prefix cache as they fill, for others of the same salt to begin with."""
        self._check_open()
        return Sequence(self._pool, self.context, cached, salt)

    @in_default_floats
    def step(self, feeds: list[Feed], observe: Callable[[int, dict[str, np.ndarray]], None] | None = None) -> np.ndarray:
        """Append every feed's tokens to its sequence -> logits float32 [wanted rows in feed order, n_vocab].

        observe: called after each layer as observe(layer, {"input": residual stream before the layer, "attention": input of attn_output, "ffn_input":
        of ffn_gate and ffn_up, "ffn_activation": of ffn_down, "output": residual stream after the layer}), float32 [M, columns], valid during the call.
        At most `max_batch` tokens in all, each sequence in one feed. Raises ContextFullError and OutOfMemoryError before anything is computed,
        OptionError (ids outside the vocabulary), NumericError, AbortedError; whatever is raised, no sequence has changed.
        """
        self._check_open()
        ids, items, n_wanted, _done = self._plan(feeds)
        n = len(ids)
        x = self._x[:n]
        x[:, :self.config.dim] = self._weights.embed(ids)
        self._rope.fill(int(self._tokens[1, :n].max()) + 1)
        logits = np.empty((n_wanted, self._logit_columns), np.float32)
        s = self._step
        self._model[attention.TOKENS // 8] = n
        s[f.N_TOKENS // 8], s[f.N_ITEMS // 8], s[f.ITEMS // 8], s[f.LOGITS // 8] = n, len(items), items.ctypes.data, logits.ctypes.data
        s[f.NOT_FINITE // 8], s[f.KEEP // 8] = 0, f.OBSERVED if observe else self._reads_floats
        self.team.clear_abort()
        n_layers = self.config.n_layers
        layers = 1 if observe else max(1, min(n_layers, int(_RANGE_MACS / (n * self._layer_macs))))
        for first in range(0, n_layers, layers):
            last = min(first + layers, n_layers)
            before = x[:, :self.config.dim].copy() if observe else x
            self._run(first, last, n_wanted if last == n_layers and not observe else 0)
            if observe:
                observe(first, self._taps(before, n))
        if observe and n_wanted:
            self._run(n_layers, n_layers, n_wanted)  # apart from the last layer, whose buffers it overwrites
        if n_wanted and not (math.isfinite(logits.min()) and math.isfinite(logits.max())):  # NaN is both; a third of isfinite's time
            raise NumericError(f"{self.gguf.path}: NaN or infinity among the logits: the output weights are damaged or overflow")
        for feed in feeds:
            feed.sequence.append(feed.ids)
        return logits[:, :self.config.n_vocab]

    def _run(self, first: int, last: int, n_wanted: int) -> None:
        """Layers [first, last) and the logits of n_wanted tokens on all threads. AbortedError, NumericError."""
        s = self._step
        s[f.FIRST_LAYER // 8], s[f.LAST_LAYER // 8], s[f.N_WANTED // 8] = first, last, n_wanted
        tokens, work = int(s[f.N_TOKENS // 8]), last - first + (1 if n_wanted else 0)
        threads, start, lost = self._pace.threads(min(tokens, 16)), time.perf_counter(), self.team.lost_seconds
        status = self.team.run(self._entry, self._step_address, threads)
        seconds, lost = time.perf_counter() - start, self.team.lost_seconds - lost
        self._pace.note(min(tokens, 16), threads, seconds / (work * max(1, tokens // 16)), lost / (max(1, threads - 1) * seconds))
        if status & ABORTED:
            raise AbortedError("the step was aborted")
        if s[f.NOT_FINITE // 8]:
            layer, stage = divmod(int(s[f.NOT_FINITE // 8]) - 1, 8)
            raise NumericError(f"{self.gguf.path}: NaN or infinity in layer {layer} of {self.config.n_layers} ({f.STAGES[stage]}): "
                               + self._overflow(f.STAGES[stage]))

    def _overflow(self, stage: str) -> str:
        """Why a stage may hold what is no number, and what helps."""
        if stage == "keys and values" and self.kv.name != "f32":
            return f"larger than {self.kv.name} keeps them: load with kv='f32' (--kv f32); if that fails, too, the weights are damaged"
        return "the weights are damaged or overflow"

    def _taps(self, before: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """What a range of one layer leaves in the buffers."""
        c, b = self.config, self._buffers
        return {"input": before, "attention": b[attention.ATT][:n, :c.n_heads * c.head_dim], "ffn_input": b[f.NORMED][:n, :c.dim],
                "ffn_activation": b[f.GATE][:n, :c.ffn_dim], "output": b[f.X][:n, :c.dim]}

    def _plan(self, feeds: list[Feed]) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """Fill `_tokens`, make room in the sequences -> ids int64 [M], attention's items int64 [n, ITEM_WORDS], how many logits are wanted, what
        the items point to."""
        lengths = [len(feed.ids) for feed in feeds]
        if not feeds or min(lengths) == 0 or sum(lengths) > self.max_batch:
            raise OptionError(f"a step takes 1 to {self.max_batch} tokens in non-empty feeds, found {lengths}")
        if len({id(feed.sequence) for feed in feeds}) != len(feeds):
            raise OptionError("a sequence may stand in one feed of a step only")
        ids, positions, tables, wanted = self._tokens
        m = 0
        for feed, n in zip(feeds, lengths):
            ids[m:m + n] = feed.ids
            m += n
        ids = ids[:m]
        if ids.min() < 0 or ids.max() >= self.config.n_vocab:
            bad = next(int(i) for i in ids if not 0 <= i < self.config.n_vocab)
            raise OptionError(f"token id {bad} is outside the vocabulary of {self.config.n_vocab}")
        for feed, n in zip(feeds, lengths):
            if feed.sequence.length + n > self.context:
                raise ContextFullError(
                    f"{feed.sequence.length + n} positions do not fit into the context of {self.context}; raise the context or shorten the text")
        for feed, n in zip(feeds, lengths):
            feed.sequence.reserve(feed.sequence.length + n)
        size = attention.block_tokens(self.config.n_heads, self.config.n_kv_heads)
        blocks, n_wanted, m = [], 0, 0
        for feed, n in zip(feeds, lengths):
            start, table = feed.sequence.length, feed.sequence.table_address
            positions[m:m + n] = start if n == 1 else np.arange(start, start + n)
            tables[m:m + n] = table
            blocks += [(m + i, m + min(i + size, n), start + i, table) for i in range(0, n, size)]
            if feed.logits == "all":
                wanted[n_wanted:n_wanted + n] = np.arange(m, m + n)
                n_wanted += n
            elif feed.logits == "last":
                wanted[n_wanted] = m + n - 1
                n_wanted += 1
            m += n
        items, done = self._items(blocks)
        return ids, items, n_wanted, done

    def _items(self, blocks: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Attention's pieces of work, longest first: whole blocks (m0, m1, position of m0, page table), or, where those are few, spans of them."""
        c, span = self.config, attention.SPAN
        few = len(blocks) * c.n_kv_heads < _ITEMS_A_THREAD * self.n_threads
        done = np.zeros((len(blocks), c.n_kv_heads), np.int64)
        items, room = [], 0
        for i, (m0, m1, position, table) in enumerate(blocks):
            pages = pages_of(position + m1 - m0)
            if few and pages > span:
                spans = -(-pages // span)
                items += [[m0, m1, position, table, at, min(at + span, pages), 1 + room, done[i].ctypes.data, spans] for at in range(0, pages, span)]
                room += spans * (m1 - m0) * c.n_heads * attention.part_bytes(c.head_dim)
            else:
                items.append([m0, m1, position, table, 0, pages, 0, 0, 1])
        if len(items) > 1:
            items.sort(key=lambda item: item[4] - item[5])
        result = np.array(items, np.int64)
        if room:
            if len(self._parts) < room + 64:
                self._parts = np.empty(_round(room, 1 << 16) + 64, np.uint8)
            base, parts = self._parts.ctypes.data, result[:, attention.PARTS // 8]
            parts[parts > 0] += base + -base % 64 - 1
        return result, done

    # -- the end --------------------------------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Stop the running step at its next stage; callable from any thread."""
        self.team.abort()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.gguf.path}: the model was closed; load it again")

    def close(self) -> None:
        """End the threads and drop the memory. Harmless twice; steps raise ClosedError afterwards."""
        if not self._closed:
            self._closed = True
            self.team.close()
            self._buffers.clear()
            del self._weights, self._x, self._pool
