"""Pictures: self-contained, bounded, escaped, with a text for those who don't see them; as a browser shows them; the terminal's; `llamina look`."""
from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.look import pictures, terminal
from llamina.engine.model import Model, load
from small_models import random_ids, write_small_model

IDS = random_ids(30)
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load("demo", threads=2, context=512) as model:
        yield model


class Checked(HTMLParser):
    """Every tag is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not (tag in ("div", "table", "p", "figure") and "p" in self.open), f"<{tag}> within <p>"
        assert not any(name.startswith("on") for name, _ in attrs) and tag not in ("script", "link", "iframe")
        assert all(value is None or value.startswith("data:image/png") for name, value in attrs if name in ("src", "href"))
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(text: str) -> None:
    assert len(text.encode()) <= pictures.MOST, len(text.encode())
    assert "http" not in text and "@import" not in text and 'role="figure" aria-label="' in text
    parser = Checked()
    parser.feed(text)
    assert parser.open == []


def every(model: Model, ids: list[int]) -> dict[str, str]:
    trace = model.trace(ids)
    other = [*ids[:3], ids[3] + 1, *ids[4:]] if len(ids) > 4 else None
    attention = model.attention(ids, None)
    found: dict[str, Any] = {"trace": trace, "lens": trace.lens, "attention": attention, "no maps": model.attention(ids, [1], maps=False)}
    if other:
        found["patching"] = model.patch(ids, other, ["blocks.*.hook_resid_pre"], (5, 9), positions=slice(3, 8))
        found["by heads"] = model.patch(ids, other, ["blocks.1.attn.hook_z"], (5, 9), positions=[-1], heads=[0, 3])
    vector = model.steering_vector([IDS], [IDS[:9]])
    found["steered"] = model.steered("Once <b>", vector, [0, 0.5], max_tokens=4)
    return {name: value._repr_html_() for name, value in found.items()}


def test_pictures_are_self_contained(model: Model) -> None:
    for n in 1, 30:
        for name, text in every(model, IDS[:n]).items():
            check(text)
            assert name != "steered" or "Once &lt;b&gt;" in text
    whole = pictures.together([("a <b>", model.trace(IDS)._repr_html_())], "t & t")
    assert "<title>t &amp; t</title>" in whole and "<h2>a &lt;b&gt;</h2>" in whole


def test_pictures_stay_small(model: Model) -> None:
    """Of a text that fills the context: the beginning, or the end, and a line that says so."""
    ids = random_ids(500, 2000)
    trace, attention = model.trace(ids, attribution=False), model.attention(ids)
    for text in trace._repr_html_(), trace.lens._repr_html_(), attention._repr_html_():
        check(text)
    assert "of 500 positions" in trace.lens._repr_html_()


def test_tokens_are_escaped() -> None:
    assert pictures.shown('<script>"&\n ') == "&lt;script&gt;&quot;&amp;\u21b5\u00b7"
    assert terminal.visible("a\x1b[31m\n") == "a\\x1b[31m\u21b5"
    assert terminal.cell("日本語", 5) == "日本 " or terminal.cell("日本語", 5).startswith("日")
    assert all(len(terminal.cell(t, 6)) == 6 for t in ("", "abc", "abcdefgh"))


def test_a_picture_of_a_map_is_the_map() -> None:
    """The PNG's bytes, decoded by hand."""
    import base64
    import zlib
    values = np.array([[1.0, 0.0, 0.25], [0.0, 1.0, 0.5]])
    raw = base64.b64decode(pictures.png(values).split(",")[1])
    data = raw[raw.index(b"IDAT") + 4:]
    codes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(2, 4)
    assert codes[:, 0].tolist() == [0, 0] and codes[0, 1:].tolist() == [255, 0, 127] and codes[1, 3] == int(np.sqrt(0.5) * 255)


def test_in_a_browser(model: Model, tmp_path: Path) -> None:
    """Light and dark: nothing is asked of anybody, details appear on focus, text stands out from what it stands on (4.5 to 1) in every cell."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (pip install playwright)")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium on the path")
    path = tmp_path / "look.html"
    path.write_text(pictures.together(list(every(model, IDS).items()), "look"), encoding="utf-8")
    contrast = """() => { const lum = c => { const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 };
        return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]) };
      const num = s => s.match(/[\\d.]+/g).map(Number); const probe = document.createElement('div'); probe.style.background = 'Canvas';
      document.body.append(probe); const base = num(getComputedStyle(probe).backgroundColor);
      return Math.min(...[...document.querySelectorAll('.t,.grid td')].map(e => { const s = getComputedStyle(e),
        b = num(s.backgroundColor), a = b.length > 3 ? b[3] : 1;
        const back = [0, 1, 2].map(i => a * b[i] + (1 - a) * base[i]), l = [lum(num(s.color)), lum(back)].sort((x, y) => y - x);
        return (l[0] + .05) / (l[1] + .05) })) }"""
    with playwright.sync_playwright() as started, tempfile.TemporaryDirectory() as home:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"], env={**os.environ, "HOME": home, "XDG_CONFIG_HOME": home})
        for scheme in "light", "dark":
            tab, asked = browser.new_page(color_scheme=scheme), []  # type: Any, list[str]
            tab.on("request", lambda r, asked=asked: asked.append(r.url))
            tab.goto(path.as_uri())
            assert all(url.startswith(("file:", "data:")) for url in asked)
            token = tab.locator(".t").nth(7)
            assert not token.locator(".p").is_visible()
            token.focus()
            assert token.locator(".p").is_visible() and "surprise" in token.locator(".p").inner_text()
            assert tab.evaluate(contrast) >= 4.5, scheme
            assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        browser.close()


def test_figures(model: Model) -> None:
    pytest.importorskip("matplotlib", reason="extra 'plot' is not installed")
    import io
    trace: Any = model.trace(IDS)
    other = [*IDS[:3], IDS[3] + 1, *IDS[4:]]
    for figure in (trace.plot(), trace.lens.plot(), trace.lens.plot(what="entropy"), trace.attribution.plot(), model.attention(IDS, [1]).plot(),
                   model.patch(IDS, other, "blocks.*.hook_resid_pre", (5, 9), positions=-1).plot(),
                   model.patch(IDS, other, "blocks.1.attn.hook_z", (5, 9), positions=-1, heads=[0, 1]).plot()):  # type: ignore[union-attr]
        file = io.BytesIO()
        figure.savefig(file, format="svg")
        assert b"<svg" in file.getvalue()


# -- the command --------------------------------------------------------------------------------------------------------------------------------

def test_the_command(run: Any, tmp_path: Path) -> None:
    text = "Once upon a time there was a girl"
    result = run("look", "demo", text, "--threads", "1", "-q")
    lines = result.out.splitlines()
    assert result.code == 0 and lines[0].split()[:3] == ["token", "surprise", "rank"] and re.match(r"·upon +\d+\.\d\d", lines[3]), result.err
    assert lines[-1].endswith("nats a token") and lines[-2].startswith("next: ")
    lens = run("look", "demo", text, "--threads", "1", "-q", "--lens").out.splitlines()
    assert lens[0].startswith("after") and lens[-1].split()[0] == "emb" and len(lens) == 8
    layer = run("look", "demo", text, "--threads", "1", "-q", "--attention", "2").out.splitlines()
    assert len(layer) == 9 and layer[1].startswith("head   0")
    head = run("look", "demo", text, "--threads", "1", "-q", "--attention", "2.3").out.splitlines()
    assert "layer 2, head 3" in head[0] and len(head) == 10
    data = json.loads(run("look", "demo", text, "--threads", "1", "-q", "--json", "--lens", "--attention", "1.0").out)
    assert [t["text"] for t in data["tokens"]][1:3] == [" Once", " upon"] and len(data["lens"]) == 7 and list(data["attention"]["heads"]) == ["0"]
    path = tmp_path / "look.html"
    result = run("look", "demo", text, "--threads", "1", "-q", "--html", str(path), "--attention", "1")
    assert result.code == 0 and result.out and "Attention of layer 1" in path.read_text(encoding="utf-8")


def test_the_commands_errors(run: Any, tmp_path: Path) -> None:
    for arguments, code, message in ((["--attention", "x"], 2, "such as 5 or 5.1"), (["--attention", "9"], 2, "from 0 to 5"),
                                     (["--attention", "1.99"], 2, "from 0 to 7"), (["--html", str(tmp_path / "no" / "x.html")], 1, "cannot be written")):
        result = run("look", "demo", "Once", "--threads", "1", "-q", *arguments)
        assert (result.code, message in result.err, len(result.err.splitlines())) == (code, True, 1), result.err
    path = write_small_model(tmp_path / "m.gguf", context_length=64)
    result = run("look", str(path), "x" * 300, "--threads", "1", "-q")
    assert result.code == 1 and "the context 64" in result.err
