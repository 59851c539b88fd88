"""What becomes of an encoder's rows: how a text's are pooled to one, and a head that scores a pair of texts (rank). Read for every page.

    pooling_type: 0 none, 1 mean, 2 cls, 3 last, 4 rank ──► Pooling: a word, and the head's tensors, if the file holds some

A head is computed in float64 after the pass (engine/score/pooling.py), from tensors that stay in memory as float32.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .builder import Builder
from .keys import MAX_WIDTH
from .spec import Matrix, Norm, Tensor

KINDS = ("none", "mean", "cls", "last", "rank")
"""GGUF's pooling_type by number."""
LABELS = 1 << 16


@dataclass(frozen=True)
class Head:
    """scores = out(norm(act(dense(row)))) of a pair's pooled row; what is None is left out. pooling: of the pair's rows. softmax: the first score's share."""

    pooling: str
    dense: Matrix | None
    activation: str
    norm: Norm | None
    out: Matrix | None
    softmax: bool = False


@dataclass(frozen=True)
class Pooling:
    """kind: what the file says, "" if nothing. dense: matrices that a pooled row goes through, one after the other. labels: of the head's scores."""

    kind: str = ""
    head: Head | None = None
    dense: tuple[Matrix, ...] = ()
    labels: int = 1

    def tensors(self) -> Iterator[Tensor]:
        head = self.head
        matrices = [*self.dense, *([m for m in (head.dense, head.out) if m] if head else [])]
        for m in matrices:
            yield Tensor(m.tensor, (m.rows, m.columns), m.hf)
            if m.bias:
                yield Tensor(m.bias, (m.rows,), m.hf.replace(".weight", ".bias"))
        if head and head.norm:
            yield Tensor(head.norm.tensor, (head.norm.dim,), head.norm.hf)


def read_pooling(k: Builder, causal: bool) -> Pooling:
    """FormatError: another number, or rank without a head."""
    given = k.given("pooling_type")
    kind = KINDS[k.integer("pooling_type", len(KINDS) - 1, 0, least=0)] if given else ""
    labels = k.file.metadata.array_length(k.name("classifier.output_labels")) or 1
    dense = tuple(_dense(k, n) for n in (2, 3) if k.has(f"dense_{n}.weight"))
    held = [name for name in ("cls.weight", "cls.output.weight") if k.has(name)]
    if kind == "rank" and not held:
        k.fail("pooling_type is 4 (rank), but there is no head: tensor 'cls.output.weight' is missing")
    if not held:
        return Pooling(kind, None, dense, labels)
    before = KINDS[k.integer("classifier.pooling_type", 3, 3 if causal else 2, least=1)]
    first = Matrix("cls.weight", k.dim, k.dim, "", "cls.bias" if k.has("cls.bias") else "", hf="classifier.dense.weight") if k.has("cls.weight") else None
    norm = k.norm(None, "cls.norm", "head.norm", kind="layer") if k.has("cls.norm.weight") else None
    out = None
    if k.has("cls.output.weight"):
        out = Matrix("cls.output.weight", labels, k.dim, "", "cls.output.bias" if k.has("cls.output.bias") else "", hf="classifier.out_proj.weight")
    return Pooling(kind, Head(before, first, "gelu_erf" if norm else "tanh", norm, out, softmax=causal and labels == 2), dense, labels)


def _dense(k: Builder, n: int) -> Matrix:
    wide, narrow = f"dense_{n}_feat_out", f"dense_{n}_feat_in"
    return Matrix(f"dense_{n}.weight", k.integer(wide, MAX_WIDTH, k.dim), k.integer(narrow, MAX_WIDTH, k.dim), "", hf=f"{n}_Dense.linear.weight")
