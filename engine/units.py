"""Amounts as people read them, in one form everywhere: decimal units for bytes (1 MB = 1,000,000 bytes, as on the hub), seconds and minutes."""
from __future__ import annotations


def size(n_bytes: float) -> str:
    """1234567 -> "1.2 MB"."""
    for unit in "B", "kB", "MB", "GB":
        if n_bytes < 1000 or unit == "GB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if n_bytes >= 100 or unit == "B" else f"{n_bytes:.1f} {unit}"


def duration(seconds: float) -> str:
    """130 -> "2 min 10 s"."""
    n = round(seconds)
    return f"{seconds:.1f} s" if seconds < 10 else f"{n} s" if n < 60 else f"{n // 60} min {n % 60} s" if n < 3600 else f"{n // 3600} h {n % 3600 // 60} min"


def count(n: int) -> str:
    """Parameters, say: 134515008 -> "134.5M"."""
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M" if n >= 1e5 else f"{n / 1e3:.0f}K"
