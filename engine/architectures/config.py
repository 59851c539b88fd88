"""A model's configuration, read by the page of its architecture, and the tensors that it implies, checked by name.

    open_gguf(path) -> ModelConfig.from_gguf(gguf): pages.PAGES[architecture] -> layers of blocks -> check_tensors(gguf, config) -> the weights may be loaded

What llamina does not compute (other architectures, keys or tensors that a page does not know) is refused by name, never ignored.
"""
from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.formats.table import FORMATS, RUNNABLE
from ..errors import FormatError, UnsupportedError
from ..gguf.file import GGUFFile
from ..gguf.header import quote
from .blocks import Attention, Block, Mlp, Output, Pending, matrix_tensors, norm_tensors, open_layer
from .builder import Builder
from .expert_blocks import Experts
from .keys import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, File, Written
from .mamba_blocks import Mamba2
from .page import Page
from .pages import PAGES
from .per_layer_blocks import PerLayerInputs
from .pooling import Pooling, read_pooling
from .spec import Added, Matrix, Norm, Records, Rope, RopeScaling, Site, Stage, Tensor
from .state_blocks import Conv, Delta

__all__ = ["MAX_CONTEXT", "MAX_HEADS", "MAX_LAYERS", "MAX_WIDTH", "ModelConfig", "RopeScaling", "check_tensors", "llama_config", "read_vector",
           "written_config"]

_VECTOR_FORMATS = ("F32", "F16", "BF16")
_BLOCK_TENSOR = re.compile(r"blk\.(\d{1,5})\.(.+)")
_IGNORED = {"rope.freqs", "attn_rot_embd", "attn_rot_embd.weight"}
"""Inverse RoPE frequencies that old converters copied from checkpoints; nobody reads them."""


@dataclass(frozen=True)
class ModelConfig:
    """A model as its page describes it: sizes, and the blocks of each layer."""

    architecture: str
    name: str  # general.name, "" if there is none
    dim: int  # width of the residual stream
    n_vocab: int  # rows of token_embd.weight
    context_length: int  # positions, as trained
    layers: tuple[tuple[Block, ...], ...]
    output: Output
    embedding_scale: float = 1.0
    float32_kv: bool = False  # every matrix is F32: keys and values are kept in float32 as well, so that the file's precision is not lost there
    skipped_layers: int = 0  # blocks at the file's end that predict further tokens, and are left out
    added: tuple[Added, ...] = ()
    pooling: Pooling = Pooling()

    @staticmethod
    def from_gguf(gguf: GGUFFile) -> ModelConfig:
        """UnsupportedError: another architecture, a feature that llamina lacks, or a file without weights. FormatError: a key is missing,
        of the wrong type or out of range, or keys contradict each other or the file's vocabulary."""
        page = _page_of(gguf)
        n_vocab = _n_vocab(gguf, page.architecture)
        return _read(page, gguf, gguf.tensors, n_vocab, all(t.format.name == "F32" for t in gguf.tensors.values() if len(t.shape) >= 2))

    # -- what others ask of it ------------------------------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def tied_output(self) -> bool:
        """No output.weight: token_embd.weight is used."""
        return self.output.matrix is not None and self.output.matrix.tensor == "token_embd.weight"

    @property
    def causal(self) -> bool:
        """Whether tokens see only those before them. Encoders' see all of their text, and nothing can be generated."""
        return not any(a.ahead for a in self.attentions())

    @property
    def positions(self) -> int | None:
        """Most positions that a text can have at all: rows of a table of positions; None if nothing limits them."""
        return next((added.tensor.shape[0] for added in self.added if added.by_position), None)

    def kept(self) -> Iterator[Tensor]:
        """Tensors that stay in memory as float32 rows, and go through no kernel: what joins the embedding, and a head."""
        for added in self.added:
            yield added.tensor
        yield from self.pooling.tensors()

    def blocks(self) -> Iterator[Block]:
        for layer in self.layers:
            yield from layer

    def attentions(self) -> Iterator[Attention]:
        for block in self.blocks():
            if isinstance(block, Attention):
                yield block

    def recurrents(self) -> Iterator[Conv | Delta | Mamba2]:
        """Blocks that keep a state."""
        for block in self.blocks():
            if isinstance(block, (Conv, Delta, Mamba2)):
                yield block

    def tensors(self) -> Iterator[Tensor]:
        """Each tensor that the model must have, in order of use."""
        yield Tensor("token_embd.weight", (self.n_vocab, self.dim), "model.embed_tokens.weight")
        for block in self.blocks():
            yield from block.tensors()
        yield from norm_tensors(self.output.norm)
        if self.output.matrix and not self.tied_output:
            yield from matrix_tensors(self.output.matrix)
        yield from self.kept()
        for rope in dict.fromkeys(a.rope for a in self.attentions() if a.rope):
            for name in rope.factors, rope.short:
                if name:
                    yield Tensor(name, (rope.dims // 2,))

    @property
    def per_layer(self) -> PerLayerInputs | None:
        """The per-layer embeddings, whose table stays in the file."""
        return next((block for block in self.layers[0] if isinstance(block, PerLayerInputs)), None)

    def tensor_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        return ((t.name, t.shape) for t in self.tensors())

    def matrices(self) -> list[Matrix]:
        """Matrices that activations are multiplied with, in order of use, each once."""
        found = {m.key: m for block in self.blocks() for m in block.matrices()}
        return [*found.values(), *([self.output.matrix] if self.output.matrix else [])]

    def norms(self) -> list[Norm]:
        return [n for block in self.blocks() for n in block.norms()] + [self.output.norm]

    def vectors(self) -> Iterator[tuple[str, int]]:
        """(tensor, numbers) of norms' gains and biases, of attention's sinks, and of what recurrent layers have for each head."""
        for norm in self.norms():
            yield norm.tensor, norm.numbers
            if norm.bias:
                yield norm.bias, norm.dim
        for a in self.attentions():
            if a.sinks:
                yield a.sinks, a.heads
        for r in self.recurrents():
            yield from r.vectors()
        for block in self.blocks():
            if not isinstance(block, Attention):
                yield from block.vectors()

    # -- stages ---------------------------------------------------------------------------------------------------------------------------

    def fused(self, records: Records) -> tuple[list[list[Stage]], list[Stage]]:
        """(stages of each layer, stages of the end), as they run unobserved."""
        layers, pending = [], Pending()
        for blocks in self.layers:
            stages: list[Stage] = []
            for block in blocks:
                more, pending = block.fused(pending, records)
                stages += more
            layers.append(stages)
        return layers, self.output.stages(pending, records)

    def keeping(self, records: Records) -> list[list[Stage]]:
        """Stages of each layer that leave the rows at most sites where somebody wants to have them; none where a block has no such form."""
        layers, pending = [], Pending()
        for blocks in self.layers:
            stages: list[Stage] = []
            can = all(isinstance(block, (Attention, Mlp)) and block.keeps for block in blocks)
            for block in blocks:
                if can and isinstance(block, (Attention, Mlp)):
                    stages += block.keeping(pending, records)
                pending = block.fused(pending, records)[1]
            layers.append(stages)
        return layers

    def open(self, layer: int, records: Records) -> list[Stage]:
        """The stages of one layer with every site in a buffer."""
        return open_layer(self.layers[layer], records)

    def sites(self) -> dict[str, tuple[int | None, Site]]:
        """Name -> (layer, or None at the end; site), in order of the pass."""
        found: dict[str, tuple[int | None, Site]] = {}
        for i in range(self.n_layers):
            for stage in self.open(i, lambda m: True):
                found.update((site.name, (i, site)) for site in (*stage.before, *stage.after))
        for stage in self.output.stages((), lambda m: True):
            found.update((site.name, (None, site)) for site in stage.after)
        return found

    # -- sizes of the first layer, all that a uniform model has ------------------------------------------------------------------------------

    @property
    def _attention(self) -> Attention:
        return next(self.attentions())

    @property
    def n_heads(self) -> int:
        return self._attention.heads

    @property
    def n_kv_heads(self) -> int:
        return self._attention.kv_heads

    @property
    def head_dim(self) -> int:
        return self._attention.head_dim

    @property
    def ffn_dim(self) -> int:
        return next(block.width for block in self.blocks() if isinstance(block, (Mlp, Experts)))

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def rms_eps(self) -> float:
        return self.output.norm.eps

    @property
    def rope(self) -> Rope:
        """Rotary positions of the first layer that has some."""
        return next((a.rope for a in self.attentions() if a.rope), Rope("pairs", 0, 10000.0))

    @property
    def rope_dim(self) -> int:
        return self.rope.dims

    @property
    def rope_base(self) -> float:
        return self.rope.base

    @property
    def rope_scaling(self) -> RopeScaling:
        return self.rope.scaling

    @property
    def rope_freq_factors(self) -> bool:
        """rope_freqs.weight [rope_dim / 2] is there."""
        return bool(self.rope.factors)

    def summary(self) -> dict[str, Any]:
        """What people want to see of it, as JSON-able values."""
        names = ("architecture", "name", "n_layers", "dim", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "n_vocab", "context_length", "rms_eps", "rope_dim",
                 "rope_base", "rope_scaling", "rope_freq_factors", "tied_output", "float32_kv")
        found = {name: getattr(self, name) for name in names}
        if experts := next((b for b in self.blocks() if isinstance(b, Experts)), None):
            found |= {"n_experts": experts.experts, "n_experts_used": experts.used}
        return {**found, "rope_scaling": dict(vars(self.rope_scaling))}


def _page_of(gguf: GGUFFile) -> Page:
    """Refuse what is not a model of an architecture with a page."""
    def refuse(message: str) -> UnsupportedError:
        return UnsupportedError(f"{gguf.path}: {message}")
    kind = gguf.get("general.type", str, "model")
    if kind != "model":
        raise refuse(f"holds a {quote(kind)} (general.type), not a model: expected a whole model's .gguf")
    architecture = gguf.get("general.architecture", str)
    if architecture not in PAGES:
        import difflib
        near = difflib.get_close_matches(str(architecture), PAGES, 4, 0.6)
        raise refuse(f"is of architecture {quote(architecture)}; llamina runs {len(PAGES)} others (docs/models.md lists them)"
                     + (f", by names like it {', '.join(near)}" if near else ""))
    if not gguf.tensors:
        raise refuse("holds only a vocabulary (no tensors): it can be used to tokenise, but not to generate")
    return PAGES[architecture]


def _n_vocab(gguf: GGUFFile, architecture: str) -> int:
    if "token_embd.weight" not in gguf.tensors:
        raise FormatError(f"{gguf.path}: tensor 'token_embd.weight' is missing: the file is not a whole model")
    rows = gguf.tensors["token_embd.weight"].rows
    tokens = gguf.metadata.array_length("tokenizer.ggml.tokens")
    if tokens is not None and tokens != rows:
        raise FormatError(f"{gguf.path}: tensor 'token_embd.weight' has {rows} rows, but key 'tokenizer.ggml.tokens' {tokens} tokens: they must be as many")
    if tokens is None and (size := gguf.get(f"{architecture}.vocab_size", int, rows)) != rows:
        raise FormatError(f"{gguf.path}: tensor 'token_embd.weight' has {rows} rows, but key '{architecture}.vocab_size' is {size}: they must be equal")
    return rows


def _read(page: Page, file: File, tensors: Collection[str], n_vocab: int, float32: bool, whole: bool = True) -> ModelConfig:
    k = Builder(page.architecture, file, tensors, n_vocab, whole)
    if page.predictors:
        k.skip_predictors()
    layers, output = k.layers(lambda i: page.layer(k, i)), page.output(k)
    for kind, what in (Attention, "that attends"), ((Mlp, Experts), "with a feed-forward block"):
        if not any(isinstance(block, kind) for blocks in layers for block in blocks):
            k.refuse(f"has no layer {what}, of which llamina needs one")
    config = ModelConfig(page.architecture, file.get("general.name", str, ""), k.dim, n_vocab, k.context_length, layers, output, page.embedding_scale(k),
                         float32, k.skipped_layers, page.added(k), read_pooling(k, output.matrix is not None))
    k.done()
    return config


def llama_config(
    *, name: str, n_layers: int, dim: int, n_heads: int, n_kv_heads: int, head_dim: int, ffn_dim: int, n_vocab: int, context_length: int, rms_eps: float,
    rope_dim: int, rope_base: float, rope_scaling: RopeScaling, rope_freq_factors: bool, tied_output: bool, float32_kv: bool = False,
    path: Path = Path(), biases: Collection[str] = (),
) -> ModelConfig:
    """The configuration of a Llama checkpoint of another kind, by its numbers. biases: names of the bias tensors it holds."""
    s = rope_scaling
    keys = {
        "block_count": n_layers, "embedding_length": dim, "context_length": context_length, "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads, "attention.key_length": head_dim, "attention.value_length": head_dim, "feed_forward_length": ffn_dim,
        "attention.layer_norm_rms_epsilon": rms_eps, "rope.dimension_count": rope_dim, "rope.freq_base": rope_base, "rope.scaling.type": s.kind,
        "rope.scaling.factor": s.factor, "rope.scaling.original_context_length": s.original_context, "rope.scaling.attn_factor": s.attn_factor,
        "rope.scaling.yarn_beta_fast": s.beta_fast, "rope.scaling.yarn_beta_slow": s.beta_slow,
    }
    tensors = {*biases, *([] if tied_output else ["output.weight"]), *(["rope_freqs.weight"] if rope_freq_factors else [])}
    return written_config("llama", {"general.name": name, **{f"llama.{key}": value for key, value in keys.items()}}, tensors, n_vocab, path, float32_kv)


def written_config(architecture: str, metadata: Mapping[str, Any], tensors: Collection[str], n_vocab: int, path: Path = Path(),
                   float32_kv: bool = False) -> ModelConfig:
    """The configuration of a model that is yet to be written, by the metadata that its file will have and the names of its tensors, of which only those that a
    page asks for (biases, output.weight, rope_freqs.weight …) need be there. Errors as of from_gguf, under the name `path`."""
    return _read(PAGES[architecture], Written(path, metadata), tensors, n_vocab, float32_kv, whole=False)


def check_tensors(gguf: GGUFFile, config: ModelConfig) -> None:
    """Check that the file holds each tensor of `config` in its right shape and in a format that runs, and nothing else.

    FormatError: missing or of another shape, or RoPE factors not positive. UnsupportedError: a format without a kernel, or a tensor that is
    not known."""
    expected = {t.name: t for t in config.tensors()}
    for name in gguf.tensors:
        if name not in expected:
            _check_extra(gguf, config, name)
    for name, tensor in expected.items():
        shape = tensor.shape
        if name not in gguf.tensors:
            raise FormatError(f"{gguf.path}: tensor '{name}' {list(shape)} is missing: the file is not a whole model of architecture {config.architecture}")
        info = gguf.tensors[name]
        if info.shape != shape:
            raise FormatError(f"{info.path}: tensor '{name}' must have shape {list(shape)}, found {list(info.shape)}")
        runs = RUNNABLE if len(shape) >= 2 and not tensor.plain else _VECTOR_FORMATS
        if info.format.name not in runs:
            usable = ", ".join(f for f in FORMATS if f in runs)
            raise UnsupportedError(f"{info.path}: tensor '{name}' is {info.format.name}, expected one of {usable}: convert the model")
    for name in {name for a in config.attentions() if a.rope for name in (a.rope.factors, a.rope.short) if name}:
        factors = read_vector(gguf, name)
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise FormatError(f"{gguf.tensors[name].path}: tensor '{name}' must be positive and finite throughout, found {quote(factors.tolist())}")


def _check_extra(gguf: GGUFFile, config: ModelConfig, name: str) -> None:
    """Refuse a tensor that no model of this configuration has, unless it is known to be without effect."""
    path = gguf.tensors[name].path
    match = _BLOCK_TENSOR.fullmatch(name)
    layer, part = (int(match[1]), match[2]) if match else (0, name)
    if part in _IGNORED:
        return
    if part == "rope_freqs.weight" and config.rope_freq_factors and _same(gguf, name, "rope_freqs.weight"):
        return  # a copy for each layer
    if config.n_layers <= layer < config.n_layers + config.skipped_layers:
        return  # a head that predicts further tokens
    if layer >= config.n_layers:
        raise FormatError(f"{path}: tensor {quote(name)} is of layer {layer}, but key '{config.architecture}.block_count' is only {config.n_layers}")
    if part.endswith(".bias"):
        raise UnsupportedError(f"{path}: tensor {quote(name)}: llamina knows no such bias in models of architecture {config.architecture}")
    if "_exp" in part or "ffn_gate_inp" in part:
        raise UnsupportedError(f"{path}: tensor {quote(name)}: llamina does not run such experts in models of architecture {config.architecture}")
    raise UnsupportedError(f"{path}: tensor {quote(name)} is unknown, and leaving it out would make another model of it")


def _same(gguf: GGUFFile, a: str, b: str) -> bool:
    return gguf.tensors[a].n_bytes == gguf.tensors[b].n_bytes and np.array_equal(gguf.data(a), gguf.data(b))


def read_vector(gguf: GGUFFile, name: str) -> np.ndarray:
    """A one-dimensional tensor (norm weights, biases, RoPE factors) in F32, F16 or BF16, as float32 [n]; exact."""
    raw, format = gguf.data(name)[0], gguf.tensors[name].format.name
    if format == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f4" if format == "F32" else "<f2").astype(np.float32)
