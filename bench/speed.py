"""How fast a model runs here, and how near that is to what the machine can do.

    Test ──steps──► Runtime.step, timed, several times ──► tokens/s ± spread ──► GB/s, multiply-adds/s, share of limits.py's numbers

Speeds are of the step alone, as llama-bench measures: token ids in, logits out, no sampling and no text. A test's *limit* is the least time that its memory
traffic (weights and KV cache, each once a step) or its multiply-adds could take; the larger of the two is what bounds it. Only a model that fits into
a cache gets past the former.
"""
from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..engine.architectures.spec import Matrix
from ..engine.run.kv_cache import Sequence
from ..engine.run.runtime import Feed, Runtime
from ..engine.run.weights import matrix_bytes
from ..kernels.elementwise import PAGE
from ..kernels.formats import registry
from .limits import Limits


@dataclass(frozen=True)
class Test:
    """`tokens` tokens of one prompt, or of each of `batch` sequences one at a time, after `depth` positions that the KV cache already holds."""

    kind: str
    """"prompt" or "generate"."""
    tokens: int
    batch: int = 1
    depth: int = 0
    __test__ = False  # for pytest: not a class of tests

    @property
    def name(self) -> str:
        """As llama-bench calls it: pp512, tg64; "x 8": so many sequences at once; "@ d4096": after so many positions."""
        name = f"pp{self.tokens}" if self.kind == "prompt" else f"tg{self.tokens}"
        return name + (f" x {self.batch}" if self.batch > 1 else "") + (f" @ d{self.depth}" if self.depth else "")

    def steps(self, max_batch: int) -> Iterator[tuple[int, int, bool]]:
        """(tokens of each sequence, their first position, are logits wanted) of every step."""
        size = min(self.tokens, max_batch) if self.kind == "prompt" else 1
        for i in range(0, self.tokens, size):
            yield min(size, self.tokens - i), self.depth + i, self.kind != "prompt" or i + size >= self.tokens


@dataclass
class Work:
    """What a piece of a step has to do at least."""

    bytes: float = 0.0
    int8: float = 0.0
    """Multiply-adds of int8 kernels."""
    float32: float = 0.0
    """Multiply-adds of F32 and F16 kernels and of attention."""
    bfloat16: float = 0.0
    """Multiply-adds of BF16 kernels."""

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.int8 + other.int8, self.float32 + other.float32, self.bfloat16 + other.bfloat16)

    @property
    def macs(self) -> float:
        return self.int8 + self.float32 + self.bfloat16

    def bound(self, limits: Limits, threads: int) -> tuple[float, str]:
        """(least seconds, what bounds it: "memory" or "arithmetic")"""
        i = min(threads, len(limits.bandwidth)) - 1
        memory = self.bytes / limits.bandwidth[i]
        arithmetic = self.int8 / limits.int8[i] + self.float32 / limits.float32[i] + self.bfloat16 / limits.bfloat16[i]
        return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")


def matrix_work(format: str, n_bytes: float, macs: float) -> Work:
    """Of a matmul with weights in a format."""
    if format == "BF16":
        return Work(n_bytes, bfloat16=macs)
    return Work(n_bytes, float32=macs) if registry.takes_floats(format) else Work(n_bytes, macs)


def stage_work(runtime: Runtime, tokens: int, batch: int, position: int, wanted: bool) -> dict[str, Work]:
    """Work of one step, `tokens` tokens of each of `batch` sequences from `position` on, by names of stages; those not listed move activations."""
    config, page_bytes = runtime.config, runtime._pool.page_bytes

    def matrix(m: Matrix, rows: int) -> Work:
        read = 1 - (1 - m.used / m.experts) ** rows if m.experts else 1.0  # the share of experts that some token chooses
        return matrix_work(runtime.gguf.tensors[m.tensor].format.name, read * matrix_bytes(runtime.gguf, m), float(m.macs * rows))

    work: dict[str, Work] = {}
    for placed in (p for layer in runtime.program.layers for p in layer):
        for value in placed.stage.args.values():
            if isinstance(value, Matrix):
                work[placed.stage.name] = work.get(placed.stage.name, Work()) + matrix(value, tokens * batch)
    seen = tokens * position + tokens * (tokens + 1) // 2  # positions, over all tokens of a sequence
    macs = sum(a.heads * (a.head_dim + a.value_dim) for a in config.attentions())
    layout = runtime.plan.layout
    read = (position + tokens) * layout.whole + min(position + tokens, layout.window + tokens) * layout.windowed
    work["attention"] = Work(batch * read * page_bytes / PAGE, 0.0, float(batch * seen * macs))
    if wanted and config.output.matrix is not None:
        work["output"] = matrix(config.output.matrix, batch)
    return work


@dataclass
class Speed:
    """A test's result."""

    test: Test
    seconds: list[float]
    """Of each repetition."""
    work: Work = field(default_factory=Work)

    @property
    def tokens_per_second(self) -> list[float]:
        return [self.test.tokens * self.test.batch / s for s in self.seconds]

    @property
    def mean(self) -> float:
        return statistics.mean(self.tokens_per_second)

    @property
    def spread(self) -> float:
        """Standard deviation of tokens a second."""
        return statistics.stdev(self.tokens_per_second) if len(self.seconds) > 1 else 0.0


def fill(sequence: Sequence, length: int, page_bytes: int) -> None:
    """Give an empty sequence `length` positions of made-up keys and values, as if it had read so many tokens."""
    sequence.reserve(length)
    # below 1 in half precision, hence finite whatever floats the cache holds
    page = np.random.default_rng(0).uniform(-0.5, 0.5, page_bytes // 2).astype(np.float16)
    for unit in sequence.units():
        ctypes.memmove(unit.ctypes.data, page.ctypes.data, page_bytes)
    sequence.ids, sequence.length = [0] * length, length


def run(runtime: Runtime, test: Test, repetitions: int, warm_up: bool = True) -> Speed:
    """Time a test `repetitions` times. OptionError, ContextFullError, OutOfMemoryError: it does not fit the runtime."""
    ids = np.random.default_rng(0).integers(0, runtime.config.n_vocab, test.tokens)
    steps = list(test.steps(runtime.max_batch))
    sequences = [runtime.new_sequence() for _ in range(test.batch)]
    try:
        for sequence in sequences:
            fill(sequence, test.depth, runtime._pool.page_bytes)
        speed = Speed(test, [])
        for i in range(-1 if warm_up else 0, repetitions):
            start = time.perf_counter()
            for n, position, wanted in steps:
                part = ids[position - test.depth:position - test.depth + n]
                runtime.step([Feed(sequence, part, "last" if wanted else "none") for sequence in sequences])
            if i >= 0:
                speed.seconds.append(time.perf_counter() - start)
            for sequence in sequences:
                sequence.truncate(test.depth)
    finally:
        for sequence in sequences:
            sequence.close()
    for n, position, wanted in steps:
        speed.work = sum(stage_work(runtime, n, test.batch, position, wanted).values(), speed.work)
    return speed
