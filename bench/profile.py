"""Where a step's time goes: the forward pass's stages, timed at every barrier (engine/run/ops/common.py, PROFILE), and the Python around them.

    with Profile(runtime) as profile:
        runtime.step(...)                 as often as wanted
    profile.seconds -> {"host": ..., "attention norm": ..., ..., "output": ...}; adds up to profile.total

A stage lasts until its barrier is passed, so it includes waiting for the slowest thread. "host" is Python before and after compiled code: embedding rows,
page tables, work lists, looking for NaN in the logits.
"""
from __future__ import annotations

import time

import numpy as np

from ..engine.run.ops import common as f
from ..engine.run.runtime import Runtime
from ..kernels.clock import CLOCK_BYTES, new_clock, ticks_per_second

HOST = "host"


class Profile:
    """Profiles a runtime's steps while it is open."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.steps = 0
        self.total = 0.0
        """Seconds of all steps."""
        self._slots = list(runtime.program.slots)  # the runtime may be closed when the times are asked for
        self._words = np.zeros(f.SLOTS // 8 + len(self._slots), np.int64)
        self._now = new_clock(self._words[:CLOCK_BYTES // 8])

    def __enter__(self) -> Profile:
        runtime, words = self.runtime, self._words
        self._step, self._run = runtime.step, runtime._run

        def step(*args, **kwargs):
            start = time.perf_counter()
            try:
                return self._step(*args, **kwargs)
            finally:
                self.total += time.perf_counter() - start
                self.steps += 1

        def run(*args, **kwargs):
            words[f.NOTED_AT // 8] = self._now()
            self._run(*args, **kwargs)
            words[f.SLOTS // 8 + self._slots.index("output")] += self._now() - words[f.NOTED_AT // 8]  # what followed the last barrier

        runtime.step, runtime._run = step, run  # type: ignore[method-assign]
        runtime._step[f.PROFILE // 8] = words.ctypes.data
        return self

    def __exit__(self, *_: object) -> None:
        self.runtime._step[f.PROFILE // 8] = 0
        del self.runtime.step, self.runtime._run  # the class's own again

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds in all steps; their sum is `total`."""
        stages = {name: float(ticks) / ticks_per_second() for name, ticks in zip(self._slots, self._words[f.SLOTS // 8:])}
        return {HOST: self.total - sum(stages.values()), **stages}
