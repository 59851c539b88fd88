"""All ops by the names that stages use. An op is a compiled function, the number of its words (the header aside), and what writes them.

    fill(words, stage, layout): words int64 from the stage's start, zeroed; layout: engine/run/layout.py's, which knows addresses
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ....kernels.compile_cache import Compiled
from . import (
    attend,
    conv,
    delta,
    experts,
    gate,
    gated,
    join,
    journal,
    keep,
    latent,
    linear,
    norm_sum,
    open_form,
    pattern,
    per_layer,
    project,
    qkv,
    route,
    ssm,
    summary,
)


class Op(NamedTuple):
    """One op."""

    function: Compiled | Callable[[str], Compiled]
    """Compiled, or what gives the one for a stage's activation."""
    words: int
    fill: Callable[[np.ndarray, Any, Any], None]

    def address(self, stage: Any) -> int:
        """Of the compiled function for a stage."""
        function = self.function if isinstance(self.function, Compiled) else self.function(stage.args["activation"])
        return function.address


def _nothing(words: np.ndarray, stage: Any, layout: Any) -> None:
    pass


OPS = {
    "join": Op(join.join, join.WORDS, join.fill),
    "close": Op(join.close, 0, _nothing),
    "wanted_norm": Op(join.wanted_norm, join.WORDS, join.fill),
    "qkv": Op(qkv.qkv, qkv.WORDS, qkv.fill),
    "attend": Op(attend.attend, attend.WORDS, attend.fill),
    "linear": Op(linear.linear, linear.WORDS, linear.fill),
    "quantize": Op(linear.quantize, linear.WORDS, linear.fill_quantize),
    "output": Op(linear.output, linear.WORDS, linear.fill_output),
    "gated": Op(gated.gated, gated.WORDS, gated.fill),
    "gated_keeping": Op(gated.gated_keeping, gated.KEEPING_WORDS, gated.fill_keeping),
    "keep": Op(keep.keep, keep.WORDS, keep.fill),
    "route": Op(route.route, route.WORDS, route.fill),
    "expert_gated": Op(experts.expert_gated, experts.GATED_WORDS, experts.fill_gated),
    "expert_down": Op(experts.expert_down, experts.DOWN_WORDS, experts.fill_down),
    "expert_sum": Op(experts.expert_sum, experts.SUM_WORDS, experts.fill_sum),
    "choose_experts": Op(route.choose_experts, route.WORDS, route.fill),
    "gather": Op(route.gather, route.WORDS, route.fill),
    "expert_take": Op(experts.expert_take, experts.TAKE_WORDS, experts.fill_take),
    "norm_sum": Op(norm_sum.norm_sum, norm_sum.WORDS, norm_sum.fill),
    "add": Op(open_form.add, join.WORDS, join.fill),
    "norm": Op(open_form.norm, join.WORDS, join.fill),
    "projection_norm": Op(open_form.projection_norm, open_form.P_WORDS, open_form.fill_projection_norm),
    "rotate": Op(open_form.rotate, open_form.WORDS, open_form.fill),
    "append": Op(open_form.append, open_form.WORDS, open_form.fill),
    "per_layer_mix": Op(per_layer.mix, per_layer.MIX_WORDS, per_layer.fill_mix),
    "per_layer_gate": Op(per_layer.gate, per_layer.WORDS, per_layer.fill),
    "per_layer_activate": Op(per_layer.activate, per_layer.WORDS, per_layer.fill),
    "project": Op(project.project, project.WORDS, project.fill),
    "journal": Op(journal.journal, journal.WORDS, journal.fill),
    "conv": Op(conv.conv, conv.WORDS, conv.fill),
    "conv_silu": Op(conv.conv_silu, conv.WORDS, conv.fill),
    "delta": Op(delta.delta, delta.WORDS, delta.fill),
    "latents": Op(latent.latents, latent.WORDS, latent.fill),
    "by_head": Op(latent.by_head, latent.HEAD_WORDS, latent.fill_by_head),
    "ssm": Op(ssm.ssm, ssm.WORDS, ssm.fill),
    "gate": Op(gate.gate, gate.WORDS, gate.fill),
    "activate": Op(open_form.activate, gated.WORDS, open_form.fill_activate),
    "pattern": Op(pattern.pattern, pattern.WORDS, pattern.fill),
    "summary": Op(summary.summary, summary.WORDS, summary.fill),
}
