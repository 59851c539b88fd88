"""Texts through the model for whoever looks: steps that hold as much of them as fits, in sequences of their own, with taps that see every row.

    texts or ids ──► feeds of up to max_batch tokens, of one text or several ──► Runtime.step with hooks (if any), then taps ──► a finished text, in order
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ContextFullError, OptionError, memory_errors, quoted
from ..run.runtime import Feed, Part
from ..run.watch import Callback, merged, watching

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run import kv_cache
    from ..run.runtime import Runtime

Observe = Callable[[list[Feed], list[int]], Mapping[str, Callback]]
"""(feeds, which text each is of) -> callbacks by site."""


def ids_of(model: Core, text: Any) -> list[int]:
    """Ids of one text, a str (with BOS as the file says) or ids. OptionError, ContextFullError."""
    if isinstance(text, str):
        ids = model.tokenizer.encode(text, eos=False)
    elif isinstance(text, Iterable) and not isinstance(text, (bytes, Mapping)):
        ids = []
        for i, id in enumerate(text):
            if isinstance(id, (bool, np.bool_)) or not isinstance(id, (int, np.integer)):
                raise OptionError(f"token ids must be whole numbers, found {quoted(id)} at index {i}")
            if not 0 <= id < model.config.n_vocab:
                raise OptionError(f"token id {id} at index {i} is outside this model's vocabulary of {model.config.n_vocab}")
            ids.append(int(id))
    else:
        raise OptionError(f"a text must be a str or token ids, found {type(text).__name__}")
    if not ids:
        raise OptionError("a text has no tokens: there is nothing to look at")
    if len(ids) > model.context:
        raise ContextFullError.of(f"a text has {len(ids)} tokens, the context {model.context}: shorten it or raise the context", len(ids), model.context)
    return ids


def several(texts: Any) -> tuple[Iterable[Any], bool]:
    """(texts, whether a single one was given): a str, or ids, is one."""
    if isinstance(texts, str) or isinstance(texts, np.ndarray) and texts.ndim == 1:
        return [texts], True
    if isinstance(texts, Sequence) and len(texts) and isinstance(texts[0], (int, np.integer)):
        return [texts], True
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, Mapping)):
        raise OptionError(f"texts must be a str, token ids, or a list of such, found {type(texts).__name__}")
    return texts, False


def run(model: Core, texts: Iterable[list[int]], observe: Observe, last_layer: int | None = None, most: int | None = None,
        after: Callable[[Runtime, list[Feed], list[int]], None] | None = None, adapters: Any = None) -> Iterator[int]:
    """Every text's ids through the model; yields a text's index when all of it was seen. last_layer: no layer after it is wanted. most: tokens of a step.
    after: called after a step, while the runtime is this thread's alone. adapters: as of Model.generate. OutOfMemoryError and what hooks raise."""
    scheduler: Any = model.scheduler
    open_ones: dict[int, kv_cache.Sequence] = {}
    room = min(most or model.runtime.max_batch, model.runtime.max_batch)
    n_layers = model.config.n_layers
    part = Part(last=last_layer + 1) if last_layer is not None and last_layer + 1 < n_layers else None

    def step(pending: list[tuple[int, list[int], bool]]) -> Iterator[int]:
        feeds, whose = [Feed(open_ones[i], ids, "none") for i, ids, _ in pending], [i for i, _, _ in pending]
        with scheduler.alone() as runtime, memory_errors("a step"):
            runtime.on_layers = None
            watches = [watch.observers(feeds) for watch in watching(scheduler)]
            runtime.step(feeds, merged([*watches, observe(feeds, whose)]), part=part)
            if after is not None:
                after(runtime, feeds, whose)
        for i, _, ends in pending:
            if ends:
                open_ones.pop(i).close()
                yield i
    try:
        pending: list[tuple[int, list[int], bool]] = []
        left, whole = room, not model.config.output.matrix  # an encoder takes texts whole: its tokens look ahead
        for i, ids in enumerate(texts):
            if whole and left < len(ids) and pending:
                yield from step(pending)
                pending, left = [], room
            open_ones[i] = model.runtime.new_sequence(adapters=adapters)
            at = 0
            while at < len(ids):
                n = min(left, len(ids) - at)
                pending.append((i, ids[at:at + n], at + n == len(ids)))
                at, left = at + n, left - n
                if left == 0:
                    yield from step(pending)
                    pending, left = [], room
        if pending:
            yield from step(pending)
    finally:
        for sequence in open_ones.values():
            sequence.close()
