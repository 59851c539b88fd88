"""Fit, tried: the plan and the recipes that fit in its size, run on a text, and the one that stays closest to the source is taken.

    plan, recipes within the budget (what is left of it spent on their matrices) -> a file each -> KL divergence from the source -> the least

So a fit is never worse, on that text, than a recipe of its size.
"""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .recipes import FLOATS, RECIPES, choose
from .sources import Source

if TYPE_CHECKING:
    from .fit import Option

MOST_RECIPES, MOST_WINDOWS, CONTEXT = 3, 8, 512


def within(source: Source, names: Sequence[str], table: Sequence[tuple[Option, ...]], budget: int, importance: bool) -> dict[str, list[Option]]:
    """The largest recipes whose matrices are within the budget, each as one option of every row of the table; those with other formats are left out."""
    from .convert import sizes_of
    listed = [(t.name, t.shape, t.dtype) for t in source.tensors]
    found: dict[str, list[Option]] = {}
    for recipe, (base, _) in RECIPES.items():
        if base in FLOATS:
            continue
        formats = {c.name: c.format for c in choose(sizes_of(source, importance), listed, recipe)}
        options = [next((o for o in row if o.format == formats[name]), None) for name, row in zip(names, table)]
        if all(options) and sum(o.bytes for o in options if o) <= budget:
            found[recipe] = [o for o in options if o]
    largest = sorted(found, key=lambda recipe: sum(o.bytes for o in found[recipe]), reverse=True)[:MOST_RECIPES]
    return {recipe: found[recipe] for recipe in largest}


def best_of(source: Source, names: list[str], table: list[tuple[Option, ...]], planned: list[Option], budget: int, importance: Mapping[str, np.ndarray],
            text: str, threads: int | None, folder: Path | None, progress: Callable[[str, int, int], None] | None) -> tuple[list[Option], dict[str, float]]:
    """-> (the options taken, {candidate: KL divergence, the least first}). OptionError: the text is too short."""
    from ..engine.model import load
    from ..engine.score.perplexity import LEAST, divergence
    from .convert import convert
    from .fit import spend
    candidates = {"the plan": planned}
    for recipe, options in within(source, names, table, budget, bool(importance)).items():
        candidates[recipe] = options
        more = spend(table, options, budget)
        if more != options:
            candidates[f"{recipe} and more"] = more
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix=".llamina-fit-", dir=folder) as place:
        original, trial = source.files[0], Path(place) / "trial.gguf"
        if source.kind != "gguf":
            original = convert(source, Path(place) / "source.gguf", "keep", threads=threads, verify=False, allow_nan=True).paths[0]
        with load(original, threads=threads) as exact:
            context = min(CONTEXT, exact.context, max(LEAST, len(exact.tokenize(text))))
            for i, (name, options) in enumerate(candidates.items()):
                formats = {t: o.format for t, o in zip(names, options)}
                convert(source, trial, "f16", formats=formats, importance=importance or None, threads=threads, verify=False, allow_nan=True)
                with load(trial, threads=threads) as model:
                    found[name] = divergence(model, exact, text, context, most=MOST_WINDOWS).mean_kl
                if progress:
                    progress("trying mixes", i + 1, len(candidates))
    order = sorted(found, key=lambda name: found[name])
    return candidates[order[0]], {name: found[name] for name in order}
