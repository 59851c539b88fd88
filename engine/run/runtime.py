"""The runtime: weights, buffers, KV cache and thread team of one open model, and its one operation, the step.

    feeds [(sequence, ids, which logits)] ──► embedding rows ──► forward.py on all threads, some layers a run ──► float32 [wanted, n_vocab]

A prompt chunk, one decoded token and many users' next tokens are the same operation with other numbers of tokens. Long steps are cut into ranges of
layers, so that Ctrl-C is seen between them; `abort()` stops a step from another thread. Layers that are observed run in open form (program.py), stage by stage.
"""
from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...kernels import ARITHMETIC_VERSION, attention, compile_cache
from ...kernels.activations import GROUP
from ...kernels.addresses import address
from ...kernels.float_env import in_default_floats
from ...kernels.pace import Pace
from ...kernels.team import ABORTED, Team
from ...kernels.threads import default_threads, usable_threads
from ..architectures.config import ModelConfig, read_vector
from ..errors import AbortedError, ClosedError, ContextFullError, NumericError, OptionError, OutOfMemoryError
from ..gguf.file import GGUFFile, model_digest
from . import kv_cache, thread_choice
from .adapter_memory import Reserve
from .adapters import Adapters, key_of
from .expert_arena import ExpertArena
from .feed import Feed as Feed
from .feed import Keep as Keep
from .feed import Look as Look
from .feed import Part as Part
from .feed import embedded
from .forward import forward
from .items import Items
from .kv_cache import PagePool, Sequence
from .layout import Layout
from .looking import Looking
from .memory import MemoryPlan, plan
from .ops import common as f
from .page_pool import Census
from .program import Placed, Program
from .replay import Recurrence
from .row_table import RowTable
from .weights import Progress, Weights

_RANGE_MACS = 30e9
"""Multiply-adds of one call into compiled code: about 0.1 s on two cores; Ctrl-C is seen between calls."""

Observers = Mapping[str, Callable[[np.ndarray], None]]
"""Site (ModelConfig.sites) -> what is called with its rows, float32 [M, columns]: the buffer itself, valid during the call; what is written into it, the pass
goes on with. A `Keep` only copies them."""


class Runtime(Looking):
    """One model in memory. Not for concurrent steps: they are serialised by the caller.

    context: most positions of a sequence (default: the trained context, at most 4096). memory: bytes that weights and KV cache may take together
    (default: half of what is free beside the weights goes to the KV cache). kv: what keys and values are kept as, a name of kv_cache.KV_TYPES (default:
    f16; f32 for files that are float32 throughout). adapters: bytes of those that it will have. note: called with the memory plan before anything is loaded.
    Raises FormatError (NaN among the weights), OutOfMemoryError, OptionError.
    """

    @in_default_floats
    def __init__(self, gguf: GGUFFile, config: ModelConfig, threads: int | None = None, context: int | None = None, progress: Progress | None = None,
                 memory: int | None = None, note: Callable[[str], None] | None = None, kv: str | None = None, adapters: int = 0):
        start = time.perf_counter()
        self.on_layers: Callable[[float], None] | None = None
        """Called between the parts of a long step with the share of its layers that is done; what it raises ends the step."""
        if threads is not None and not 1 <= threads <= 256:
            raise OptionError(f"threads must be between 1 and 256, found {threads}")
        if context is not None and not 1 <= context <= 1 << 24:
            raise OptionError(f"context must be between 1 and {1 << 24} positions, found {context}")
        self.gguf, self.config = gguf, config
        choices = None
        self.n_threads = thread_choice.most_threads(gguf, threads)
        if not thread_choice.known_threads(gguf, threads):
            choices = thread_choice.candidates(default_threads(), usable_threads())
        self.kv = kv_cache.kv_type(config, kv)
        self.plan: MemoryPlan = plan(gguf, config, context, memory, kv, self.n_threads, adapters)
        if note:
            for line in filter(None, (str(self.plan), self.plan.shortage)):
                note(line)
        self.context, self.wanted_context = self.plan.context, self.plan.wanted
        self.max_batch, self.max_logits = self.plan.tokens, self.plan.logits
        seed = repr((gguf.stamps, ARITHMETIC_VERSION, self.kv.name)).encode()
        self._pool = PagePool(self.plan.page_bytes, self.plan.pages, seed, self.plan.layout)
        compiled_before = compile_cache.stats.seconds
        self.arena = ExpertArena(gguf, config, self.plan.experts, self.n_threads) if self.plan.experts else None
        """Of experts that don't all fit into memory."""
        self._weights = Weights(gguf, config, self.n_threads, self.arena.at if self.arena else None)
        try:
            with compile_cache.telling(progress):
                self._prepare(gguf, config, memory is not None)
                self._weights.wait(progress)
            self.digest, self.stamps = model_digest(gguf), gguf.stamps
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
                thread_choice.keep(thread_choice.gguf_bytes(self.gguf), best)
        except (OutOfMemoryError, NumericError):  # whoever generates will be told
            pass
        finally:
            sequence.close()
            self.n_threads, self._pace = best, Pace(best)

    def _prepare(self, gguf: GGUFFile, config: ModelConfig, limited: bool) -> None:
        """Everything beside the weights, while they are loaded."""
        self._entry = forward.address
        names = {a.rope.factors_for(self.context) for a in config.attentions() if a.rope}
        factors = {name: read_vector(gguf, name) for name in names if name}
        self._layout = Layout(config, self._weights, self.kv, self.max_batch, self.n_threads, self.context, factors, self.plan.layout)
        self.adapters = Adapters(config, self._weights, self._pool, self.n_threads, Reserve(self, self._pool, limited))
        self.program = Program(self._layout)
        self._per_layer = RowTable(gguf, config.per_layer) if config.per_layer else None
        self._items, self._recurrence = Items(self._layout, self.n_threads), Recurrence(self._layout)
        self._step = np.zeros(f.STEP_WORDS, np.int64)
        self._words = memoryview(self._step)  # type: ignore[arg-type]  # the same: numbers go in and out of it in half the time
        self._lay_out()
        self.team, self._pace = Team(self.n_threads), Pace(self.n_threads)
        for table in self._tables:
            table.fill(1)

    # -- memory ---------------------------------------------------------------------------------------------------------------------------

    @property
    def gains(self) -> dict[str, np.ndarray]:
        """The norms' gains by tensor name, float32 rows padded with zeros."""
        return self._weights.gains

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """Tensors that no kernel reads (a head's), float32 in their shapes."""
        return self._weights.kept

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
        return self.plan.context_bytes

    @property
    def page_bytes(self) -> int:
        """Memory of a page: 64 positions of all layers, or, with windows, of one layer (kv_groups.py)."""
        return self._pool.page_bytes

    @property
    def kv_name(self) -> str:
        """How keys and values are kept."""
        return self.kv.name

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for KV memory."""
        return self._pool.awaited

    def kv_pages(self) -> Census:
        """How many KV pages are owned, shared, free and cached."""
        return self._pool.census()

    def keep_at_most(self, size: int) -> None:
        """Keep about so many bytes of beginnings that no sequence holds: work on many rows needs few of them, and would fill all memory in time."""
        self._pool.most_idle = size // self._pool.page_bytes

    def clear_prefix_cache(self) -> None:
        """Forget the beginnings kept of earlier sequences."""
        self._pool.clear_prefix_cache()

    def _lay_out(self) -> None:
        layout, program, s = self._layout, self.program, self._step
        self._x, self._tokens = layout.buffers["x"], layout.tokens
        self._token_rows, self._tables = tuple(layout.tokens), tuple(layout.tables.values())
        self._embed = self._weights.embedder(layout.tokens[0], layout.buffers["x"], self.config.embedding_scale)
        for word, value in (
            (f.TAIL, program.end[0].address), (f.END, program.end[-1].end), (f.WANTED, layout.tokens[3].ctypes.data), (f.X, layout.address("x")),
            (f.LD_X, layout.ld), (f.NORMED, layout.address("normed")), (f.RECORDS, layout.address("records")), (f.OWN_ROWS, layout.own.ctypes.data),
            (f.OWN_BYTES, layout.own_bytes), (f.SCRATCH, layout.scratch.ctypes.data), (f.SCRATCH_BYTES, layout.scratch_bytes),
        ):
            s[word // 8] = value
        self._step_address = s.ctypes.data
        self.encoder = not self.config.causal
        """Whether steps take whole texts, whose tokens see each other."""
        output = self.config.output.matrix
        self._logit_columns = int(layout.matrix(output)[f.TILES // 8]) * 16 if output else 0
        macs = [sum(m.macs for block in blocks for m in block.matrices()) for blocks in self.config.layers]
        self.macs_per_token = sum(macs)
        """Multiply-adds of the layers' matrices for a token."""
        self._layer_macs = max(macs)

    # -- the step -------------------------------------------------------------------------------------------------------------------------

    def new_sequence(self, cached: bool = False, salt: bytes = b"", slides: bool | None = None, adapters: Any = None) -> Sequence:
        """An empty sequence of at most `context` positions. cached: its pages go to the prefix cache as they fill, for others of the same salt and adapters.
        slides (default: as cached): windowed pages that no query sees are given back. adapters: {name: scale} or names; None: the model's."""
        self._check_open()
        use, era = self.adapters.chosen(adapters), self._pool.era
        found = Sequence(self._pool, self.context, cached, salt + key_of(use, self.adapters.control_digest) if cached else salt, slides, use)
        if era != self._pool.era:  # another thread changed what the salt speaks of
            found.keep_private()
        return found

    @in_default_floats
    def step(self, feeds: list[Feed], observe: Observers | None = None, hidden: bool = False, part: Part | None = None) -> np.ndarray:
        """Append every feed's tokens to its sequence -> logits float32 [wanted rows in feed order, n_vocab], without those of feeds that have a `look`.

        observe: callbacks by site. hidden: the wanted tokens' rows after the final norm instead, float32 [wanted, dim]. part: some layers only. At most
        `max_batch` tokens in all, each sequence in one feed; an encoder takes whole texts, and gives hidden rows only. ContextFullError, OutOfMemoryError,
        OptionError, NumericError, AbortedError: no sequence changed.
        """
        self._check_open()
        if any(feed.sequence.lag for feed in feeds):
            return self._recurrence.step(self, feeds, observe, hidden, part)
        ids, n_wanted, positions, _done = self._plan(feeds)
        _states = self._recurrence.words(feeds, keep=not observe)
        n, config, observe = len(ids), self.config, self.adapters.observers(observe)
        first, last = (part.first, config.n_layers if part.last is None else part.last) if part else (0, config.n_layers)
        assert 0 <= first < last <= config.n_layers and (last == config.n_layers or not n_wanted)
        if not config.output.matrix and (n_wanted and not hidden or any(feed.look is not None for feed in feeds)):
            raise OptionError(f"{self.gguf.path}: is an encoder (architecture {config.architecture}): it has no logits, only embeddings (hidden=True)")
        given = part.rows if part else None
        if given is None or self._per_layer:
            if config.added:
                self._x[:n, :config.dim] = embedded(config, self._weights, ids, self._tokens[1, :n], feeds)
            else:
                self._embed(n)
        if self._per_layer:
            self._per_layer.fill(ids, self._layout.buffers["per_layer"])
        for table in self._tables:
            table.fill(positions)
        logits = np.empty((n_wanted, self._layout.ld if hidden else self._logit_columns), np.float32)
        s = self._words
        if s[f.N_TOKENS // 8] != n:
            self._layout.geometry[:, attention.TOKENS // 8] = n
        s[f.N_TOKENS // 8], s[f.LOGITS // 8], s[f.LD_LOGITS // 8], s[f.HIDDEN // 8] = n, address(logits), logits.shape[1], hidden
        s[f.NOT_FINITE // 8], s[f.ADAPTERS // 8] = 0, self.adapters.plan([(len(feed.ids), feed.sequence.adapters) for feed in feeds])
        self.team.clear_abort()
        if given is not None:
            for placed in self.program.before_layers() if self._per_layer else ():
                self._run(placed, placed, 0, 1, open=True)
            self._x[:n, :config.dim] = given
        looked = any(feed.look is not None for feed in feeds)
        if observe:
            self._observed(n, n_wanted, observe, first, last, part.until if part else "")
        else:
            self._layers(first, last, 0 if looked else n_wanted)
        if looked:
            if not observe:
                self._end(logits)
            self._look(feeds)
        for feed in feeds:
            feed.sequence.append(feed.ids)
        return logits[:, :config.dim if hidden else config.n_vocab]

    def _end(self, logits: np.ndarray) -> None:
        """The final norm and the logits of the first len(logits) wanted tokens, of a step whose layers are done."""
        if len(logits):
            self._step[f.LOGITS // 8] = logits.ctypes.data
            self._run(None, None, len(logits), 1)

    def _look(self, feeds: list[Feed]) -> None:
        """Show their wanted rows to the feeds that have a `look`; never more than `max_logits` rows are held."""
        rows, m = [], 0
        for number, feed in enumerate(feeds):
            n, m = len(feed.ids), m + len(feed.ids)
            if feed.look is not None and feed.logits != "none":
                rows += [(number, i) for i in (range(m - n, m) if feed.logits == "all" else (m - 1,))]
        room = np.empty((min(len(rows), self.max_logits), self._logit_columns), np.float32)
        for start in range(0, len(rows), self.max_logits):
            part = rows[start:start + self.max_logits]
            self._tokens[3, :len(part)] = [i for _, i in part]
            self._end(room[:len(part)])
            first = 0
            for number, group in itertools.groupby(part, key=lambda row: row[0]):
                at = [i for _, i in group]
                look = feeds[number].look
                assert look is not None
                look(room[first:first + len(at), :self.config.n_vocab], self._tokens[1, at])
                first += len(at)

    def _layers(self, first: int, last: int, n_wanted: int, keeping: bool = False) -> None:
        """Layers [first, last), some at a time, then the logits of n_wanted tokens."""
        s, layers = self._words, self.program.keeping if keeping else self.program.layers
        n, n_layers = s[f.N_TOKENS // 8], len(layers)
        s[f.OWN // 8] = n <= GROUP and not self.arena and not keeping
        size = 1 if self.arena else max(1, int(_RANGE_MACS / (n * self._layer_macs)))
        for at in range(first, last, size):
            to = min(at + size, last)
            start = self.arena.start_of(layers[at], self._run, self._layout.buffers) if self.arena else layers[at][0]
            self._run(start, layers[to - 1][-1], n_wanted if to == n_layers else 0, to - at, noted=not keeping)
            if self.on_layers:
                self.on_layers(to / n_layers)

    def _observed(self, n: int, n_wanted: int, observe: Observers, first: int, last: int, until: str) -> None:
        """Layers [first, last), those that somebody looks into in open form, or in keeping form, and the end."""
        sites = self.sites
        if unknown := [name for name in observe if name not in sites]:
            raise OptionError(f"{self.gguf.path}: has no site {unknown[0]!r}: their names are such as {next(iter(sites))} (ModelConfig.sites)")
        parts, observe = self._parts(observe, n, first, last, not until and not self.arena)
        for form, layer, stop in parts:
            if form != "open":
                self._visit(self.program.open[layer][0].stage.before, n, observe)
                self._layers(layer, stop, 0, form == "keeping")
                self._visit(self.program.open[stop - 1][-1].stage.after, n, observe)
                continue
            for placed in self.program.open_layer(layer):
                self._visit(placed.stage.before, n, observe)
                self._run(placed, placed, 0, 1, open=True)
                if self.arena:
                    self.arena.follow(placed.stage, self._layout.buffers)
                self._visit(placed.stage.after, n, observe)
                if until and any(site.name == until for site in placed.stage.after):
                    return
        end = self.program.end[-2]  # the final norm: of all tokens if somebody looks at it
        if last == self.config.n_layers and any(site.name in observe for site in end.stage.after):
            wanted = self._tokens[3].copy()
            self._tokens[3, :n] = np.arange(n)
            self._run(end, end, n, 1, open=True)
            self._visit(end.stage.after, n, observe)
            self._tokens[3] = wanted
        if n_wanted:
            self._run(None, None, n_wanted, 1)

    def _run(self, first: Placed | None, last: Placed | None, n_wanted: int, layers: int, open: bool = False, noted: bool = True) -> None:
        """Stages `first` to `last` (none at all if None), then the end with the logits of n_wanted tokens, on all threads. open: not the end, and
        the residual stream is shared. noted: whether it is like other steps, from whose times the number of threads follows. AbortedError, NumericError."""
        s, program = self._words, self.program
        s[f.FIRST // 8], s[f.LAST // 8] = (first.address, last.end) if first and last else (0, 0)
        s[f.JOIN // 8], s[f.N_WANTED // 8] = program.next_join(last), n_wanted
        s[f.TAIL // 8] = program.end[-1].end if open else program.end[0].address
        if open:
            s[f.OWN // 8] = 0
        tokens, work, team = s[f.N_TOKENS // 8], layers + (1 if n_wanted else 0), self.team
        threads, start, lost = self._pace.threads(min(tokens, 16)), time.perf_counter(), team.lost_seconds
        status = team.run(self._entry, self._step_address, threads)
        seconds, lost = time.perf_counter() - start, team.lost_seconds - lost
        if noted and not open:
            self._pace.note(min(tokens, 16), threads, seconds / (work * max(1, tokens // 16)), lost / (max(1, threads - 1) * seconds))
        if status & ABORTED:
            raise AbortedError("the step was aborted")
        if s[f.NOT_FINITE // 8]:
            layer, what = program.fault(s[f.NOT_FINITE // 8])
            where = f"in {what}" if layer is None else f"in layer {layer} of {self.config.n_layers} ({what})"
            raise NumericError(f"{self.gguf.path}: NaN or infinity {where}: {self._overflow(what)}")

    def _overflow(self, stage: str) -> str:
        """Why a stage may hold what is no number, and what helps."""
        if stage == "keys and values" and self.kv.name != "f32":
            return f"larger than {self.kv.name} keeps them: load with kv='f32' (--kv f32); if that fails, too, the weights are damaged"
        if stage == "the logits":
            return "the output weights are damaged or overflow"
        return "the weights are damaged or overflow"

    def _plan(self, feeds: list[Feed]) -> tuple[np.ndarray, int, int, Any]:
        """Fill `_tokens`, make room in the sequences, divide attention's work -> ids int64 [M], how many logits are wanted, how many positions the longest
        sequence will have, what must stay alive meanwhile. One token is written as a number: an array's ways cost a small model's step dearly."""
        lengths = [len(feed.ids) for feed in feeds]
        if not feeds or min(lengths) == 0 or sum(lengths) > self.max_batch:
            raise OptionError(f"a step takes 1 to {self.max_batch} tokens in non-empty feeds, found {lengths}")
        if len(feeds) > 1 and len({id(feed.sequence) for feed in feeds}) != len(feeds):
            raise OptionError("a sequence may stand in one feed of a step only")
        ids, positions, tables, wanted = self._token_rows
        n_vocab, context, longest, m = self.config.n_vocab, self.context, 0, 0
        for feed, n in zip(feeds, lengths):
            if n == 1:
                ids[m] = low = high = int(feed.ids[0])
            else:
                ids[m:m + n] = feed.ids
                low, high = ids[m:m + n].min(), ids[m:m + n].max()
            if low < 0 or high >= n_vocab:
                raise OptionError(f"token id {low if low < 0 else high} is outside the vocabulary of {n_vocab}")
            if self.encoder and feed.sequence.length:
                raise OptionError(f"{self.gguf.path}: is an encoder (architecture {self.config.architecture}): a text is one feed, nothing follows it")
            if (length := feed.sequence.length + n) > context:
                raise ContextFullError(f"{length} positions do not fit into the context of {context}; raise the context or shorten the text")
            longest = max(longest, length)
            m += n
        for feed, n in zip(feeds, lengths):
            feed.sequence.reserve(feed.sequence.length + n)
        n_wanted, m = 0, 0
        parts = []
        for feed, n in zip(feeds, lengths):
            start, table = feed.sequence.length, feed.sequence.table_address
            if n == 1:
                positions[m], tables[m] = start, table
            else:
                positions[m:m + n], tables[m:m + n] = np.arange(start, start + n), table
            parts.append((m, n, start, table))
            if feed.look is not None:
                pass  # shown, not returned
            elif feed.logits == "all":
                wanted[n_wanted:n_wanted + n] = np.arange(m, m + n)
                n_wanted += n
            elif feed.logits == "last":
                wanted[n_wanted] = m + n - 1
                n_wanted += 1
            m += n
        return ids[:m], n_wanted, longest, self._items.divide(parts)

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
            for part in (self.arena, self._per_layer):
                if part:
                    part.close()
            del self._weights, self._x, self._pool, self.program, self._layout, self._items, self._tokens, self._token_rows, self._tables, self._embed
