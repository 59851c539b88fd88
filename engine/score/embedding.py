"""Embeddings of texts: many texts share a step, each is pooled by itself, and none of that shows in its bits.

    texts ──prompt, tokenizer──► ids ──whole texts of an encoder, or pieces of a causal model's, as many as a step holds──► Runtime.step(hidden=True)
          ──► rows of each text ──► pooling.Pool ──► finish ──► float32 [texts, dim]

Steps are taken between those of answers that are under way (Scheduler.alone).
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.float_env import in_default_floats
from ..architectures.pooling import KINDS
from ..errors import ContextFullError, OptionError, OutOfMemoryError, UnsupportedError, memory_errors, quoted
from .embedding_prompts import most_tokens, prompt_for
from .pooling import Pool, finish

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.kv_cache import Sequence as KVSequence

Text = str | Sequence[int]
STEP_TOKENS = 512
"""Of short texts that share a step: more would not be faster."""


def default_pooling(core: Core) -> str:
    """What the file says; where it says nothing, the mean of an encoder's rows and a causal model's last one."""
    said = core.config.pooling.kind
    if said == "rank":
        raise UnsupportedError(f"{core.path}: is a reranker (pooling_type rank): it scores pairs (rerank); for embeddings say which pooling")
    return said or ("last" if core.config.causal else "mean")


@dataclass
class _Text:
    """A text under way."""

    ids: list[int]
    types: list[int] | None = None
    sequence: KVSequence | None = None
    pool: Pool = field(default_factory=lambda: Pool("none"))
    done: int = 0
    salt: bytes = b""

    @property
    def left(self) -> int:
        return len(self.ids) - self.done


class Embedder:
    """Embeds texts as its options say; see Model.embed. .tokens: of all texts so far; .truncated: how many of them were cut; .dim: numbers of an embedding."""

    def __init__(self, core: Core, kind: str | None = None, *, pooling: str | None = None, truncate_dim: int | None = None, normalize: bool = True,
                 truncate: bool = False, prompt: str | None = None, max_tokens: int | None = None, salt: bytes = b"") -> None:
        if pooling is not None and pooling not in KINDS[:-1]:
            raise OptionError(f"pooling must be one of {', '.join(KINDS[:-1])}, found {quoted(pooling)}")
        if prompt is not None and not isinstance(prompt, str):
            raise OptionError(f"prompt must be a text, found {quoted(prompt)}")
        config = core.config
        self._core = core
        self.pooling = default_pooling(core) if pooling is None else pooling
        self.prompt = prompt_for(kind, core.metadata, config.architecture) if prompt is None else prompt
        whole = config.pooling.dense[-1].rows if config.pooling.dense else config.dim
        for name, value, most in ("truncate_dim", truncate_dim, whole), ("max_tokens", max_tokens, core.context):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= most):
                raise OptionError(f"{name} must be a whole number from 1 to {most}, found {quoted(value)}")
        self.dim = int(truncate_dim or whole)
        self.most = min(core.context, max_tokens or most_tokens(core.metadata) or core.context)
        """Tokens of a text, special ones included."""
        self._shorten, self._normalise, self._truncate, self._salt = truncate_dim, normalize, truncate, salt
        self.tokens = self.truncated = 0

    def ids(self, text: Text, name: str = "the text") -> list[int]:
        """Of a text with its prompt, and the special tokens that the file puts around it; a list of ids is taken as it is. name: what the text is called in
        errors. ContextFullError: too long, unless cutting was asked for; OptionError: nothing to embed."""
        tokenizer, tail = self._core.tokenizer, []
        if isinstance(text, str):
            ids = tokenizer.encode(self.prompt + text, eos=False)
            if tokenizer.add_eos and tokenizer.eos_id is not None:
                tail = [tokenizer.eos_id]
        else:
            ids = check_ids(text, self._core.config.n_vocab, name)
        if not ids and not tail:
            raise OptionError(f"{name} is empty, and this model puts no special token before it: there is nothing to embed")
        if len(ids) + len(tail) > self.most:
            if not self._truncate:
                raise ContextFullError(f"{name} has {len(ids) + len(tail)} tokens, the model takes {self.most}: shorten it, or ask for it to be cut "
                                       f"(truncate, --cut){self._allows_more()}")
            ids = ids[:max(0, self.most - len(tail))]
            self.truncated += 1
        return ids + tail

    def _allows_more(self) -> str:
        return f"; max_tokens={self._core.context} takes more than the model's authors do" if self.most < self._core.context else ""

    def embed(self, texts: Iterable[Text]) -> Iterator[np.ndarray]:
        """float32 [dim] of each text in order, [tokens, dim] without pooling. Whatever is wrong with a text is raised before any is computed."""
        listed = [self.ids(text, f"text {number}") for number, text in enumerate(texts)]
        yield from self.embed_ids(listed)

    def embed_ids(self, texts: Iterable[list[int]]) -> Iterator[np.ndarray]:
        """The same of what `ids` gave; texts are taken as there is room for them."""
        pooling, kept = self._core.config.pooling, self._core.runtime.kept
        for pool in pooled(self._core, map(self._counted, texts), self.pooling, salt=self._salt):
            yield finish(pool.result(), pooling, kept, self._shorten, self._normalise)

    def _counted(self, ids: list[int]) -> list[int]:
        self.tokens += len(ids)
        return ids

    def array(self, texts: Iterable[Text]) -> np.ndarray:
        """float32 [texts, dim]."""
        rows = list(self.embed(texts))
        return np.stack(rows) if rows else np.empty((0, self.dim), np.float32)


def check_ids(ids: Any, n_vocab: int, name: str) -> list[int]:
    if not isinstance(ids, (list, tuple, np.ndarray)):
        raise OptionError(f"{name} must be a str or a list of token ids, found {type(ids).__name__}")
    for id in ids:
        if isinstance(id, (bool, np.bool_)) or not isinstance(id, (int, np.integer)) or not 0 <= id < n_vocab:
            raise OptionError(f"{name}: token ids must be whole numbers below {n_vocab}, found {quoted(id)}")
    return [int(id) for id in ids]


class _Waiting:
    """Texts that have not begun, taken from where they come from one by one."""

    def __init__(self, texts: Iterator[_Text]) -> None:
        self._texts = texts
        self.next: _Text | None = next(texts, None)

    def pop(self) -> None:
        self.next = next(self._texts, None)


@in_default_floats
def pooled(core: Core, texts: Iterable[list[int]], kind: str, types: Iterable[list[int]] | None = None, salt: bytes = b"") -> Iterator[Pool]:
    """The pooled rows of each text of at least one token, in order; texts are taken as there is room for them. types: token types of an encoder's texts
    (default: all 0). salt: whose prefix cache."""
    pairs: Iterable[tuple[list[int], list[int] | None]] = zip(texts, types if types is not None else repeat(None))
    waiting = _Waiting(_Text(ids, of_types, pool=Pool(kind), salt=salt) for ids, of_types in pairs)
    running: list[_Text] = []
    try:
        while waiting.next is not None or running:
            yield from _step(core, waiting, running)
    finally:
        for text in running:
            if text.sequence is not None:
                text.sequence.close()


def _step(core: Core, waiting: _Waiting, running: list[_Text]) -> list[Pool]:
    """One step of what is running and as many of those waiting as fit -> the pools of the texts that are done, which come in order."""
    parts = _fill(core, waiting, running)
    from ..run.runtime import Feed
    feeds = []
    for text, n in parts:
        last = text.pool.kind == "last"
        wanted: Any = ("last" if n == text.left else "none") if last else "all"
        assert text.sequence is not None
        types = text.types[text.done:text.done + n] if text.types else None
        feeds.append(Feed(text.sequence, text.ids[text.done:text.done + n], wanted, types=types))
    with memory_errors("a step"), core.scheduler.alone() as runtime:
        runtime.on_layers = None
        rows = runtime.step(feeds, hidden=True)
    at, finished = 0, []
    for (text, n), feed in zip(parts, feeds):
        count = {"none": 0, "last": 1, "all": n}[feed.logits]
        text.pool.add(rows[at:at + count])
        at, text.done = at + count, text.done + n
        if not text.left and text.sequence is not None:
            text.sequence.close()
            running.remove(text)
            finished.append(text.pool)
    return finished


def _fill(core: Core, waiting: _Waiting, running: list[_Text]) -> list[tuple[_Text, int]]:
    """(text, how many of its next tokens) of a step. Only the last of a causal model's may be cut: so they are done in order."""
    causal = core.config.causal
    longest = len(waiting.next.ids) if waiting.next is not None else 0
    room = core.runtime.max_batch if causal else min(core.runtime.max_batch, max(STEP_TOKENS, longest))
    parts: list[tuple[_Text, int]] = []
    for going in running:  # at most one
        parts.append((going, min(going.left, room)))
        room -= parts[-1][1]
    while (text := waiting.next) is not None and room > 0 and (causal or len(text.ids) <= room):
        reused = causal and text.pool.kind == "last"  # beginnings that texts share are computed once
        sequence = core.runtime.new_sequence(cached=reused, salt=text.salt)
        try:
            sequence.begin(text.ids[:-1] if reused else (), len(text.ids))
        except OutOfMemoryError:
            sequence.close()
            if not parts:
                raise
            break
        waiting.pop()
        text.sequence, text.done = sequence, sequence.length
        running.append(text)
        parts.append((text, min(text.left, room)))
        room -= parts[-1][1]
    return parts
