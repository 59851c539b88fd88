"""How answers show themselves: in a notebook (HTML, as they come), in rich's console, as repr.

    Generation -> its text so far and its figures -> escaped HTML, or a renderable;  stream(): runs it to the end, showing each change in one place
    [Result] -> a table
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Result, Results
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

    from ..text.terminal import printable
    return Group(Text(printable(answer.so_far)), Text(" · ".join(figures(answer)), style="dim"))


def summary(answer: Generation) -> str:
    """For repr: short, on one line."""
    text = answer.so_far
    shown = text if len(text) <= 40 else text[:40] + "…"
    return f"<llamina.{type(answer).__name__} {shown!r}, {len(answer.ids)} tokens, {answer.finish_reason or 'not ended'}>"


_REFRESH = 0.05  # seconds between two pictures of one answer
_CELL = "text-align: left; vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere"
_MOST_ROWS = 200


class _Html:
    """What IPython displays."""

    def __init__(self, html: str, text: str) -> None:
        self._html, self._text = html, text

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return self._text


def _place(first: _Html) -> Callable[[_Html], None] | None:
    """A place in the notebook that can be changed, showing `first`; None in a terminal, where nothing can be changed."""
    from IPython import get_ipython  # type: ignore[attr-defined]
    from IPython.display import display
    if getattr(get_ipython(), "kernel", None) is None:
        return None
    handle: Any = display(first, display_id=True)
    return handle.update if handle is not None else None


def stream(answer: Generation) -> None:
    """Run an answer to its end and show it as it comes: in a notebook in one place, in IPython's terminal as plain text."""
    def picture() -> _Html:
        return _Html(html(answer), answer.so_far)
    if answer.finish_reason is None:
        change = _place(picture())
        if change is None:
            from ..text.terminal import printable
            print(printable(answer.so_far), end="", flush=True)
            for piece in answer:
                print(printable(piece), end="", flush=True)
            print()
            return
        shown = time.monotonic()
        try:
            for _ in answer:
                if time.monotonic() - shown >= _REFRESH:
                    change(picture())
                    shown = time.monotonic()
        finally:  # also what there was when it was interrupted
            change(picture())
    else:
        from IPython.display import display
        display(picture())


def stream_results(results: Iterable[Result]) -> Results:
    """Take all results and show their table as it grows -> them."""
    from .batch import Results
    found, shown = Results(), 0.0
    change = _place(_Html(results_html(found), "no result yet"))
    for result in results:
        found.append(result)
        if change is None:
            print(repr(result), flush=True)
        elif time.monotonic() - shown >= 4 * _REFRESH:
            change(_Html(results_html(found), repr(list(found))))
            shown = time.monotonic()
    if change is not None:
        change(_Html(results_html(found), repr(list(found))))
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[object]], foot: str = "") -> str:
    """An HTML table of texts, whatever they hold; of very many rows the first ones."""
    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag} style="{_CELL}">{escape(str(cell))}</{tag}>' for cell in cells) + "</tr>"
    more = f"{len(rows) - _MOST_ROWS} more rows" if len(rows) > _MOST_ROWS else ""
    below = " · ".join(filter(None, (foot, more)))
    return (f'<div><table>{row(head, "th")}{"".join(row(cells, "td") for cells in rows[:_MOST_ROWS])}</table>'
            f'<div style="color: #777; font-size: smaller">{escape(below)}</div></div>')


def results_html(results: Sequence[Result]) -> str:
    """A row for each result."""
    rows = [(r.index, r.sample, str(r.text), str(r.error) if r.error else r.finish_reason or "", len(r.ids)) for r in results]
    return table(("prompt", "sample", "text", "end", "tokens"), rows, f"{len(results)} results, {sum(bool(r.error) for r in results)} errors")
