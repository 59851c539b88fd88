"""Markdown on a terminal: every character of an answer is on the screen, whatever a model writes, and nothing that drives the terminal."""
from __future__ import annotations

import io
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llamina.engine.cli import chat_terminal
from llamina.engine.cli.markdown import Page, printable
from rich.console import Console

TABLE = "| name | n |\n|:--|--:|\n| a very long cell | 1 |\n| b | 22  | more cells |\n"
ANSWERS = [
    "<think>\nTwo and two.\n</think>\nThe answer is 4.", "<answer>42</answer>", "Use Vec<String>, HashMap<K, V> and List<int>.", "<!-- a comment -->\n\nafter",
    "&lt;b&gt; &amp; &copy; &#65;", "[a link](http://example.org/ä?q=1 \"its title\") and <http://example.org>", "![a picture](img.png \"title\")",
    "[1]: http://example.org 'reference'\n\nsee [1] and [text][1]", TABLE, "2*3*4 = 24, __init__ and a_b_c, **bold** _it_ ~~no~~ `code` ``a`b``",
    "\\(x^2\\) and \\[ \\frac{a}{b} \\] $\\alpha_1$ \\* \\_",
    "3. three\n7. seven\n7. again\n\n- [x] done\n- [ ] open\n  - inner\n    1) deep",
    "# Title #\n\nHead\n====\n\nSub\n---\n\n***\n\n> quote\n>> deeper\n> - list",
    "```python title=\"x\"\ndef f(x):\n\treturn '<b>' # ü 🦊\n\n\n```\n\n~~~\nraw\n~~~",
    "```python\nunfinished", "````\n```\nin it\n```\n````", "<script>alert(1)</script>\n<div>\n\n**in** a div\n</div>", "a  \nb\\\nc", "[^1]: a footnote[^1]",
    "<details><summary>s</summary>x</details>", "C# and F#\n#include <stdio.h>",
    "    indented code <T>\n\nend", ":smile: [bold]x[/bold] [/] [link=x]", "|", "|a|\n|-|",
    "\u65e5\u672c\u8a9e" * 30, "x" * 300 + " " + "<y>" * 100, "`" * 7 + "x", "*" * 50, "- " * 20,
    "\n\n\n<a>\n\n\n\n<b>", "$ cat <<EOF\n<x>\nEOF", "```\n" + "w" * 200 + "\n```",
    "| a | b |\n|---|---|\n" + "| " + "long " * 30 + "| x |",
]  # fmt: skip


def screen(text: str, width: int = 60, size: int = 5, color: bool = True) -> str:
    """What `llamina chat` leaves on a terminal, without its styles."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, color_system="truecolor" if color else None, width=width, highlight=False)
    chat_terminal._show_markdown((text[i:i + size] for i in range(0, len(text), size)), console)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def letters(text: str) -> str:
    return "".join(printable(text).split())


@pytest.mark.parametrize("text", ANSWERS, ids=lambda text: text[:20])
@pytest.mark.parametrize("width", [20, 80])
def test_every_character_is_on_the_screen(text: str, width: int) -> None:
    page = screen(text, width)
    assert letters(page) == letters(text)
    assert all(len(line) <= width for line in page.splitlines())


MARKS = st.sampled_from(["*", "**", "_", "`", "```", "~~", "#", "- ", "1. ", "> ", "|", "|-|", "<", ">", "</", "&", ";", "[", "](", ")", "!", "\\", "\n",
                         "\n\n", "    ",                         "a", "B c", "é", "日", "🦊", "\t", "\x1b[2J", "\x9b",
                         "\r", "=", "---", ":", "{", "$", "\u00a0", "\u2028", "x" * 40, "http://e.org", "python"])


@settings(max_examples=400, deadline=None)
@example("```\nB c*\t---", 10, 1)  # rich itself loses a dash
@given(st.lists(MARKS, max_size=30).map("".join) | st.text(max_size=80), st.sampled_from([10, 37, 80]), st.sampled_from([1, 7, 1000]))
def test_every_character_of_any_text(text: str, width: int, size: int) -> None:
    page = screen(text, width, size)
    assert letters(page) == letters(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)


def test_it_is_styled() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=60)
    console.print(Page("# T\n\n**b** and `c`\n\n```python\ndef f(): pass\n```\n- x\n\n" + TABLE))
    page = out.getvalue()
    for looks in r"\x1b\[1m# T", r"\x1b\[1mb\x1b", r"\x1b\[36mc\x1b", r"\x1b\[[0-9;]*[39]\dmdef":
        assert re.search(looks, page), looks
    assert "| b                | 22  | more cells |" in re.sub(r"\x1b\[[0-9;]*m", "", page)


@pytest.mark.parametrize("text", ["`", "**a ", "~~a ", "``a` ", "__a ", "*", "_a", "**a*", "- ", ">", "|", "~"])
def test_no_line_takes_long(text: str) -> None:
    start = time.perf_counter()
    page = screen(text * (9000 // len(text)), 80, 10_000)
    assert letters(page) == letters(text * (9000 // len(text))) and time.perf_counter() - start < 30


def test_lists_hang() -> None:
    assert screen("- " + "word " * 10, 20).splitlines()[:2] == ["- word word word", "  word word word"]
