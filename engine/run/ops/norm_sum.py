"""Two blocks that stand side by side and are normed before they are added: ROWS = norm(ROWS) + norm_2(ROWS_2), a token a piece of work (Gemma 4's experts)."""
from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.compile_cache import compiled
from ....kernels.elementwise import add_rows, rms_norm
from ....kernels.simd import load_f32, load_i64
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, N_TOKENS, end, spoiled

(ROWS, GAIN, ROWS_2, GAIN_2, DIM, LD, EPS) = range(HEADER, HEADER + 8 * 7, 8)
"""ROWS, ROWS_2: addresses of float32 [tokens, LD], padded with zeros from DIM on. GAIN, GAIN_2: of their norms."""
WORDS = 7


@compiled(ENTRY)
def norm_sum(tid, n_threads, team, step, stage):
    """Faults: the first norm, the second."""
    n_tokens, ld, n, eps, m = load_i64(step + N_TOKENS), load_i64(stage + LD), load_i64(stage + DIM), load_f32(stage + EPS), next_tile(team, 0, 1)
    while m < n_tokens:
        row, other = load_i64(stage + ROWS) + 4 * m * ld, load_i64(stage + ROWS_2) + 4 * m * ld
        if rms_norm(row, load_i64(stage + GAIN), n, ld, eps, row):
            spoiled(step, stage, 0)
        if rms_norm(other, load_i64(stage + GAIN_2), n, ld, eps, other):
            spoiled(step, stage, 1)
        add_rows(row, other, ld)
        m = next_tile(team, 0, 1)
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: the buffers "rows" and "rows_2", "norm" and "norm_2", "columns"."""
    a = stage.args
    assert a["norm"].kind == a["norm_2"].kind == "rms" and a["norm"].eps == a["norm_2"].eps
    for word, value in ((ROWS, layout.address(a["rows"])), (GAIN, layout.gain(a["norm"])), (ROWS_2, layout.address(a["rows_2"])),
                        (GAIN_2, layout.gain(a["norm_2"])), (DIM, a["columns"]), (LD, -(-a["columns"] // 32) * 32)):
        words[word // 8] = value
    words.view(np.float32)[EPS // 4] = a["norm"].eps
