"""What an answer took: numbers for the closing line, for --json, and for whoever wants to know."""
from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Stats:
    """What an answer took so far; seconds are those spent inside the generation, not between its pieces. None: not known or not yet."""

    prompt_tokens: int
    reused_tokens: int
    """Of the prompt: those whose keys and values were in the KV cache already."""
    generated_tokens: int
    prompt_seconds: float
    """From the first step to the logits after the prompt."""
    generate_seconds: float
    prompt_tokens_per_second: float | None
    """Of the tokens that were computed."""
    generated_tokens_per_second: float | None
    """Steps after the prompt's; the first token comes with the prompt."""
    load_seconds: float
    compile_seconds: float
    kv_bytes: int
    peak_memory_bytes: int | None
    """Of this process, ever."""
    threads: int
    """That steps are computed with."""
    seed: int
    finish_reason: str | None
    drafted_tokens: int = 0
    """Guessed by speculation and verified."""
    accepted_tokens: int = 0
    """Of those: chosen, so that they cost no step of their own."""
    context_shifts: int = 0
    """How often the context was full and old tokens were dropped."""
    dropped_tokens: int = 0
    """By context shifts."""
    context: int = 0
    """Positions of prompt and answer together."""
    wanted_context: int = 0
    """Positions that there would be if `memory` had room for them: if that is more, a long answer is not what it would be."""

    experts_wanted: int = 0
    """Of a model whose experts don't all fit into memory: how often a step wanted one in a layer, since loading."""
    experts_read: int = 0
    """Of those: not in place, and read from the file."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def peak_memory() -> int | None:
    """Most resident memory this process has had, in bytes; None where the system doesn't tell."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # getrusage's number survives exec on Linux
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
