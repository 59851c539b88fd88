"""Direct logit attribution: who wrote the logit of a token into the residual stream, block by block and head by head.

    stream at the end = embedding + sum of what every block added                        exact: differences of the stream itself, in float64
    logit(t) = sum of parts . direction(t);  direction = final norm's gain and this row's scale, times the output matrix's row of t

What a head added is computed again by the model's own matrix, with the other heads' rows zero; a norm behind the block (Gemma) is taken as the factor that it
was. Of what remains: `rounding` is what the int8 records of the output matrix's input and float32 make of the logit.

A logit is meant before its soft cap.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..architectures.blocks import Attention
from ..architectures.spec import Addend, Norm
from .reading import Rows

if TYPE_CHECKING:
    from ..answers.core import Core
    from ..run.looking import Said
    from ..run.runtime import Runtime

_LINEAR = {"quantize", "linear"}


@dataclass
class Attribution:
    """Of n positions' targets. labels: [C] of the parts: "embed", "blocks.3.attn", "blocks.3.mlp" …, "bias" (of the final norm and the output matrix) and
    "rounding"; parts: float64 [n, C], whose sums are `logits`, float64 [n]. heads: {layer: float64 [n, heads]}, parts of "blocks.N.attn"; what else
    that one consists of, the output matrix's bias and rounding, is the difference. A layer that can't be split so is not there."""

    target_ids: np.ndarray
    labels: list[str]
    parts: np.ndarray
    logits: np.ndarray
    heads: dict[int, np.ndarray]

    def by_layer(self, kind: str) -> np.ndarray:
        """float64 [layers, n] of "attn" or "mlp"; 0 where a layer has none."""
        layers = 1 + max((int(label.split(".")[1]) for label in self.labels if label.startswith("blocks.")), default=-1)
        found = np.zeros((layers, len(self.parts)))
        for i, label in enumerate(self.labels):
            if label.startswith("blocks.") and label.endswith("." + kind):
                found[int(label.split(".")[1])] = self.parts[:, i]
        return found

    @staticmethod
    def joined(parts: list[Attribution]) -> Attribution:
        return Attribution(np.concatenate([p.target_ids for p in parts]), parts[0].labels, np.concatenate([p.parts for p in parts]),
                           np.concatenate([p.logits for p in parts]), {i: np.concatenate([p.heads[i] for p in parts]) for i in parts[0].heads})

    def plot(self, position: int = -1, **options: Any) -> Any:
        """A matplotlib figure of one position (extra `plot`)."""
        from .plots import attribution_figure
        return attribution_figure(self, position, **options)


class Attributor:
    """Attributes step by step."""

    def __init__(self, model: Core, heads: bool = True) -> None:
        config, sites = model.config, model.runtime.sites
        self.config, self._sites = config, sites
        self._attentions = {a.layer: a for a in config.attentions()}
        self.parts: list[Attribution] = []
        self._split = {i for i, a in self._attentions.items() if heads and self._splits(model.runtime, a)}

    @staticmethod
    def _splits(runtime: Runtime, a: Attention) -> bool:
        """Whether a head's part is a matrix times its rows, and nothing else."""
        at = f"blocks.{a.layer}."
        return {at + "attn.hook_z", at + "hook_attn_out"} <= runtime.sites.keys() and \
            set(runtime.ops_between(a.layer, at + "attn.hook_z", at + "hook_attn_out")) <= _LINEAR

    def wanted(self) -> list[str]:
        names = []
        for i in range(self.config.n_layers):
            at = f"blocks.{i}."
            names += [at + "hook_resid_pre", at + "hook_resid_mid", at + "hook_resid_post", at + "hook_attn_out"]
            names += [at + "attn.hook_z"] if i in self._split else []
        return [name for name in names if name in self._sites]

    def step(self, runtime: Runtime, rows: Rows, targets: np.ndarray, final: Said) -> None:
        """After a step: positions' rows, targets int64 [n], what the model says after them."""
        out, n_layers = self.config.output, self.config.n_layers
        x = rows[f"blocks.{n_layers - 1}.hook_resid_post"].astype(np.float64)
        unembedding = runtime.vocabulary_rows(targets).astype(np.float64)
        through, bias = _through(runtime, Addend("", out.norm, out.factor), x)
        direction = unembedding  # [n, dim]

        def project(part: np.ndarray) -> np.ndarray:
            return np.einsum("nd,nd->n", through(part), direction)
        labels, values = ["embed"], [project(rows["blocks.0.hook_resid_pre"].astype(np.float64))]
        heads: dict[int, np.ndarray] = {}
        edits = np.zeros(len(targets))
        for i in range(n_layers):
            at = f"blocks.{i}."
            pre, post = rows[at + "hook_resid_pre"].astype(np.float64), rows[at + "hook_resid_post"].astype(np.float64)
            if i:
                edits += project(pre - rows[f"blocks.{i - 1}.hook_resid_post"])
            for kind, part in self._parts(runtime, i, rows, pre, post):
                labels.append(at + kind if kind else at[:-1])
                values.append(project(part))
            if i in self._split:
                heads[i] = self._heads(runtime, i, rows, project)
        constant = np.einsum("nd,nd->n", np.broadcast_to(bias, direction.shape), direction) + out.factor * runtime.output_bias(targets).astype(np.float64)
        if np.any(edits):
            labels, values = [*labels, "edits"], [*values, edits]
        logits = final.target if not out.soft_cap else out.soft_cap * np.arctanh(np.clip(final.target / out.soft_cap, -1 + 1e-12, 1 - 1e-12))
        values.append(constant)
        values.append(logits - np.sum(values, axis=0))
        self.parts.append(Attribution(targets.copy(), [*labels, "bias", "rounding"], np.stack(values, axis=1), logits, heads))

    def _parts(self, runtime: Runtime, i: int, rows: Rows, pre: np.ndarray, post: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """What a layer's blocks added: [(name, float64 [n, dim])]."""
        at = f"blocks.{i}."
        if at + "hook_resid_mid" in rows:
            mid = rows[at + "hook_resid_mid"].astype(np.float64)
            return [("attn", mid - pre), ("mlp", post - mid)]
        if i in self._attentions and at + "hook_attn_out" in rows:  # side by side
            made = rows[at + "hook_attn_out"].astype(np.float64)
            through, bias = _through(runtime, self._attentions[i].leaves, made)
            attention = through(made) + bias
            return [("attn", attention), ("mlp", post - pre - attention)]
        return [("", post - pre)]

    def _heads(self, runtime: Runtime, i: int, rows: Rows, project: Any) -> np.ndarray:
        """float64 [n, heads]"""
        at, a = f"blocks.{i}.", self._attentions[i]
        z = rows[at + "attn.hook_z"]
        through, _ = _through(runtime, a.leaves, rows[at + "hook_attn_out"].astype(np.float64))
        nothing = runtime.again(i, at + "attn.hook_z", at + "hook_attn_out", np.zeros_like(z[:1])).astype(np.float64)  # the matrix's bias
        found, size = np.empty((len(z), a.heads)), a.output.columns // a.heads
        for head in range(a.heads):
            alone = np.zeros_like(z)
            alone[:, head * size:(head + 1) * size] = z[:, head * size:(head + 1) * size]
            found[:, head] = project(through(runtime.again(i, at + "attn.hook_z", at + "hook_attn_out", alone) - nothing))
        return found


def _through(runtime: Runtime, addend: Addend, whole: np.ndarray) -> tuple[Any, np.ndarray]:
    """(what a norm and factor, as they were for rows `whole`, float64 [n, dim], make of parts of these, what they add by themselves)."""
    norm, factor = addend.norm, addend.factor
    if norm is None:
        return lambda part: part * factor, np.zeros(whole.shape[1])
    scale = factor * runtime.gain(norm.tensor, norm.dim).astype(np.float64) / _size(norm, whole)
    if norm.kind == "layer":
        bias = factor * runtime.gain(norm.bias, norm.dim).astype(np.float64) if norm.bias else np.zeros(norm.dim)
        return lambda part: (part - part.mean(axis=1, keepdims=True)) * scale, bias
    return lambda part: part * scale, np.zeros(norm.dim)


def _size(norm: Norm, whole: np.ndarray) -> np.ndarray:
    """What the norm divided these rows by: [n, 1]."""
    if norm.kind == "layer":
        whole = whole - whole.mean(axis=1, keepdims=True)
    return np.sqrt((whole * whole).mean(axis=1, keepdims=True) + norm.eps)
