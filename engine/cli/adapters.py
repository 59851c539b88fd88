"""--lora, --control-vector and --layers of every command that computes with a model: what it takes in once it is loaded. Click keeps them
(`context.meta`); open_model asks for them.

    --lora a.gguf --lora b.gguf=0.5 ──► Extras.lora [("a.gguf", 1.0), ("b.gguf", 0.5)] ──► load(…, adapters=), in whose memory plan they are
    --control-vector v.gguf=-1.5 --layers 10-20 ──► model.control(…)
"""
from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from .sampling_options import combine

if TYPE_CHECKING:
    from ..model import Model

_KEY = "llamina.adapters"


@dataclass
class Extras:
    """(file, scale or strength) of each, and the layers of control vectors."""

    lora: list[tuple[str, float]] = field(default_factory=list)
    control: list[tuple[str, float]] = field(default_factory=list)
    layers: range | None = None

    def __bool__(self) -> bool:
        return bool(self.lora or self.control)


def with_number(text: str, what: str) -> tuple[str, float]:
    """FILE or FILE=NUMBER (1 by default). OptionError."""
    path, equals, number = text.rpartition("=")
    if not equals or os.path.exists(text):
        path, number = text, "1"
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not path or not math.isfinite(value):
        raise OptionError(f"{what} must be FILE or FILE=NUMBER, found {text!r:.200}")
    return path, value


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    extras = context.meta.setdefault(_KEY, Extras())
    if parameter.name == "layers":
        extras.layers = None if value is None else _range(value)
    else:
        option = "--lora" if parameter.name == "lora" else "--control-vector"
        setattr(extras, "lora" if parameter.name == "lora" else "control", [with_number(text, option) for text in value])


def _range(text: str) -> range:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise OptionError(f"--layers must be a number or FIRST-LAST, such as 10-20, found {text!r:.80}")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


adapter_options = combine(
    click.option("--lora", multiple=True, metavar="FILE[=SCALE]", expose_value=False, callback=_keep,
                 help="Compute with an adapter: llama.cpp's .gguf or a PEFT folder; several are added.  [scale: 1; 0: only for who asks for it]"),
    click.option("--control-vector", multiple=True, metavar="FILE[=STRENGTH]", expose_value=False, callback=_keep,
                 help="Add a control vector (repeng's and llama.cpp's .gguf) to the layers' outputs; several are summed.  [strength: 1]"),
    click.option("--layers", metavar="FIRST-LAST", expose_value=False, callback=_keep, help="With --control-vector: to these only.  [default: all it has]"),
)


def asked_for() -> Extras:
    """What the options said. OptionError."""
    context = click.get_current_context(silent=True)
    found: Extras = context.meta.get(_KEY, Extras()) if context else Extras()
    if found.layers is not None and not found.control:
        raise OptionError("--layers goes with --control-vector")
    return found


def steer(model: Model, given: Extras) -> None:
    """FileError, FormatError, UnsupportedError, OptionError."""
    if given.control:
        model.control(*given.control, layers=given.layers)


def bound() -> dict[str, Any]:
    """What a journal is bound to beside the model's file, where that is told before the model is loaded."""
    from pathlib import Path

    from ...kernels.low_rank import ORDER
    from ..answers.batch_job import fingerprint

    def prints(given: list[tuple[str, float]]) -> list[list[Any]]:
        return [[fingerprint(Path(path) / "adapter_model.safetensors" if os.path.isdir(path) else Path(path)), number] for path, number in given]
    extras = asked_for()
    control = {"control": [*prints(extras.control), list(extras.layers) if extras.layers else None]} if extras.control else {}
    return {**({"adapters": [ORDER, *prints(extras.lora)]} if extras.lora else {}), **control}
