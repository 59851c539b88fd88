"""Mamba-2 as a layer's block: beside attention, or instead of it, in hybrid models. State, forms and the convolution are as in state_blocks.py."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .blocks import Pending, join_stage, linear_stage, matrix_tensors, norm_tensors, open_add_stage, open_norm_stages
from .builder import Builder
from .keys import MAX_HEADS, MAX_WIDTH
from .spec import Addend, Matrix, Norm, Records, Site, Stage, Tensor, round_up
from .state_blocks import journal_stage


@dataclass(frozen=True)
class Mamba2:
    """A state space whose decay depends on the token: a head keeps a matrix S [state, head_dim]:

        z, xBC, dt of one matrix's rows;  x, B, C = silu(conv(xBC) + bias);  step = softplus(dt + dt_bias)
        S = exp(step a) S + B (step x)';  y = S'C + d x;  result = norm of each group of (silu(z) y);  output(result)

    heads stand in `groups` that share B and C. head_norm: a gain for each group, or None: silu(z) y is the result. norm None: it reads the rows that the
    attention beside it normed (parallel). The state is S of all heads and the last taps - 1 rows of xBC. Source: Dao and Gu (arXiv 2405.21060).
    """

    layer: int
    dim: int
    heads: int
    head_dim: int
    state: int
    groups: int
    taps: int
    norm: Norm | None
    z: Matrix
    xbc: Matrix
    steps: Matrix
    kernel: Tensor
    conv_bias: Tensor | None
    dt: Tensor
    a: Tensor
    d: Tensor
    head_norm: Norm | None
    output: Matrix
    post_norm: Norm | None = None
    factor: float = 1.0
    parallel: bool = False

    @property
    def values(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution: values, and the groups' B and C."""
        return self.values + 2 * self.groups * self.state

    @property
    def conv_floats(self) -> int:
        """Numbers of the state that are the convolution's; the heads' matrices follow."""
        return (self.taps - 1) * round_up(self.channels, 32)

    @property
    def state_floats(self) -> int:
        return self.conv_floats + self.heads * self.state * round_up(self.head_dim, 64)

    @property
    def columns(self) -> tuple[int, int]:
        """Where the step sizes begin in a row of the mixer's buffer, and its width."""
        steps = round_up(self.channels, 16)
        return steps, steps + round_up(self.heads, 16)

    def buffers(self) -> dict[str, int]:
        """Columns of each buffer of float32 rows that a token needs."""
        return {"mixer": self.columns[1], "mixed": self.values, "z": self.values}

    @property
    def leaves(self) -> Addend:
        return Addend("addend_2" if self.parallel else "addend", self.post_norm, self.factor)

    def norms(self) -> tuple[Norm, ...]:
        return tuple(n for n in (self.norm, self.head_norm, self.post_norm) if n)

    def vectors(self) -> tuple[tuple[str, int], ...]:
        bias = ((self.conv_bias.name, self.channels),) if self.conv_bias else ()
        return *((t.name, self.heads) for t in (self.dt, self.a, self.d)), *bias

    def readers(self) -> tuple[Matrix, ...]:
        return self.z, self.xbc, self.steps

    def matrices(self) -> tuple[Matrix, ...]:
        return *self.readers(), self.output

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(*self.readers())
        yield self.kernel
        if self.conv_bias:
            yield self.conv_bias
        yield from (self.dt, self.a, self.d)
        yield from norm_tensors(self.head_norm)
        yield from matrix_tensors(self.output)
        yield from norm_tensors(self.post_norm)

    def scan(self, *sites: Site) -> Iterator[Stage]:
        """What makes the next state, and the heads' answers, of the rows in the mixer's buffer."""
        i = self.layer
        args = {"block": self, "rows": "mixer", "columns": self.columns[1], "out": "", "bias": self.conv_bias.name if self.conv_bias else ""}
        yield Stage("conv_silu", "short convolution", i, args, (), (), sites[:1])
        yield Stage("ssm", "state space", i, {"block": self}, (), (), sites[1:])

    def _project(self, *after: Site) -> Stage:
        steps, width = self.columns
        return Stage("project", "mixer input", self.layer, {"matrices": (
            (self.steps, "mixer", steps, width), (self.xbc, "mixer", 0, width), (self.z, "z", 0, self.values))}, (), (), after)

    def _gate(self, records: str, *after: Site) -> Stage:
        return Stage("gate", "output gate", self.layer, {"gate": "z", "rows": "mixed", "columns": self.values, "activation": "silu", "norm": None,
                                                         "last_norm": self.head_norm, "records": records}, ("state space",), (), after)

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i = self.layer
        norm = [join_stage("mixer norm", i, self.norm, pending, self.readers(), records, self.dim)] if self.norm else []
        return [
            *norm, self._project(), journal_stage(self, False), *self.scan(), self._gate("records" if records(self.output) else ""),
            linear_stage("mixer output", i, self.output, "z", "records", self.leaves.buffer),
        ], (*pending, self.leaves) if self.parallel else (self.leaves,)

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        if self.norm:
            yield from open_norm_stages("mixer norm", i, self.norm, self.readers(), records, self.dim, Site(at + "hook_resid_pre", "x", self.dim),
                                        Site(at + "ln1.hook_normalized", "normed", self.dim))
        yield self._project(Site(at + "mixer.hook_in", "mixer", self.columns[1]), Site(at + "mixer.hook_gate", "z", self.values))
        yield from self.scan(Site(at + "mixer.hook_xbc", "mixer", self.channels), Site(at + "mixer.hook_result", "mixed", self.values))
        yield self._gate("", Site(at + "mixer.hook_z", "z", self.values))
        if records(self.output):
            yield Stage("quantize", "quantize", i, {"rows": "z", "columns": self.values, "records": "records"}, ("state space",))
        yield linear_stage("mixer output", i, self.output, "z", "records", self.leaves.buffer, Site(at + "hook_mixer_out", self.leaves.buffer, self.dim))
        yield open_add_stage("mixer output", i, (*pending, self.leaves), self.dim, Site(at + "hook_resid_mid", "x", self.dim))


def mamba2(k: Builder, i: int, norm: Norm | None, hf: str = "mamba", *, normed: bool = True, **options: object) -> Mamba2:
    """A block under the usual names. hf: what Hugging Face's layer calls it. normed: whether each group has a norm. options: fields of Mamba2."""
    heads, groups, state = k.integer("ssm.time_step_rank", MAX_HEADS), k.integer("ssm.group_count", MAX_HEADS), k.integer("ssm.state_size", MAX_WIDTH)
    inner, taps = k.integer("ssm.inner_size", MAX_WIDTH), k.integer("ssm.conv_kernel", 64, least=2)
    if inner % heads or heads % groups:
        k.fail(f"keys '{k.name('ssm.inner_size')}' {inner}, '{k.name('ssm.time_step_rank')}' {heads} and '{k.name('ssm.group_count')}' {groups} contradict "
               "each other: each must be a multiple of the next")
    channels, here, theirs, site = inner + 2 * groups * state, f"blk.{i}.", f"model.layers.{i}.{hf}.", "ln1.hook_normalized"
    whole = inner + channels + heads
    z, xbc, steps = (k.matrix(i, "ssm_in", rows, k.dim, site, f"{hf}.in_proj", first=first, whole=whole)
                     for rows, first in ((inner, 0), (channels, inner), (heads, inner + channels)))
    bias = Tensor(here + "ssm_conv1d.bias", (channels,), theirs + "conv1d.bias") if k.has(here + "ssm_conv1d.bias") else None
    head_norm = replace(k.norm(i, "ssm_norm", f"{hf}.norm", dim=inner // groups), heads=groups) if normed else None
    return Mamba2(
        i, k.dim, heads, inner // heads, state, groups, taps, norm, z, xbc, steps,
        Tensor(here + "ssm_conv1d.weight", (channels, taps), theirs + "conv1d.weight", plain=True), bias,
        Tensor(here + "ssm_dt.bias", (heads,), theirs + "dt_bias"),
        Tensor(here + "ssm_a", (heads, 1), theirs + "A_log", plain=True), Tensor(here + "ssm_d", (heads, 1), theirs + "D", plain=True),
        head_norm, k.matrix(i, "ssm_out", k.dim, inner, "mixer.hook_z", f"{hf}.out_proj"), **options)  # type: ignore[arg-type]
