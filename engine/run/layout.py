"""Where everything lies that a model's stages name: matrices, gains, activation buffers, attention's geometry, a layer's place in a page of the KV cache.

    ModelConfig, Weights, KV type, KVLayout ──► Layout ──► ops' `fill` functions ask it for addresses (program.py)

All arrays are kept alive here; compiled code knows only addresses.
"""
from __future__ import annotations

import numpy as np

from ...kernels import attention as at
from ...kernels.activations import GROUP, record_bytes
from ...kernels.attention import KVType
from ...kernels.elementwise import HALVES, PAIRS
from ..architectures.blocks import Attention
from ..architectures.config import ModelConfig
from ..architectures.spec import Matrix, Norm, Rope, Site, round_up
from .kv_groups import KVLayout, pages_of
from .ops.common import FLOAT_INPUT
from .ops.journal import TOKENS as JOURNAL
from .rope import RopeTable, query_scales
from .step_memory import expert_bytes, expert_scratch, record_columns, scratch_bytes, widths
from .weights import Weights

OF_LAYERS = frozenset({"q", "k", "v", "att", "att_gate", "gate", "up"})
"""Buffers whose rows are as far apart as the layer at hand is wide, not the widest."""


class Layout:
    """Buffers for steps of up to `rows` tokens on `n_threads` threads.

    .buffers: {name: float32 [rows, columns rounded up to 32], or uint8 records}; .geometry: int64 [n, GEOMETRY_WORDS], all of attention's geometry blocks;
    .groups: {Attention.group: int64 [2], how many of attention's items, and their address}; .tables: {Rope: RopeTable}.
    """

    def __init__(self, config: ModelConfig, weights: Weights, kv: KVType, rows: int, n_threads: int, context: int, factors: dict[str, np.ndarray],
                 pages: KVLayout):
        self.config, self.weights, self.kv, self.rows, self.context = config, weights, kv, rows, context
        self._places = dict(pages.places)
        self.kv_offsets = {layer: offset for layer, (_, offset) in pages.places}
        attentions = list(config.attentions())
        self.buffers = {name: aligned(4 * rows * round_up(n, 32)).view(np.float32).reshape(rows, -1) for name, n in widths(config).items()}
        self.buffers |= {name: aligned(record_bytes(rows, round_up(n, 32))) for name, n in record_columns(config).items()}
        self.ld = round_up(config.dim, 32)
        self.own_bytes = round_up(2 * 4 * GROUP * self.ld + record_bytes(GROUP, self.ld), 128)
        self.own = aligned(self.own_bytes * n_threads)
        self.buffers |= {name: aligned(n) for name, n in expert_bytes(config, rows).items()}
        self.scratch_bytes = max(expert_scratch(config, rows), scratch_bytes(config, kv))
        self.scratch = aligned(self.scratch_bytes * n_threads)
        self.tokens = np.zeros((4, rows), np.int64)
        """Of a step's tokens: ids, positions, page tables' addresses; which of their logits are wanted."""
        self.groups = {a.group: np.zeros(2, np.int64) for a in attentions}
        self.tables = {rope: RopeTable(rope, context, factors.get(rope.factors_for(context))) for rope in dict.fromkeys(a.rope for a in attentions) if rope}
        self.state_places = dict(pages.state_places)
        self.feeds = np.zeros(2, np.int64)
        """How many feeds a step has, and the address of their words (kernels/conv.py): what recurrent layers work on."""
        self.journals = {r.layer: aligned(4 * JOURNAL * round_up(r.buffers()["mixer"], 32)) for r in config.recurrents()}
        self.kept_rows = np.zeros(1 + 2 * JOURNAL, np.int64)
        """Rows of the step that recurrent layers keep, or restore (ops/journal.py)."""
        self.geometry = np.zeros((3 * len(attentions), at.GEOMETRY_WORDS), np.int64)
        self._geometries: dict[tuple[int, bool, bool], int] = {}
        self._constants: list[np.ndarray] = []

    def address(self, buffer: str) -> int:
        return self.buffers[buffer].ctypes.data

    def columns(self, buffer: str) -> int:
        """Floats from a row of a buffer to the next."""
        return int(self.buffers[buffer].shape[1])

    def ld_of(self, site: Site) -> int:
        """Floats from a row at a site to the next: those of narrower layers lie closer together."""
        return round_up(site.columns) if site.buffer in OF_LAYERS else self.columns(site.buffer)

    def experts_at(self, matrix: Matrix) -> int:
        """Address of int64 [experts]: where each one's part of a matrix of experts is."""
        return self.weights.experts_at[matrix.key].ctypes.data

    def gain(self, norm: Norm | None) -> int:
        """Address of a norm's gain, or 0."""
        return self.weights.gains[norm.tensor].ctypes.data if norm else 0

    def bias(self, norm: Norm | None) -> int:
        return self.weights.gains[norm.bias].ctypes.data if norm and norm.bias else 0

    def vector(self, tensor: str) -> int:
        """Address of a vector of attention's or a recurrent layer's, or of a convolution's kernel; 0 for ""."""
        return self.weights.gains[tensor].ctypes.data if tensor else 0

    def matrix(self, matrix: Matrix) -> np.ndarray:
        """Its descriptor, int64 [8]."""
        return self.weights.descriptors[matrix.key]

    def wants_records(self, matrix: Matrix) -> bool:
        return not self.matrix(matrix)[FLOAT_INPUT // 8]

    def work(self, attention: Attention) -> int:
        return self.groups[attention.group].ctypes.data

    def keep(self, array: np.ndarray) -> int:
        """Keep an array as long as this layout -> its address."""
        self._constants.append(array)
        return array.ctypes.data

    def geometry_of(self, a: Attention, *, turned: bool = False, records: bool = False) -> int:
        """Address of a layer's geometry block (kernels/attention.py). turned: queries and keys are rotated by a stage before. records: attention makes them."""
        key = a.layer, turned, turned and records
        if key not in self._geometries:
            words = self.geometry[len(self._geometries)]
            self._geometries[key] = words.ctypes.data
            for word, value in (
                (at.N_HEADS, a.heads), (at.N_KV_HEADS, a.kv_heads), (at.HEAD_DIM, a.head_dim), (at.VALUE_DIM, a.value_dim), (at.V_DIM, at.v_dim(a.value_dim)),
                (at.QUERY_BYTES, self.kv.query_bytes(a.head_dim)), (at.LD_Q, round_up(a.heads * a.head_dim, 32)),
                (at.LD_ATT, round_up(a.heads * a.value_dim, 32)), (at.LD_KV, round_up(a.kv_heads * a.head_dim, 32)),
                (at.LD_V, round_up(a.kv_heads * a.value_dim, 32)), (at.Q, self.address("q")), (at.K, self.address("k")), (at.V, self.address("v")),
                (at.ATT, self.address("att")), (at.RECORDS, self.address(a.records)), (at.POSITIONS, self.tokens[1].ctypes.data),
                (at.PAGE_TABLES, self.tokens[2].ctypes.data), (at.WINDOW, a.window), (at.AHEAD, a.ahead), (at.SINKS, self.vector(a.sinks)),
                (at.TABLE_ROW, 8 * pages_of(self.context) * self._places[a.kv_layer][0]),
            ):
                words[word // 8] = value
            floats = words.view(np.float32)
            floats[at.SCALE // 4], floats[at.SOFT_CAP // 4] = a.scale, a.soft_cap
            if a.q_norm and a.qk_norm == "head":
                words[at.V_NORM // 8], floats[at.NORM_EPS // 4] = a.value_norm, a.q_norm.eps
            if not turned:
                self._turn(words, a)
        if records:
            self.geometry[list(self._geometries).index(key)][at.QUANTIZE // 8] = 1
        return self._geometries[key]

    def _turn(self, words: np.ndarray, a: Attention) -> None:
        """What happens to a head's query and key between projection and attention."""
        if a.rope:
            words[at.ROPE_KIND // 8] = {"pairs": PAIRS, "halves": HALVES}[a.rope.kind]
            words[at.ROPE_DIM // 8], words[at.ROPE_TABLE // 8] = a.rope.dims, self.table(a.rope)
        if a.qk_norm == "head" and a.q_norm:
            words[at.Q_NORM // 8], words[at.K_NORM // 8], words[at.NORM_LAST // 8] = self.gain(a.q_norm), self.gain(a.k_norm), a.norm_last
        if a.temperature:
            words[at.Q_SCALES // 8] = self.keep(query_scales(*a.temperature, self.context))

    def table(self, rope: Rope) -> int:
        """Address of a table of cosines and sines."""
        return self.tables[rope].rows.ctypes.data


def aligned(size: int) -> np.ndarray:
    """Zeroed uint8 [size], 64-byte aligned. Kernels may read up to 16 elements past a row's end."""
    raw = np.zeros(size + 128, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset:offset + size]
