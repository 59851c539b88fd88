"""Rows of sites for whoever wants to have them afterwards: copied past the caches, on all threads, while the layer's other stages run fused.

    keep           the rows at up to MOST sites, which no stage between them and this one has written into
    gated_keeping  (gated.py) those of gate and up, which only a thread's own part of a buffer holds, before they become something else

Where they go to is a step's matter: two words for each site, the last ones of the stage's (`aim`); 0: nobody wants it.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ....kernels.addresses import address
from ....kernels.atomics import fence
from ....kernels.compile_cache import compiled
from ....kernels.elementwise import jit
from ....kernels.simd import load_f32, load_f32x16, load_i64, store_f32, store_f32x16, stream_f32x16
from ....kernels.team import next_tile
from .common import ENTRY, HEADER, N_TOKENS, end

if TYPE_CHECKING:
    from ..program import Placed

MOST = 6
"""Sites of a stage."""
TO, LD_TO = range(0, 16, 8)
AIM_BYTES = 16
"""Of a site: address of float32 [tokens, LD_TO], or 0."""
AIM_WORDS = MOST * AIM_BYTES // 8
FROM, LD_FROM, COLUMNS = range(0, 24, 8)
_SITE_BYTES = 24
_AIMS = HEADER + MOST * _SITE_BYTES
WORDS = MOST * _SITE_BYTES // 8 + AIM_WORDS
_ROWS = 16
"""Rows of a piece of work."""


@jit
def keep_row(source, to, n):
    """n floats, of which whole vectors go past the caches if their place is a cache line."""
    at = 0
    if to & 63 == 0:
        while at + 16 <= n:
            stream_f32x16(to + 4 * at, load_f32x16(source + 4 * at))
            at += 16
    while at + 16 <= n:
        store_f32x16(to + 4 * at, load_f32x16(source + 4 * at))
        at += 16
    while at < n:
        store_f32(to + 4 * at, load_f32(source + 4 * at))
        at += 1


@compiled(ENTRY)
def keep(tid, n_threads, team, step, stage):
    """A piece of work is some rows of all sites."""
    n_tokens, wanted = load_i64(step + N_TOKENS), False
    for i in range(MOST):
        wanted |= load_i64(stage + _AIMS + AIM_BYTES * i + TO) != 0
    if not wanted:
        return 0
    m0 = next_tile(team, 0, _ROWS)
    while m0 < n_tokens:
        for i in range(MOST):
            site, aim = stage + HEADER + _SITE_BYTES * i, stage + _AIMS + AIM_BYTES * i
            source, to = load_i64(site + FROM), load_i64(aim + TO)
            if to == 0:
                continue
            for m in range(m0, min(m0 + _ROWS, n_tokens)):
                keep_row(source + 4 * m * load_i64(site + LD_FROM), to + 4 * m * load_i64(aim + LD_TO), load_i64(site + COLUMNS))
        m0 = next_tile(team, 0, _ROWS)
    fence()
    return end(n_threads, team, step, stage)


def fill(words: np.ndarray, stage: Any, layout: Any) -> None:
    """The sites after the stage."""
    assert len(stage.after) <= MOST
    for i, site in enumerate(stage.after):
        at = (HEADER + _SITE_BYTES * i) // 8
        words[at:at + 3] = layout.address(site.buffer), layout.ld_of(site), site.columns


def aim(placed: Placed, rows: Mapping[str, np.ndarray]) -> None:
    """From now on the rows at the sites of this stage that are named here go there: float32 [tokens, at least the site's columns], rows contiguous."""
    for i, site in enumerate(placed.stage.after):
        at, to = len(placed.words) - AIM_WORDS + AIM_BYTES // 8 * i, rows.get(site.name)
        placed.words[at:at + 2] = (0, 0) if to is None else (address(to), to.strides[0] // 4)
