"""An answer in a notebook, in rich and as repr: text is text, whatever it holds, and nothing is computed for it."""
from __future__ import annotations

import io
from html.parser import HTMLParser

from fake_model import fake_model


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_is_escaped_and_tells_the_figures():
    text = '<script>alert("x")</script></div> & \x1b[31m'
    with fake_model(text, after=2, context=200) as model:
        answer = model.generate("x", seed=7)
        before = answer._repr_html_()
        assert "nothing yet" in before and "not ended" in before and not model.runtime.fed  # showing computes nothing
        answer.text()
        tags = Tags()
        tags.feed(answer._repr_html_())
        assert tags.seen == {"div"} and not tags.open and tags.text.startswith(text)
        for figure in "prompt 2 tokens", f"generated {len(text.encode())}", "seed 7", "end: eos":
            assert figure in tags.text


def test_rich_and_repr():
    from rich.console import Console
    with fake_model("[bold]hi[/bold]\x1b[31m " + "long " * 20, after=2, context=200) as model:
        answer = model.generate("x", seed=7)
        assert repr(answer) == "<llamina.Generation '', 0 tokens, not ended>"
        answer.text()
        assert repr(answer).startswith("<llamina.Generation '[bold]hi") and "\n" not in repr(answer) and len(repr(answer)) < 120
        for color in None, "standard":
            out = io.StringIO()
            Console(file=out, width=40, force_terminal=bool(color), color_system=color).print(answer)
            page = out.getvalue()
            assert "[bold]hi[/bold][31m long" in page and "seed 7" in page and max(map(len, page.splitlines())) <= 60
            assert ("\x1b[" in page) == bool(color)
