"""Fixtures shared by all tests: where the real weights lie, if they do."""
from __future__ import annotations

import gc
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# `python -m pytest` puts the checkout on the path, where transformers would find our kernels/ for the package of that name
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != REPOSITORY]

os.environ["LLAMINA_HOME"] = os.environ["XDG_CONFIG_HOME"] = os.environ["XDG_STATE_HOME"] = str(REPOSITORY / "tests" / "nothing")  # nor what the user has

# The twins' products are small: a second thread of BLAS, which waits in a loop, only takes the other processes' core. Before anything imports NumPy
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a script ignores Ctrl-C, and so would the programs that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def real_folder() -> Path:
    """Published weights, tokenizers and texts; not shipped with the repository."""
    return Path(os.environ.get("LLAMINA_REAL") or REPOSITORY.parent / "shared" / "real")


@pytest.fixture(scope="session")
def real() -> Path:
    folder = real_folder()
    if not folder.is_dir():
        pytest.skip(f"real weights not found at {folder} (set LLAMINA_REAL)")
    return folder


@pytest.fixture(scope="session")
def models() -> Path:
    """Real trained models (../shared/real/get_models.sh FOLDER). Tests fail, not skip, where the folder is named and lacks a file."""
    folder = os.environ.get("LLAMINA_MODELS")
    if not folder:
        pytest.skip("real models not found (set LLAMINA_MODELS to a folder that ../shared/real/get_models.sh filled)")
    return Path(folder)


ORDER = ["test_targets.py", "test_page_exactness.py", "test_pages.py", "test_exactness.py", "test_encoders.py", "test_adapters.py", "test_bad_models.py",
         "test_batch.py", "test_compile_cache.py", "test_readonly.py", "test_bench_suite.py", "test_fit.py"]
"""The longest files first, so that at the end no process works alone. (Files go to whichever process is free, in this order.)"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.name) if item.path.name in ORDER else len(ORDER))


def pytest_collection_finish() -> None:
    """Thousands of tests live to the end: the garbage collector need not look through them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def watched_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every operation on KV pages, in every test that uses a model: claimed = owned + shared + free + cached, and all promises are covered."""
    if "llamina.engine.run.kv_cache" in sys.modules:
        from pool_check import watch_pools
        watch_pools(monkeypatch)


class Result:
    """What a command left: its exit code, standard output and standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """run(*argv, stdin=None) -> Result of the command line in this process. stdin None: as good as a terminal, so that nothing waits for it."""
    from llamina.engine.cli import main
    monkeypatch.delenv("LLAMINA_DEBUG", raising=False)

    def runner(*argv: str, stdin: str | bytes | None = None) -> Result:
        raw = stdin.encode() if isinstance(stdin, str) else stdin or b""
        file = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")
        file.isatty = lambda: stdin is None  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", file)
        code = main(list(argv))
        return Result(code, *capsys.readouterr())
    return runner


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripted(answer, ...): makes every model that is loaded a fake one that answers so; returns it."""
    from fake_model import fake_model
    from llamina.engine import model as models

    def use(*args: Any, **options: Any) -> Any:
        model = fake_model(*args, **options)

        def load(*args: Any, **options: Any) -> Any:
            model._closed = model.runtime.closed = model.scheduler._closed = False
            return model
        monkeypatch.setattr(models, "load", load)
        return model
    return use
