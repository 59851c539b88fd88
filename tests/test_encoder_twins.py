"""Encoders against float64 twins written from Hugging Face's code (naive_encoders.py), without torch: rows, scores of rank heads, and faults that must show.

Beside it, tests/test_oracle_encoders.py has transformers' own classes; tests/test_page_exactness.py has these cases' digests, on every target."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_cases import CASES, TYPES, rows_of, typed, write_encoder
from llamina.engine.architectures.blocks import ALL_AHEAD
from llamina.engine.model import load
from llamina.engine.score.embedding import pooled
from llamina.engine.score.pooling import head_scores
from naive_encoders import ENCODERS, naive_encoder
from page_cases import CAUSAL, IDS
from runs import open_runtime
from test_pages import FAULTS, PAGES, TOLERANCE, attentions, distance, mlps, shows


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """case -> (its F32 file, its twin's rows), made once."""
    folder, made = tmp_path_factory.mktemp("encoders"), dict[str, tuple[Path, np.ndarray]]()

    def get(name: str) -> tuple[Path, np.ndarray]:
        if name not in made:
            path = write_encoder(folder / f"{name}.gguf", name)
            made[name] = path, naive_encoder(path).rows(IDS, TYPES if typed(name) else None)
        return made[name]
    return get


def rows(path: Path, name: str) -> np.ndarray:
    with open_runtime(path, 1, 1024) as runtime:
        return rows_of(runtime, IDS, TYPES if typed(name) else None)


def test_every_encoder_has_cases_and_a_twin() -> None:
    assert {case.architecture for case in CASES.values()} == set(PAGES) - CAUSAL == set(ENCODERS)


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str, files: Any) -> None:
    path, expected = files(name)
    assert distance(rows(path, name), expected) <= TOLERANCE


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", CASES)
def test_quantised(name: str, format: str, tmp_path: Path) -> None:
    """The twin has the same rounded weights, and activations that are not rounded: every row points the same way."""
    path = write_encoder(tmp_path / "m.gguf", name, format)
    twin, found = naive_encoder(path).rows(IDS, TYPES if typed(name) else None), rows(path, name)
    cosines = (twin * found).sum(axis=1) / np.sqrt((twin**2).sum(axis=1) * (found.astype(float)**2).sum(axis=1))
    assert cosines.min() > 0.999


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("rank")])
def test_rank_heads(name: str, files: Any) -> None:
    path, _ = files(name)
    types = TYPES if typed(name) else None
    expected = naive_encoder(path).scores(IDS, types)
    with load(path, threads=1, context=1024) as model:
        head = model.config.pooling.head
        assert head is not None
        found = head_scores(head, model.runtime.kept, next(pooled(model, [IDS], head.pooling, [types] if types else None)).result())
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


ENCODER_FAULTS = {
    **{name: FAULTS[name] for name in ("another base", "one rope for all layers", "windows a layer later", "another scale", "another activation",
                                       "up and gate changed over", "no windows", "the other pairs")},
    "nothing ahead": attentions(lambda a: replace(a, ahead=0)),
    "one more ahead": attentions(lambda a: replace(a, ahead=a.ahead + 1) if a.ahead < ALL_AHEAD else a),
    "one fewer behind": attentions(lambda a: replace(a, window=a.window - 1) if a.window else a),
    "the stream is kept": lambda layers: mlps(lambda m: replace(m, replaces=False))(attentions(lambda a: replace(a, replaces=False))(layers)),
    "tanh": mlps(lambda m: replace(m, activation="gelu_tanh") if m.activation == "gelu_erf" else m),
}


@pytest.mark.parametrize("fault", ENCODER_FAULTS)
def test_a_fault_shows(fault: str, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shows(monkeypatch, {name: case.architecture for name, case in CASES.items()}, files, rows, fault, (ENCODER_FAULTS[fault],))
