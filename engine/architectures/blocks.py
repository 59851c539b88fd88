"""What layers are made of: attention and feed-forward blocks, each of which knows its tensors and its stages.

A block lowers two ways from the same numbers: *fused*, the coarse ops that run unobserved, and *open*, where every site is a buffer of its own that the next
stage reads; both give the same bits. A fused block takes what still waits to join the residual stream (its norm adds it) and says what it leaves waiting; an
open one leaves nothing. What training goes back through lowers a third way, *keeping*: as fused, but the rows at its sites go where somebody wants them.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from .spec import Addend, Matrix, Norm, Records, Rope, Site, Stage, Tensor

if TYPE_CHECKING:
    from .expert_blocks import Experts
    from .mamba_blocks import Mamba2
    from .per_layer_blocks import PerLayer, PerLayerInputs
    from .state_blocks import Conv, Delta

Pending = tuple[Addend, ...]
ALL_AHEAD = 1 << 40
"""Attention.ahead of a query that sees its whole text."""
Block: TypeAlias = "Attention | Mlp | Experts | Conv | Delta | Mamba2 | PerLayer | PerLayerInputs"


def norm_tensors(norm: Norm | None) -> Iterator[Tensor]:
    if norm:
        yield Tensor(norm.tensor, (norm.heads, norm.dim), norm.hf, plain=True) if norm.heads else Tensor(norm.tensor, (norm.dim,), norm.hf)
        if norm.bias:
            yield Tensor(norm.bias, (norm.dim,), norm.hf.replace(".weight", ".bias"))


def scale_tensor(name: str, layer: int) -> Iterator[Tensor]:
    """Of Addend.stream_scale."""
    if name:
        yield Tensor(name, (1,), f"model.layers.{layer}.layer_scalar")


def matrix_tensors(*matrices: Matrix | None) -> Iterator[Tensor]:
    """Each tensor once, though several matrices may be parts of it."""
    seen = set()
    for m in matrices:
        if m and m.tensor not in seen:
            seen.add(m.tensor)
            rows, experts = m.whole or m.rows, (m.experts,) if m.experts else ()
            yield Tensor(m.tensor, (*experts, rows, m.columns), m.hf)
            if m.bias:
                yield Tensor(m.bias, (*experts, rows), m.hf.replace(".weight", ".bias"), plain=bool(experts))


def join_stage(name: str, layer: int, norm: Norm | None, pending: Pending, readers: tuple[Matrix, ...], records: Records, dim: int,
               rows: bool = False, replaces: bool = False) -> Stage:
    """rows: the normed rows are read by others than matrices, too. replaces: they become the residual stream."""
    return Stage("join", name, layer, {"add": pending, "norm": norm, "dim": dim, "records": any(map(records, readers)),
                                       "rows": rows or not all(map(records, readers)), "replaces": replaces}, (name,))


def open_norm_stages(name: str, layer: int, norm: Norm | None, readers: tuple[Matrix, ...], records: Records, dim: int, before: Site, after: Site,
                     replaces: bool = False) -> Iterator[Stage]:
    yield Stage("norm", name, layer, {"norm": norm, "dim": dim, "replaces": replaces}, (name,), (before,), (after,))
    if any(map(records, readers)):
        yield Stage("quantize", "quantize", layer, {"rows": "normed", "columns": dim, "records": "records"}, (name,))


def linear_stage(name: str, layer: int, matrix: Matrix, rows: str, made: str, out: str, *after: Site) -> Stage:
    return Stage("linear", name, layer, {"matrix": matrix, "rows": rows, "records": made, "out": out}, (), (), after)


def open_add_stage(name: str, layer: int, add: Pending, dim: int, after: Site) -> Stage:
    return Stage("add", name, layer, {"add": add, "dim": dim}, (name,), (), (after,))


def keep_stage(name: str, layer: int, sites: dict[str, Site], *names: str) -> Stage:
    """sites: of a layer, by the last part of their names."""
    return Stage("keep", name, layer, {}, (), (), tuple(sites[name] for name in names if name in sites))


def sites_of(stages: Iterable[Stage]) -> dict[str, Site]:
    """By the last part of their names."""
    return {site.name.split(".", 2)[2]: site for stage in stages for site in (*stage.before, *stage.after)}


@dataclass(frozen=True)
class Attention:
    """Attention over the KV cache: norm, q/k/v, positions, attend, output projection.

    heads share KV heads in groups of heads / kv_heads. scale: of the scores. soft_cap: of the scores, 0: none. window: positions that a query sees, its own
    included, 0: all. ahead: positions after its own that it sees as well, 0: causal. sinks: tensor of a logit for each head that takes its part of the
    softmax, or "". qk_norm: of queries and keys, "head": RMSNorm of each head, "whole": of the whole projection, "layer": LayerNorm of each head, with a
    gain of its own; "": none; norm_last: after RoPE. temperature: (beta, length): queries are multiplied by 1 + beta ln(1 + floor(position /
    length)). k, v None: the layer reads the keys and values of layer kv_layer; v may be k. value_norm: RMSNorm of each head's values, without a
    gain. factor: of what joins the residual stream. parallel: the feed-forward block beside it starts from the same stream; beside: those of its matrices that
    read this block's normed rows. gate: the result of each head is
    multiplied by the sigmoid of this matrix's rows. replaces: the normed rows become the residual stream (a norm of what the layer before made, whose place
    is after its addition).
    """

    layer: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    norm: Norm | None
    q: Matrix
    k: Matrix | None
    v: Matrix | None
    output: Matrix
    rope: Rope | None
    kv_layer: int
    post_norm: Norm | None = None
    window: int = 0
    ahead: int = 0
    soft_cap: float = 0.0
    sinks: str = ""
    qk_norm: str = ""
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    norm_last: bool = False
    value_norm: bool = False
    temperature: tuple[float, int] | None = None
    factor: float = 1.0
    parallel: bool = False
    beside: tuple[Matrix, ...] = ()
    gate: Matrix | None = None
    replaces: bool = False

    @property
    def group(self) -> tuple[int, int, int, int]:
        """Layers with the same numbers here divide attention's work in the same way: (heads, KV heads, columns of a value, positions seen ahead)."""
        return self.heads, self.kv_heads, self.value_dim, self.ahead

    @property
    def leaves(self) -> Addend:
        return Addend("addend", self.post_norm, self.factor)

    @property
    def records(self) -> str:
        """The buffer of the records of its result: not the normed rows' if the block beside it has yet to read these."""
        return "att_records" if self.parallel else "records"

    def more_buffers(self) -> dict[str, int]:
        """Columns of buffers of float32 rows beside those that all attention has."""
        return {"att_gate": self.gate.rows} if self.gate else {}

    def norms(self) -> tuple[Norm, ...]:
        return tuple(n for n in (self.norm, self.q_norm, self.k_norm, self.post_norm) if n)

    def matrices(self) -> tuple[Matrix, ...]:
        return tuple(m for m in (self.q, self.gate, self.k, self.v, self.output) if m)

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(*self.matrices())
        for norm in (self.q_norm, self.k_norm):
            yield from norm_tensors(norm)
        if self.sinks:
            yield Tensor(self.sinks, (self.heads,), f"model.layers.{self.layer}.self_attn.sinks")
        yield from norm_tensors(self.post_norm)

    @property
    def normed_whole(self) -> bool:
        """Whether norms of queries and keys are a stage of their own, on whole rows."""
        return self.qk_norm in ("whole", "layer")

    def whole_blocks(self) -> bool:
        """Whether what a piece of attention's work writes is whole blocks of 32 columns, whose records it can make at once."""
        return self.heads // self.kv_heads * self.value_dim % 32 == 0

    def _projection_norm(self) -> Stage:
        return Stage("projection_norm", "q k norm", self.layer, {"q_norm": self.q_norm, "k_norm": self.k_norm if self.k else None}, ("queries and keys",))

    def _append(self, turned: bool) -> list[Stage]:
        return [Stage("append", "append", self.layer, {"attention": self, "turned": turned}, ("keys and values",))] if self.k else []

    @property
    def result(self) -> str:
        """The buffer of its result."""
        return "att_gate" if self.gate else "att"

    def _quantize(self) -> Stage:
        columns = self.heads * self.value_dim
        return Stage("quantize", "quantize", self.layer, {"rows": self.result, "columns": columns, "records": self.records}, ("attention output",))

    def _gate(self, records: bool, *after: Site) -> Stage:
        return Stage("gate", "output gate", self.layer, {"gate": "att_gate", "rows": "att", "columns": self.heads * self.value_dim, "activation": "sigmoid",
                                                         "norm": None, "records": self.records if records else ""}, ("attention output",), (), after)

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i, wants = self.layer, records(self.output)
        readers, gate = tuple(m for m in (self.q, self.gate, self.k, self.v, *self.beside) if m), self.gate
        whole = self.normed_whole
        stages = [
            join_stage("attention norm", i, self.norm, pending, readers, records, self.dim, replaces=self.replaces),
            Stage("qkv", "q k v", i, {"q": self.q, "k": self.k, "v": self.v, "attention": self, "append": not whole}, ("keys and values",)),
            *([self._projection_norm(), *self._append(False)] if whole else []),
            *([Stage("project", "output gate", i, {"matrices": ((gate, "att_gate", 0, gate.rows),)})] if gate else []),
            Stage("attend", "attention", i, {"attention": self, "records": wants and not gate and self.whole_blocks()}, ("queries", "attention output")),
        ]
        if gate:
            stages += [self._gate(wants)]
        elif wants and not self.whole_blocks():
            stages += [self._quantize()]
        return [*stages, linear_stage("attention output", i, self.output, self.result, self.records, "addend")], (self.leaves,)

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        q, kv, z = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.heads * self.value_dim
        readers = tuple(m for m in (self.q, self.gate, self.k, self.v, *self.beside) if m)
        yield from open_norm_stages("attention norm", i, self.norm, readers, records, self.dim, Site(at + "hook_resid_pre", "x", self.dim),
                                    Site(at + "ln1.hook_normalized", "normed", self.dim), self.replaces)
        yield linear_stage("queries", i, self.q, "normed", "records", "q", Site(at + "attn.hook_q", "q", q))
        if self.gate:
            yield linear_stage("output gate", i, self.gate, "normed", "records", "att_gate", Site(at + "attn.hook_gate", "att_gate", z))
        turned = [Site(at + "attn.hook_rot_q", "q", q)]
        if self.k and self.v:
            yield linear_stage("keys", i, self.k, "normed", "records", "k", Site(at + "attn.hook_k", "k", kv))
            yield linear_stage("values", i, self.v, "normed", "records", "v", Site(at + "attn.hook_v", "v", self.kv_heads * self.value_dim))
            turned.append(Site(at + "attn.hook_rot_k", "k", kv))
        if self.normed_whole:
            yield self._projection_norm()
        yield Stage("rotate", "positions", i, {"attention": self, "turned": True}, ("queries and keys",), (), tuple(turned))
        yield from self._append(True)
        yield Stage("attend", "attention", i, {"attention": self, "records": False, "turned": True}, ("queries", "attention output"), (),
                    (Site(at + "attn.hook_result", "att", z) if self.gate else Site(at + "attn.hook_z", "att", z),))
        if self.gate:
            yield self._gate(False, Site(at + "attn.hook_z", "att_gate", z))
        if records(self.output):
            yield self._quantize()
        yield linear_stage("attention output", i, self.output, self.result, self.records, "addend", Site(at + "hook_attn_out", "addend", self.dim))
        if not self.parallel:
            yield open_add_stage("attention output", i, (self.leaves,), self.dim, Site(at + "hook_resid_mid", "x", self.dim))

    @property
    def keeps(self) -> bool:
        """Whether there is a keeping form."""
        return bool(self.k and self.v) and not (self.gate or self.value_norm or self.replaces)

    def keeping(self, pending: Pending, records: Records) -> list[Stage]:
        """Queries and keys are rotated where they lie, by a stage of their own."""
        stages, sites, i = self.fused(pending, records)[0], sites_of(self.open(records)), self.layer
        attend = next(n for n, stage in enumerate(stages) if stage.op == "attend")
        return [
            stages[0],
            replace(stages[1], args={**stages[1].args, "append": False}),
            keep_stage("keep", i, sites, "attn.hook_q", "attn.hook_k"),
            *([self._projection_norm()] if self.normed_whole else []),
            Stage("rotate", "positions", i, {"attention": self, "turned": True}, ("queries and keys",)),
            *self._append(True),
            replace(stages[attend], args={**stages[attend].args, "turned": True}),
            *stages[attend + 1:],
            keep_stage("keep", i, sites, "hook_resid_pre", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_v", "attn.hook_z", "hook_attn_out"),
        ]


@dataclass(frozen=True)
class Mlp:
    """A feed-forward block: down(act(gate(x)) * up(x)) of the normed row x (Glu: Shazeer 2020), or down(act(up(x))) without a gate.

    activation: a name of kernels/gates.py. parallel: beside attention, from the same stream, and without a norm of its own from the same normed rows.
    stream_scale: Addend's. last: of its layer. replaces: as of Attention. waits: its result goes to the experts after it, not to the stream."""

    layer: int
    dim: int
    width: int
    activation: str
    norm: Norm | None
    gate: Matrix | None
    up: Matrix
    down: Matrix
    post_norm: Norm | None = None
    factor: float = 1.0
    parallel: bool = False
    stream_scale: str = ""
    last: bool = True
    replaces: bool = False
    waits: bool = False

    @property
    def leaves(self) -> Addend:
        return Addend("addend_2" if self.parallel else "addend", self.post_norm, self.factor, self.stream_scale)

    def norms(self) -> tuple[Norm, ...]:
        return tuple(n for n in (self.norm, self.post_norm) if n)

    def readers(self) -> tuple[Matrix, ...]:
        return (self.gate, self.up) if self.gate else (self.up,)

    def matrices(self) -> tuple[Matrix, ...]:
        return (*self.readers(), self.down)

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(*self.matrices())
        yield from norm_tensors(self.post_norm)
        yield from scale_tensor(self.stream_scale, self.layer)

    def vectors(self) -> Iterator[tuple[str, int]]:
        """(tensor, numbers) of what ops read as it is."""
        if self.stream_scale:
            yield self.stream_scale, 1

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i, stages = self.layer, []
        if self.norm or not self.parallel:
            stages.append(join_stage("ffn norm", i, self.norm, () if self.parallel else pending, self.readers(), records, self.dim,
                                     replaces=self.replaces))
        stages += [
            Stage("gated", "gate up", i, {"gate": self.gate, "up": self.up, "activation": self.activation, "records": records(self.down)}, ("ffn activation",)),
            linear_stage("down", i, self.down, "gate", "down_records", self.leaves.buffer),
        ]
        return stages, (*pending, self.leaves) if self.parallel else (self.leaves,)

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        if self.norm or not self.parallel:
            yield from open_norm_stages("ffn norm", i, self.norm, self.readers(), records, self.dim, Site(at + "hook_mlp_in", "x", self.dim),
                                        Site(at + "ln2.hook_normalized", "normed", self.dim), self.replaces)
        if self.gate:
            yield linear_stage("gate", i, self.gate, "normed", "records", "gate", Site(at + "mlp.hook_pre", "gate", self.width))
            yield linear_stage("up", i, self.up, "normed", "records", "up", Site(at + "mlp.hook_pre_linear", "up", self.width))
        else:
            yield linear_stage("up", i, self.up, "normed", "records", "gate", Site(at + "mlp.hook_pre", "gate", self.width))
        yield Stage("activate", "activation", i, {"columns": self.width, "activation": self.activation, "plain": not self.gate}, (), (),
                    (Site(at + "mlp.hook_post", "gate", self.width),))
        if records(self.down):
            yield Stage("quantize", "quantize", i, {"rows": "gate", "columns": self.width, "records": "down_records"}, ("ffn activation",))
        yield linear_stage("down", i, self.down, "gate", "down_records", self.leaves.buffer, Site(at + "hook_mlp_out", self.leaves.buffer, self.dim))
        if not self.waits:
            yield open_add_stage("down", i, (*pending, self.leaves), self.dim, Site(at + ("hook_resid_post" if self.last else "hook_resid_mlp"), "x", self.dim))

    @property
    def keeps(self) -> bool:
        """Whether there is a keeping form."""
        return not (self.replaces or self.waits)

    def keeping(self, pending: Pending, records: Records) -> list[Stage]:
        stages, sites, i = self.fused(pending, records)[0], sites_of(self.open(records)), self.layer
        if not self.parallel:  # attention's last site, which is this block's first
            sites["hook_resid_mid"] = Site(f"blocks.{i}.hook_resid_mid", "x", self.dim)
        return [
            *(replace(s, op="gated_keeping", after=tuple(sites[n] for n in ("mlp.hook_pre", "mlp.hook_pre_linear") if n in sites)) if s.op == "gated" else s
              for s in stages),
            keep_stage("keep", i, sites, "hook_resid_mid", "hook_mlp_out"),
        ]

    def buffers(self) -> dict[str, int]:
        """Columns of each buffer of float32 rows that a token needs."""
        return {"gate": self.width, "up": self.width}


@dataclass(frozen=True)
class Output:
    """The end of the pass: norm, then the matrix of logits; these times `factor`, then soft-capped (0: not). matrix None: an encoder, whose normed rows are
    all that it gives."""

    norm: Norm
    matrix: Matrix | None
    factor: float = 1.0
    soft_cap: float = 0.0

    def stages(self, pending: Pending, records: Records) -> list[Stage]:
        return [
            Stage("close", "last add", None, {}, ("the last add",)),
            Stage("wanted_norm", "output norm", None, {"add": pending, "norm": self.norm, "dim": self.norm.dim, "rows": True,
                                                       "records": self.matrix is not None and records(self.matrix)},
                  ("output norm",), (), (Site("ln_final.hook_normalized", "normed", self.norm.dim),)),
            Stage("output", "output", None, {"matrix": self.matrix, "factor": self.factor, "soft_cap": self.soft_cap}, ("the logits", "the final norm")),
        ]


def open_layer(blocks: tuple[Block, ...], records: Records) -> list[Stage]:
    """A layer's stages in open form."""
    stages: list[Stage] = []
    pending: Pending = ()
    for block in blocks:
        stages += block.open(records, pending)
        pending = (block.leaves,) if block.parallel and isinstance(block, Attention) else ()
    return _with_ends(stages)


def _with_ends(stages: list[Stage]) -> list[Stage]:
    """The stages of a layer whose first block does not begin it by name, or whose last does not end it (a lone one): the stream's first and last site become
    hook_resid_pre and hook_resid_post."""
    def named(site: Site, name: str) -> Site:
        return replace(site, name=f"{site.name.rsplit('.', 1)[0]}.{name}") if site.buffer == "x" else site
    if not any(site.name.endswith(".hook_resid_pre") for stage in stages for site in stage.before):
        first = next(n for n, stage in enumerate(stages) if any(site.buffer == "x" for site in stage.before))
        stages[first] = replace(stages[first], before=tuple(named(site, "hook_resid_pre") for site in stages[first].before))
    if not any(site.name.endswith(".hook_resid_post") for stage in stages for site in stage.after):
        stages[-1] = replace(stages[-1], after=tuple(named(site, "hook_resid_post") for site in stages[-1].after))
    return stages
