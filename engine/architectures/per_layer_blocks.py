"""Per-layer embeddings (Gemma 3n and 4): every layer adds to the stream something that depends on the token alone and on where the pass began.

    layer 0 ─► PerLayerInputs: (norm(projection(x) / sqrt(dim)) + table[token] * sqrt(width)) / sqrt(2), `width` numbers for each layer
    each layer, after its feed-forward block ─► PerLayer: x += post_norm(projection(act(gate(x)) * its numbers)), and the stream times its scale

The table is the largest tensor of such models, and a token reads one row of it: it stays in the file (engine/run/row_table.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .blocks import Pending, join_stage, linear_stage, matrix_tensors, norm_tensors, open_add_stage, open_norm_stages, scale_tensor
from .spec import Addend, Matrix, Norm, Records, Site, Stage, Tensor


def padded(width: int) -> int:
    """Columns of a layer's part of the buffer "per_layer"."""
    return -(-width // 32) * 32


@dataclass(frozen=True)
class PerLayerInputs:
    """What all layers' `PerLayer` blocks read, `width` numbers each; the runtime has put the token's row of `table` [n_vocab, layers * width]
    into its place."""

    layer: int
    dim: int
    width: int
    layers: int
    n_vocab: int
    projection: Matrix
    norm: Norm
    table: str = "per_layer_token_embd.weight"
    parallel: bool = False

    def norms(self) -> tuple[Norm, ...]:
        return (self.norm,)

    def matrices(self) -> tuple[Matrix, ...]:
        return (self.projection,)

    def vectors(self) -> Iterator[tuple[str, int]]:
        yield from ()

    def tensors(self) -> Iterator[Tensor]:
        yield Tensor(self.table, (self.n_vocab, self.layers * self.width), "model.embed_tokens_per_layer.weight", on_disk=True)
        yield from matrix_tensors(self.projection)
        yield from norm_tensors(self.norm)

    def buffers(self) -> dict[str, int]:
        """Columns of each buffer of float32 rows that a token needs."""
        return {"per_layer_mix": self.layers * self.width, "per_layer": self.layers * padded(self.width)}

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        embedded = Site("blocks.0.hook_embed", "x", self.dim)
        project = linear_stage("per-layer projection", 0, self.projection, "x", "records", "per_layer_mix")
        if records(self.projection):
            yield Stage("quantize", "quantize", 0, {"rows": "x", "columns": self.dim, "records": "records"}, ("token embeddings",), (embedded,))
            yield project
        else:
            yield replace(project, before=(embedded,))
        yield Stage("per_layer_mix", "per-layer inputs", 0, {"block": self}, ("per-layer inputs",), (),
                    (Site("blocks.0.hook_per_layer_inputs", "per_layer", self.layers * padded(self.width)),))

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        return list(self.open(records)), pending


@dataclass(frozen=True)
class PerLayer:
    """What a layer makes of its part of the per-layer inputs. activation: of kernels/gates.py. stream_scale: Addend's."""

    layer: int
    dim: int
    width: int
    activation: str
    gate: Matrix
    projection: Matrix
    post_norm: Norm
    stream_scale: str = ""
    parallel: bool = False

    @property
    def leaves(self) -> Addend:
        return Addend("addend", self.post_norm, 1.0, self.stream_scale)

    def norms(self) -> tuple[Norm, ...]:
        return (self.post_norm,)

    def matrices(self) -> tuple[Matrix, ...]:
        return self.gate, self.projection

    def vectors(self) -> Iterator[tuple[str, int]]:
        if self.stream_scale:
            yield self.stream_scale, 1

    def tensors(self) -> Iterator[Tensor]:
        yield from matrix_tensors(*self.matrices())
        yield from norm_tensors(self.post_norm)
        yield from scale_tensor(self.stream_scale, self.layer)

    def buffers(self) -> dict[str, int]:
        """Columns of each buffer of float32 rows that a token needs."""
        return {"gate": self.width}

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i = self.layer
        return [
            join_stage("per-layer input", i, None, pending, (self.gate,), records, self.dim),
            Stage("per_layer_gate", "per-layer gate", i, {"block": self, "activation": self.activation, "records": records(self.projection)},
                  ("per-layer activation",)),
            linear_stage("per-layer projection", i, self.projection, "gate", "down_records", "addend"),
        ], (self.leaves,)

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        yield from open_norm_stages("per-layer input", i, None, (self.gate,), records, self.dim, Site(at + "hook_per_layer_in", "x", self.dim),
                                    Site(at + "per_layer.hook_in", "normed", self.dim))
        yield linear_stage("per-layer gate", i, self.gate, "normed", "records", "gate", Site(at + "per_layer.hook_pre", "gate", self.width))
        yield Stage("per_layer_activate", "per-layer activation", i, {"block": self, "activation": self.activation, "records": False}, (), (),
                    (Site(at + "per_layer.hook_post", "gate", self.width),))
        if records(self.projection):
            yield Stage("quantize", "quantize", i, {"rows": "gate", "columns": self.width, "records": "down_records"}, ("per-layer activation",))
        yield linear_stage("per-layer projection", i, self.projection, "gate", "down_records", "addend", Site(at + "hook_per_layer_out", "addend", self.dim))
        yield open_add_stage("per-layer projection", i, (self.leaves,), self.dim, Site(at + "hook_resid_post", "x", self.dim))
