"""How an adapter, or a model, is trained: all that changes its numbers, and what only changes when they come. Checked when they are made."""
from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import OptionError, quoted
from .optimiser import OPTIMISERS
from .schedule import SCHEDULES

_HARMLESS = ("micro_batch", "eval_every", "save_every")
_OF_ADAPTERS = ("rank", "alpha", "targets", "layers", "dropout", "rslora", "backward")
BACKWARD = ("bfloat16", "float32")
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Options:
    """rank, alpha, rslora: of every pair; its product is multiplied with alpha / rank (rslora: alpha / sqrt(rank)). targets: "all-linear", or names of matrices
    with commas (attn_q,attn_v). layers: the last so many (None: all). dropout: of what A reads. backward: what gradients and weights are rounded to where
    they are multiplied with each other, a name of BACKWARD; with F32 and F16 matrices always float32. full: no adapter but all of the model's weights, to
    which none of these apply.

    epochs: how often every row is met; steps: so many steps instead. batch: rows of a step. micro_batch: rows computed at once (None: as many as memory and
    speed ask for); changes nothing. lr: the greatest learning rate; warmup: a share of the steps, or (from 1 on) how many. clip: greatest norm of all gradients
    together, 0: any. eval_every: steps between validations (None: at the end of each epoch). save_every: steps between checkpoints (None: every minute).
    OptionError.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "all-linear"
    layers: int | None = None
    dropout: float = 0.0
    rslora: bool = False
    backward: str = "bfloat16"
    epochs: int = 1
    steps: int | None = None
    batch: int = 8
    micro_batch: int | None = None
    lr: float = 2e-4
    schedule: str = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    optimizer: str = "adamw"
    seed: int = 0
    eval_every: int | None = None
    save_every: int | None = None
    full: bool = False

    def __post_init__(self) -> None:
        for name in "rank", "epochs", "batch":
            self._whole(name, 1)
        for name in "layers", "steps", "micro_batch", "eval_every", "save_every":
            if getattr(self, name) is not None:
                self._whole(name, 1)
        self._whole("seed", 0, MAX_SEED)
        self._number("alpha", 0.0, above=True)
        self._number("lr", 0.0, above=True)
        self._number("dropout", 0.0, 1.0)
        for name in "warmup", "weight_decay", "clip":
            self._number(name, 0.0)
        for name, allowed in ("schedule", SCHEDULES), ("optimizer", tuple(OPTIMISERS)), ("backward", BACKWARD):
            if getattr(self, name) not in allowed:
                raise OptionError(f"{name} must be one of {', '.join(allowed)}, found {quoted(getattr(self, name))}")
        if not isinstance(self.targets, str) or not all(part.strip() for part in self.targets.split(",")):
            raise OptionError(f'targets must be "all-linear" or names of matrices with commas between them, found {quoted(self.targets)}')
        object.__setattr__(self, "rslora", bool(self.rslora))
        object.__setattr__(self, "full", bool(self.full))
        if self.full and (meant := next((f.name for f in fields(self) if f.name in _OF_ADAPTERS and getattr(self, f.name) != f.default), None)):
            raise OptionError(f"{meant} is of adapters: leave it out where all weights are trained (full)")

    def _whole(self, name: str, least: int, most: int = 2**31) -> None:
        value = getattr(self, name)
        try:
            number = None if isinstance(value, bool) else operator.index(value)
        except TypeError:
            number = None
        if number is None or not least <= number <= most:
            raise OptionError(f"{name} must be a whole number from {least} on{f', at most {most}' if number and number > most else ''}, found {quoted(value)}")
        object.__setattr__(self, name, number)

    def _number(self, name: str, least: float, below: float = math.inf, above: bool = False) -> None:
        value = getattr(self, name)
        try:
            number = math.nan if isinstance(value, (bool, str)) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (least < number if above else least <= number) or not number < below:
            wanted = f"above {least:g}" if above else f"from {least:g} on" + (f", below {below:g}" if below < math.inf else "")
            raise OptionError(f"{name} must be a number {wanted}, found {quoted(value)}")
        object.__setattr__(self, name, number)

    def bound(self) -> dict[str, Any]:
        """For checkpoints: all that the numbers depend on."""
        found = asdict(self)
        for name in (*_HARMLESS, *(("epochs",) if self.steps else ()), *(_OF_ADAPTERS if self.full else ("full",))):
            del found[name]
        return found
