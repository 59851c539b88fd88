"""Every page against its float64 twin (naive_families.py, written from Hugging Face's code), and with faults: each trap of its family must show.

A fault is a page whose blocks were changed (another window, the other kind of pairs, a norm elsewhere …). One that left the logits within the tolerance would
be a page that nobody checks."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.convert.recipes import is_matrix
from llamina.engine.architectures import config
from llamina.engine.architectures.blocks import Attention, Block, Mlp, Output
from llamina.engine.architectures.builder import Builder
from llamina.engine.architectures.expert_blocks import Experts
from llamina.engine.architectures.mamba_blocks import Mamba2
from llamina.engine.architectures.pages import PAGES
from llamina.engine.architectures.spec import Rope, RopeScaling
from llamina.engine.architectures.state_blocks import Conv, Delta
from llamina.engine.errors import UnsupportedError
from llamina.engine.gguf.file import open_gguf
from naive import kl
from naive_families import FAMILIES, Phi3, naive_family
from page_cases import CASES, CAUSAL, IDS, SIZES, write_case
from runs import open_runtime, run
from small_models import write_family

TOLERANCE = 1e-4  # of the largest logit
FEW = [name for name in CASES if name != "gemma2 27b"]  # 46 layers take their time


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, np.ndarray]]:
    """case -> (its F32 file, its twin's logits), made once."""
    folder, made = tmp_path_factory.mktemp("pages"), dict[str, tuple[Path, np.ndarray]]()

    def get(name: str) -> tuple[Path, np.ndarray]:
        if name not in made:
            path = write_case(folder / f"{name}.gguf", name)
            made[name] = path, naive_family(path, IDS)
        return made[name]
    return get


def logits(path: Path, context: int = 1024) -> np.ndarray:
    with open_runtime(path, 1, context) as runtime:
        return run(runtime, IDS)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_every_page_has_cases_and_a_twin() -> None:
    """Encoders have theirs in test_oracle_encoders.py."""
    assert {case.architecture for case in CASES.values()} == CAUSAL == CAUSAL & set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str, files: Any) -> None:
    path, expected = files(name)
    assert distance(logits(path), expected) <= TOLERANCE


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", FEW)
def test_quantised(name: str, format: str, tmp_path: Path) -> None:
    """The twin has the same rounded weights, and activations that are not rounded: what is left is their 8 bits."""
    path = write_case(tmp_path / "m.gguf", name, format)
    twin, found = naive_family(path, IDS), logits(path)
    assert kl(twin, found) < (5e-3 if "expert_used_count" not in CASES[name].keys else 5e-2)  # experts: where two are nearly equal, the other may be chosen
    assert np.median([kl(a[None], b[None]) for a, b in zip(twin, found)]) < 5e-3


def test_long_rope_takes_the_short_factors_within_the_trained_context(files: Any) -> None:
    path, long = files("phi3 long")
    twin = Phi3(path)
    twin.context = 128
    short = twin.logits(IDS)
    assert distance(logits(path, 128), short) <= TOLERANCE and distance(logits(path, 129), long) <= TOLERANCE and distance(short, long) > 0.01


# -- faults ---------------------------------------------------------------------------------------------------------------------------------

Layers = tuple[tuple[Block, ...], ...]


def attentions(change: Callable[[Attention], Attention]) -> Callable[[Layers], Layers]:
    return lambda layers: tuple(tuple(change(b) if isinstance(b, Attention) else b for b in blocks) for blocks in layers)


def mlps(change: Callable[[Mlp], Mlp]) -> Callable[[Layers], Layers]:
    return lambda layers: tuple(tuple(change(b) if isinstance(b, Mlp) else b for b in blocks) for blocks in layers)


def recurrents(change: Callable[[Any], Any]) -> Callable[[Layers], Layers]:
    return lambda layers: tuple(tuple(change(b) if isinstance(b, (Conv, Delta, Mamba2)) else b for b in blocks) for blocks in layers)


def deltas(change: Callable[[Delta], Delta]) -> Callable[[Layers], Layers]:
    return recurrents(lambda r: change(r) if isinstance(r, Delta) else r)


def state_spaces(change: Callable[[Mamba2], Mamba2]) -> Callable[[Layers], Layers]:
    return recurrents(lambda r: change(r) if isinstance(r, Mamba2) else r)


def experts(change: Callable[[Experts], Experts]) -> Callable[[Layers], Layers]:
    return lambda layers: tuple(tuple(change(b) if isinstance(b, Experts) else b for b in blocks) for blocks in layers)


def ropes(change: Callable[[Rope], Rope]) -> Callable[[Layers], Layers]:
    return attentions(lambda a: replace(a, rope=change(a.rope)) if a.rope else a)


def rotated(field: str) -> Callable[[Layers], Layers]:
    """Each layer with the field of the layer before it."""
    def change(layers: Layers) -> Layers:
        if not all(isinstance(blocks[0], Attention) for blocks in layers):
            return layers
        return tuple((replace(blocks[0], **{field: getattr(layers[i - 1][0], field)}), *blocks[1:]) for i, blocks in enumerate(layers))
    return change


def first_rope_everywhere(layers: Layers) -> Layers:
    rope = next((a.rope for blocks in layers for a in blocks if isinstance(a, Attention) and a.rope), None)
    return attentions(lambda a: replace(a, rope=rope))(layers)


def norm_between(layers: Layers) -> Layers:
    """What stands between attention and the feed-forward block as a norm after the one, or before the other: `post_attention_norm` is read the other way."""
    found: list[tuple[Block, ...]] = []
    for blocks in layers:
        at = next((n for n, b in enumerate(blocks) if isinstance(b, (Attention, Conv, Delta, Mamba2))), len(blocks))
        if len(blocks) < at + 2 or isinstance(blocks[at + 1], Mamba2):  # a block a layer, or side by side
            found.append(blocks)
            continue
        first, (attention, mlp, *rest) = blocks[:at], blocks[at:]  # the first and the rest: Gemma 4's embeddings of each layer
        assert isinstance(attention, (Attention, Conv, Delta, Mamba2)) and isinstance(mlp, (Mlp, Experts))
        if attention.post_norm is None and mlp.norm is not None:
            found.append((*first, replace(attention, post_norm=mlp.norm), replace(mlp, norm=None), *rest))
        elif attention.post_norm is not None and mlp.norm is None:
            found.append((*first, replace(attention, post_norm=None), replace(mlp, norm=attention.post_norm), *rest))
        else:
            found.append((*first, replace(attention, post_norm=mlp.norm), replace(mlp, norm=attention.post_norm), *rest))
    return tuple(found)


def head_norms_at_the_other_side(a: Attention) -> Attention:
    return replace(a, norm_last=not a.norm_last) if a.qk_norm == "head" and a.rope else a


def another_scale(a: Attention) -> Attention:
    """The one that goes by the head's width where it should go by the stream's, and the other way round."""
    by = a.dim / a.heads if abs(a.scale - a.head_dim**-0.5) < 1e-4 else a.head_dim
    return replace(a, scale=by**-0.5) if abs(a.scale - by**-0.5) > 1e-4 else a


OTHER = {"silu": "gelu_tanh", "gelu_tanh": "silu", "relu2": "gelu_tanh", "gelu_erf": "silu"}
FAULTS: dict[str, Callable[[Layers], Layers]] = {
    "the other pairs": ropes(lambda r: replace(r, kind="pairs" if r.kind == "halves" else "halves")),
    "whole heads turn": attentions(lambda a: replace(a, rope=replace(a.rope, dims=a.head_dim)) if a.rope and not a.rope.factors else a),
    "another base": ropes(lambda r: replace(r, base=10000.0) if r.base != 10000.0 else r),
    "no scaling": ropes(lambda r: replace(r, scaling=RopeScaling())),
    "short factors": ropes(lambda r: replace(r, factors=r.short, short=r.factors)),
    "no YaRN exponent": ropes(lambda r: replace(r, scaling=replace(r.scaling, log_multiplier=0.0))),
    "one rope for all layers": first_rope_everywhere,
    "no windows": attentions(lambda a: replace(a, window=0)),
    "windows one wider": attentions(lambda a: replace(a, window=a.window + 1 if a.window else 0)),
    "windows a layer later": rotated("window"),
    "norm between sublayers": norm_between,
    "head norms on the other side of rope": attentions(head_norms_at_the_other_side),
    "another scale": attentions(another_scale),
    "no cap of scores": attentions(lambda a: replace(a, soft_cap=0.0)),
    "no temperature": attentions(lambda a: replace(a, temperature=None)),
    "no residual scale": lambda layers: mlps(lambda m: replace(m, factor=1.0))(attentions(lambda a: replace(a, factor=1.0))(layers)),
    "another activation": mlps(lambda m: replace(m, activation=OTHER[m.activation])),
    "erf": mlps(lambda m: replace(m, activation="gelu_erf") if m.activation == "gelu_tanh" else m),
    "no output gate": attentions(lambda a: replace(a, gate=None)),
    "query and gate changed over": attentions(lambda a: replace(a, q=a.gate, gate=a.q) if a.gate else a),
    "value heads in groups": deltas(lambda d: replace(d, grouped=not d.grouped) if d.value_heads > d.key_heads else d),
    "alpha and beta changed over": deltas(lambda d: replace(d, alpha=d.beta, beta=d.alpha)),
    "another eps of heads": deltas(lambda d: replace(d, head_norm=replace(d.head_norm, eps=0.3))),
    "no norms of each head": attentions(lambda a: replace(a, qk_norm="") if a.qk_norm == "layer" else a),
    "no norm of groups": state_spaces(lambda m: replace(m, head_norm=None)),
    "no bias of the convolution": state_spaces(lambda m: replace(m, conv_bias=None)),
    "the router reads the experts' rows": experts(lambda b: replace(b, router_norm=replace(b.router_norm, factor=1.0)) if b.router_norm else b),
    "no scales of experts": experts(lambda b: replace(b, expert_scales="")),
    "norms beside changed over": experts(lambda b: replace(b, beside=b.beside[::-1]) if b.beside else b),
    "another way to choose": experts(lambda b: replace(b, gating="softmax" if b.gating == "sigmoid" else "sigmoid")),
    "softmax of all experts": experts(lambda b: replace(b, gating="softmax") if b.gating == "softmax_of_chosen" else b),
    "weights normed or not": experts(lambda b: replace(b, normalise=not b.normalise) if b.gating != "softmax_of_chosen" else b),
    "no scale of weights": experts(lambda b: replace(b, scale=1.0)),
    "no bias of choice": experts(lambda b: replace(b, selection_bias="")),
    "no groups": experts(lambda b: replace(b, groups=0)),
    "an expert less": experts(lambda b: replace(b, used=b.used - 1)),
    "no shared expert": experts(lambda b: replace(b, shared=None, shared_gate="")),
    "no gate of the shared expert": experts(lambda b: replace(b, shared_gate="")),
    "no biases of experts": experts(lambda b: replace(b, **{f: replace(getattr(b, f), bias="") for f in ("router", "gate", "up", "down") if getattr(b, f)})),
    "another activation of experts": experts(lambda b: replace(b, activation="silu" if b.activation == "oai" else "gelu_tanh")),
    "weights of the input": experts(lambda b: replace(b, weigh_input=True)),
    "no residual scale of experts": experts(lambda b: replace(b, factor=1.0)),
    "no sinks": attentions(lambda a: replace(a, sinks="")),
    "YaRN rounded": ropes(lambda r: replace(r, scaling=replace(r.scaling, rounded=not r.scaling.rounded)) if r.scaling.kind == "yarn" else r),
    "up and gate changed over": mlps(lambda m: replace(m, gate=m.up, up=m.gate) if m.gate and m.gate.whole else m),
}
OUTPUT_FAULTS: dict[str, Callable[[Output], Output]] = {
    "no scale of logits": lambda o: replace(o, factor=1.0),
    "no cap of logits": lambda o: replace(o, soft_cap=0.0),
}

def plant(monkeypatch: pytest.MonkeyPatch, architecture: str, layers: Callable[[Layers], Layers] | None = None,
          output: Callable[[Output], Output] | None = None, embedding: bool = False) -> list[bool]:
    """Change a page; the list says, once a file was read, whether that changed anything."""
    page, changed, made = PAGES[architecture], list[bool](), dict[int, Layers]()

    def faulty(k: Builder, i: int) -> list[Block]:
        if layers is None:
            return page.layer(k, i)
        if id(k) not in made:
            right = tuple(tuple(page.layer(k, j)) for j in range(k.n_layers))
            made[id(k)] = layers(right)
            changed.append(made[id(k)] != right)
        return list(made[id(k)][i])

    def last(k: Builder) -> Output:
        right = page.output(k)
        if output:
            changed.append(output(right) != right)
        return output(right) if output else right

    def scale(k: Builder) -> float:
        if embedding:
            changed.append(page.embedding_scale(k) != 1)
        return 1.0 if embedding else page.embedding_scale(k)
    monkeypatch.setattr(config, "_check_extra", lambda gguf, config, name: None)  # what the fault leaves without a place is left out, not refused
    monkeypatch.setitem(PAGES, architecture, replace(page, layer=faulty, output=last, embedding_scale=scale))
    return changed


def shows(monkeypatch: pytest.MonkeyPatch, cases: dict[str, str], files: Any, found_in: Callable[[Path, str], np.ndarray], fault: str,
          planted: tuple[Any, ...]) -> None:
    """A fault (`plant`'s last arguments) makes a difference in every case whose blocks it changes; and it changes those of some case. cases: name ->
    architecture; files: name -> (file, what its twin gives)."""
    shown = 0
    for name, architecture in cases.items():
        path, expected = files(name)
        with monkeypatch.context() as patch:
            changed = plant(patch, architecture, *planted)
            try:
                found = found_in(path, name)
            except UnsupportedError:
                continue  # what no op can do
            if any(changed):
                shown += 1
                assert distance(found, expected) > TOLERANCE, f"{name}: {fault} makes no difference"
    assert shown


FAULTY = [*FAULTS, *OUTPUT_FAULTS, "no scale of embeddings"]


@pytest.mark.parametrize("fault", FAULTY)
def test_a_fault_shows(fault: str, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shows(monkeypatch, {name: CASES[name].architecture for name in FEW}, files, lambda path, name: logits(path), fault,
          (FAULTS.get(fault), OUTPUT_FAULTS.get(fault), fault == "no scale of embeddings"))


def test_27b_scales_scores_by_the_stream(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Gemma 2 and 3 of that many layers: no key says so."""
    path, expected = files("gemma2 27b")
    plant(monkeypatch, "gemma2", attentions(lambda a: replace(a, scale=a.head_dim**-0.5)))
    assert distance(logits(path), expected) > 3 * TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_what_a_matrix_reads_is_a_site(name: str, tmp_path: Path) -> None:
    """Of its columns: importance data are measured there."""
    with open_gguf(write_case(tmp_path / "m.gguf", name)) as file:
        found = config.ModelConfig.from_gguf(file)
    assert not [t.name for t in found.tensors() if t.plain and is_matrix(t.name, t.shape)]  # convert keeps them in F32
    sites = {site: at.columns for site, (_, at) in found.sites().items()}
    for m in found.matrices():
        wide = m.used * -(-m.columns // 32) * 32 if m.site.endswith(".hook_post") and m.experts else m.columns
        assert m.site in sites, m
        assert m.experts and ".attn." in m.site or sites[m.site] == wide, m


@pytest.mark.parametrize(("name", "keys", "message"), [
    ("granitehybrid", {"attention.head_count_kv": [0, 0, 0]}, "no layer that attends"),
    ("nemotron_h", {"feed_forward_length": [0] * 5}, "no layer with a feed-forward block"),
    ("nemotron_h_moe", {"moe_latent_size": 32}, "narrower space"),
    ("deepseek2", {"attention.head_count_kv": 6}, "convert the model again"),
])
def test_what_no_block_can_do_is_refused(name: str, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(UnsupportedError, match=message):
        write_family(tmp_path / "m.gguf", case.architecture, {**SIZES, **case.keys, **keys}, tensors=case.tensors)


PAIRS = {"llama", "smollm3", "arcee", "ernie4_5", "granite", "granitemoe", "granitehybrid", "minicpm", "mistral3", "glm4"}
PERMUTED = PAIRS - {"ernie4_5", "glm4"}
"""Hugging Face's code for the last two pairs neighbours itself."""


def test_permutation_only_where_it_belongs() -> None:
    """Rows of q and k change places in convert where GGUF's pages pair neighbours and Hugging Face's code halves; 1 is added to Gemma's gains."""
    assert {name for name, page in PAGES.items() if page.hf_halves} == PERMUTED
    assert {name for name, page in PAGES.items() if page.hf_norm_plus_one} == {"gemma", "gemma2", "gemma3", "gemma-embedding", "qwen35", "qwen35moe",
                                                                                        "qwen3next"}
