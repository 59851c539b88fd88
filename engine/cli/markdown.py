"""A model's Markdown on a terminal: coloured where it stands, and nothing taken away.

    text -> Page (for rich) -> lines of the window's width

What a Markdown reader takes for markup a model may have meant: <think>, Vec<String>, 2*3*4, __init__, \\(x\\), &lt;, the numbers of a list. So every character
but blanks and control characters is on the screen, in its place, and can be copied; headings, emphasis, code, lists, quotes and tables get their looks
by style and indentation alone. Columns of a table are padded until they stand below each other, if they fit.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from ..text.terminal import printable

_MARKED = re.compile(r"( *(?:[-*+]|\d{1,9}[.)]|>+) +(?:\[[ xX]\] +)?)(?=\S)")  # of a list or quote
_HEADING = re.compile(r" {0,3}#{1,6} ")
_RULE = re.compile(r" {0,3}([-*_])( *\1){2,} *$")
_INLINE = re.compile(  # spans of at most 300 characters, so that no line takes long
    r"(?P<code>(?<!`)(?P<tick>`{1,8})(?!`)[^\n]{0,300}?[^`\n](?P=tick)(?!`))|(?P<bold>(?<!\*)\*{2,3}(?=[^\s*])[^\n]{0,300}?[^\s*]\*{2,3}"
    r"|(?<!\w)__(?=[^\s_])[^\n]{0,300}?[^\s_]__(?!\w))|(?P<strike>~~(?=[^\s~])[^\n]{0,300}?[^\s~]~~)"
    r"|(?P<italic>(?<![\w*])\*(?=[^\s*])[^*\n]{0,300}[^\s*]\*(?![\w*])|(?<![\w_])_(?=[^\s_])[^_\n]{0,300}[^\s_]_(?![\w_]))")
_STYLES = {"code": "cyan", "bold": "bold", "strike": "strike", "italic": "italic"}
MAX_LINE = 10_000
"""Characters of a line that is looked at for emphasis."""


def shown(piece: str) -> str:
    """A piece of a model's text as standard output gets it: as it is in a pipe, without what drives a terminal on one."""
    return printable(piece) if sys.stdout.isatty() else piece


def fence_of(line: str) -> str:
    """"```" or "~~~" if the line opens or closes a code block, else ""."""
    mark = line.lstrip()[:3]
    return mark if mark in ("```", "~~~") else ""


class Page:
    """A piece of Markdown, as rich prints it."""

    def __init__(self, text: str) -> None:
        self.text = printable(text)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text
        for first, line in _styled(self.text.expandtabs(4).split("\n"), options.max_width):
            width = len(first) if len(first) <= options.max_width // 2 else 0
            lines = _wrapped(console, line[len(first):] if width else line, max(1, options.max_width - width))
            for n, part in enumerate(lines or [Text("")]):
                part.rstrip()
                yield Text(first if n == 0 else " " * width, style="bold cyan" if n == 0 and first.strip() else "") + part if width else part


def _wrapped(console: Any, line: Any, width: int) -> list[Any]:
    """A line's pieces of at most `width` columns, broken between words if they can be."""
    from rich.cells import chop_cells
    from rich.text import Text
    pieces = list(line.wrap(console, width, overflow="fold", justify="left"))
    if "".join("".join(p.plain.split()) for p in pieces) == "".join(line.plain.split()):
        return pieces
    offsets, at = [], 0  # rich cuts a character off where long blanks stand in a line that just does not fit: break it by columns
    for part in chop_cells(line.plain, width)[:-1]:
        at += len(part)
        offsets.append(at)
    return list(line.divide(offsets)) or [Text("")]


def _styled(lines: list[str], width: int) -> Iterator[tuple[str, Any]]:
    """(what hangs before the line and is indentation below, the line with its styles): a blank line never twice outside code."""
    from rich.text import Text
    at, blank = 0, True
    while at < len(lines):
        line = lines[at]
        mark = fence_of(line)
        if mark:
            end = next((n for n in range(at + 1, len(lines)) if fence_of(lines[n]) == mark), len(lines))
            yield "", Text(line.rstrip(), style="dim")
            for code in _code("\n".join(lines[at + 1:end]), line.strip().strip("`~").split(" ")[0]) if end > at + 1 else []:
                yield code.plain[:len(code.plain) - len(code.plain.lstrip())], code
            if end < len(lines):
                yield "", Text(lines[end].rstrip(), style="dim")
            at, blank = end + 1, False
            continue
        if _is_table(lines, at):
            end = next((n for n in range(at, len(lines)) if "|" not in lines[n]), len(lines))
            for row in _aligned(lines[at:end], width):
                yield "", _inline(row, "bold" if row is lines[at] else "")
            at, blank = end, False
            continue
        if line.strip() or not blank:
            found = _MARKED.match(line)
            first = found[0] if found and not _RULE.match(line) else line[:len(line) - len(line.lstrip())]
            yield first, _inline(line.rstrip(), "bold" if _HEADING.match(line) else "dim" if _RULE.match(line) else "")
        blank = not line.strip()
        at += 1


def _inline(line: str, style: str) -> Any:
    """A line with its emphasis; the marks stay, dim."""
    from rich.text import Text
    text = Text(line, style=style)
    for found in _INLINE.finditer(line) if len(line) <= MAX_LINE else ():
        kind = next(name for name in _STYLES if found[name])
        marks = len(found["tick"]) if kind == "code" else 1 if kind == "italic" else 2
        text.stylize(_STYLES[kind], *found.span())
        text.stylize("dim", found.start(), found.start() + marks)
        text.stylize("dim", found.end() - marks, found.end())
    return text


def _code(code: str, language: str) -> list[Any]:
    """The lines of a code block in colours, if pygments knows the language and leaves the text as it is."""
    from rich.text import Text
    plain = Text(code)
    if language and len(code) <= 1 << 16:
        from rich.syntax import Syntax
        coloured = Syntax(code, language, theme="ansi_dark").highlight(code)
        if coloured.plain.rstrip("\n") == code.rstrip("\n"):
            coloured.right_crop(len(coloured.plain) - len(coloured.plain.rstrip("\n")))
            coloured.append("\n" * (len(code) - len(code.rstrip("\n"))))
            plain = coloured
    return list(plain.split("\n", allow_blank=True))


def _is_table(lines: list[str], at: int) -> bool:
    """Whether a table's head stands here, with the line of dashes below it."""
    return at + 1 < len(lines) and "|" in lines[at] and "|" in lines[at + 1] and bool(re.fullmatch(r"[ |:-]*-[ |:-]*", lines[at + 1]))


def _aligned(rows: list[str], width: int) -> list[str]:
    """A table's rows with the cells of a column padded to one width; as they are if that is too wide."""
    from rich.cells import cell_len
    cells = [[cell.strip() for cell in row.strip().split("|")] for row in rows]
    widths = [max(cell_len(row[n]) if n < len(row) and i != 1 else 0 for i, row in enumerate(cells)) for n in range(max(map(len, cells)))]
    widths = [max(w, *(len(row[n]) if n < len(row) else 0 for row in cells[1:2])) for n, w in enumerate(widths)]
    if sum(widths) + 3 * len(widths) > width:
        return [row.rstrip() for row in rows]
    return [" | ".join(cell + " " * (widths[n] - cell_len(cell)) for n, cell in enumerate(row)).strip() for row in cells]
