"""The blocks that most pages are made of, with GGUF's and Hugging Face's usual names filled in: what a page's `layer(k, i)` and `output(k)` call.

    k.norm(i, "attn_norm", "input_layernorm")                          a norm of the residual stream
    k.rope("halves", base="rope.freq_base_swa", scaled=False)          rotary positions
    k.attention(i, norm=…, rope=…, window=…)                           any field of blocks.Attention; heads, widths and optional tensors from the file
    k.glu(i, "silu", norm=…),  k.mlp(i, "gelu_erf", norm=…)            feed-forward blocks
    k.experts(i, "silu", norm=…, normalise=True)                       a mixture of experts
    k.windows(6)                                                       the sliding window of each layer, 0: none
    k.output(k.norm(None, "output_norm", "norm"), factor=…)            the end
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..gguf.header import quote
from .blocks import ALL_AHEAD, Attention, Block, Mlp, Output
from .expert_blocks import Experts
from .keys import MAX_CONTEXT, MAX_EXPERTS, MAX_HEADS, MAX_WIDTH, File, Keys
from .spec import Matrix, Norm, Rope, RopeScaling

GATING_NUMBERS = {1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen"}
"""llama.cpp's numbers of ways to choose experts."""
RMS_EPS, LAYER_EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


def _read(norm: Norm | None, options: dict[str, Any]) -> str:
    """The site of what a feed-forward block reads: beside attention, and without a norm of its own, attention's normed rows."""
    return "ln1.hook_normalized" if norm is None and options.get("parallel") else "ln2.hook_normalized"


class Builder(Keys):
    """`Keys` that make blocks. A bias is taken if the file holds one; a page lists those that must be there (`biases`)."""

    def __init__(self, architecture: str, file: File, tensors: Collection[str], n_vocab: int, whole: bool = True):
        super().__init__(architecture, file, tensors, n_vocab, whole)
        self._ropes: dict[Any, Rope] = {}
        self._head_dims: dict[int, int] = {}
        self._eps: dict[str, float] = {}

    # -- norms and matrices ---------------------------------------------------------------------------------------------------------------

    def norm(self, layer: int | None, name: str, hf: str, *, dim: int = 0, kind: str = "rms") -> Norm:
        """blk.{layer}.{name}.weight [dim, by default the stream's], in Hugging Face's checkpoint model.layers.{layer}.{hf}.weight; layer None: of the
        whole model. kind "layer": LayerNorm, with a bias if there is one."""
        eps = RMS_EPS if kind == "rms" else LAYER_EPS
        if eps not in self._eps:
            self._eps[eps] = self.positive(eps)
        here, theirs = ("", "model.") if layer is None else (f"blk.{layer}.", f"model.layers.{layer}.")
        bias = f"{here}{name}.bias" if kind == "layer" and self.has(f"{here}{name}.bias") else ""
        return Norm(f"{here}{name}.weight", dim or self.dim, self._eps[eps], kind, bias, f"{theirs}{hf}.weight")

    def matrix(self, layer: int, name: str, rows: int, columns: int, site: str, hf: str, *, first: int = 0, whole: int = 0, bias: bool = False) -> Matrix:
        """blk.{layer}.{name}.weight, or rows [first, first + rows) of its `whole`; bias: it must have one, else it has one if the file does."""
        held = f"blk.{layer}.{name}.bias"
        return Matrix(f"blk.{layer}.{name}.weight", rows, columns, f"blocks.{layer}.{site}", held if bias or self.has(held) else "", first, whole,
                      f"model.layers.{layer}.{hf}.weight")

    def model_matrix(self, name: str, rows: int, columns: int, site: str, hf: str) -> Matrix:
        """{name}.weight of the whole model."""
        return Matrix(f"{name}.weight", rows, columns, site, hf=f"model.{hf}.weight")

    # -- attention --------------------------------------------------------------------------------------------------------------------------

    def head_dim(self, heads: int) -> int:
        """attention.key_length, else the width divided by the heads; rotary positions need it even, and values as wide."""
        if heads not in self._head_dims:
            self._head_dims[heads] = self._head_dim(heads)
        return self._head_dims[heads]

    def _head_dim(self, heads: int) -> int:
        if not self.given("attention.key_length") and self.dim % heads:
            self.fail(f"key '{self.name('embedding_length')}' is {self.dim}, which is not a multiple of '{self.name('attention.head_count')}', {heads}")
        head_dim = self.integer("attention.key_length", MAX_WIDTH, self.dim // heads)
        if head_dim % 2:
            self.fail(f"heads have {head_dim} dimensions, expected an even number: rotary positions turn pairs")
        if (found := self.integer("attention.value_length", MAX_WIDTH, head_dim)) != head_dim:
            self.refuse(f"key '{self.name('attention.value_length')}' is {found}, but llamina needs it to equal the head size, {head_dim}")
        return head_dim

    @property
    def n_heads(self) -> int:
        """Of the first layer."""
        return self.per_layer("attention.head_count", MAX_HEADS)[0]

    @property
    def head_size(self) -> int:
        """Of the first layer."""
        return self.head_dim(self.n_heads)

    def attention(self, layer: int, *, norm: Norm | None, rope: Rope | None, biases: Collection[str] = (), **options: Any) -> Attention:
        """An attention block under the usual names; fused q, k and v (attn_qkv) if the file has them so. biases: which of q, k, v, o (qkv) must have one.
        gated: attn_q holds the rows of the output gate, too. options: fields of Attention; scale is 1 / sqrt(head_dim) by default; head_dim: of this layer;
        values_are_keys: there is no attn_v. A layer with another's kv_layer has neither."""
        heads = self.per_layer("attention.head_count", MAX_HEADS)
        kv = self.per_layer("attention.head_count_kv", MAX_HEADS, heads)
        n, n_kv = heads[layer], kv[layer]
        if n % n_kv:
            self.fail(f"key '{self.name('attention.head_count')}' is {n}, no multiple of '{self.name('attention.head_count_kv')}', {n_kv}")
        size, kv_layer = options.pop("head_dim", 0) or self.head_dim(heads[0]), options.setdefault("kv_layer", layer)
        if rope and rope.dims > size:
            self.fail(f"key '{self.name('rope.dimension_count')}' is {rope.dims}, more than heads have dimensions, {size}")
        site, prefix = "ln1.hook_normalized", "self_attn."
        rows, k_rows = n * size, n_kv * size
        if self.has(f"blk.{layer}.attn_qkv.weight"):
            whole, must = rows + 2 * k_rows, "qkv" in biases
            q, k, v = (self.matrix(layer, "attn_qkv", r, self.dim, site, prefix + "qkv_proj", first=first, whole=whole, bias=must)
                       for r, first in ((rows, 0), (k_rows, rows), (k_rows, rows + k_rows)))
        else:
            q, k, v = (self.matrix(layer, f"attn_{name}", r, self.dim, site, f"{prefix}{name}_proj", bias=name in biases)
                       for name, r in (("q", rows), ("k", k_rows), ("v", k_rows)))
            if options.pop("gated", False):
                q, options["gate"] = self._halves_of_heads(q, n, size)
        if options.pop("values_are_keys", False):
            v = k
        own = kv_layer == layer
        output = self.matrix(layer, "attn_output", self.dim, rows, "attn.hook_z", prefix + "o_proj", bias="o" in biases)
        options.setdefault("scale", float(np.float32(1.0) / np.sqrt(np.float32(size))))
        if options.get("qk_norm") == "layer":
            options["q_norm"], options["k_norm"] = (replace(self.norm(layer, f"attn_{x}_norm", f"{prefix}{x}_norm", dim=size, kind="layer"), heads=h)
                                                    for x, h in (("q", n), ("k", n_kv)))
        elif options.get("qk_norm"):
            dims = (size, size) if options["qk_norm"] == "head" else (rows, k_rows)
            options.setdefault("q_norm", self.norm(layer, "attn_q_norm", prefix + "q_norm", dim=dims[0]))
            options.setdefault("k_norm", self.norm(layer, "attn_k_norm", prefix + "k_norm", dim=dims[1]) if own else None)
        return Attention(layer, self.dim, n, n_kv, size, size, norm=norm, q=q, k=k if own else None, v=v if own else None, output=output, rope=rope, **options)

    def _halves_of_heads(self, matrix: Matrix, heads: int, size: int) -> tuple[Matrix, Matrix]:
        """Two matrices of one tensor, whose rows are a head's of the first, the same head's of the second, and so on."""
        if size % 16:
            self.refuse(f"has heads of {size} dimensions with gates between them, llamina needs a multiple of 16")
        if matrix.bias:
            self.refuse(f"tensor '{matrix.bias}': llamina knows no such bias in models of architecture {self.architecture}")
        first, second = (replace(matrix, first=at, whole=2 * heads * size, period=2 * size, block=size) for at in (0, size))
        return first, second

    def windows(self, pattern: int, *, default: int = 0, dense_first: bool = False) -> list[int]:
        """The sliding window of each layer, 0 where it sees everything. attention.sliding_window_pattern, an array or a number n (default: `pattern`),
        says which: all but the last of each n (dense_first: the first) are windowed; 0: none, 1: all. default: the window where the file gives none."""
        window = self.integer("attention.sliding_window", 1 << 40, default, least=0)
        if self.file.metadata.array_length(self.name("attention.sliding_window_pattern")) is not None:
            return [window if windowed else 0 for windowed in self.per_layer("attention.sliding_window_pattern", 1, least=0)]
        n = self.integer("attention.sliding_window_pattern", 1 << 20, pattern, least=0)
        if n <= 1:
            return [window if n else 0] * self.n_layers
        return [window if (i % n != 0 if dense_first else i % n < n - 1) else 0 for i in range(self.n_layers)]

    def encoder(self) -> None:
        """Every token sees all others: attention.causal is false, or not said."""
        if self.file.get(self.name("attention.causal"), bool, False):
            self.refuse(f"key '{self.name('attention.causal')}' is true, but models of architecture {self.architecture} see whole texts")

    def symmetric_windows(self, pattern: int, *, dense_first: bool = False) -> list[dict[str, Any]]:
        """Of each layer of an encoder, `window` and `ahead` of Attention: attention.sliding_window n means n // 2 positions to either side."""
        half = [window // 2 for window in self.windows(pattern, dense_first=dense_first)]
        return [{"window": n + 1, "ahead": n} if n else {"ahead": ALL_AHEAD} for n in half]

    # -- positions --------------------------------------------------------------------------------------------------------------------------

    def rope(self, kind: str, *, base: str = "rope.freq_base", default_base: float = 10000.0, partial: bool = False, scaled: bool = True,
             rounded: bool = True, dims: str = "rope.dimension_count", head_dim: int = 0) -> Rope:
        """Rotary positions in "pairs" or "halves", with the file's base, scaling and frequency factors. base: its key. partial: rope.dimension_count may be
        less than the head size. scaled: False leaves scaling and factors out (windowed layers of some). rounded: RopeScaling's. dims: the key of how many
        dimensions are turned; head_dim: by default the first layer's."""
        at = kind, base, scaled
        if at not in self._ropes:
            rope = self._rope(kind, base, default_base, partial, scaled, dims, head_dim or self.head_size)
            self._ropes[at] = replace(rope, scaling=replace(rope.scaling, rounded=rounded))
        return self._ropes[at]

    def _rope(self, kind: str, base_key: str, default_base: float, partial: bool, scaled: bool, dims_key: str, head_dim: int) -> Rope:
        dims = self.integer(dims_key, MAX_WIDTH, head_dim)
        if dims != head_dim and not partial:
            self.refuse(f"key '{self.name(dims_key)}' is {dims}, but llamina needs it to equal the head size, {head_dim}")
        if dims % 2:
            self.fail(f"key '{self.name(dims_key)}' is {dims}, expected an even number: rotary positions turn pairs")
        base = self.positive(base_key, default_base)
        if base <= 1:
            self.fail(f"key '{self.name(base_key)}' must be greater than 1, found {base}")
        scaling = self._scaling() if scaled else RopeScaling()
        if scaling.kind == "longrope":
            return Rope(kind, dims, base, scaling, "rope_factors_long.weight", "rope_factors_short.weight")
        return Rope(kind, dims, base, scaling, "rope_freqs.weight" if scaled and self.has("rope_freqs.weight") else "")

    def _scaling(self) -> RopeScaling:
        long = self.has("rope_factors_long.weight")
        kind = self.text("rope.scaling.type", "longrope" if long else "linear")
        if kind not in ("none", "linear", "yarn", *(["longrope"] if long else [])):
            self.refuse(f"scales rotary positions by {quote(kind)} ({self.name('rope.scaling.type')}); llamina knows none, linear and yarn")
        # 0 stands for "not set", as in llama.cpp; scale_linear is the key's name of 2023
        factor = self.number("rope.scaling.factor", 0.0) or self.number("rope.scale_linear", 0.0) or 1.0
        if not 1e-6 <= factor <= 1e6:
            self.fail(f"key '{self.name('rope.scaling.factor')}' must be positive, and at most a million, found {factor}")
        attn_factor = self.positive("rope.scaling.attn_factor", 1.0) * self.positive("rope.scaling.yarn_attn_factor", 1.0)
        if long:
            original = self.integer("rope.scaling.original_context_length", MAX_CONTEXT, self.context_length)
            return RopeScaling("longrope", 1.0, original, attn_factor)
        if kind == "none" or factor == 1.0:
            return RopeScaling(attn_factor=attn_factor)
        if kind == "linear":
            return RopeScaling(kind, factor, attn_factor=attn_factor)
        if factor < 1:
            self.fail(f"key '{self.name('rope.scaling.factor')}' must be at least 1 for yarn, found {factor}")
        if (extrapolation := self.number("rope.scaling.yarn_ext_factor", 1.0)) not in (1.0, -1.0):  # -1: not set
            self.refuse(f"key '{self.name('rope.scaling.yarn_ext_factor')}' is {extrapolation}, but llamina needs it to be 1")
        original = self.integer("rope.scaling.original_context_length", MAX_CONTEXT, 0, least=0) or self.context_length
        fast, slow = self.positive("rope.scaling.yarn_beta_fast", 32.0), self.positive("rope.scaling.yarn_beta_slow", 1.0)
        return RopeScaling(kind, factor, original, attn_factor, fast, slow, self.number("rope.scaling.yarn_log_multiplier", 0.0))

    # -- feed-forward, layers, the end ------------------------------------------------------------------------------------------------------------

    def glu(self, layer: int, activation: str, *, norm: Norm | None, biases: Collection[str] = (), **options: Any) -> Mlp:
        """A gated feed-forward block under the usual names; fused=True: rows of gate, then of up, in one tensor ffn_up. biases: which of gate, up, down
        must have one. options: fields of Mlp."""
        width, site = self.per_layer("feed_forward_length", MAX_WIDTH)[layer], _read(norm, options)
        if options.pop("fused", False):
            gate, up = (self.matrix(layer, "ffn_up", width, self.dim, site, "mlp.gate_up_proj", first=first, whole=2 * width, bias="up" in biases)
                        for first in (0, width))
        else:
            gate, up = (self.matrix(layer, f"ffn_{name}", width, self.dim, site, f"mlp.{name}_proj", bias=name in biases) for name in ("gate", "up"))
        return Mlp(layer, self.dim, width, activation, norm, gate, up, self._down(layer, width, biases), **options)

    def experts(self, layer: int, activation: str, *, norm: Norm | None, gating: str = "softmax", normalise: bool = False, shared: str = "",
                divided: bool = False, biases: bool = False, gated: bool = True, shared_width: int = 0, **options: Any) -> Experts:
        """A mixture of experts under the usual names. gating, normalise: where the file does not say (expert_gating_func, expert_weights_norm). shared:
        "gated", "plain", "optional" (plain if the file gives its width), or "" for no shared expert. divided: without expert_feed_forward_length an expert
        is as wide as feed_forward_length divided by the experts of a token, else as that. biases: router and experts must have them. gated: experts
        and the shared one have a gate. shared_width: of the shared one, where no key says it. options: fields of Experts."""
        n = self.integer("expert_count", MAX_EXPERTS)
        used = self.per_layer("expert_used_count", n)[layer]
        wide = self.per_layer("feed_forward_length", MAX_WIDTH, 0, least=0)[layer]
        width = self.per_layer("expert_feed_forward_length", MAX_WIDTH, (wide // used if divided else wide) or ..., least=1)[layer]
        groups, kept = self.integer("expert_group_count", n, 0, least=0), self.integer("expert_group_used_count", n, 0, least=0)
        if groups > 1 and (n % groups or not 0 < kept <= groups or used > n // groups * kept):
            self.fail(f"{n} experts in {groups} groups, {kept} of them used ('{self.name('expert_group_count')}'), can't give a token {used} experts")
        if number := self.integer("expert_gating_func", 1 << 30, 0, least=0):
            if number not in GATING_NUMBERS:
                self.refuse(f"chooses experts in a way that llamina lacks: {self.name('expert_gating_func')} = {number}")
            gating = GATING_NUMBERS[number]
        at, site, mlp = f"blk.{layer}.", "ln2.hook_normalized", "mlp."

        def matrix(part: str, rows: int, columns: int, where: str, first: int = 0, whole: int = 0) -> Matrix:
            m = self.matrix(layer, f"ffn_{part}_exps", rows, columns, where, f"{mlp}experts.{part}_proj", first=first, whole=whole, bias=biases)
            return replace(m, experts=n, used=used)
        if self.has(f"{at}ffn_gate_up_exps.weight"):
            gate, up = (matrix("gate_up", width, self.dim, site, first, 2 * width) for first in (0, width))
        else:
            gate, up = matrix("gate", width, self.dim, site) if gated else None, matrix("up", width, self.dim, site)
        if self.has(f"{at}exp_probs_b.bias"):
            options.setdefault("selection_bias", f"{at}exp_probs_b.bias")
        if shared and (shared != "optional" or self.given("expert_shared_feed_forward_length")):
            options["shared"] = self._shared_expert(layer, activation, shared_width or wide, gated)
            if shared == "gated":
                options |= {"shared_gate": f"{at}ffn_gate_inp_shexp.weight", "shared_gate_hf": f"model.layers.{layer}.mlp.shared_expert_gate.weight"}
        return Experts(
            layer, self.dim, width, n, used, activation, norm, self.matrix(layer, "ffn_gate_inp", n, self.dim, site, mlp + "gate", bias=biases), gate, up,
            matrix("down", self.dim, width, "mlp.hook_post"), gating, groups=groups if groups > 1 else 0, groups_used=kept,
            normalise=self.flag("expert_weights_norm", normalise), scale=self.number("expert_weights_scale", 0.0) or 1.0, **options)

    def _shared_expert(self, layer: int, activation: str, wide: int, gated: bool) -> Mlp:
        width = self.per_layer("expert_shared_feed_forward_length", MAX_WIDTH, wide or ...)[layer]
        names = {"gate": (width, self.dim, "ln2.hook_normalized"), "up": (width, self.dim, "ln2.hook_normalized"),
                 "down": (self.dim, width, "mlp.shared.hook_post")}
        gate, up, down = (self.matrix(layer, f"ffn_{part}_shexp", *shape, f"mlp.shared_expert.{part}_proj") for part, shape in names.items())
        return Mlp(layer, self.dim, width, activation, None, gate if gated else None, up, down, parallel=True)

    def mlp(self, layer: int, activation: str, *, norm: Norm | None, biases: Collection[str] = (), **options: Any) -> Mlp:
        """A feed-forward block without a gate: down(act(up(x)))."""
        width = self.per_layer("feed_forward_length", MAX_WIDTH)[layer]
        up = self.matrix(layer, "ffn_up", width, self.dim, _read(norm, options), "mlp.up_proj", bias="up" in biases)
        return Mlp(layer, self.dim, width, activation, norm, None, up, self._down(layer, width, biases), **options)

    def _down(self, layer: int, width: int, biases: Collection[str]) -> Matrix:
        return self.matrix(layer, "ffn_down", self.dim, width, "mlp.hook_post", "mlp.down_proj", bias="down" in biases)

    def layers(self, layer: Callable[[int], Sequence[Block]]) -> tuple[tuple[Block, ...], ...]:
        """All layers' blocks. FormatError at the first layer that the file holds nothing of, before thousands are described."""
        held = {int(parts[1]) for name in self.tensors if (parts := name.split(".", 2))[0] == "blk" and parts[1].isascii() and parts[1].isdigit()}
        found = []
        for i in range(self.n_layers):
            found.append(tuple(layer(i)))
            if self.whole and i not in held:
                tensor = next(found[-1][0].tensors())
                self.fail(f"tensor '{tensor.name}' {list(tensor.shape)} is missing: the file is not a whole model of architecture {self.architecture}")
        return tuple(found)

    def rows(self, norm: Norm) -> Output:
        """The end of an encoder: its normed rows."""
        return Output(norm, None)

    def output(self, norm: Norm, *, factor: float = 1.0, soft_cap: float = 0.0) -> Output:
        """The output matrix: output.weight (with output.bias, if there is one), or the embedding if there is none. factor, soft_cap: of the logits."""
        tied = not self.has("output.weight")
        name, hf = ("token_embd.weight", "model.embed_tokens.weight") if tied else ("output.weight", "lm_head.weight")
        bias = "output.bias" if self.has("output.bias") else ""
        return Output(norm, Matrix(name, self.n_vocab, self.dim, "ln_final.hook_normalized", bias, hf=hf), factor, soft_cap)
