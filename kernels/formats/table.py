"""Every tensor format that a GGUF file can name: its number, and how many columns and bytes one block holds.

Source: ggml.h's `enum ggml_type` and the block structs of ggml-common.h; tests compare it with `gguf.GGML_QUANT_SIZES`. No Numba here, so that reading
a header stays cheap. A matrix row is a whole number of blocks, one after the other.
"""
from __future__ import annotations

from typing import NamedTuple


class BlockFormat(NamedTuple):
    """One block format: `columns` weights of a row are stored in `bytes` bytes."""

    name: str
    ggml_id: int
    columns: int
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.columns

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` weights; `cols` must be a multiple of `columns`."""
        return cols // self.columns * self.bytes


_ALL = [
    BlockFormat("F32", 0, 1, 4), BlockFormat("F16", 1, 1, 2), BlockFormat("BF16", 30, 1, 2), BlockFormat("F64", 28, 1, 8),
    BlockFormat("I8", 24, 1, 1), BlockFormat("I16", 25, 1, 2), BlockFormat("I32", 26, 1, 4), BlockFormat("I64", 27, 1, 8),
    BlockFormat("Q4_0", 2, 32, 18), BlockFormat("Q4_1", 3, 32, 20), BlockFormat("Q5_0", 6, 32, 22), BlockFormat("Q5_1", 7, 32, 24),
    BlockFormat("Q8_0", 8, 32, 34), BlockFormat("Q8_1", 9, 32, 36),
    BlockFormat("Q2_K", 10, 256, 84), BlockFormat("Q3_K", 11, 256, 110), BlockFormat("Q4_K", 12, 256, 144), BlockFormat("Q5_K", 13, 256, 176),
    BlockFormat("Q6_K", 14, 256, 210), BlockFormat("Q8_K", 15, 256, 292),
    BlockFormat("IQ2_XXS", 16, 256, 66), BlockFormat("IQ2_XS", 17, 256, 74), BlockFormat("IQ3_XXS", 18, 256, 98), BlockFormat("IQ1_S", 19, 256, 50),
    BlockFormat("IQ4_NL", 20, 32, 18), BlockFormat("IQ3_S", 21, 256, 110), BlockFormat("IQ2_S", 22, 256, 82), BlockFormat("IQ4_XS", 23, 256, 136),
    BlockFormat("IQ1_M", 29, 256, 56), BlockFormat("TQ1_0", 34, 256, 54), BlockFormat("TQ2_0", 35, 256, 66), BlockFormat("MXFP4", 39, 32, 17),
    BlockFormat("NVFP4", 40, 64, 36), BlockFormat("Q1_0", 41, 128, 18),
]
FORMATS = {f.name: f for f in _ALL}
BY_ID = {f.ggml_id: f for f in _ALL}
REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
"""Numbers that llama.cpp once used and took back: refused by name."""

RUNNABLE = frozenset({
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M",
})
"""Formats with a kernel. A test checks that this equals the kernel table."""
