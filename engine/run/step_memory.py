"""What a model takes beside its matrices and KV pages, from its sizes alone: the buffers of a step, rows of logits, threads' scratch, tables of angles.

    ModelConfig, KV type, threads, context ──► StepMemory ──► .bytes(tokens of a step)   (memory.py chooses the largest step that fits)

The runtime allocates these things once, when a model is loaded; what of them comes and goes (logits, parts of attention) is counted at its most.
"""
from __future__ import annotations

from dataclasses import dataclass

from ...kernels import attention
from ...kernels.activations import GROUP, record_bytes
from ...kernels.attention import KVType
from ...kernels.elementwise import PAGE
from ..architectures.config import ModelConfig

_LOGITS = 64 << 20
_LEAST_LOGITS, _MOST_LOGITS = 32, 128
"""Rows of logits of one step: as many as fit into so many bytes, at least so many (a draft's and the others')."""
_ITEMS_A_THREAD = 8  # as in the runtime: attention's blocks are split into spans if there are fewer pieces


def _round(n: int, to: int) -> int:
    return -(-n // to) * to


@dataclass(frozen=True)
class StepMemory:
    """Bytes: `fixed`, `a_token` for each token that a step may have, `a_row` for each row of logits."""

    fixed: int
    a_token: int
    a_row: int

    def logits(self, tokens: int) -> int:
        """Most rows of logits of one step."""
        return min(tokens, _MOST_LOGITS, max(_LEAST_LOGITS, _LOGITS // self.a_row))

    def bytes(self, tokens: int) -> int:
        """Of a runtime whose steps have up to so many tokens."""
        return self.fixed + tokens * self.a_token + 2 * self.logits(tokens) * self.a_row  # a step's logits, and what each answer takes of them

    def most_tokens(self, room: int, most: int) -> int:
        """The largest step, a multiple of 8 up to `most`, that takes at most `room` bytes; 0 if none does."""
        tokens = most
        while tokens > 0 and self.bytes(tokens) > room:
            tokens -= 8
        return tokens


def step_memory(config: ModelConfig, kv: KVType, threads: int, context: int) -> StepMemory:
    """Of a model on so many threads, for sequences of `context` positions."""
    c = config
    ld_dim, ld_att, ld_kv, ld_ffn = (_round(n, 32) for n in (c.dim, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.ffn_dim))
    floats = 3 * ld_dim + 2 * ld_att + 2 * ld_kv + 2 * ld_ffn
    records = record_bytes(8, max(ld_dim, ld_att)) + record_bytes(8, ld_ffn)
    embedding = 4 * 4 * c.dim  # rows as the file has them, decoded, checked
    own = _round(2 * 4 * GROUP * ld_dim + record_bytes(GROUP, ld_dim), 128)
    scratch = _round(attention.scratch_bytes(kv, c.n_heads, c.n_kv_heads, c.head_dim), 128)
    gains = 4 * ld_dim * (2 * c.n_layers + 1)
    words = 16 * 1024 + c.n_layers * 1024  # blocks of addresses
    fixed = threads * (own + scratch) + gains + words + 4 * c.rope_dim * context + _parts(c, threads, context)
    return StepMemory(fixed, 4 * floats + -(-records // 8) + embedding + 8 * 4, 4 * _round(c.n_vocab, 16))


def _parts(c: ModelConfig, threads: int, context: int) -> int:
    """Of attention's blocks that are split into spans of a long context: what is left for merging."""
    pages = -(-context // PAGE)
    if pages <= attention.SPAN:
        return 0
    blocks = (_ITEMS_A_THREAD * threads - 1) // c.n_kv_heads
    queries = blocks * attention.block_tokens(c.n_heads, c.n_kv_heads) * c.n_heads
    return _round(queries * -(-pages // attention.SPAN) * attention.part_bytes(c.head_dim), 1 << 16)
