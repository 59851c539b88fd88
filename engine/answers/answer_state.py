"""An answer under way, as plain data, and back: what `Generation.save` writes and `Model.resume` reads (session.py has the file)."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, LlaminaError, OptionError
from ..sampling.sampler import SamplingOptions, TokenLogprob, with_texts
from . import session
from .generation import Generation, check_logprobs, check_max_tokens, check_stop

if TYPE_CHECKING:
    from .core import Core

KIND = "answer"


def state_of(g: Generation) -> dict[str, Any]:
    """All that `resume` needs but the ids of the window and their pages."""
    position, sampler = len(g.window) + g._dropped, g._sampler
    return {
        "prompt": g._prompt, "ids": g.ids, "prompt_text": g._model.tokenizer.decode(g._prompt), "text": g.so_far, "held": g._stops.held,
        "options": asdict(sampler.options), "seed": sampler.seed, "sample_index": sampler.sample_index, "sampler": sampler.state(position),
        "max_tokens": None if g._limit == sys.maxsize else g._limit, "stop": list(g._stop), "stop_ids": sorted(g._stop_ids),
        "ignore_eos": g._ignore_eos, "logprobs": g._n_logprobs, "found": [list(entry) for entry in g.logprobs], "grammar": g._asked,
        "keep": g._keep, "shifts": g._shifts, "dropped": g._dropped, "banned": g._banned.state(), "finish": g.finish_reason,
        "speculate": g._speculator is not None,
    }


def resume(model: Core, path: str | os.PathLike[str], note: Callable[[str], None] | None, wait: float = 0.0) -> Generation:
    """See `Model.resume`."""
    found = session.read(path, model, KIND)
    take = session.Reader(found.state, lambda why: FormatError(f"{found.path}: the session is damaged: {why}"))
    try:
        g = _build(model, found, take)
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError) as error:
        if isinstance(error, LlaminaError) and not isinstance(error, OptionError):
            raise
        raise FormatError(f"{found.path}: the session cannot be used: {error}") from None
    if note and (line := session.refusal(found)):
        note(line)
    g._wait = wait
    return g


def _build(model: Core, found: session.Session, take: session.Reader) -> Generation:
    given = take("options", dict)
    if unknown := given.keys() - {field.name for field in fields(SamplingOptions)}:
        raise OptionError(f"unknown options {', '.join(sorted(unknown))}")
    plain: dict[str, Any] = {name: tuple(map(tuple, value)) if name == "logit_bias" else tuple(value) if isinstance(value, list) else value
                             for name, value in given.items()}
    options = SamplingOptions(**plain)
    text, ignore_eos, limit = take("text", str), take("ignore_eos", bool), check_max_tokens(take("max_tokens", int, None))
    prompt, ids = take.numbers("prompt"), take.numbers("ids")
    if found.foreign:  # its text is all that can be used
        prompt, ids, window = model.tokenizer.encode(take("prompt_text", str) + text, eos=False), [], []
        limit = None if limit is None else max(0, limit - len(take.numbers("ids")))
    else:
        window = found.ids
        if not prompt or not window or len(window) > model.context + 1 or any(id >= model.config.n_vocab for id in [*prompt, *ids]):
            raise OptionError(f"{len(prompt)} and {len(ids)} tokens don't fit this model")
    asked = take("grammar", dict)
    if unknown := asked.keys() - {"json_schema", "regex", "grammar", "choices"}:
        raise OptionError(f"unknown grammar {min(unknown)}")
    stop_ids = frozenset() if found.foreign else frozenset(take.numbers("stop_ids"))
    g = Generation(model, prompt, options, max_tokens=limit, stop=check_stop(take.texts("stop")), stop_ids=stop_ids, ignore_eos=ignore_eos,
                   sample_index=take("sample_index", int), logprobs=check_logprobs(take("logprobs", int, None)), speculate=take("speculate", bool),
                   grammar=model.grammar(ignore_eos, stop_ids, **asked), keep=take("keep", int, None), adapters=found.adapters)
    if g._keep is not None and g._keep < 0 or not 0 <= g._sampler.sample_index < 1 << 64 or not 0 <= take("seed", int) < 1 << 64:
        raise OptionError("seed, sample index or what to keep are out of range")
    g._sampler.seed = take("seed", int)
    g._pieces = [text] if text else []
    if found.foreign:
        return g
    if g._keep is None and window != prompt + ids:
        raise OptionError("its tokens contradict each other")
    g.ids, g.window, g.finish_reason = ids, window, take("finish", str, None)
    sampler = take("sampler", dict)
    g._shifts, g._dropped = take("shifts", int), take("dropped", int)
    if g._shifts < 0 or g._dropped < 0 or len(window) + g._dropped != len(prompt) + len(ids):
        raise OptionError("its tokens contradict each other")
    g._sampler.restore(len(window) + g._dropped, {"mu": float(sampler["mu"])} if "mu" in sampler else {})
    g._stops.held = take("held", str)
    g._banned.restore(take("banned", dict))
    g.logprobs = [with_texts(TokenLogprob(int(id), float(p), [(int(i), float(q)) for i, q in top]), model.tokenizer) for id, p, top in take("found", list)]
    g._decoder = g._stream(g.history) if ids else None
    if g.finish_reason is None:
        g._sequence = session.restore(found, model)
        g._sequence.truncate(min(g._sequence.length, len(window) - 1))
        g._given = g._reused = min(len(prompt), g._sequence.length)
    return g
