"""How an answer shows itself: in a notebook (HTML), in rich's console, as repr. Nothing here computes a token.

    Generation -> its text so far and its figures -> escaped HTML, or a renderable
"""
from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generation import Generation

_STYLE = "max-width: 60em; white-space: pre-wrap; overflow-wrap: break-word"


def figures(answer: Generation) -> list[str]:
    """What it took, in a few words each."""
    s = answer.stats
    found = [f"prompt {s.prompt_tokens} tokens" + (f", {s.reused_tokens} reused" if s.reused_tokens else ""), f"generated {s.generated_tokens}"]
    if s.generated_tokens_per_second:
        found[-1] += f" at {s.generated_tokens_per_second:.{1 if s.generated_tokens_per_second < 100 else 0}f} tokens/s"
    if s.prompt_seconds:
        found.append(f"first token after {s.prompt_seconds:.2f} s")
    return [*found, f"seed {s.seed}", "not ended" if s.finish_reason is None else f"end: {s.finish_reason}"]


def html(answer: Generation) -> str:
    """The text as text, whatever it holds, and its figures below in grey."""
    text = escape(answer.so_far) or "<i>nothing yet</i>"
    return f'<div><div style="{_STYLE}">{text}</div><div style="color: #777; font-size: smaller">{escape(" · ".join(figures(answer)))}</div></div>'


def renderable(answer: Generation) -> Any:
    """For rich's print."""
    from rich.console import Group
    from rich.text import Text

    from ..cli.markdown import printable
    return Group(Text(printable(answer.so_far)), Text(" · ".join(figures(answer)), style="dim"))


def summary(answer: Generation) -> str:
    """For repr: short, on one line."""
    text = answer.so_far
    shown = text if len(text) <= 40 else text[:40] + "…"
    return f"<llamina.{type(answer).__name__} {shown!r}, {len(answer.ids)} tokens, {answer.finish_reason or 'not ended'}>"
