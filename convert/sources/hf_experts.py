"""Experts' tensors in Hugging Face's checkpoints, however they are stored, as GGUF's stacked ones.

    one a tensor     …mlp.experts.3.gate_proj.weight, …block_sparse_moe.experts.3.w1.weight         Qwen, OLMoE; Mixtral
    stacked          …mlp.experts.gate_up_proj [E, 2 w, dim], …input_linear.weight                  transformers 5 in memory; Granite
    turned           …mlp.experts.gate_up_proj [E, dim, 2 w], gate and up by turns, with biases     gpt-oss, in BF16
    MXFP4            …gate_up_proj_blocks [E, 2 w, dim / 32, 16], …_scales [E, 2 w, dim / 32]       gpt-oss as published: copied bit by bit

GGUF: blk.N.ffn_gate_exps.weight [E, w, dim], ffn_up_exps, ffn_down_exps [E, dim, w].
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ...engine.architectures.config import ModelConfig
from ...engine.architectures.expert_blocks import Experts
from ...engine.errors import FormatError
from ...engine.gguf.header import quote
from ...kernels.formats.table import FORMATS
from .base import DTYPES, Rows, SourceTensor, Stored

_PLACES = ("mlp.", "block_sparse_moe.", "feed_forward.", "mixer.", "")
_SINGLE = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}
MXFP4_BYTES = 16
"""Of a block's 32 codes."""


class Part(NamedTuple):
    """What a stored tensor is of a tensor of ours: all of it, or (expert >= 0) one expert's part."""

    tensor: str
    expert: int
    make: Callable[[Stored], Rows]


@dataclass(frozen=True)
class Stacked:
    """Experts' matrices, one after the other."""

    parts: tuple[Rows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    def read(self, index: np.ndarray) -> np.ndarray:
        which, within = np.divmod(index, self.parts[0].shape[0])
        values = np.empty((len(index), self.shape[-1]), np.float32)
        for e in np.unique(which):
            values[which == e] = self.parts[e].read(within[which == e])
        return values


@dataclass(frozen=True)
class Flat:
    """Matrices of one row each, one after the other, as rows of one."""

    base: Stacked

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape[0], self.base.shape[2]

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.base.read(index)


@dataclass(frozen=True)
class Picked:
    """Some rows of `base`, in an order, under a shape of their own."""

    base: Rows
    order: np.ndarray
    shape: tuple[int, ...]
    step: tuple[int, int] = (0, 1)
    """First of the columns that are taken, and how far apart they are."""

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def read(self, index: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.base.read(self.order[index])[:, self.step[0]::self.step[1]])


@dataclass(frozen=True)
class Mxfp4:
    """Blocks and scales of gpt-oss: byte i of a block holds columns 2 i (low) and 2 i + 1; GGUF's, columns i and 16 + i, after the scale."""

    blocks: Stored
    scales: Stored
    order: np.ndarray
    """Row of theirs for each of ours, all experts' rows counted through."""
    shape: tuple[int, ...]
    dtype: str = "MXFP4"

    def raw(self, first: int, last: int | None) -> np.ndarray:
        """uint8 [n, row bytes] of GGUF's rows [first, last)."""
        index = self.order[first:last]
        n_blocks, span = self.shape[-1] // 32, (int(index[0]), int(index[-1]) + 1)
        codes = self._bytes(self.blocks, span, n_blocks * MXFP4_BYTES)[index - span[0]].reshape(-1, n_blocks, MXFP4_BYTES)
        scales = self._bytes(self.scales, span, n_blocks)[index - span[0]]
        columns = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], 32)
        packed = np.concatenate([scales[:, :, None], columns[:, :, :16] | columns[:, :, 16:] << 4], axis=2)
        return np.ascontiguousarray(packed.reshape(len(index), -1))

    def _bytes(self, stored: Stored, span: tuple[int, int], row: int) -> np.ndarray:
        return np.frombuffer(stored.file.read(stored.offset + span[0] * row, (span[1] - span[0]) * row), np.uint8).reshape(-1, row)

    def read(self, index: np.ndarray) -> np.ndarray:
        from ...kernels.formats.registry import decode

        first = int(index.min())
        raw = self.raw(first, int(index.max()) + 1)
        return decode("MXFP4", raw[index - first])


def expert_parts(config: ModelConfig) -> dict[str, list[Part]]:
    """Hugging Face's name -> what it is of our tensors, for every way in which experts are stored."""
    found: dict[str, list[Part]] = {}
    for block in config.blocks():
        if isinstance(block, Experts):
            found |= _parts_of(block)
    return found


def _parts_of(b: Experts) -> dict[str, list[Part]]:
    layer, found = f"model.layers.{b.layer}.", dict[str, list[Part]]()
    ours = {"gate": b.gate, "up": b.up, "down": b.down}
    names = {part: m.tensor for part, m in ours.items() if m}
    turned = bool(b.up.bias)
    for place in _PLACES:
        at = f"{layer}{place}"
        for part, tensor in names.items():
            for e in range(b.experts):
                for name in _SINGLE[part]:
                    found[f"{at}experts.{e}.{name}.weight"] = [Part(tensor, e, _whole)]
        if not b.gate:
            found[at + "experts.up_proj"], found[at + "experts.down_proj"] = [Part(names["up"], -1, _whole)], [Part(names["down"], -1, _whole)]
            continue
        for both, down in (("experts.gate_up_proj", "experts.down_proj"), ("input_linear.weight", "output_linear.weight")):
            found[at + both] = [Part(names[part], -1, _turned_half(b, i) if turned else _half(b, i)) for i, part in enumerate(("gate", "up"))]
            found[at + down] = [Part(names["down"], -1, _turned(b) if turned else _whole)]
    if turned:
        at = f"{layer}mlp.experts."
        found[at + "gate_up_proj_bias"] = [Part(ours[part].bias, -1, _bias_half(b, i)) for i, part in enumerate(("gate", "up"))]  # type: ignore[union-attr]
        found[at + "down_proj_bias"] = [Part(b.down.bias, -1, _whole)]
    if (s := b.shared) and s.gate:
        def half(first: int) -> Callable[[Stored], Rows]:
            return lambda stored: Picked(of_shape(stored, (2 * s.width, b.dim)), np.arange(first, first + s.width), (s.width, b.dim))
        found[f"{layer}shared_mlp.input_linear.weight"] = [Part(s.gate.tensor, -1, half(0)), Part(s.up.tensor, -1, half(s.width))]
        found[f"{layer}shared_mlp.output_linear.weight"] = [Part(s.down.tensor, -1, _whole)]
        if b.shared_gate:
            found[f"{layer}mlp.shared_expert_gate.weight"] = [Part(b.shared_gate, -1, lambda stored: replace(of_shape(stored, (1, b.dim)), shape=(b.dim,)))]
    return found


def of_shape(stored: Stored, shape: tuple[int, ...]) -> Stored:
    if stored.shape != shape:
        raise FormatError(f"{stored.file.path}: tensor {quote(stored.name)} must have shape {list(shape)} by config.json, found {list(stored.shape)}")
    return stored


def _whole(stored: Stored) -> Rows:
    return stored


def _half(b: Experts, which: int) -> Callable[[Stored], Rows]:
    """Gate's or up's rows of each expert's 2 w."""
    order = (2 * b.width * np.arange(b.experts)[:, None] + which * b.width + np.arange(b.width)).reshape(-1)
    return lambda stored: Picked(of_shape(stored, (b.experts, 2 * b.width, b.dim)), order, (b.experts, b.width, b.dim))


def _column_wise(stored: Stored, experts: int, rows: int, columns: int, first: int, step: int) -> Rows:
    """[experts, columns, step * rows], of which ours takes every step-th column as a row."""
    size, whole = DTYPES[stored.dtype].itemsize if stored.dtype in DTYPES else 1, columns * step * rows
    return Stacked(tuple(replace(stored, shape=(rows, columns), offset=stored.offset + size * (e * whole + first), strides=(step, step * rows))
                         for e in range(experts)))


def _turned_half(b: Experts, which: int) -> Callable[[Stored], Rows]:
    return lambda stored: _column_wise(of_shape(stored, (b.experts, b.dim, 2 * b.width)), b.experts, b.width, b.dim, which, 2)


def _turned(b: Experts) -> Callable[[Stored], Rows]:
    return lambda stored: _column_wise(of_shape(stored, (b.experts, b.width, b.dim)), b.experts, b.dim, b.width, 0, 1)


def _bias_half(b: Experts, which: int) -> Callable[[Stored], Rows]:
    return lambda stored: Picked(of_shape(stored, (b.experts, 2 * b.width)), np.arange(b.experts), (b.experts, b.width), (which, 2))


def mxfp4(config: ModelConfig, tensors: Mapping[str, Stored]) -> tuple[dict[str, Rows], set[str]]:
    """({our name: rows}, names that they are made of) of gpt-oss's blocks and scales."""
    found: dict[str, Rows] = {}
    used: set[str] = set()
    for b in config.blocks():
        if not isinstance(b, Experts):
            continue
        at = f"model.layers.{b.layer}.mlp.experts."
        both, one_by_one = ((b.gate, 0, 2), (b.up, 1, 2)), ((b.down, 0, 1),)
        for name, rows, columns, parts in (("gate_up_proj", 2 * b.width, b.dim, both), ("down_proj", b.dim, b.width, one_by_one)):
            blocks, scales = tensors.get(f"{at}{name}_blocks"), tensors.get(f"{at}{name}_scales")
            if blocks is None or scales is None:
                if one := blocks or scales:
                    other = "_scales" if blocks else "_blocks"
                    raise FormatError(f"{one.file.path}: tensor {quote(one.name)} is there, but {quote(at + name + other)} is missing: "
                                      "get the checkpoint again")
                continue
            for stored, shape in ((blocks, (b.experts, rows, columns // 32, MXFP4_BYTES)), (scales, (b.experts, rows, columns // 32))):
                of_shape(stored, shape)
                if stored.dtype != "U8" or columns % 32:
                    raise FormatError(f"{stored.file.path}: tensor {quote(stored.name)} must be U8 with rows of whole blocks of 32, found {stored.dtype}")
            used |= {blocks.name, scales.name}
            for matrix, first, step in parts:
                if matrix:
                    order = np.arange(first, b.experts * rows, step)
                    found[matrix.tensor] = Mxfp4(blocks, scales, order, (b.experts, len(order) // b.experts, columns))
    return found, used


def stack(parts: Mapping[str, Mapping[int, Rows]], config: ModelConfig) -> dict[str, Rows]:
    """Tensors of which every expert's part was found; the others are missing, which `assemble` says."""
    experts = {m.tensor: m.experts for m in config.matrices() if m.experts}
    rows = {norm.tensor: norm.heads for a in config.attentions() for norm in (a.q_norm, a.k_norm) if norm}
    whole = {name: Stacked(tuple(held[e] for e in range(n))) for name, held in parts.items() if len(held) == (n := (experts | rows)[name])}
    return {name: Flat(stacked) if name in rows else stacked for name, stacked in whole.items()}


def copies(tensor: SourceTensor, rows: Rows) -> SourceTensor:
    """The tensor, whose rows are copied as they are where they are blocks of GGUF's already."""
    return replace(tensor, copy=rows.raw) if isinstance(rows, Mxfp4) and tensor.dtype in FORMATS else tensor
