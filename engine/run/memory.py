"""What a model will take of the machine's memory, computed from the header alone, before anything is loaded.

    context, memory, free memory, threads ──► plan() ──► MemoryPlan: positions of a sequence, tokens of a step, pages of the KV cache
"""
from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from ..architectures.config import ModelConfig
from ..errors import OptionError, OutOfMemoryError, quoted
from ..gguf.file import GGUFFile
from ..units import size
from .expert_arena import all_experts, expert_blocks, least_places, place_bytes
from .kv_cache import PAGE, kv_type
from .kv_groups import STATES, KVLayout, kv_layout
from .step_memory import StepMemory, step_memory
from .weights import available_memory, weight_bytes

DEFAULT_CONTEXT = 4096
"""Positions of a sequence where neither the caller nor the model's training asks for fewer."""
MOST_TOKENS = 512
"""Of one step; an encoder's has room for the longest text."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: weights, of all that is there before any text: the matrices, and with them `buffers` (of a step, logits, tables); kv: the KV cache's budget,
    claimed page by page as it is promised. context: positions of a sequence; pages: units of `layout` in kv, without
    windows of 64 positions each; tokens, logits: most of a step; wanted: the
    context that would be there if there were memory for it."""

    weights: int
    kv: int
    context: int
    pages: int
    page_bytes: int
    buffers: int
    tokens: int
    logits: int
    wanted: int
    layout: KVLayout
    experts: int = 0
    """Bytes in `weights` of the places of experts that don't all fit; 0: all are loaded."""
    all_experts: int = 0
    on_disk: int = 0
    """Of a table that stays in the file, and of which tokens' rows are read."""
    adapters: int = 0
    """Bytes in `weights` of low-rank adapters."""

    @property
    def context_bytes(self) -> int:
        """Of the KV cache of one full context."""
        return self.layout.bytes(self.context)

    @property
    def groups(self) -> str:
        """How a full context is divided, for people; empty without windows."""
        layout, one = self.layout, self.page_bytes
        if layout.slot:
            return f" ({size(STATES * layout.slot * one)} of it in {STATES} states of its {len(layout.state_places)} recurrent layers)"
        if not layout.windowed:
            return ""
        windowed, all_see = layout.windowed * min(layout.most, -(-self.context // PAGE)) * one, sum(row < layout.whole for _, (row, _) in layout.places)
        return (f" ({size(self.context_bytes - windowed)} in {all_see} layers that see all, {size(windowed)} in {len(layout.places) - all_see} that see "
                f"{layout.window} positions)")

    def __str__(self) -> str:
        positions = "" if self.layout.windowed or self.layout.slot else f" ({self.pages * PAGE} positions)"
        some = f" (places for {size(self.experts)} of {size(self.all_experts)} of experts: the others are read when they are needed)" if self.experts else ""
        adapters = f", adapters {size(self.adapters)}" if self.adapters else ""
        return (f"memory: weights {size(self.weights - self.buffers - self.adapters)}{some}{adapters}, buffers {size(self.buffers)}, "
                f"KV cache up to {size(self.kv)}{positions}; a full context of {self.context} takes {size(self.context_bytes)}{self.groups}"
                + (f"; {size(self.on_disk)} of per-layer embeddings stay in the file" if self.on_disk else ""))

    @property
    def shortage(self) -> str | None:
        """A line if the context is smaller than it would be with more memory: answers may end earlier, or lose their beginning earlier."""
        if self.context >= self.wanted:
            return None
        more = self.layout.bytes(self.wanted) - self.pages * self.page_bytes
        return (f"the context is {self.context} positions instead of {self.wanted}, because the memory allowed holds no more: long answers differ from those "
                f"with a full context. Allow {size(more)} more, or ask for this context (context={self.context})")


def plan(gguf: GGUFFile, config: ModelConfig, context: int | None = None, memory: int | None = None, kv: str | None = None, threads: int = 1,
         adapters: int = 0) -> MemoryPlan:
    """All that the model will take is inside `memory` bytes: weights, the buffers of a step on so many threads, the KV cache (at least one full context). The
    KV cache gets what is left, without `memory` half of what is free. Steps get fewer tokens if need be, which costs time and changes nothing else.

    context None: as trained, at most 4096, or what fits into `memory` (then .shortage says so). kv: a name of kv_cache.KV_TYPES. Raises OutOfMemoryError if
    it can't be, OptionError. adapters: bytes of those that it will have.
    """
    kind = kv_type(config, kv)
    matrices, places, whole = weight_bytes(gguf, config) + adapters, 0, 0
    wanted = context or min(config.context_length, DEFAULT_CONTEXT)
    if config.positions is not None and wanted > config.positions:
        raise OptionError(f"{gguf.path}: has embeddings of {config.positions} positions: a context of {wanted} can't be computed; ask for at most that many")
    layout = kv_layout(config, kind, wanted, MOST_TOKENS)
    one_page = layout.unit
    needed, free = layout.units(wanted), available_memory()
    step = step_memory(config, kind, threads, wanted)
    most = min(MOST_TOKENS, -(-wanted // 8) * 8)
    fewest = 8
    if not config.causal:  # a text is one step
        fewest = most = max(MOST_TOKENS, -(-wanted // 8) * 8)
    budget = min(n for n in (memory, free, 1 << 62) if n is not None)
    if any(expert_blocks(config)) and matrices + step.bytes(8) + needed * one_page > budget:
        whole = all_experts(gguf, config)
        places = _places(gguf, config, budget - (matrices - whole) - needed * one_page, step, most)
        matrices -= whole - places if places else 0
    room = budget - matrices
    tokens = step.most_tokens(room - needed * one_page, most)
    tokens = tokens if tokens >= fewest else 0
    least = matrices + step.bytes(fewest)
    fits = 0 if memory is None else layout.positions((memory - least) // one_page, wanted)
    if memory is not None and not tokens and context is None and fits > 0 and (free is None or least + layout.bytes(PAGE) <= free):
        found = plan(gguf, config, fits, memory, kv, threads, adapters)
        return replace(found, wanted=wanted)
    if not tokens:
        have, what = (free, "are free") if memory is None or free is not None and free < memory else (memory, "are allowed")
        beside = f", adapters ({size(adapters)})" if adapters else ""
        raise OutOfMemoryError(f"{gguf.path}: weights ({size(matrices - adapters)}){beside}, buffers ({size(step.bytes(8))}) and a context of {wanted} "
                               f"positions ({size(needed * one_page)}) don't fit into the {size(have or 0)} that {what}; allow more, use a smaller context or "
                               "a smaller quantisation")
    weights = matrices + step.bytes(tokens)
    if memory is not None:
        pages = (memory - weights) // one_page
    else:
        pages = max(needed, ((free - weights) // 2 if free is not None else 16 * needed * one_page) // one_page)
    return MemoryPlan(weights, pages * one_page, wanted, pages, one_page, step.bytes(tokens), tokens, step.logits(tokens), wanted, layout, places,
                      whole if places else 0, gguf.tensors[config.per_layer.table].n_bytes if config.per_layer else 0, adapters)


def _places(gguf: GGUFFile, config: ModelConfig, room: int, step: StepMemory, most: int) -> int:
    """Bytes for places of experts, of what is there beside other weights and a context; 0: not even those of one layer fit beside the smallest step."""
    one = place_bytes(gguf, config)
    least = one * least_places(config)
    if least + step.bytes(8) > room:
        return 0
    return max(least, (room - step.bytes(most)) // one * one)


def draft_share(gguf: GGUFFile, config: ModelConfig, draft: GGUFFile, draft_config: ModelConfig, context: int | None, memory: int, kv: str | None,
                threads: int) -> tuple[int, int]:
    """(how many of `memory` bytes, which are for both models, the draft model gets, its context): up to the main model's, and never of what the main model
    needs to have the context that it has without a draft. OutOfMemoryError: that is too little."""
    main = plan(gguf, config, context, memory, kv, threads)
    kind = kv_type(draft_config, kv)
    step = step_memory(draft_config, kind, threads, main.context)
    matrices = weight_bytes(draft, draft_config)
    layout = kv_layout(draft_config, kind, main.context, MOST_TOKENS)
    left = memory - main.weights + main.buffers - main.context_bytes - step_memory(config, kv_type(config, kv), threads, main.context).bytes(8)
    least = matrices + step.bytes(8) + layout.bytes(PAGE)
    if main.context < main.wanted or left < least:
        raise OutOfMemoryError(f"{draft.path}: the draft model needs {size(least)}, {size(max(0, left))} of the {size(memory)} allowed are left beside "
                               f"the main model with its context of {main.context}, which a draft doesn't change; allow more, or leave the draft model out")
    tokens = min(MOST_TOKENS, -(-main.context // 8) * 8)
    pages = layout.rows * -(-main.context // PAGE) + STATES * layout.slot  # a draft goes back anywhere: it keeps all
    fits = min(main.context, ((left - matrices - step.bytes(8)) // layout.unit - STATES * layout.slot) // layout.rows * PAGE)
    return min(left, matrices + step.bytes(tokens) + pages * layout.unit), fits


def parse_memory(value: Any) -> int | None:
    """Bytes, or "4GB", "500 MB", "2GiB", "1.5g" -> bytes. OptionError."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", value.strip().lower(), re.ASCII) if isinstance(value, str) else None
    n = int(float(match[1]) * _UNITS[match[2] or ""]) if match and len(match[1]) < 20 else 0
    if n <= 0:
        raise OptionError(f"memory must be bytes or a size such as 4GB or 500MB, found {quoted(value)}")
    return n
