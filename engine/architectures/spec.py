"""The words that pages and blocks are written in: tensors, matrices, norms, rotary positions, stages and sites. Plain data, without threads or memory.

    a page (llama.py) ──► blocks (blocks.py) ──► tensors: what a file must hold, and what Hugging Face calls it
                                             └─► stages: what engine/run/program.py turns into addresses and words for the ops
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def round_up(n: int, to: int = 32) -> int:
    """To a multiple: by default columns, as rows of buffers are padded."""
    return -(-n // to) * to


@dataclass(frozen=True)
class Tensor:
    """One that the file must hold, and its name in a Hugging Face checkpoint ("" if it has none there)."""

    name: str
    shape: tuple[int, ...]
    hf: str = ""
    on_disk: bool = False
    """A table of which a token needs one row: it stays in the file."""
    plain: bool = False
    """Rows of numbers that are read as they are (biases of experts, a convolution's kernel), not a matrix, though it has more than one dimension."""


@dataclass(frozen=True)
class Matrix:
    """A matrix that activations are multiplied with: rows [first, first + rows) of a tensor, which may hold several (fused q, k and v)."""

    tensor: str
    rows: int
    columns: int
    site: str = ""
    """Whose rows it reads: what importance data are measured at."""
    bias: str = ""
    """Tensor of its bias, rows [first, first + rows) of that, or ""."""
    first: int = 0
    whole: int = 0
    """Rows of the tensor, if the matrix is a part of it."""
    hf: str = ""
    period: int = 0
    """If not 0, of every so many rows from `first` on it has the first `block`, `rows` in all: one half of each head, say."""
    block: int = 0
    experts: int = 0
    """Of how many experts the tensor stacks such matrices, [experts, rows, columns]; 0: it is one matrix."""
    used: int = 1
    """How many of them a token is multiplied with."""

    @property
    def macs(self) -> int:
        """Multiply-adds for a token."""
        return self.used * -(-self.rows // 16) * 16 * self.columns

    @property
    def key(self) -> str:
        """Its name: the tensor's, with the rows if it is a part of one."""
        if self.period:
            return f"{self.tensor}[{self.first}:+{self.block}:{self.period}]"
        return f"{self.tensor}[{self.first}:{self.first + self.rows}]" if self.whole else self.tensor


@dataclass(frozen=True)
class Norm:
    """A norm of rows of the residual stream, or of heads or projections. kind: "rms" or "layer" (LayerNorm, with a bias if `bias` names one).

    heads: the gain is [heads, dim], one of its own for each head; 0: [dim]. factor: the gain is multiplied by it once, in float32, when it is loaded."""

    tensor: str
    dim: int
    eps: float
    kind: str = "rms"
    bias: str = ""
    hf: str = ""
    heads: int = 0
    factor: float = 1.0

    @property
    def numbers(self) -> int:
        """Of the gain."""
        return max(1, self.heads) * self.dim


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are stretched beyond the trained context: the angle of pair i is position * f_i, where f_i is, with
    w_i = base^(-2i/dims),

        none:   w_i                linear: w_i / factor
        yarn:   w_i / factor * (1 - r_i) + w_i * r_i,  r_i = 1 - clamp((i - low) / max(0.001, high - low), 0, 1)
                low, high = floor, ceil of dims * ln(original_context / (beta * 2 pi)) / (2 ln base), beta = beta_fast, beta_slow

    with low >= 0 and high <= dims - 1; not `rounded`: without floor and ceil. Cosine and sine are multiplied by
    attn_factor and, for yarn, by 1 + 0.1 ln(factor) as well.
    Llama 3's scaling is apart from this: the w_i are first divided by the elements of rope_freqs.weight (Rope.factors).
    Source: Peng et al., "YaRN" (arXiv 2309.00071), as in llama.cpp's ggml_rope_ext.
    """

    kind: str = "none"  # "none", "linear", "yarn" or "longrope" (Rope.factors and .short alone)
    factor: float = 1.0  # > 0; 1 if kind is "none"; > 1 if "yarn"
    original_context: int = 0  # positions; used by yarn only
    attn_factor: float = 1.0  # > 0, for any kind
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0  # m of yarn: cosine and sine are divided by 1 + 0.1 m ln(factor) again
    rounded: bool = True  # yarn's low and high


@dataclass(frozen=True)
class Rope:
    """Rotary positions of a head's first `dims` dimensions; equal ones share a table.

    kind: which two dimensions make a pair, "pairs": neighbours (2i, 2i + 1), GGUF's llama convention, or "halves": (i, i + dims / 2), NeoX.
    factors: a tensor [dims / 2] that the frequencies are divided by, or "". short: another, for contexts of at most scaling.original_context positions.
    """

    kind: str
    dims: int
    base: float
    scaling: RopeScaling = RopeScaling()
    factors: str = ""
    short: str = ""

    def factors_for(self, context: int) -> str:
        """The tensor that a model which was loaded for this context divides its frequencies by, or ""."""
        return self.short if self.short and context <= self.scaling.original_context else self.factors


@dataclass(frozen=True)
class Added:
    """Rows that join the embedding's: row p for a token at position p, or row 0 for every token (token types, of which texts have the first)."""

    tensor: Tensor
    by_position: bool


@dataclass(frozen=True)
class Addend:
    """What waits to join the residual stream: a buffer, through a norm (if any), times a factor. stream_scale: tensor of one number that all of the stream is
    multiplied by once this has joined it, or ""."""

    buffer: str
    norm: Norm | None = None
    factor: float = 1.0
    stream_scale: str = ""


@dataclass(frozen=True)
class Site:
    """A point of the pass with a name (TransformerLens's), and the buffer whose first `columns` hold its rows there."""

    name: str
    buffer: str
    columns: int


@dataclass(frozen=True)
class Stage:
    """One stage: an op of engine/run/ops, what profiles and errors call it, and what the op's words are made from.

    faults: what it calls numbers that are not finite. before, after: the sites of an open stage, visible (and editable) at that moment."""

    op: str
    name: str
    layer: int | None
    args: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    before: tuple[Site, ...] = ()
    after: tuple[Site, ...] = ()


Records = Callable[[Matrix], bool]
"""Whether a matrix reads int8 records (its format's matter), not float rows."""
