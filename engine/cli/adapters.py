"""--lora of every command that computes with a model: adapters that it takes in once it is loaded. Click keeps them (`context.meta`); open_model asks for them.

    --lora a.gguf --lora b.gguf=0.5 ──► [("a.gguf", 1.0), ("b.gguf", 0.5)] ──► model.add_adapter(…)
"""
from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError

if TYPE_CHECKING:
    from ..model import Model

_KEY = "llamina.lora"


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


def _kept(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    context.meta[_KEY] = [with_number(text, "--lora") for text in value]


lora_option = click.option("--lora", multiple=True, metavar="FILE[=SCALE]", expose_value=False, callback=_kept, is_eager=False,
                           help="Compute with an adapter: llama.cpp's .gguf or a PEFT folder; several are added.  [scale: 1; 0: only for who asks for it]")


def asked_for() -> list[tuple[str, float]]:
    """What --lora said."""
    context = click.get_current_context(silent=True)
    found: list[tuple[str, float]] = context.meta.get(_KEY, []) if context else []
    return found


def take_in(model: Model, given: list[tuple[str, float]]) -> None:
    """FileError, FormatError, UnsupportedError, OptionError."""
    for path, scale in given:
        model.add_adapter(path, scale, default=scale != 0)


def bound() -> dict[str, Any]:
    """What a journal is bound to beside the model's file, where that is told before the model is loaded."""
    from pathlib import Path

    from ..answers.batch_job import fingerprint
    files = [(Path(path) / "adapter_model.safetensors" if os.path.isdir(path) else Path(path), scale) for path, scale in asked_for()]
    return {"adapters": [[fingerprint(path), scale] for path, scale in files]} if files else {}
