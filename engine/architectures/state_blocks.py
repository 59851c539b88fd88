"""Blocks that keep a state instead of keys and values: the short convolution of LFM2, and Qwen's gated delta rule.

A state is float32 memory of a fixed size, one a sequence (engine/run/state_slots.py). What it becomes depends on the tokens one after the other, never on how
they are divided into steps: docs/exactness.md. Both forms, fused and open, are as in blocks.py.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .blocks import Pending, join_stage, linear_stage, matrix_tensors, norm_tensors, open_add_stage, open_norm_stages
from .spec import Addend, Matrix, Norm, Records, Site, Stage, Tensor, round_up

if TYPE_CHECKING:
    from .mamba_blocks import Mamba2


@dataclass(frozen=True)
class Conv:
    """A gated short convolution: output(c * conv(b * x)), where input(normed row) = [b | c | x], channel by channel over the last `taps` tokens.

    Source: LFM2 technical report (Liquid AI 2025); the state is b * x of the last taps - 1 tokens."""

    layer: int
    dim: int
    taps: int
    norm: Norm
    input: Matrix
    kernel: Tensor
    output: Matrix
    post_norm: Norm | None = None
    factor: float = 1.0
    parallel: bool = False

    @property
    def channels(self) -> int:
        return self.dim

    @property
    def state_floats(self) -> int:
        """Numbers of its state."""
        return (self.taps - 1) * round_up(self.channels, 32)

    def buffers(self) -> dict[str, int]:
        """Columns of each buffer of float32 rows that a token needs."""
        return {"mixer": 3 * self.dim, "mixed": self.dim}

    @property
    def leaves(self) -> Addend:
        return Addend("addend", self.post_norm, self.factor)

    def norms(self) -> tuple[Norm, ...]:
        return tuple(n for n in (self.norm, self.post_norm) if n)

    def vectors(self) -> tuple[tuple[str, int], ...]:
        return ()

    def matrices(self) -> tuple[Matrix, ...]:
        return self.input, self.output

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(self.input)
        yield self.kernel
        yield from matrix_tensors(self.output)
        yield from norm_tensors(self.post_norm)

    def scan(self, *sites: Site) -> Iterator[Stage]:
        """What makes the next state of the rows in the mixer's buffer."""
        yield Stage("conv", "short convolution", self.layer, {"block": self, "rows": "mixer", "columns": 3 * self.dim, "out": "mixed"}, (), (), sites)

    def _middle(self, records: Records, *sites: Site) -> Iterator[Stage]:
        yield from self.scan(*sites)
        if records(self.output):
            yield Stage("quantize", "quantize", self.layer, {"rows": "mixed", "columns": self.dim, "records": "records"}, ("short convolution",))

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i = self.layer
        return [
            join_stage("mixer norm", i, self.norm, pending, (self.input,), records, self.dim),
            Stage("project", "mixer input", i, {"matrices": ((self.input, "mixer", 0, 3 * self.dim),)}),
            journal_stage(self, False), *self._middle(records),
            linear_stage("mixer output", i, self.output, "mixed", "records", "addend"),
        ], (self.leaves,)

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        yield from open_norm_stages("mixer norm", i, self.norm, (self.input,), records, self.dim, Site(at + "hook_resid_pre", "x", self.dim),
                             Site(at + "ln1.hook_normalized", "normed", self.dim))
        yield linear_stage("mixer input", i, self.input, "normed", "records", "mixer", Site(at + "mixer.hook_in", "mixer", 3 * self.dim))
        yield from self._middle(records, Site(at + "mixer.hook_z", "mixed", self.dim))
        yield linear_stage("mixer output", i, self.output, "mixed", "records", "addend", Site(at + "hook_mixer_out", "addend", self.dim))
        yield open_add_stage("mixer output", i, (self.leaves,), self.dim, Site(at + "hook_resid_mid", "x", self.dim))


@dataclass(frozen=True)
class Delta:
    """A gated delta rule: a head keeps a matrix S [key_dim, value_dim]; with each token it forgets a little and corrects what it answers to the token's key:

        q, k, v = silu(conv(qkv(row))), q and k of length 1;  g = exp(a softplus(alpha(row) + dt));  beta = sigmoid(beta(row))
        d = beta (v - g S'k);  S = g S + k d';  result = gain norm(S'q / sqrt(key_dim)) silu(z(row));  output(result)

    Value head h has the q and k of key head h mod key_heads (GGUF's order of qwen35), or if `grouped` of h div (value_heads / key_heads). gates: one matrix of
    both, for each key head its value heads' rows of beta, then those of alpha (qwen3next); alpha and beta are None then. The state is S
    of all heads and the last taps - 1 rows of qkv. Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks" (arXiv 2412.06464), as in Qwen3-Next.
    """

    layer: int
    dim: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    norm: Norm
    qkv: Matrix
    z: Matrix
    alpha: Matrix | None
    beta: Matrix | None
    kernel: Tensor
    dt: Tensor
    a: Tensor
    head_norm: Norm
    output: Matrix
    grouped: bool = False
    gates: Matrix | None = None
    post_norm: Norm | None = None
    factor: float = 1.0
    parallel: bool = False

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: rows of queries, keys and values."""
        return 2 * self.keys + self.values

    @property
    def conv_floats(self) -> int:
        """Numbers of the state that are the convolution's; the heads' matrices follow."""
        return (self.taps - 1) * round_up(self.channels, 32)

    @property
    def head_floats(self) -> int:
        """Of a head's matrix: 64 values of all keys, then the next 64."""
        return self.key_dim * round_up(self.value_dim, 64)

    @property
    def state_floats(self) -> int:
        return self.conv_floats + self.value_heads * self.head_floats

    @property
    def columns(self) -> tuple[int, int, int]:
        """Where alpha and beta begin in a row of the mixer's buffer, and its width."""
        alpha = round_up(self.channels, 16)
        if self.gates:
            return alpha + self.value_heads // self.key_heads, alpha, alpha + round_up(2 * self.value_heads, 16)
        beta = alpha + round_up(self.value_heads, 16)
        return alpha, beta, beta + round_up(self.value_heads, 16)

    def buffers(self) -> dict[str, int]:
        return {"mixer": self.columns[2], "mixed": self.values, "z": self.values}

    @property
    def leaves(self) -> Addend:
        return Addend("addend", self.post_norm, self.factor)

    def norms(self) -> tuple[Norm, ...]:
        return tuple(n for n in (self.norm, self.head_norm, self.post_norm) if n)

    def vectors(self) -> tuple[tuple[str, int], ...]:
        return tuple((t.name, self.value_heads) for t in (self.dt, self.a))

    def _readers(self) -> tuple[Matrix, ...]:
        return tuple(m for m in (self.qkv, self.z, self.alpha, self.beta, self.gates) if m)

    def matrices(self) -> tuple[Matrix, ...]:
        return *self._readers(), self.output

    def _project(self, *after: Site) -> Stage:
        alpha, beta, width = self.columns
        places = ((self.alpha, "mixer", alpha, width), (self.beta, "mixer", beta, width), (self.gates, "mixer", min(alpha, beta), width),
                  (self.qkv, "mixer", 0, width), (self.z, "z", 0, self.values))
        return Stage("project", "mixer input", self.layer, {"matrices": tuple(place for place in places if place[0])}, (), (), after)

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(*self._readers())
        yield from (self.kernel, self.dt, self.a)
        yield from norm_tensors(self.head_norm)
        yield from matrix_tensors(self.output)
        yield from norm_tensors(self.post_norm)

    def scan(self, *sites: Site) -> Iterator[Stage]:
        """What makes the next state, and the heads' answers, of the rows in the mixer's buffer."""
        i, width = self.layer, self.columns[2]
        yield Stage("conv_silu", "short convolution", i, {"block": self, "rows": "mixer", "columns": width, "out": ""}, (), (), sites[:1])
        yield Stage("delta", "delta rule", i, {"block": self}, ("gates",), (), sites[1:])

    def _gate(self, records: str, *sites: Site) -> Stage:
        return Stage("gate", "output gate", self.layer, {"gate": "z", "rows": "mixed", "columns": self.values, "activation": "silu", "norm": self.head_norm,
                                                         "records": records}, ("delta rule",), (), sites)

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i = self.layer
        return [
            join_stage("mixer norm", i, self.norm, pending, self._readers(), records, self.dim), self._project(),
            journal_stage(self, False), *self.scan(), self._gate("records" if records(self.output) else ""),
            linear_stage("mixer output", i, self.output, "z", "records", "addend"),
        ], (self.leaves,)

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        yield from open_norm_stages("mixer norm", i, self.norm, self._readers(), records, self.dim, Site(at + "hook_resid_pre", "x", self.dim),
                             Site(at + "ln1.hook_normalized", "normed", self.dim))
        yield self._project(Site(at + "mixer.hook_in", "mixer", self.columns[2]), Site(at + "mixer.hook_gate", "z", self.values))
        yield from self.scan(Site(at + "mixer.hook_qkv", "mixer", self.channels), Site(at + "mixer.hook_result", "mixed", self.values))
        yield self._gate("", Site(at + "mixer.hook_z", "z", self.values))
        if records(self.output):
            yield Stage("quantize", "quantize", i, {"rows": "z", "columns": self.values, "records": "records"}, ("delta rule",))
        yield linear_stage("mixer output", i, self.output, "z", "records", "addend", Site(at + "hook_mixer_out", "addend", self.dim))
        yield open_add_stage("mixer output", i, (self.leaves,), self.dim, Site(at + "hook_resid_mid", "x", self.dim))


def journal_stage(block: Conv | Delta | Mamba2, restore: bool) -> Stage:
    """Keep the rows in the mixer's buffer of tokens that may be taken back, or restore them."""
    return Stage("journal", "guesses", block.layer, {"block": block, "restore": restore})
