"""Compiled arithmetic: CPU target, SIMD values, thread team, block formats, matmul, attention. Knows nothing of models, files or text.

A module imported under two names poisons Numba's disk cache, so this package refuses any name but its own.
"""
if __name__ != "llamina.kernels":
    raise ImportError(f"llamina's kernels were imported as {__name__!r}; import llamina.kernels (is the checkout itself on sys.path?)")

ARITHMETIC_VERSION = 3
"""Names the whole set of float operations and their order (docs/exactness.md). Any change of bits changes it, on purpose; golden digests carry it."""
