"""The documentation is true where that can be checked: pages made from the code are current, links and files it names exist, its commands parse."""
from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from conftest import REPOSITORY
from llamina.engine.cli import llamina as group
from llamina.engine.home.hub import parse

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("demo/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(#[^)]*)?\)")
FILE = re.compile(r"(?<![\w./-])(?:kernels|engine|convert|bench|tests|docs|demo)/[\w./-]*\w")
NOT_IN_GIT = ("demo/work/",)


def test_generated_pages_are_current() -> None:
    module = load(REPOSITORY / "docs" / "generate.py")
    for path, text in module.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not current: run python docs/generate.py"


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem + "_docs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_current() -> None:
    """And drawn from what the pages say: the chart from the benchmarks' table, the terminal from a session whose commands parse."""
    module = load(REPOSITORY / "docs" / "pictures.py")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for path, text in module.pictures().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not current: run python docs/pictures.py"
        ElementTree.fromstring(text)
        assert path.relative_to(REPOSITORY).as_posix() in readme
    for line in (REPOSITORY / "docs" / "images" / "terminal.txt").read_text(encoding="utf-8").splitlines():
        assert len(line) <= 80
        if line.startswith("$ "):
            name, *arguments = shlex.split(line)[2:]
            command = group.get_command(click.Context(group), name)
            assert command is not None
            command.make_context(name, arguments, obj={})


def test_the_readme_keeps_its_order() -> None:
    """What it is and a picture, the two commands, a real model, Python, guides, speed, where things are; tables of measurements stand in their own pages."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert text.index("![") < text.index("```")
    assert re.findall(r"^## (.*)", text, re.M) == ["Chat with a real model", "From Python", "Guides", "Speed", "Where things are"]
    pulls = re.findall(r"`llamina pull ([^`]+)`", text)
    assert 4 <= len(pulls) <= 6
    for name in pulls:
        assert parse(f"hf:{name}").quant
    assert text.count("\n|") < 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for match in LINK.finditer(text):
        assert (page.parent / match[1]).exists(), f"{page.name} links to {match[1]}"
    for match in FILE.finditer(text.replace("\\_", "_")):
        name = match[0].removesuffix(".")
        if not name.startswith(NOT_IN_GIT):
            assert (REPOSITORY / name).exists() or (REPOSITORY / f"{name}.py").exists(), f"{page.name} names {name}"


def test_the_readme_begins_with_two_commands() -> None:
    """One installs and generates with the demo model, one installs the test extra and runs the tests; .ci/run executes them as printed."""
    blocks = [body.strip() for _, body in BLOCK.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))]
    assert blocks[:2] == ['pip install . && llamina generate -p "Once upon a time"', "pip install -e '.[test]' && pytest"]


def commands(page: Path) -> list[list[str]]:
    """Every `llamina …` command line in a page's code blocks, without what follows a pipe."""
    found = []
    for _, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in body.splitlines():
            for part in re.split(r"&&|\|(?!\w)|(?<=\S)\s+(?:the demo model|# )", line):
                words = part.strip()
                if words.startswith("llamina ") and "[OPTIONS]" not in words:
                    found.append(shlex.split(words.partition(" < ")[0])[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    for name, *arguments in commands(page):
        command = group.get_command(click.Context(group), name)
        assert command is not None, f"{page.name}: llamina {name}"
        command.make_context(name, arguments, resilient_parsing=False, obj={})


def test_commands_are_found() -> None:
    found = [words[0] for page in PAGES for words in commands(page)]
    assert set(found) >= {"generate", "chat", "inspect", "tokenize", "selftest"} and len(found) > 10
    with pytest.raises(click.UsageError):  # and the check above can fail
        command = group.get_command(click.Context(group), "generate")
        assert command is not None
        command.make_context("generate", ["--no-such-option"], obj={})
