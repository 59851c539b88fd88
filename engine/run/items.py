"""How attention's work in a step is divided: blocks of tokens of one sequence, and, where those are few and contexts long, spans of pages of a block.

    (first row, tokens, first position, page table) of each feed ──► items int64 [n, ITEM_WORDS], longest first, for each way that layers share heads
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels import attention as at
from ...kernels.addresses import address
from ..architectures.spec import round_up
from .kv_cache import pages_of
from .layout import Layout
from .step_memory import ITEMS_A_THREAD

Part = tuple[int, int, int, int]
"""(first row, tokens, position of the first, address of the page table): the sequence's last tokens."""


class Items:
    """Divides the work of steps; `divide` writes into the layout's groups."""

    def __init__(self, layout: Layout, n_threads: int):
        self._groups, self._threads = layout.groups, n_threads
        self._parts = {group: np.empty(0, np.uint8) for group in layout.groups}
        self._sizes = {(n_heads, n_kv): at.block_tokens(n_heads, n_kv) for n_heads, n_kv, *_ in layout.groups}

    def divide(self, parts: list[Part]) -> list[Any]:
        """What is returned must stay alive until the step is done."""
        alive = []
        for group, words in self._groups.items():
            items, done = self._of(group, parts)
            words[0], words[1] = len(items), address(items)
            alive += [items, done]
        return alive

    def _of(self, group: tuple[int, int, int, int], parts: list[Part]) -> tuple[np.ndarray, np.ndarray | None]:
        n_heads, n_kv, value_dim, ahead = group
        size, span = self._sizes[n_heads, n_kv], at.SPAN
        blocks = [(m + i, m + min(i + size, n), start + i, table, start + n) for m, n, start, table in parts for i in range(0, n, size)]
        few = len(blocks) * n_kv < ITEMS_A_THREAD * self._threads
        done = np.zeros((len(blocks), n_kv), np.int64) if few else None
        items, room = [], 0
        for i, (m0, m1, position, table, length) in enumerate(blocks):
            pages = pages_of(min(position + m1 - m0 + ahead, length))
            if done is not None and pages > span:
                spans = -(-pages // span)
                items += [[m0, m1, position, table, first, min(first + span, pages), 1 + room, done[i].ctypes.data, spans, length]
                          for first in range(0, pages, span)]
                room += spans * (m1 - m0) * n_heads * at.part_bytes(value_dim)
            else:
                items.append([m0, m1, position, table, 0, pages, 0, 0, 1, length])
        if len(items) > 1:
            items.sort(key=lambda item: item[4] - item[5])
        result = np.array(items, np.int64)
        if room:
            if len(self._parts[group]) < room + 64:
                self._parts[group] = np.empty(round_up(room, 1 << 16) + 64, np.uint8)
            base, addresses = self._parts[group].ctypes.data, result[:, at.PARTS // 8]
            addresses[addresses > 0] += base + -base % 64 - 1
        return result, done
