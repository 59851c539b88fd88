"""docs/notebooks: every cell runs, in miniature, with the model of the package; what is written is what build.py has; what they claim is in their outputs."""
from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "notebooks"


def build() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = build()


@pytest.mark.parametrize("name", BUILD.NOTEBOOKS)
def test_every_cell_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOK_MINIATURE", "1")
    monkeypatch.setenv("LOOK_MODEL", "demo")
    monkeypatch.delenv("SST2", raising=False)
    names, outputs = BUILD.execute(BUILD.NOTEBOOKS[name])
    names["model"].close()
    assert sum(map(bool, outputs)) >= 4
    assert any("text/html" in out.get("data", {}) for cell in outputs for out in cell)


@pytest.mark.parametrize("name", BUILD.NOTEBOOKS)
def test_what_is_written_is_what_is_built(name: str) -> None:
    """Sources are build.py's, outputs are there, no path of a machine is."""
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    data = json.loads(text)
    assert ["".join(cell["source"]) for cell in data["cells"]] == [source for _, source in BUILD.NOTEBOOKS[name]]
    assert data["nbformat"] == 4 and not re.search(r"/(root|home|work|tmp)/", text) and path.stat().st_size < 900_000
    assert any(cell.get("outputs") for cell in data["cells"])


def outputs(name: str) -> str:
    data = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return "".join(line for cell in data["cells"] for out in cell.get("outputs", []) for line in out.get("text", []))


def test_what_they_claim() -> None:
    """Induction heads stand out and matter, patching localises, P(positive) rises with the strength."""
    text = outputs("induction_heads")
    scores = [float(s) for s in re.findall(r"head \d+: (\d\.\d+)", text)]
    assert len(scores) == 8 and scores[0] > 0.5 and scores == sorted(scores, reverse=True)
    (_, whole), (first, without), (_, others) = [(float(a), float(b)) for a, b in re.findall(r"first time +([\d.]+)  second time +([\d.]+)", text)]
    assert without > 3 * whole and without > 2 * others and without > 0.7 * first
    assert float(re.findall(r"head \d+: ([+-]\d\.\d+)", outputs("patching"))[0]) > 0.3
    rising = [float(p) for p in re.findall(r"P\(positive\) (\d\.\d+)", outputs("steering"))]
    assert len(rising) == 5 and all(a < b for a, b in zip(rising, rising[1:]))
    assert Path(FOLDER / "build.py").is_file()
