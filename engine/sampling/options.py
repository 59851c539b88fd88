"""SamplingOptions: how a token is chosen, checked when made."""
from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

import numpy as np

from ..errors import OptionError, quoted

MAX_SEED = 2**64 - 1
STAGES = ("bias", "penalties", "dry", "top_n_sigma", "top_k", "typical", "top_p", "min_p", "xtc", "temperature", "mirostat")
"""All stages in their usual order, llama.cpp's: the filters see probabilities at temperature 1."""
MIROSTAT_ORDER = ("bias", "penalties", "dry", "temperature", "mirostat")
"""The usual order with mirostat, which takes the place of the filters."""

_INTEGERS = ("top_k", "repeat_last_n", "seed", "dry_allowed_length", "dry_last_n", "mirostat")
_OTHERS = ("dry_breakers", "logit_bias", "banned", "order")


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is chosen; checked when made (OptionError names the option). docs/sampling.md explains each.

    temperature: >= 0; 0 takes the most likely token (greedy), whatever the filters say. top_k: keep the k most likely tokens, 0 keeps all.
    top_p: in (0, 1]: keep the fewest most likely tokens whose probabilities add up to it. min_p: in [0, 1]: drop tokens less likely than min_p times
    the most likely one. repeat_penalty: > 0, 1 is none: weakens tokens among the last `repeat_last_n` (-1: all, 0: none) of prompt and answer.
    seed: 0 to 2**64 - 1, or None for a random one, which `Generation.stats` reports.
    presence_penalty, frequency_penalty: subtracted from the logits of those same tokens, once, and once for each time they occur.
    typical_p: in (0, 1]: locally typical sampling. top_n_sigma: 0 is off: keep logits within n standard deviations of the greatest.
    xtc_probability, xtc_threshold: with this probability exclude all but the last of the tokens that have at least the threshold.
    dynatemp_range, dynatemp_exponent: temperature from t - range to t + range, by entropy.
    dry_multiplier (0: off), dry_base (>= 1), dry_allowed_length (>= 1), dry_last_n (-1: all), dry_breakers: don't repeat yourself.
    mirostat: 0 (off) or 2; mirostat_tau: the surprise to hold, in bits; mirostat_eta: how fast.
    logit_bias: {id or text: number to add to the logit}, -inf forbids; a text stands for each of its tokens.
    banned: texts that the answer shall not contain. order: names of STAGES, separated by ";", or a sequence of them; those left out do nothing.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Any = ()
    """Given as a mapping or pairs; kept as a tuple of pairs, so that options compare."""
    banned: tuple[str, ...] = ()
    order: Any = None
    """Kept as a tuple of names, or None for the usual order."""

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS:
            value = getattr(self, name)
            if value is not default and name not in _OTHERS:
                object.__setattr__(self, name, (_integer if name in _INTEGERS else _number)(name, value))
        for name in "dry_breakers", "banned":
            object.__setattr__(self, name, texts(name, getattr(self, name)))
        object.__setattr__(self, "logit_bias", biases(self.logit_bias))
        object.__setattr__(self, "order", stage_order(self.order))
        _require("temperature", self.temperature, self.temperature >= 0, "0 or more")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (off)")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 (off) to 1")
        _require("repeat_penalty", self.repeat_penalty, self.repeat_penalty > 0, "above 0 (1 is off)")
        _require("repeat_last_n", self.repeat_last_n, self.repeat_last_n >= -1, "-1 (all), 0 (off) or more")
        _require("seed", self.seed, self.seed is None or 0 <= self.seed <= MAX_SEED, "from 0 to 2**64 - 1")
        _require("typical_p", self.typical_p, 0 < self.typical_p <= 1, "above 0 and at most 1 (off)")
        _require("top_n_sigma", self.top_n_sigma, self.top_n_sigma >= 0, "0 (off) or more")
        _require("xtc_probability", self.xtc_probability, 0 <= self.xtc_probability <= 1, "from 0 (off) to 1")
        _require("xtc_threshold", self.xtc_threshold, 0 <= self.xtc_threshold <= 1, "from 0 to 1 (above 0.5 it is off)")
        _require("dynatemp_range", self.dynatemp_range, self.dynatemp_range >= 0, "0 (off) or more")
        _require("dynatemp_range", self.dynatemp_range, math.isfinite(self.temperature + self.dynatemp_range), "finite with the temperature added")
        _require("mirostat_tau", self.mirostat_tau, math.isfinite(2 * self.mirostat_tau), "small enough for its double to be finite")
        _require("dynatemp_exponent", self.dynatemp_exponent, self.dynatemp_exponent >= 0, "0 or more")
        _require("dry_multiplier", self.dry_multiplier, self.dry_multiplier >= 0, "0 (off) or more")
        _require("dry_base", self.dry_base, self.dry_base >= 1, "1 or more")
        _require("dry_allowed_length", self.dry_allowed_length, self.dry_allowed_length >= 1, "1 or more")
        _require("dry_last_n", self.dry_last_n, self.dry_last_n >= -1, "-1 (all), 0 (off) or more")
        _require("mirostat", self.mirostat, self.mirostat in (0, 2), "0 (off) or 2")
        _require("mirostat_tau", self.mirostat_tau, self.mirostat_tau >= 0, "0 or more")
        _require("mirostat_eta", self.mirostat_eta, 0 <= self.mirostat_eta <= 1, "from 0 to 1")

    @classmethod
    def of(cls, options: SamplingOptions | Mapping[str, Any] | None, changes: Mapping[str, Any], where: str = "generate") -> SamplingOptions:
        """`options`, or the defaults, with `changes`. TypeError names a change that is no option, as Python does for an argument."""
        if options is not None and not isinstance(options, (SamplingOptions, Mapping)):
            raise OptionError(f"options must be SamplingOptions or a mapping, found {type(options).__name__}")
        given = {field.name: getattr(options, field.name) for field in fields(cls)} if isinstance(options, SamplingOptions) else dict(options or {})
        given.update(changes)
        if unknown := given.keys() - cls.__dataclass_fields__.keys():
            raise TypeError(f"{where}() got an unexpected keyword argument {min(map(str, unknown))!r}")
        return cls(**given)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages in the order in which they act."""
        if self.order is not None:
            return self.order
        return MIROSTAT_ORDER if self.mirostat else STAGES


_DEFAULTS = [(field.name, field.default) for field in fields(SamplingOptions)]


class SamplingKeywords(TypedDict, total=False):
    """The fields of SamplingOptions as keyword arguments, for editors and type checkers; a test compares the two."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_last_n: int
    dry_breakers: Iterable[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float] | Mapping[str, float] | Iterable[tuple[int | str, float]]
    banned: str | Iterable[str]
    order: str | Iterable[str] | None


def texts(name: str, value: Any) -> tuple[str, ...]:
    """One text or several, none of them empty."""
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) and not isinstance(value, Mapping) else (value,)
    for text in found:
        if not isinstance(text, str) or not text:
            raise OptionError(f"{name} must be non-empty texts, found {quoted(text)}")
    return found


def biases(value: Any) -> tuple[tuple[int | str, float], ...]:
    """{id or text: bias} or such pairs -> pairs."""
    pairs: list[tuple[int | str, float]] = []
    if value is not None and (isinstance(value, (str, bytes)) or not isinstance(value, Iterable)):
        raise OptionError(f"logit_bias must map token ids or texts to numbers, found {value!r:.60}")
    for pair in value.items() if isinstance(value, Mapping) else value or ():
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], (str, int, np.integer)) or isinstance(pair[0], bool) or pair[0] == "":
            raise OptionError(f"logit_bias must map token ids or texts to numbers, found {quoted(pair)}")
        forbids = isinstance(pair[1], (int, float, np.number)) and pair[1] == -math.inf
        pairs.append((pair[0] if isinstance(pair[0], str) else int(pair[0]), -math.inf if forbids else _number("logit_bias", pair[1])))
    return tuple(pairs)


def stage_order(value: Any) -> tuple[str, ...] | None:
    """Names of stages -> a tuple of them; None: the usual order."""
    if value is None:
        return None
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise OptionError(f"order must be stages out of {';'.join(STAGES)}, found {value!r:.60}")
    names = [n.strip() for n in value.replace(",", ";").split(";") if n.strip()] if isinstance(value, str) else list(value)
    for i, name in enumerate(names):
        if name not in STAGES:
            raise OptionError(f"order must be stages out of {';'.join(STAGES)}, found {quoted(name)}")
        if name in names[:i]:
            raise OptionError(f"order names the stage {quoted(name)} twice")
    if "mirostat" in names[:-1]:
        raise OptionError("order must have mirostat at its end, because it learns from what is drawn")
    return tuple(names)


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise OptionError(f"{name} must be {expected}, found {quoted(value)}")


def _integer(name: str, value: Any) -> int:
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise OptionError(f"{name} must be a whole number, found {quoted(value)}")


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, (bool, np.bool_, str)):
            number = float(value)
            if math.isfinite(number):
                return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"{name} must be a finite number, found {quoted(value)}")
