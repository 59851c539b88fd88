"""A tokenizer.json's pre_tokenizer as the list of expressions that cut its text, to be found in the engine's table of such lists (splits.py).

    pre_tokenizer -> its steps -> [expression, ...] -> find_row() -> the name that goes into tokenizer.ggml.pre

The library has several steps for one thing: Digits is an expression, and so is what ByteLevel does before it turns text into bytes.
"""
from __future__ import annotations

import re
from typing import Any

from ...engine.text.tokenizer.splits import GPT2, Row, find_row


def row_of_steps(steps: list[dict[str, Any]], ignore_merges: bool) -> Row | None:
    """The row of the table that cuts text as these steps do; None if there is none. The last step must be ByteLevel."""
    split = expressions(steps)
    return None if split is None else find_row(split, ignore_merges)


def expressions(steps: list[dict[str, Any]]) -> list[str] | None:
    """The steps' expressions in order; None if a step is anything but cutting, or bytes are made before the end."""
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return None
    found = [_expression(step) for step in steps[:-1]]
    if steps[-1].get("use_regex", True):
        found.append(GPT2)
    kept = [expression for expression in found if expression is not None]
    return kept if len(kept) == len(found) else None


def _expression(step: dict[str, Any]) -> str | None:
    if step.get("type") == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    pattern, behavior = step.get("pattern"), (step.get("behavior"), bool(step.get("invert")))
    # "Removed" and inverted: what does not match is dropped. With expressions that match everything that is nothing; the comparison of ids would tell.
    if step.get("type") != "Split" or not isinstance(pattern, dict) or behavior not in (("Isolated", False), ("Isolated", True), ("Removed", True)):
        return None
    regex, literal = pattern.get("Regex"), pattern.get("String")
    return regex if isinstance(regex, str) else re.escape(literal) if isinstance(literal, str) else None
