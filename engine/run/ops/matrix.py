"""The words of a matrix, which every op that reads one has among its own."""
from __future__ import annotations

KERNEL, WEIGHTS, COLUMNS, TILES, FLOAT_INPUT, BIAS, SCALE, LOW_RANK = range(0, 64, 8)
"""The last three are the epilogue of a matmul; 0: none. BIAS: address of float32 [16 * TILES]. SCALE: reserved (a factor). LOW_RANK: address of the table of
adapters' pairs (low_rank.py), or 0."""
MATRIX_BYTES = 64
