"""One text through the model with everything that a lens and an attribution want of it, a step's tokens at a time, so that memory stays bounded.

    text ──► step of up to 256 tokens, rows of the stream after every layer kept ──► per step: what the rows' logits say, who wrote them ──► Lens, Trace
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, quoted
from ..run.watch import Callback
from .spans import spans
from .texts import run

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.runtime import Feed, Runtime

TOKENS = 256
"""Of a step: what is kept of them is some rows a layer."""
Rows = dict[str, np.ndarray]
"""Site -> float32 [tokens of a step, columns]."""


def read(model: Core, ids: list[int], sites: Iterable[str], each: Callable[[Runtime, np.ndarray, Rows], None], most: int = TOKENS,
         adapters: Any = None) -> None:
    """Feed a text, at most so many tokens a step; after every step, `each` gets the runtime, for this thread alone, the positions, int64 [n], and the rows.
    adapters: as of Model.generate."""
    wanted, rows = list(dict.fromkeys(sites)), {}  # type: list[str], Rows
    at: list[np.ndarray] = []

    def keep(name: str, array: np.ndarray) -> None:
        rows[name] = array.copy()

    def observe(feeds: list[Feed], whose: list[int]) -> Mapping[str, Callback]:
        at[:] = [spans(feeds)[0].positions]
        return {name: partial(keep, name) for name in wanted}

    def after(runtime: Runtime, feeds: list[Feed], whose: list[int]) -> None:
        each(runtime, at[0], rows)
    for _ in run(model, [ids], observe, most=most, after=after, adapters=adapters):
        pass


def stream_sites(model: Core) -> list[str]:
    """The residual stream before the first layer, and after each."""
    if not model.config.output.matrix:
        raise OptionError(f"{model.path}: is an encoder (architecture {model.config.architecture}): it has no logits to look at")
    names = [f"blocks.{i}.hook_resid_post" for i in range(model.config.n_layers)]
    if missing := [name for name in ("blocks.0.hook_resid_pre", *names) if name not in model.runtime.sites]:
        raise OptionError(f"{model.path}: a lens needs the residual stream after every layer, and this model has no {missing[0]}")
    return ["blocks.0.hook_resid_pre", *names]


def texts_of(model: Core, ids: Iterable[int]) -> list[str]:
    """What each token is, for people: bytes that are no whole characters stay visible, as do special tokens."""
    control = {id: text for text, id in model.tokenizer.control.items()} if hasattr(model.tokenizer.control, "items") else {}
    out = []
    for id in ids:
        raw = control.get(int(id)) or model.tokenizer.token_bytes(int(id)).decode("utf-8", "backslashreplace") or model.tokenizer.token_text(int(id))
        out.append(raw)
    return out


def one_token(model: Core, token: Any, what: str) -> int:
    """A token given as its id or as a text that is one token. OptionError."""
    if isinstance(token, str):
        ids = model.tokenizer.encode(token, bos=False, eos=False)
        if len(ids) != 1:
            raise OptionError(f"{what} must be one token, but {quoted(token)} is {len(ids)}: {', '.join(map(repr, texts_of(model, ids[:6])))}")
        return ids[0]
    if isinstance(token, (bool, np.bool_)) or not isinstance(token, (int, np.integer)) or not 0 <= token < model.config.n_vocab:
        raise OptionError(f"{what} must be a token's text or an id below {model.config.n_vocab}, found {quoted(token)}")
    return int(token)
