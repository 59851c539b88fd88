"""The KV cache: pages of 64 positions (all layers of one page together), claimed as sequences grow, against a budget known at the start.

A page's layout, per layer: keys [kv head][head_dim][64], values [kv head][64][v_dim], f16 or float32 (kernels/attention.py). A sequence is a list of pages and
the int64 table of their addresses that the forward pass reads. Released pages are kept for reuse; stale contents are never read, because scores past a
query's position are selected away and values past it are skipped.
"""
from __future__ import annotations

import numpy as np

from ..kernels.elementwise import PAGE
from .config import ModelConfig
from .errors import OutOfMemoryError


def v_dim(config: ModelConfig) -> int:
    """Columns of a value row: head_dim rounded up to the 16 lanes of a vector."""
    return -(-config.head_dim // 16) * 16


def layer_bytes(config: ModelConfig) -> int:
    """Bytes of one layer's keys and values in a page."""
    return item_bytes(config) * PAGE * config.n_kv_heads * (config.head_dim + v_dim(config))


def item_bytes(config: ModelConfig) -> int:
    """Bytes of a stored key or value: f16, or float32 for files that are float32 throughout."""
    return 4 if config.float32_kv else 2


class PagePool:
    """All pages of one model. `max_pages` is the budget; memory is claimed page by page, and stays claimed until the pool is dropped."""

    def __init__(self, config: ModelConfig, max_pages: int):
        self.page_bytes = config.n_layers * layer_bytes(config)
        self.max_pages = max_pages
        self.claimed = 0
        self._free: list[np.ndarray] = []

    @property
    def free_pages(self) -> int:
        """Pages that can still be handed out."""
        return self.max_pages - self.claimed + len(self._free)

    def take(self) -> np.ndarray:
        """A page: uint8 [page_bytes], 64-byte aligned. OutOfMemoryError when the budget is used up."""
        if self._free:
            return self._free.pop()
        if self.claimed >= self.max_pages:
            raise OutOfMemoryError(
                f"the KV cache is full: all {self.max_pages} pages of {PAGE} positions are in use; close other sequences or raise the context")
        try:
            raw = np.empty(self.page_bytes + 64, np.uint8)
        except MemoryError:
            raise OutOfMemoryError(f"no memory for another {self.page_bytes >> 20} MiB of KV cache; use a smaller context") from None
        self.claimed += 1
        offset = -raw.ctypes.data % 64
        return raw[offset:offset + self.page_bytes]

    def give(self, page: np.ndarray) -> None:
        """Hand a page back."""
        self._free.append(page)


class Sequence:
    """One sequence's place in the KV cache: `length` positions hold keys and values. Made by Runtime.new_sequence()."""

    def __init__(self, pool: PagePool, context: int):
        self._pool, self.context = pool, context
        self.length = 0
        self._pages: list[np.ndarray] = []
        self.table = np.zeros(-(-context // PAGE), np.int64)
        """Addresses of the pages, int64 [pages of a full context]."""

    @property
    def kv_bytes(self) -> int:
        """Memory of its pages."""
        return len(self._pages) * self._pool.page_bytes

    def reserve(self, length: int) -> None:
        """Make room for `length` positions; all or nothing (OutOfMemoryError)."""
        needed = -(-length // PAGE) - len(self._pages)
        if needed > self._pool.free_pages:
            raise OutOfMemoryError(
                f"the KV cache has {self._pool.free_pages} free pages of {PAGE} positions, this step needs {needed}; "
                "close other sequences or raise the context")
        for _ in range(needed):
            page = self._pool.take()
            self.table[len(self._pages)] = page.ctypes.data
            self._pages.append(page)

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on; their pages go back to the pool."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a sequence of {self.length} positions to {length}")
        self.length = length
        while len(self._pages) > -(-length // PAGE):
            self._pool.give(self._pages.pop())

    def close(self) -> None:
        """Give all pages back; the sequence is empty afterwards and may be used again."""
        self.truncate(0)
