"""From logits to a token: sampler.py puts the stages in order, grammar.py and banned.py say which tokens may come. Knows nothing of weights and answers.

`penalties` change logits, `filters` choose candidates, `arithmetic` is what they compute with; docs/sampling.md explains them."""
from __future__ import annotations

import importlib
from typing import Any

_OF_SAMPLER = ("Sampler", "SamplingOptions", "TokenLogprob", "token_logprob")


def __getattr__(name: str) -> Any:
    """`from llamina.engine.sampling import Sampler`, without NumPy at the mere import of the wing."""
    if name not in _OF_SAMPLER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".sampler", __name__), name)
