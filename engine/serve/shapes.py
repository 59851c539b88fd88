"""Parts of answers that several endpoints write alike: usage, timings, log-probabilities, why an answer ended."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model
    from ..sampling.sampler import TokenLogprob
    from ..text.tokenizer import Tokenizer

STOPPED = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
"""Our finish reasons -> OpenAI's."""


def usage(generations: Sequence[Generation], each: int | None = None) -> dict[str, Any]:
    """Tokens of all answers and of their prompts, `each` answers to a prompt, which counts once (None: all to one)."""
    stats = [g.stats for g in generations]
    firsts = stats[::each or len(stats)]
    prompt, made = sum(s.prompt_tokens for s in firsts), sum(s.generated_tokens for s in stats)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": sum(s.reused_tokens for s in firsts)}}


def timings(generation: Generation) -> dict[str, Any]:
    """llama-server's. The first token is made of the prompt's last logits, so the rate is that of the others."""
    s = generation.stats
    return _timings(s.reused_tokens, s.prompt_tokens - s.reused_tokens if s.prompt_seconds else 0, s.prompt_seconds, s.generated_tokens, s.generate_seconds)


def _timings(cached: int, n: int, prompt_seconds: float, made: int, made_seconds: float) -> dict[str, Any]:
    more, prompt_ms, made_ms = max(0, made - 1), 1000 * prompt_seconds, 1000 * made_seconds
    return {"cache_n": cached, "prompt_n": n, "prompt_ms": prompt_ms, "prompt_per_token_ms": _ratio(prompt_ms, n),
            "prompt_per_second": _ratio(1000 * n, prompt_ms), "predicted_n": made, "predicted_ms": made_ms,
            "predicted_per_token_ms": _ratio(made_ms, more), "predicted_per_second": _ratio(1000 * more, made_ms)}


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def progress(prompt: tuple[int, int, int, float]) -> dict[str, Any]:
    """llama-server's, while a prompt is read."""
    done, cached, total, seconds = prompt
    return {"prompt_progress": {"total": total, "cache": cached, "processed": done, "time_ms": round(1000 * seconds)},
            "timings": _timings(cached, done - cached, seconds, 0, 0.0)}


def prompt_text(model: Model, generation: Generation) -> str:
    """The prompt as the model reads it: its tokens' texts in a row, as llama-server shows it (SentencePiece's first space and all)."""
    tokenizer = model.tokenizer
    ids = generation.history[:generation.stats.prompt_tokens]
    return b"".join(tokenizer.token_bytes(id) or tokenizer.token_text(id).encode() for id in ids).decode("utf-8", "replace")


def token_entry(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    """A token with its bytes; control tokens by their names."""
    raw = tokenizer.token_bytes(id) or tokenizer.token_text(id).encode()
    return {"id": id, "token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": logprob}


def chat_logprobs(tokenizer: Tokenizer, found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's shape of chat answers."""
    content = [{**token_entry(tokenizer, t.id, t.logprob), "top_logprobs": [token_entry(tokenizer, id, p) for id, p in t.top]} for t in found]
    return {"content": content, "refusal": None}


def legacy_logprobs(tokenizer: Tokenizer, found: Sequence[TokenLogprob | None], ids: Sequence[int], at: int = 0) -> dict[str, Any]:
    """OpenAI's shape of completions: four lists; and `end`, the offset after them. Control tokens have a name and no text. None: the first token of an
    echoed prompt."""
    def text(id: int) -> str:
        return tokenizer.token_bytes(id).decode("utf-8", "replace")

    def name(id: int) -> str:
        return text(id) or tokenizer.token_text(id)
    offsets = []
    for id in ids:
        offsets.append(at)
        at += len(text(id))
    top = [None if t is None else {name(id): p for id, p in reversed(t.top)} for t in found]
    return {"tokens": [name(id) for id in ids], "token_logprobs": [None if t is None else t.logprob for t in found], "top_logprobs": top,
            "text_offset": offsets, "end": at}
