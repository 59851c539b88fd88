"""Mixtures of experts: a router sends each token to a few of many feed-forward blocks, whose results are summed with weights.

    norm ─► router ─► the best `used` of `experts` ─► their gate * up ─► down ─► sum in the order of rank (+ a shared expert) ─► the residual stream

The sequence of operations is docs/exactness.md's; the ops are engine/run/ops/route.py and experts.py. (Shazeer et al. 2017; Fedus et al. 2021; Mixtral.)
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .blocks import Mlp, Pending, join_stage, linear_stage, matrix_tensors, norm_tensors, open_add_stage, open_norm_stages, scale_tensor
from .spec import Addend, Matrix, Norm, Records, Site, Stage, Tensor


@dataclass(frozen=True)
class Experts:
    """A feed-forward block of experts. width: of each one.

    gating: what logits become, "softmax" (over all experts), "sigmoid", or "softmax_of_chosen" (the experts are chosen by logit). selection_bias: tensor
    [experts] of what is added for choosing alone, or "". groups, groups_used: experts stand in groups, of which the best are searched; 0: no groups.
    normalise: the chosen ones' weights are divided by their sum. scale: and multiplied by this. weigh_input: the weight multiplies what an expert reads, not
    its result. shared: a block that every token goes through (its norm None, beside the experts); shared_gate: tensor [dim], sigmoid of whose product with
    the row says how much of it counts, or "". expert_scales: tensor [experts] that the weights are multiplied by last, or "". router_norm: the norm of what the
    router reads, if it is not what the experts read. beside: the dense block before them waits for them: the norms of its result and of theirs, whose sum joins
    the stream (Gemma 4). Others as of Mlp.
    """

    layer: int
    dim: int
    width: int
    experts: int
    used: int
    activation: str
    norm: Norm | None
    router: Matrix
    gate: Matrix | None
    up: Matrix
    down: Matrix
    gating: str = "softmax"
    selection_bias: str = ""
    groups: int = 0
    groups_used: int = 0
    normalise: bool = False
    scale: float = 1.0
    weigh_input: bool = False
    shared: Mlp | None = None
    shared_gate: str = ""
    shared_gate_hf: str = ""
    selection_bias_hf: str = ""
    post_norm: Norm | None = None
    factor: float = 1.0
    parallel: bool = False
    expert_scales: str = ""
    router_norm: Norm | None = None
    beside: tuple[Norm, Norm] | None = None
    stream_scale: str = ""
    last: bool = True

    @property
    def leaves(self) -> Addend:
        return Addend("addend_2" if self.parallel else "addend", self.post_norm, self.factor, self.stream_scale)

    @property
    def out(self) -> str:
        """The buffer of their sum."""
        return "addend_2" if self.beside else self.leaves.buffer

    def norms(self) -> tuple[Norm, ...]:
        return tuple(n for n in (self.router_norm, self.norm, *(self.beside or ()), self.post_norm) if n)

    def readers(self) -> tuple[Matrix, ...]:
        """The experts' matrices that read the normed row."""
        return (self.gate, self.up) if self.gate else (self.up,)

    def matrices(self) -> tuple[Matrix, ...]:
        return (self.router, *self.readers(), self.down, *(self.shared.matrices() if self.shared else ()))

    def vectors(self) -> Iterator[tuple[str, int]]:
        """(tensor, numbers) of what ops read as it is."""
        if self.selection_bias:
            yield self.selection_bias, self.experts
        if self.shared_gate:
            yield self.shared_gate, self.dim
        if self.expert_scales:
            yield self.expert_scales, self.experts
        if self.stream_scale:
            yield self.stream_scale, 1

    def tensors(self) -> Iterator[Tensor]:
        for norm in (self.router_norm, self.norm, *(self.beside or ())):
            yield from norm_tensors(norm)
        yield from matrix_tensors(self.router)
        if self.selection_bias:
            yield Tensor(self.selection_bias, (self.experts,), self.selection_bias_hf)
        yield from matrix_tensors(*self.readers(), self.down)
        if self.expert_scales:
            yield Tensor(self.expert_scales, (self.experts,), f"model.layers.{self.layer}.router.per_expert_scale")
        if self.shared_gate:
            yield Tensor(self.shared_gate, (self.dim,), self.shared_gate_hf)
        if self.shared:
            yield from self.shared.tensors()
        yield from norm_tensors(self.post_norm)
        yield from scale_tensor(self.stream_scale, self.layer)

    def buffers(self) -> dict[str, int]:
        """Columns of each buffer of float32 rows that a token needs."""
        wide = self.used * -(-self.width // 32) * 32
        found = {"router": self.experts, "expert_weights": self.used, "expert_indices": self.used, "expert_rows": self.used * -(-self.dim // 32) * 32,
                 "expert_act": wide, "expert_post": wide}
        if self.beside:
            found["addend_2"] = self.dim
        return {**found, "shared": self.dim, "gate": self.shared.width, "up": self.shared.width} if self.shared else found

    def _all_readers(self) -> tuple[Matrix, ...]:
        return (self.router, *self.readers(), *(self.shared.readers() if self.shared else ()))

    def _rows(self) -> bool:
        """Whether the normed rows are read, whatever the matrices read."""
        return self.weigh_input or bool(self.shared_gate)

    def _shared(self, records: Records) -> Iterator[Stage]:
        s, i = self.shared, self.layer
        if s:
            yield Stage("gated", "shared gate up", i, {"gate": s.gate, "up": s.up, "activation": s.activation, "records": records(s.down)},
                        ("shared expert activation",))
            yield linear_stage("shared down", i, s.down, "gate", "down_records", "shared")

    def _gated(self, records: Records, by_rank: bool, *after: Site) -> Stage:
        args = {"experts": self, "gate": self.gate, "up": self.up, "activation": self.activation, "records": records(self.down), "by_rank": by_rank}
        return Stage("expert_gated", "expert gate up", self.layer, args, ("expert activation",), (), after)

    def _down(self, records: Records) -> Iterator[Stage]:
        yield Stage("expert_down", "expert down", self.layer, {"experts": self, "down": self.down})
        yield Stage("expert_sum", "expert sum", self.layer, {"experts": self, "out": self.out})

    def _choose(self, records: Records, opened: bool = False) -> Iterator[Stage]:
        """The router that has a norm of its own, then the experts' norm."""
        i, at = self.layer, f"blocks.{self.layer}."
        project = Stage("project", "router", i, {"matrices": ((self.router, "router", 0, self.experts),)})
        choose = Stage("choose_experts", "choice", i, {"experts": self}, ("router",))
        if not opened:
            yield join_stage("router norm", i, self.router_norm, (), (self.router,), records, self.dim)
            yield from (project, choose)
            yield join_stage("expert norm", i, self.norm, (), self.readers(), records, self.dim)
            return
        yield from open_norm_stages("router norm", i, self.router_norm, (self.router,), records, self.dim, Site(at + "hook_router_in", "x", self.dim),
                                    Site(at + "router.hook_normalized", "normed", self.dim))
        yield replace(project, after=(Site(at + "mlp.hook_router_logits", "router", self.experts),))
        yield replace(choose, after=self._chosen())
        yield from open_norm_stages("expert norm", i, self.norm, self.readers(), records, self.dim, Site(at + "hook_experts_in", "x", self.dim),
                                    Site(at + "experts.hook_normalized", "normed", self.dim))

    def _chosen(self) -> tuple[Site, ...]:
        at = f"blocks.{self.layer}."
        return (Site(at + "mlp.hook_expert_indices", "expert_indices", self.used), Site(at + "mlp.hook_expert_weights", "expert_weights", self.used))

    def _gather(self) -> Stage:
        return Stage("gather", "gather", self.layer, {"experts": self}, ("an expert's number",))

    def _sum_beside(self, *after: Site) -> Iterator[Stage]:
        if self.beside:
            args = {"rows": "addend", "norm": self.beside[0], "rows_2": self.out, "norm_2": self.beside[1], "columns": self.dim}
            yield Stage("norm_sum", "sum of both blocks", self.layer, args, ("the dense block's norm", "the experts' norm"), (), after)

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i, stages = self.layer, list[Stage]()
        if self.router_norm:
            stages = [*self._choose(records), self._gather(), self._gated(records, False), *self._down(records), *self._sum_beside()]
            return stages, (self.leaves,)
        if self.norm or not self.parallel:
            stages.append(join_stage("ffn norm", i, self.norm, () if self.parallel else pending, self._all_readers(), records, self.dim, self._rows()))
        stages += [
            *self._shared(records),
            Stage("route", "router", i, {"experts": self, "router": self.router}, ("router",)),
            self._gated(records, False),
            *self._down(records),
        ]
        return stages, (*pending, self.leaves) if self.parallel else (self.leaves,)

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        if self.router_norm:
            yield from self._choose(records, True)
        elif self.norm or not self.parallel:
            yield from open_norm_stages("ffn norm", i, self.norm, self._all_readers(), records, self.dim, Site(at + "hook_mlp_in", "x", self.dim),
                                        Site(at + "ln2.hook_normalized", "normed", self.dim))
        if s := self.shared:
            width = Site(at + "mlp.shared.hook_post", "gate", s.width)
            if s.gate:
                yield linear_stage("shared gate", i, s.gate, "normed", "records", "gate")
            yield linear_stage("shared up", i, s.up, "normed", "records", "up" if s.gate else "gate")
            yield Stage("activate", "shared activation", i, {"columns": s.width, "activation": s.activation, "plain": not s.gate}, (), (), (width,))
            if records(s.down):
                yield Stage("quantize", "quantize", i, {"rows": "gate", "columns": s.width, "records": "down_records"}, ("shared expert activation",))
            yield linear_stage("shared down", i, s.down, "gate", "down_records", "shared", Site(at + "mlp.shared.hook_out", "shared", self.dim))
        if not self.router_norm:
            yield linear_stage("router", i, self.router, "normed", "records", "router", Site(at + "mlp.hook_router_logits", "router", self.experts))
            yield Stage("choose_experts", "choice", i, {"experts": self}, ("router",), (), self._chosen())
        yield self._gather()
        yield self._gated(records, True, Site(self.down.site, "expert_post", self.used * -(-self.width // 32) * 32))
        yield Stage("expert_take", "take", i, {"experts": self, "records": records(self.down)}, ("expert activation",))
        yield Stage("expert_down", "expert down", i, {"experts": self, "down": self.down})
        out = Site(at + ("hook_experts_out" if self.beside else "hook_mlp_out"), self.out, self.dim)
        yield Stage("expert_sum", "expert sum", i, {"experts": self, "out": self.out}, (), (), (out,))
        yield from self._sum_beside(Site(at + "hook_mlp_sum", "addend", self.dim))
        after = Site(at + ("hook_resid_post" if self.last else "hook_resid_mlp"), "x", self.dim)
        yield open_add_stage("expert sum", i, (*pending, self.leaves), self.dim, after)
