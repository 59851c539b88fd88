"""What a sublayer made, times an activated gate, and the records of the product: attention's output gate, and the delta rule's, with a norm of each head."""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ....kernels.activations import INFINITY_BITS, quantize_row
from ....kernels.compile_cache import Compiled, compiled
from ....kernels.gates import ROWS as ACTIVATIONS
from ....kernels.norms import head_norm
from ....kernels.simd import load_f32, load_i64
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, N_TOKENS, end, spoiled

(GATE, ROWS, LD, GAIN, HEADS, HEAD_DIM, EPS, RECORDS, LAST_GAIN) = range(HEADER, HEADER + 8 * 9, 8)
"""GATE, ROWS: addresses of float32 [tokens, LD]. GAIN: of a norm of each of HEADS heads of HEAD_DIM of the rows, or 0. RECORDS: of the product's, or 0.
LAST_GAIN: of a norm of each of HEADS heads of the product, [HEADS, HEAD_DIM], or 0."""
WORDS = 9


@cache
def gate(activation: str) -> Compiled:
    """The op for one activation (kernels/gates.py)."""
    activate = ACTIVATIONS[activation]

    def gate(tid, n_threads, team, step, stage):
        """GATE = act(GATE) * norm(ROWS), a token a piece of work."""
        n_tokens, ld, gates, rows = load_i64(step + N_TOKENS), load_i64(stage + LD), load_i64(stage + GATE), load_i64(stage + ROWS)
        gain, heads, dim, records = load_i64(stage + GAIN), load_i64(stage + HEADS), load_i64(stage + HEAD_DIM), load_i64(stage + RECORDS)
        m, bad, last_gain = next_tile(team, 0, 1), False, load_i64(stage + LAST_GAIN)
        while m < n_tokens:
            row = rows + 4 * m * ld
            if gain != 0:
                for head in range(heads):
                    bad |= head_norm(row + 4 * head * dim, gain, dim, load_f32(stage + EPS))
            activate(gates + 4 * m * ld, row, ld)
            if last_gain != 0:
                for at in range(0, 4 * heads * dim, 4 * dim):
                    bad |= head_norm(gates + 4 * m * ld + at, last_gain + at, dim, load_f32(stage + EPS))
            if records != 0:
                bad |= quantize_row(gates + 4 * m * ld, ld, m, n_tokens, records) >= INFINITY_BITS
            m = next_tile(team, 0, 1)
        if bad:
            spoiled(step, stage, 0)
        return end(n_threads, team, step, stage)
    gate.__name__ = gate.__qualname__ = f"gate_{activation}"
    return compiled(ENTRY)(gate)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """args: the buffers "gate" and "rows", their "columns", "activation", "norm" (of heads, or None), "last_norm" (of heads of the
    product, with a gain each, or None), "records" (a buffer, or "")."""
    a, norm, last = stage.args, stage.args["norm"], stage.args.get("last_norm")
    words[GATE // 8], words[ROWS // 8], words[LD // 8] = layout.address(a["gate"]), layout.address(a["rows"]), -(-a["columns"] // 32) * 32
    words[RECORDS // 8] = layout.address(a["records"]) if a["records"] else 0
    assert not (norm and last)
    if either := norm or last:
        words[(GAIN if norm else LAST_GAIN) // 8] = layout.gain(either)
        words[HEADS // 8], words[HEAD_DIM // 8] = a["columns"] // either.dim, either.dim
        words.view(np.float32)[EPS // 4] = either.eps
