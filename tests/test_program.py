"""The program and its pages: every option of the blocks in both forms, a page made up for it, listings, what a page's tensors and names say."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.architectures import pages
from llamina.engine.architectures.blocks import Block
from llamina.engine.architectures.builder import Builder
from llamina.engine.architectures.page import Page
from llamina.engine.architectures.spec import Norm
from llamina.engine.run.runtime import Feed, Runtime
from runs import open_runtime, run, same
from small_models import random_ids, write_family

IDS = random_ids(150)


def everything(k: Builder, i: int) -> list[Block]:
    """A layer that no model has: each one uses other options of the blocks."""
    def norm(name: str, hf: str) -> Norm:
        return k.norm(i, name, hf, kind=k.text("norm_kind", "rms"))

    rope, local = k.rope("halves", partial=True), k.rope("halves", base="rope.freq_base_swa", partial=True, scaled=False)
    if i == 0:  # sandwich norms, norms of heads, window, soft cap, sinks, residual factors
        return [
            k.attention(i, norm=norm("attn_norm", "input_layernorm"), rope=local, qk_norm="head", window=k.windows(2)[i], soft_cap=5.0,
                        post_norm=norm("post_attention_norm", "post_attention_layernorm"), sinks=f"blk.{i}.attn_sinks.weight", factor=0.7),
            k.glu(i, "gelu_tanh", norm=norm("ffn_norm", "pre_feedforward_layernorm"), factor=0.7,
                  post_norm=norm("post_ffw_norm", "post_feedforward_layernorm")),
        ]
    if i == 1:  # post-norms only, norms of whole projections, no positions but in the queries' temperature, a plain block
        return [
            k.attention(i, norm=None, rope=None, qk_norm="whole", temperature=(0.3, 20), post_norm=norm("post_attention_norm", "post_attention_layernorm")),
            k.mlp(i, "relu2", norm=None, post_norm=norm("post_ffw_norm", "post_feedforward_layernorm")),
        ]
    if i == 2:  # side by side from one norm, with biases
        glu = k.glu(i, "gelu_erf", norm=None, parallel=True, fused=True)
        return [k.attention(i, norm=norm("attn_norm", "input_layernorm"), rope=rope, parallel=True, beside=glu.readers()), glu]
    mlp = k.mlp(i, "gelu_tanh", norm=norm("ffn_norm", "post_attention_layernorm"), parallel=True)  # side by side from two norms
    return [k.attention(i, norm=norm("attn_norm", "input_layernorm"), rope=rope, parallel=True, qk_norm="head", norm_last=True), mlp]


PAGE = Page("everything", "made up", everything, embedding_scale=lambda k: k.number("embedding_scale", 1.0),
            output=lambda k: k.output(k.norm(None, "output_norm", "norm", kind=k.text("norm_kind", "rms")),
                                      factor=k.number("logit_scale", 1.0), soft_cap=k.number("final_logit_softcapping", 0.0)))
KEYS = {"block_count": 4, "rope.dimension_count": 8, "attention.sliding_window": 40, "rope.freq_base_swa": 500.0, "embedding_scale": 3.0, "logit_scale": 0.5,
        "final_logit_softcapping": 4.0, "attention.layer_norm_epsilon": 1e-5}
TENSORS = [*(f"blk.{i}.attn_{m}.bias" for i in (2, 3) for m in ("q", "k", "v", "output")), "blk.2.ffn_up.bias", "blk.3.ffn_down.bias", "blk.2.attn_norm.bias",
           "blk.3.attn_norm.bias", "blk.0.attn_qkv.weight", "output.weight", "output.bias"]


@pytest.fixture(scope="module")
def page() -> Iterator[None]:
    pages.PAGES["everything"] = PAGE
    yield
    del pages.PAGES["everything"]


@pytest.fixture(params=[("F32", "rms"), ("Q8_0", "layer")], ids="-".join, scope="module")
def model(request: pytest.FixtureRequest, page: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """(file, format, keys): norms are RMSNorm in one and LayerNorm in the other."""
    (format, kind), path = request.param, tmp_path_factory.mktemp("models") / "m.gguf"
    keys = {**KEYS, "norm_kind": kind}
    return write_family(path, "everything", keys, format, tensors=TENSORS), format, keys


def observed(runtime: Runtime, chunk: int, names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    observe: Any = {name: (lambda rows, name=name: seen[name].append(rows.copy())) for name in names}
    sequence = runtime.new_sequence()
    logits = [runtime.step([Feed(sequence, IDS[i:i + chunk], "all")], observe).copy() for i in range(0, len(IDS), chunk)]
    sequence.close()
    return np.concatenate(logits), {name: np.concatenate(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("kv", ["f32", "q8_0"])
def test_every_option_in_every_way(model: tuple[Path, str, dict[str, Any]], kv: str) -> None:
    """Threads, chunks, ranges of few tokens, open form: the same bits."""
    path = model[0]
    with open_runtime(path, 1, 256, kv) as runtime:
        expected = run(runtime, IDS)
    assert np.isfinite(expected).all() and expected.std() > 0.1 and np.abs(expected).max() < 4
    with open_runtime(path, 3, 256, kv) as runtime:
        for chunk in 1, 7, 64:
            assert same(run(runtime, IDS, chunk), expected), chunk
        names = list(runtime.config.sites())
        for chunk in 150, 7:
            logits, rows = observed(runtime, chunk, names)
            assert same(logits, expected), chunk
            assert all(np.isfinite(x).all() and len(x) == 150 for x in rows.values())
        for layer in range(4):  # one layer open between fused ones
            assert same(observed(runtime, 40, [f"blocks.{layer}.attn.hook_z"])[0], expected), layer


def test_every_option_matters(model: tuple[Path, str, dict[str, Any]]) -> None:
    """An option that was read and then forgotten would leave the logits as they are."""
    path, format, keys = model
    with open_runtime(path, 2, 256) as runtime:
        expected = run(runtime, IDS)
    for key, value in {"attention.sliding_window": 100, "rope.freq_base_swa": 9.0, "embedding_scale": 1.0, "logit_scale": 1.0, "final_logit_softcapping": 0.0,
                       "rope.dimension_count": 16}.items():
        other = write_family(path.parent / "other.gguf", "everything", {**keys, key: value}, format, tensors=TENSORS)
        with open_runtime(other, 2, 256) as runtime:
            found = run(runtime, IDS)
        assert not same(found, expected), key
