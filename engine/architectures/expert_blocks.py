"""Mixtures of experts: a router sends each token to a few of many feed-forward blocks, whose results are summed with weights.

    norm ─► router ─► the best `used` of `experts` ─► their gate * up ─► down ─► sum in the order of rank (+ a shared expert) ─► the residual stream

The sequence of operations is docs/exactness.md's; the ops are engine/run/ops/route.py and experts.py. (Shazeer et al. 2017; Fedus et al. 2021; Mixtral.)
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .blocks import Mlp, Pending, join_stage, linear_stage, matrix_tensors, norm_tensors, open_add_stage, open_norm_stages
from .spec import Addend, Matrix, Norm, Records, Site, Stage, Tensor


@dataclass(frozen=True)
class Experts:
    """A feed-forward block of experts. width: of each one.

    gating: what logits become, "softmax" (over all experts), "sigmoid", or "softmax_of_chosen" (the experts are chosen by logit). selection_bias: tensor
    [experts] of what is added for choosing alone, or "". groups, groups_used: experts stand in groups, of which the best are searched; 0: no groups.
    normalise: the chosen ones' weights are divided by their sum. scale: and multiplied by this. weigh_input: the weight multiplies what an expert reads, not
    its result. shared: a block that every token goes through (its norm None, beside the experts); shared_gate: tensor [dim], sigmoid of whose product with
    the row says how much of it counts, or "". Others as of Mlp.
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

    @property
    def leaves(self) -> Addend:
        return Addend("addend_2" if self.parallel else "addend", self.post_norm, self.factor)

    def norms(self) -> tuple[Norm, ...]:
        return tuple(n for n in (self.norm, self.post_norm) if n)

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

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(self.router)
        if self.selection_bias:
            yield Tensor(self.selection_bias, (self.experts,), self.selection_bias_hf)
        yield from matrix_tensors(*self.readers(), self.down)
        if self.shared_gate:
            yield Tensor(self.shared_gate, (self.dim,), self.shared_gate_hf)
        if self.shared:
            yield from self.shared.tensors()
        yield from norm_tensors(self.post_norm)

    def buffers(self) -> dict[str, int]:
        """Columns of each buffer of float32 rows that a token needs."""
        wide = self.used * -(-self.width // 32) * 32
        found = {"router": self.experts, "expert_weights": self.used, "expert_indices": self.used, "expert_rows": self.used * -(-self.dim // 32) * 32,
                 "expert_act": wide, "expert_post": wide}
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
        yield Stage("expert_sum", "expert sum", self.layer, {"experts": self, "out": self.leaves.buffer})

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i, stages = self.layer, []
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
        if self.norm or not self.parallel:
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
        yield linear_stage("router", i, self.router, "normed", "records", "router", Site(at + "mlp.hook_router_logits", "router", self.experts))
        yield Stage("choose_experts", "choice", i, {"experts": self}, ("router",), (), (
            Site(at + "mlp.hook_expert_indices", "expert_indices", self.used), Site(at + "mlp.hook_expert_weights", "expert_weights", self.used)))
        yield Stage("gather", "gather", i, {"experts": self}, ("an expert's number",))
        yield self._gated(records, True, Site(at + "mlp.hook_post", "expert_post", self.used * -(-self.width // 32) * 32))
        yield Stage("expert_take", "take", i, {"experts": self, "records": records(self.down)}, ("expert activation",))
        yield Stage("expert_down", "expert down", i, {"experts": self, "down": self.down})
        yield Stage("expert_sum", "expert sum", i, {"experts": self, "out": self.leaves.buffer}, (), (),
                    (Site(at + "hook_mlp_out", self.leaves.buffer, self.dim),))
        yield open_add_stage("expert sum", i, (*pending, self.leaves), self.dim, Site(at + "hook_resid_post", "x", self.dim))
