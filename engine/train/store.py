"""Memory of the way back: claimed once, used by one micro-batch after the other. Fresh memory costs the system more time than what is written into it.

    Store(most) ──► .rows(name, …): rows by name ──► .layers(…): of some layers, all that their way back reads, in at most so many bytes
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..architectures.blocks import Attention
from ..architectures.spec import round_up
from ..errors import OptionError, quoted
from ..run.memory import parse_memory
from ..run.weights import available_memory
from .ops import SPARE, flat_rows

if TYPE_CHECKING:
    from ..run.runtime import Runtime

Columns = dict[str, int]
"""Last part of a site's name -> columns of its rows."""
KEEP = 900_000_000
"""Most bytes for layers, unless something else is asked for."""
MADE_AGAIN = frozenset({"ln1.hook_normalized", "ln2.hook_normalized", "mlp.hook_post"})
"""Sites whose rows one cheap stage makes of others that are kept."""


def read_back(blocks: tuple[object, ...]) -> set[str]:
    """Sites of a layer that its way back reads."""
    found = {"ln1.hook_normalized", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_v", "attn.hook_z", "hook_resid_mid", "ln2.hook_normalized",
             "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post"}
    for block in blocks:
        if isinstance(block, Attention):
            found |= ({"attn.hook_q", "attn.hook_k"} if block.qk_norm else set()) | ({"hook_attn_out"} if block.post_norm else set())
        elif getattr(block, "post_norm", None):
            found.add("hook_mlp_out")
    return found


def columns_of(runtime: Runtime, layer: int) -> Columns:
    """Of the sites that a layer has of those that its way back reads, in the order in which they are made."""
    names, prefix = read_back(runtime.config.layers[layer]), f"blocks.{layer}."
    found = {site.name.removeprefix(prefix): site.columns for placed in runtime.program.open[layer] for site in placed.stage.after}
    return {name: columns for name, columns in found.items() if name in names}


def layers_kept(runtime: Runtime, tokens: int, first_layer: int, most: int) -> tuple[dict[int, Columns], int]:
    """Which layers from first_layer on are kept of a micro-batch of so many tokens, from the last on as many as fit into `most` bytes -> what of each, and how
    many bytes that is."""
    found: dict[int, Columns] = {}
    total = 0
    for layer in range(runtime.config.n_layers - 1, first_layer - 1, -1):
        columns = {name: n for name, n in columns_of(runtime, layer).items() if name not in MADE_AGAIN}
        size = sum(4 * (tokens * round_up(n) + SPARE) for n in columns.values())
        if total + size > most:
            break
        found[layer], total = columns, total + size
    return found, total


def default_keep() -> int:
    """Most bytes for layers where nobody has planned them."""
    free = available_memory()
    return KEEP if free is None else min(KEEP, free // 4)


def parse_keep(value: Any) -> int | None:
    """Bytes, "0", or "500MB" -> bytes. OptionError."""
    if value == "0" or type(value) is int and not value:
        return 0
    try:
        return parse_memory(value)
    except OptionError:
        raise OptionError(f"keep must be 0 (every layer is computed twice), bytes or a size such as 500MB, found {quoted(value)}") from None


class Store:
    """most: bytes for layers."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._named: dict[str, np.ndarray] = {}
        self._layers = np.zeros(0, np.float32)

    def rows(self, name: str, n: int, columns: int) -> np.ndarray:
        """float32 [n, columns rounded up to 32], as `ops.rows_of` lays them out, but with anything in their columns: until they are asked for by this name
        again."""
        size = n * round_up(columns) + SPARE
        if name not in self._named or len(self._named[name]) < size:
            self._named.pop(name, None)  # before the larger one comes
            self._named[name] = flat_rows(size)
        return _laid_out(self._named[name], n, columns)

    def layers(self, runtime: Runtime, tokens: int, first_layer: int) -> dict[int, dict[str, np.ndarray]]:
        """Rows for the sites of the layers that are kept, as `rows` gives them: until the next call."""
        wanted, size = layers_kept(runtime, tokens, first_layer, self.most)
        if len(self._layers) < size // 4:
            self._layers = np.zeros(0, np.float32)
            self._layers = flat_rows(size // 4)
        found: dict[int, dict[str, np.ndarray]] = {}
        at = 0
        for layer, columns in wanted.items():
            found[layer] = {}
            for name, n in columns.items():
                found[layer][name] = _laid_out(self._layers[at:], tokens, n)
                at += tokens * round_up(n) + SPARE
        return found


def _laid_out(flat: np.ndarray, n: int, columns: int) -> np.ndarray:
    ld = round_up(columns)
    rows = flat[:n * ld].reshape(n, ld)
    flat[n * ld:n * ld + SPARE] = 0
    if ld != columns:
        rows[:, columns:] = 0
    return rows
