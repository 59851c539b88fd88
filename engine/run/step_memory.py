"""What a model takes beside its matrices and KV pages, from its sizes alone: the buffers of a step, rows of logits, threads' scratch, tables of angles.

    ModelConfig, KV type, threads, context ──► StepMemory ──► .bytes(tokens of a step)   (memory.py chooses the largest step that fits)

The runtime allocates these things once, when a model is loaded; what of them comes and goes (logits, parts of attention) is counted at its most.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from ...kernels import attention, delta, ssm
from ...kernels.activations import GROUP, record_bytes
from ...kernels.attention import KVType
from ...kernels.elementwise import PAGE
from ...kernels.route import list_words
from ..architectures.blocks import Attention
from ..architectures.config import ModelConfig
from ..architectures.expert_blocks import Experts
from ..architectures.latent_blocks import Latent
from ..architectures.mamba_blocks import Mamba2
from ..architectures.spec import round_up
from ..architectures.state_blocks import Delta
from .ops import latent
from .ops.experts import PIECE
from .ops.journal import TOKENS as JOURNAL
from .row_table import kept_rows

_LOGITS = 64 << 20
_LEAST_LOGITS, _MOST_LOGITS = 32, 128
"""Rows of logits of one step: as many as fit into so many bytes, at least so many (a draft's and the others')."""
ITEMS_A_THREAD = 8
"""Attention's blocks are split into spans if there are fewer pieces than this for each thread (items.py)."""


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


def widths(config: ModelConfig) -> dict[str, int]:
    """Columns of each buffer of float32 rows, in the widest layer."""
    found = {"x": config.dim, "normed": config.dim, "addend": config.dim}
    if any(block.parallel for block in config.blocks()):
        found["addend_2"] = config.dim
    for block in config.blocks():
        if isinstance(block, Attention):
            columns = {"q": block.heads * block.head_dim, "att": block.heads * block.value_dim, "k": block.kv_heads * block.head_dim,
                       "v": block.kv_heads * block.value_dim, **block.more_buffers()}
        else:
            columns = block.buffers()
        for name, n in columns.items():
            found[name] = max(found.get(name, 0), n)
    return found


def record_columns(config: ModelConfig) -> dict[str, int]:
    """Columns of each buffer of records, in the widest layer."""
    columns = widths(config)
    made = (columns.get(name, 0) for name in ("x", "att", "mixed", "q_latent", "att_heads"))
    found = {"records": max(made), "down_records": columns.get("gate", 0)}
    return {**found, "att_records": columns["att"]} if "addend_2" in columns else found


def expert_groups(block: Experts, rows: int) -> int:
    """Groups of 8 records that the slots of a step of so many tokens take at most: each expert's begin with one of its own."""
    return block.used * rows // GROUP + min(block.experts, block.used * rows)


def expert_bytes(config: ModelConfig, rows: int) -> dict[str, int]:
    """Of the buffers of mixtures of experts that are no rows of a token: slots' records, and the lists (kernels/route.py)."""
    found: dict[str, int] = {}
    for b in config.blocks():
        if isinstance(b, Experts):
            groups, slots = expert_groups(b, rows), rows * b.used
            sizes = {"expert_records": groups * record_bytes(GROUP, round_up(b.dim, 32)),
                     "expert_act_records": groups * record_bytes(GROUP, round_up(b.width, 32)), "expert_lists": 8 * list_words(b.experts, slots)}
            found = {name: max(size, found.get(name, 0)) for name, size in sizes.items()}
    return found


def expert_scratch(config: ModelConfig, rows: int) -> int:
    """Bytes of a thread's scratch that mixtures of experts need: rows of a piece of gate and up, scores, a row that is weighed."""
    return max((round_up(max(2 * 4 * PIECE * rows, 4 * (b.experts + b.groups + 16), 4 * round_up(b.dim, 32)), 128)
                for b in config.blocks() if isinstance(b, Experts)), default=0)


def scratch_bytes(config: ModelConfig, kv: KVType) -> int:
    """Of each thread: what attention, or a recurrent layer, keeps while it works on a piece."""
    sizes = [attention.scratch_bytes(kv, a.heads, a.kv_heads, a.head_dim, a.value_dim) for a in config.attentions()]
    sizes += [delta.scratch_bytes(r.key_dim) for r in config.recurrents() if isinstance(r, Delta)]
    sizes += [latent.scratch_bytes(m.columns) for a in config.attentions() if isinstance(a, Latent) for m in a.stacks]
    sizes += [ssm.SCRATCH for r in config.recurrents() if isinstance(r, Mamba2)]
    return max(round_up(size, 128) for size in sizes)


def step_memory(config: ModelConfig, kv: KVType, threads: int, context: int) -> StepMemory:
    """Of a model on so many threads, for sequences of `context` positions."""
    c, ld_dim = config, round_up(config.dim, 32)
    floats = sum(round_up(n, 32) for n in widths(c).values())
    records = sum(record_bytes(8, round_up(n, 32)) for n in record_columns(c).values())
    embedding = 4 * 4 * c.dim  # rows as the file has them, decoded, checked
    own = round_up(2 * 4 * GROUP * ld_dim + record_bytes(GROUP, ld_dim), 128)
    groups = {a.group: a for a in c.attentions()}
    scratch = scratch_bytes(config, kv)
    experts, many = sum(expert_bytes(c, 8).values()), sum(expert_bytes(c, 8 * 513).values())
    a_token = -(-(many - experts) // (8 * 512)) + threads * (expert_scratch(c, 1032) - expert_scratch(c, 8)) // 1024
    scratch = max(scratch, expert_scratch(c, 8))
    gains = sum(4 * round_up(n, 32) for _, n in c.vectors()) + sum(4 * round_up(m.rows, 16) for m in c.matrices() if m.bias and not m.experts)
    gains += sum(4 * m.experts * round_up(m.rows, 16) for m in c.matrices() if m.bias)
    gains += sum(4 * r.taps * round_up(r.channels, 32) for r in c.recurrents())
    gains += sum(4 * math.prod(tensor.shape) for tensor in c.kept())
    gains += sum(4 * JOURNAL * round_up(r.buffers()["mixer"], 32) for r in c.recurrents())
    words = 16 * 1024 + c.n_layers * 4096  # the program, geometry
    tables = sum(4 * rope.dims * context for rope in {a.rope for a in c.attentions()} if rope)
    tables += 4 * c.per_layer.layers * c.per_layer.width * (kept_rows(c.per_layer) + 64) if c.per_layer else 0
    fixed = threads * (own + scratch) + gains + words + tables + sum(_parts(a, threads, context) for a in groups.values())
    a_token += 4 * floats + -(-records // 8) + embedding + 8 * 4
    if c.output.matrix is None:  # an encoder: every token's normed row, as the step gives it and as whoever pools it takes it
        return StepMemory(fixed + experts, a_token + 2 * 4 * ld_dim, 4 * ld_dim)
    return StepMemory(fixed + experts, a_token, 4 * round_up(c.n_vocab, 16))


def _parts(a: Attention, threads: int, context: int) -> int:
    """Of attention's blocks that are split into spans of a long context: what is left for merging."""
    pages = -(-context // PAGE)
    if pages <= attention.SPAN:
        return 0
    blocks = (ITEMS_A_THREAD * threads - 1) // a.kv_heads
    queries = blocks * attention.block_tokens(a.heads, a.kv_heads) * a.heads
    return round_up(queries * -(-pages // attention.SPAN) * attention.part_bytes(a.value_dim), 1 << 16)
