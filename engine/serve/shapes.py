"""Parts of answers that several endpoints write alike: usage, timings, log-probabilities, why an answer ended."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..sampling.sampler import TokenLogprob
    from ..text.tokenizer import Tokenizer

STOPPED = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
"""Our finish reasons -> OpenAI's."""


def usage(generations: Sequence[Generation]) -> dict[str, Any]:
    """Tokens of one prompt and all answers to it."""
    stats = [g.stats for g in generations]
    prompt, made = stats[0].prompt_tokens, sum(s.generated_tokens for s in stats)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": stats[0].reused_tokens}}


def timings(generation: Generation) -> dict[str, Any]:
    """llama-server's."""
    s = generation.stats
    n, more = s.prompt_tokens - s.reused_tokens, max(0, s.generated_tokens - 1)
    prompt_ms, made_ms = 1000 * s.prompt_seconds, 1000 * s.generate_seconds
    return {"cache_n": s.reused_tokens, "prompt_n": n, "prompt_ms": prompt_ms, "prompt_per_token_ms": prompt_ms / n if n else None,
            "prompt_per_second": 1000 * n / prompt_ms if prompt_ms else None, "predicted_n": s.generated_tokens, "predicted_ms": made_ms,
            "predicted_per_token_ms": made_ms / more if more else None, "predicted_per_second": 1000 * more / made_ms if made_ms else None}


def token_entry(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    """A token with its bytes; control tokens by their names."""
    raw = tokenizer.token_bytes(id) or tokenizer.token_text(id).encode()
    return {"id": id, "token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": logprob}


def chat_logprobs(tokenizer: Tokenizer, found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's shape of chat answers."""
    return {"content": [{**token_entry(tokenizer, t.id, t.logprob), "top_logprobs": [token_entry(tokenizer, id, p) for id, p in t.top]} for t in found], "refusal": None}


def legacy_logprobs(tokenizer: Tokenizer, found: Sequence[TokenLogprob | None], ids: Sequence[int], at: int = 0) -> dict[str, Any]:
    """OpenAI's shape of completions: four lists. None: the first token of an echoed prompt."""
    tokens, offsets = [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in ids], []
    for text in tokens:
        offsets.append(at)
        at += len(text)
    top = [None if t is None else {tokenizer.token_bytes(id).decode("utf-8", "replace"): p for id, p in reversed(t.top)} for t in found]
    return {"tokens": tokens, "token_logprobs": [None if t is None else t.logprob for t in found], "top_logprobs": top, "text_offset": offsets}


class Thinking:
    """Splits an answer as it comes into what stands between <think> and </think> at its beginning, and the rest. inside: the template has opened it already.

    push(text) -> (thought, said)"""

    OPEN, CLOSE = "<think>", "</think>"

    def __init__(self, inside: bool) -> None:
        self._state, self._held = ("thinking" if inside else "start"), ""

    def push(self, text: str, last: bool = False) -> tuple[str, str]:
        thought = said = ""
        self._held += text
        while True:
            if self._state == "start":
                seen = self._held.lstrip()
                if seen.startswith(self.OPEN):
                    self._state, self._held = "thinking", seen[len(self.OPEN):]
                elif self.OPEN.startswith(seen) and not last:
                    return thought, said
                else:
                    self._state = "said"
            elif self._state == "thinking":
                before, found, after = self._held.partition(self.CLOSE)
                if not found:
                    keep = 0 if last else max((n for n in range(1, len(self.CLOSE)) if self._held.endswith(self.CLOSE[:n])), default=0)
                    cut = len(self._held) - keep
                    thought, self._held = thought + self._held[:cut], self._held[cut:]
                    return thought, said
                thought, self._held, self._state = thought + before, after, "after"
            elif self._state == "after":  # the blank lines that part thought and answer
                self._held = self._held.lstrip("\n")
                if not self._held:
                    return thought, said
                self._state = "said"
            else:
                said, self._held = said + self._held, ""
                return thought, said
