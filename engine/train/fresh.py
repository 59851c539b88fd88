"""A new adapter: which matrices it is beside, and what its pairs begin as. A is drawn (philox.py), B is zero, so that at first it changes nothing.

    Options, ModelConfig -> names ("blk.0.attn_q.weight", …) -> Adapter
"""
from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from ..architectures.adapted import targets as known_targets
from ..errors import OptionError, UnsupportedError, quoted
from .adapter import Adapter, Pair, scale_of
from .options import Options
from .philox import initial_a

if TYPE_CHECKING:
    from ..architectures.adapted import Target
    from ..architectures.config import ModelConfig

ALL = "all-linear"
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")


def chosen(config: ModelConfig, options: Options) -> dict[str, Target]:
    """Name -> matrix, of the layers that are trained. OptionError: a name that no layer has, a rank above a matrix, more layers than there are."""
    if options.layers is not None and options.layers > config.n_layers:
        raise OptionError(f"layers must be at most {config.n_layers}, as many as the model has, found {options.layers}")
    first = config.n_layers - (options.layers or config.n_layers)
    found: dict[str, Target] = {}
    kinds: dict[str, None] = {}
    wanted = [name.strip() for name in options.targets.split(",")]
    for name, target in known_targets(config).items():
        where = _LAYER.fullmatch(name)
        if where is None:
            continue
        kinds[where[2]] = None
        if int(where[1]) >= first and (ALL in wanted or where[2] in wanted):
            found[name] = target
    unknown = [name for name in wanted if name != ALL and name not in kinds]
    if unknown:
        raise OptionError(f"targets: no layer has a matrix {quoted(unknown[0])}: choose from {ALL}, {', '.join(kinds)}")
    if not found:
        raise UnsupportedError(f"the model (architecture {config.architecture}) has no matrices that an adapter could be beside")
    for name, target in found.items():
        if options.rank > min(target.rows, target.columns):
            raise OptionError(f"rank must be at most {min(target.rows, target.columns)}, the smaller side of {name} ({target.rows} x {target.columns}), "
                              f"found {options.rank}")
    return found


def new_adapter(config: ModelConfig, options: Options, name: str = "") -> Adapter:
    """name: of the base model, kept in the adapter's file."""
    scale = scale_of(options.alpha, options.rank, options.rslora)
    pairs = {matrix: Pair(initial_a(options.seed, matrix, options.rank, target.columns), np.zeros((target.rows, options.rank), np.float32), scale)
             for matrix, target in chosen(config, options).items()}
    return Adapter(config.architecture, pairs, options.alpha, options.rslora, metadata={"general.name": f"adapter of {name}"} if name else {})


def weights(adapter: Adapter) -> dict[str, np.ndarray]:
    """The arrays that are trained, by the names that gradients have: NAME.lora_a, NAME.lora_b."""
    return {f"{name}.{end}": array for name, pair in adapter.pairs.items() for end, array in (("lora_a", pair.a), ("lora_b", pair.b))}
