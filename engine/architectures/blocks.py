"""What layers are made of: attention and gated feed-forward blocks, each of which knows its tensors and its stages.

A block lowers two ways from the same numbers: *fused*, the coarse ops that run unobserved, and *open*, where every site is a buffer of its own that the next stage
reads; both give the same bits. A fused block takes what still waits to join the residual stream (its norm adds it) and says what it leaves waiting; an open
one leaves nothing.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .spec import Addend, Matrix, Norm, Records, Rope, Site, Stage, Tensor

Pending = tuple[Addend, ...]


def norm_tensors(norm: Norm | None) -> Iterator[Tensor]:
    if norm:
        yield Tensor(norm.tensor, (norm.dim,), norm.hf)
        if norm.bias:
            yield Tensor(norm.bias, (norm.dim,), norm.hf.replace(".weight", ".bias"))


def matrix_tensors(*matrices: Matrix | None) -> Iterator[Tensor]:
    """Each tensor once, though several matrices may be parts of it."""
    seen = set()
    for m in matrices:
        if m and m.tensor not in seen:
            seen.add(m.tensor)
            rows = m.whole or m.rows
            yield Tensor(m.tensor, (rows, m.columns), m.hf)
            if m.bias:
                yield Tensor(m.bias, (rows,), m.hf.replace(".weight", ".bias"))


def _join(name: str, layer: int, norm: Norm | None, pending: Pending, readers: tuple[Matrix, ...], records: Records, dim: int) -> Stage:
    return Stage("join", name, layer, {
        "add": pending, "norm": norm, "dim": dim, "records": any(map(records, readers)), "rows": not all(map(records, readers))}, (name,))


def _open_norm(name: str, layer: int, norm: Norm | None, readers: tuple[Matrix, ...], records: Records, dim: int, before: Site, after: Site) -> Iterator[Stage]:
    yield Stage("norm", name, layer, {"norm": norm, "dim": dim}, (name,), (before,), (after,))
    if any(map(records, readers)):
        yield Stage("quantize", "quantize", layer, {"rows": "normed", "columns": dim, "records": "records"}, (name,))


def _linear(name: str, layer: int, matrix: Matrix, rows: str, made: str, out: str, *after: Site) -> Stage:
    return Stage("linear", name, layer, {"matrix": matrix, "rows": rows, "records": made, "out": out}, (), (), after)


def _open_add(name: str, layer: int, add: Addend, dim: int, after: Site) -> Stage:
    return Stage("add", name, layer, {"add": (add,), "dim": dim}, (name,), (), (after,))


@dataclass(frozen=True)
class Attention:
    """Causal attention over the KV cache: norm, q/k/v, RoPE, attend, output projection.

    heads share KV heads in groups of heads / kv_heads. scale: of the scores. k, v None: the layer reads the keys and values of layer kv_layer."""

    layer: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    norm: Norm | None
    q: Matrix
    k: Matrix
    v: Matrix
    output: Matrix
    rope: Rope | None
    kv_layer: int
    post_norm: Norm | None = None

    @property
    def group(self) -> tuple[int, int, int]:
        """Layers with the same numbers here divide attention's work in the same way: (heads, KV heads, head_dim)."""
        return self.heads, self.kv_heads, self.head_dim

    @property
    def leaves(self) -> Addend:
        return Addend("addend", self.post_norm)

    def matrices(self) -> tuple[Matrix, ...]:
        return self.q, self.k, self.v, self.output

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(*self.matrices())
        yield from norm_tensors(self.post_norm)

    def whole_blocks(self) -> bool:
        """Whether what a piece of attention's work writes is whole blocks of 32 columns, whose records it can make at once."""
        return self.heads // self.kv_heads * self.value_dim % 32 == 0

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i, wants = self.layer, records(self.output)
        stages = [
            _join("attention norm", i, self.norm, pending, (self.q, self.k, self.v), records, self.dim),
            Stage("qkv", "q k v", i, {"q": self.q, "k": self.k, "v": self.v, "attention": self}, ("keys and values",)),
            Stage("attend", "attention", i, {"attention": self, "records": wants and self.whole_blocks()}, ("queries", "attention output")),
        ]
        if wants and not self.whole_blocks():
            stages += [Stage("quantize", "quantize", i, {"rows": "att", "columns": self.heads * self.value_dim, "records": "records"}, ("attention output",))]
        return [*stages, _linear("attention output", i, self.output, "att", "records", "addend")], (self.leaves,)

    def open(self, records: Records) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        q, kv, z = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.heads * self.value_dim
        yield from _open_norm("attention norm", i, self.norm, (self.q, self.k, self.v), records, self.dim, Site(at + "hook_resid_pre", "x", self.dim),
                              Site(at + "ln1.hook_normalized", "normed", self.dim))
        yield _linear("queries", i, self.q, "normed", "records", "q", Site(at + "attn.hook_q", "q", q))
        yield _linear("keys", i, self.k, "normed", "records", "k", Site(at + "attn.hook_k", "k", kv))
        yield _linear("values", i, self.v, "normed", "records", "v", Site(at + "attn.hook_v", "v", self.kv_heads * self.value_dim))
        yield Stage("rotate", "positions", i, {"attention": self}, (), (), (Site(at + "attn.hook_rot_q", "q", q), Site(at + "attn.hook_rot_k", "k", kv)))
        yield Stage("append", "append", i, {"attention": self}, ("keys and values",))
        yield Stage("attend", "attention", i, {"attention": self, "records": False, "turned": True}, ("queries", "attention output"), (),
                    (Site(at + "attn.hook_z", "att", z),))
        if records(self.output):
            yield Stage("quantize", "quantize", i, {"rows": "att", "columns": z, "records": "records"}, ("attention output",))
        yield _linear("attention output", i, self.output, "att", "records", "addend", Site(at + "hook_attn_out", "addend", self.dim))
        yield _open_add("attention output", i, self.leaves, self.dim, Site(at + "hook_resid_mid", "x", self.dim))


@dataclass(frozen=True)
class Glu:
    """A gated feed-forward block: down(act(gate(x)) * up(x)) of the normed row x (Shazeer 2020)."""

    layer: int
    dim: int
    width: int
    activation: str
    norm: Norm | None
    gate: Matrix
    up: Matrix
    down: Matrix
    post_norm: Norm | None = None

    @property
    def leaves(self) -> Addend:
        return Addend("addend", self.post_norm)

    def matrices(self) -> tuple[Matrix, ...]:
        return self.gate, self.up, self.down

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(*self.matrices())
        yield from norm_tensors(self.post_norm)

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i = self.layer
        return [
            _join("ffn norm", i, self.norm, pending, (self.gate, self.up), records, self.dim),
            Stage("gated", "gate up", i, {"gate": self.gate, "up": self.up, "activation": self.activation, "records": records(self.down)}, ("ffn activation",)),
            _linear("down", i, self.down, "gate", "down_records", "addend"),
        ], (self.leaves,)

    def open(self, records: Records) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        yield from _open_norm("ffn norm", i, self.norm, (self.gate, self.up), records, self.dim, Site(at + "hook_mlp_in", "x", self.dim),
                              Site(at + "ln2.hook_normalized", "normed", self.dim))
        yield _linear("gate", i, self.gate, "normed", "records", "gate", Site(at + "mlp.hook_pre", "gate", self.width))
        yield _linear("up", i, self.up, "normed", "records", "up", Site(at + "mlp.hook_pre_linear", "up", self.width))
        yield Stage("activate", "activation", i, {"columns": self.width, "activation": self.activation}, (), (), (Site(at + "mlp.hook_post", "gate", self.width),))
        if records(self.down):
            yield Stage("quantize", "quantize", i, {"rows": "gate", "columns": self.width, "records": "down_records"}, ("ffn activation",))
        yield _linear("down", i, self.down, "gate", "down_records", "addend", Site(at + "hook_mlp_out", "addend", self.dim))
        yield _open_add("down", i, self.leaves, self.dim, Site(at + "hook_resid_post", "x", self.dim))


Block = Attention | Glu


@dataclass(frozen=True)
class Output:
    """The end of the pass: norm, then the matrix of logits."""

    norm: Norm
    matrix: Matrix

    def stages(self, pending: Pending, records: Records) -> list[Stage]:
        return [
            Stage("close", "last add", None, {}, ("the last add",)),
            Stage("wanted_norm", "output norm", None, {"add": pending, "norm": self.norm, "dim": self.norm.dim, "records": records(self.matrix), "rows": True},
                  ("output norm",), (), (Site("ln_final.hook_normalized", "normed", self.norm.dim),)),
            Stage("output", "output", None, {"matrix": self.matrix}),
        ]
