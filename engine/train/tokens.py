"""Which tokens of a text a prediction hangs on: gradient × input (Shrikumar et al., arXiv 1605.01713), by the way back that training takes.

    text ──► ln p(target | text) ──► its gradient by each token's row of the stream before the first layer ──► Σ over columns of row × gradient
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...kernels.float_env import in_default_floats
from ..errors import OptionError
from ..run.feed import Feed
from .backward import Backward
from .forward import Batch, Forward
from .gradients import check, ends
from .ops import Ops
from .rows import Row
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..answers.core import Core


@dataclass(frozen=True)
class TokenGradients:
    """scores: float64 [n], Σ of row × gradient of each token; gradients: float32 [n, dim]; of log_probability, the target's after the text, in nats."""

    ids: list[int]
    target: int
    log_probability: float
    scores: np.ndarray
    gradients: np.ndarray


@in_default_floats
def token_gradients(model: Core, ids: Sequence[int], target: int | None = None) -> TokenGradients:
    """See `Model.token_gradients`."""
    check(model)
    n_vocab = model.config.n_vocab
    if not len(ids) or not all(0 <= id < n_vocab for id in (*ids, target or 0)):
        raise OptionError(f"a text of at least one token, and ids from 0 to {n_vocab - 1}, are needed, found {len(ids)} tokens and the target {target}")
    if target is None:
        target = _first_choice(model, ids)
    row = Row(np.array([*ids, target], np.int32), np.arange(len(ids) + 1) == len(ids), 0)
    with model.scheduler.alone() as runtime:
        batch, ops, n_layers = Batch([row], runtime.max_batch), Ops(runtime), runtime.config.n_layers
        with Forward(ops, batch, (), lambda tensor: None, 0) as forward:
            forward.run()
            x = forward.streams[0].copy()
            said, d = ends(str(model.path), ops, batch, Store(0), forward.streams.pop(n_layers), 1.0)
            back = Backward(ops, batch, None, runtime.kv_name)
            for layer in range(n_layers - 1, -1, -1):
                back.layer(runtime.config.layers[layer], forward.again(layer), forward.streams.pop(layer), d, True)
    dim = runtime.config.dim
    gradients = np.float32(-1) * d[:, :dim]
    products = x[:, :dim].astype(np.float64) * gradients
    return TokenGradients([int(i) for i in ids], target, -float(said.nll[0]), np.add.accumulate(products, axis=1)[:, -1], gradients)


def _first_choice(model: Core, ids: Sequence[int]) -> int:
    with model.scheduler.alone() as runtime:
        text = runtime.new_sequence(adapters=())
        try:
            for start in range(0, len(ids), runtime.max_batch):
                logits = runtime.step([Feed(text, np.array(ids[start:start + runtime.max_batch]), "last")])
            return int(np.argmax(logits[-1]))
        finally:
            text.close()
