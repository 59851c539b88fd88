"""The encoders, format by format, and converting a whole file."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.bench.suite import FORMATS, ROUNDS, THREADS, model, size
from llamina.bench.synthetic import Shape
from llamina.engine.cli import main
from llamina.kernels.formats import encoders

ROWS, COLUMNS = size(256, 16), 1024


@pytest.mark.parametrize("name", [f for f in FORMATS if f in encoders.ENCODERS])
def test_encode(benchmark: Any, name: str) -> None:
    x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    with ThreadPoolExecutor(THREADS) as threads:
        benchmark.pedantic(encoders.encode, (name, x, None, threads), rounds=ROUNDS, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["mweights_per_second"] = round(x.size / benchmark.stats.stats.min / 1e6, 1)


@pytest.mark.parametrize("kind", ("q8_0", "q4_0") if size(0, 1) else ("q8_0", "q4_0", "q4_k_m"))
def test_convert(benchmark: Any, kind: str, tmp_path: Path) -> None:
    source = model("f16", Shape(size(1024, 256), size(4, 1), 8, 4, size(2816, 256), n_vocab=size(8000, 512)))
    target = tmp_path / "out.gguf"

    def convert() -> None:
        target.unlink(missing_ok=True)
        assert main(["convert", str(source), str(target), "--type", kind, "-q"]) == 0
    benchmark.pedantic(convert, rounds=1 if size(0, 1) else 3)
    if benchmark.stats is not None:
        benchmark.extra_info["mbytes_per_second"] = round(source.stat().st_size / benchmark.stats.stats.min / 1e6, 1)
