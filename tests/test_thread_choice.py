"""The number of threads if nobody says: candidates, what is kept, what overrides; no real clock."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llamina.engine.errors import OptionError
from llamina.engine.run import thread_choice
from llamina.engine.run.thread_choice import SMALL, candidates, fastest, keep, lookup
from llamina.kernels import compile_cache, threads


class Clock:
    """Seconds that runs are said to take."""

    def __init__(self, seconds: dict[int, float]):
        self.seconds, self.now, self.runs = seconds, 0.0, 0

    def __call__(self) -> float:
        return self.now

    def run(self, n: int) -> None:
        self.now += self.seconds[n]
        self.runs += 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "code").mkdir()
    monkeypatch.setattr(compile_cache, "cache_folder", lambda: tmp_path / "code")
    monkeypatch.setattr(threads, "default_threads", lambda: 4)
    monkeypatch.setattr(threads, "usable_threads", lambda: 8)
    monkeypatch.delenv("LLAMINA_THREADS", raising=False)
    yield tmp_path


def test_candidates() -> None:
    assert candidates(1, 1) == [1] and candidates(2, 2) == [2, 1] and candidates(8, 16) == [8, 16, 7, 6, 4]


@pytest.mark.parametrize("seconds, best", [({4: 0.01, 8: 0.02, 3: 0.012}, 4), ({4: 0.01, 8: 0.006, 3: 0.012}, 8), ({4: 0.01, 8: 0.0097, 3: 0.02}, 4),
                                           ({4: 2.0, 8: 1.0, 3: 3.0}, 8)])
def test_the_fastest_if_clearly_better(seconds: dict[int, float], best: int) -> None:
    clock = Clock(seconds)
    assert fastest(clock.run, list(seconds), clock=clock) == best
    assert clock.now < 0.5 + 4 * sum(seconds.values()), "half a second, or one round"


def test_what_is_kept_is_found_for_models_of_that_size(folder: Path) -> None:
    assert lookup(600 << 20) is None
    keep(600 << 20, 3)
    assert lookup(700 << 20) == 3 and lookup(3 << 30) is None
    keep(3 << 30, 8)
    assert (lookup(600 << 20), lookup(3 << 30)) == (3, 8)
    assert lookup(SMALL - 1) == 4, "never measured"
    (folder / "llamina-threads.json").write_text("[nonsense")
    assert lookup(600 << 20) is None
    (folder / "llamina-threads.json").write_text('{"' + thread_choice.key(600 << 20) + '": 100000}')
    assert lookup(600 << 20) is None


def test_another_affinity_is_another_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(600 << 20, 3)
    monkeypatch.setattr(threads, "usable_threads", lambda: 2)
    monkeypatch.setattr(threads, "default_threads", lambda: 2)
    assert lookup(600 << 20) is None


def test_the_variable_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_choice.asked() is None
    monkeypatch.setenv("LLAMINA_THREADS", "3")
    assert thread_choice.asked() == 3
    for text in "many", "0", "1000":
        monkeypatch.setenv("LLAMINA_THREADS", text)
        with pytest.raises(OptionError, match="LLAMINA_THREADS must be a whole number between 1 and 256, found '" + text):
            thread_choice.asked()
