"""Each file of the benchmark suite runs once, with tiny sizes and without timing; numbers are made by `pytest bench --benchmark-only`."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
pytest.importorskip("pytest_benchmark")


def test_every_file_of_the_suite_runs() -> None:
    files = sorted(path.name for path in BENCH.glob("test_*.py"))
    assert {"test_attention.py", "test_convert.py", "test_kernels.py", "test_model.py", "test_start.py", "test_text.py"} <= set(files)
    environment = {**os.environ, "LLAMINA_BENCH_SMALL": "1", "LLAMINA_THREADS": "2"}
    command = [sys.executable, "-m", "pytest", str(BENCH), "--benchmark-disable", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    done = subprocess.run(command, env=environment, cwd=BENCH.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
