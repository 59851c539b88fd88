"""What an engine has done, in numbers that only grow, for /metrics."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..answers.generation import Generation


@dataclass
class Counters:
    """Answers by how they ended, tokens, seconds. Written by the engine's thread alone."""

    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    """Computed; cached_tokens: taken from the prefix cache."""
    cached_tokens: int = 0
    tokens: int = 0
    """Of answers."""
    prompt_seconds: float = 0.0
    answer_seconds: float = 0.0
    """Of all answers together, so that it grows faster than the clock."""
    later_tokens: int = 0
    """Of answers, without the first of each, which costs no step of its own."""
    busy_seconds: float = 0.0
    steps: int = 0
    answers_in_steps: int = 0
    longest: int = 0
    """Tokens of the longest text, prompt and answer."""
    embedded_tokens: int = 0
    """Of texts that were embedded or ranked; written by the event loop alone."""
    drafted: int = 0
    accepted: int = 0

    def step(self, answers: int, seconds: float) -> None:
        self.steps += 1
        self.answers_in_steps += answers
        self.busy_seconds += seconds

    def ended(self, generation: Generation, how: str) -> None:
        """how: finished, failed or cancelled. An answer that never began has no tokens."""
        setattr(self, how, getattr(self, how) + 1)
        s = generation.stats
        if not s.prompt_seconds:
            return
        self.prompt_tokens += s.prompt_tokens - s.reused_tokens
        self.cached_tokens += s.reused_tokens
        self.tokens += s.generated_tokens
        self.later_tokens += max(0, s.generated_tokens - 1)
        self.prompt_seconds += s.prompt_seconds
        self.answer_seconds += s.generate_seconds
        self.longest = max(self.longest, s.prompt_tokens + s.generated_tokens)
        self.drafted += s.drafted_tokens
        self.accepted += s.accepted_tokens
