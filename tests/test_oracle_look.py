"""What is looked at, against transformers (extra `oracle`): hidden states, attentions, queries, keys, values, norms and outputs of blocks of tiny random
checkpoints of several families, in float32, to 1e-4 of the largest."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import checkpoint
from llamina.convert.convert import convert
from llamina.engine.model import load
from small_models import random_ids

torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
pytest.importorskip("transformers", reason="extra 'oracle' is not installed")

TOKENS = 150
MODULES = {
    "input_layernorm": "ln1.hook_normalized", "self_attn.q_proj": "attn.hook_q", "self_attn.k_proj": "attn.hook_k", "self_attn.v_proj": "attn.hook_v",
    "self_attn.o_proj": "hook_attn_out", "mlp.gate_proj": "mlp.hook_pre", "mlp.up_proj": "mlp.hook_pre_linear", "mlp.down_proj": "hook_mlp_out",
}
"""transformers' module, whose output it is -> ours."""
_SECOND, _SANDWICH = "post_attention_layernorm", "pre_feedforward_layernorm"
NORMS = {"llama": _SECOND, "qwen2": _SECOND, "qwen3": _SECOND, "mistral window": _SECOND, "gemma2": _SANDWICH, "gemma3": _SANDWICH}
"""Variant of tests/families.py -> transformers' name of the norm before its feed-forward block."""


def outputs(model: Any, ids: list[int], norm: str) -> dict[str, np.ndarray]:
    """By our names; hidden states and attentions as transformers gives them."""
    found: dict[str, Any] = {}

    def keep(name: str, inputs: bool = False) -> Callable[..., None]:
        def hook(module: Any, given: Any, result: Any) -> None:
            value = given[0] if inputs else result[0] if isinstance(result, tuple) else result
            found[name] = value[0].detach().float().numpy()
        return hook
    for i, layer in enumerate(model.model.layers):
        modules = dict(layer.named_modules())
        for name, site in {**MODULES, norm: "ln2.hook_normalized"}.items():
            modules[name].register_forward_hook(keep(f"blocks.{i}.{site}"))
        modules["self_attn.o_proj"].register_forward_hook(keep(f"blocks.{i}.attn.hook_z", inputs=True))
        modules["mlp.down_proj"].register_forward_hook(keep(f"blocks.{i}.mlp.hook_post", inputs=True))
        modules[norm].register_forward_hook(keep(f"blocks.{i}.hook_mlp_in", inputs=True))
    with torch.no_grad():
        result = model(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
    for i, hidden in enumerate(result.hidden_states[:-1]):
        found[f"blocks.{i}.hook_resid_pre"] = hidden[0].numpy()
        if i:
            found[f"blocks.{i - 1}.hook_resid_post"] = hidden[0].numpy()
    found["ln_final.hook_normalized"] = result.hidden_states[-1][0].numpy()
    for i, attention in enumerate(result.attentions):
        found[f"blocks.{i}.attn.hook_pattern"] = attention[0].numpy()
    return found


def unpermuted(x: np.ndarray) -> np.ndarray:
    """A Llama's queries or keys, whose pairs of dimensions lie side by side here and half a head apart there: [n, heads, head_dim]."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


@pytest.mark.parametrize("name", NORMS)
def test_every_site(name: str, tmp_path: Path) -> None:
    folder, reference = checkpoint(name, tmp_path / "hf")
    ids = random_ids(TOKENS, reference.config.vocab_size)
    expected = outputs(reference, ids, NORMS[name])
    path = tmp_path / "m.gguf"
    convert(folder, path, "f32")
    with load(path, threads=2, context=256) as model:
        ours = model.activations(ids, "*")
    compared = set()
    for site, values in expected.items():
        found = ours[site]
        if name in ("llama", "mistral window") and site.endswith(("hook_q", "hook_k")):
            found = unpermuted(found)
        found = found.reshape(values.shape)
        assert np.abs(found - values).max() <= 1e-4 * np.abs(values).max(), site
        compared.add(site)
    missing = {site.split(".", 2)[-1] for site in ours if site not in compared}
    assert missing == {"attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_attn_scores", "hook_resid_mid", "hook_resid_post"}  # the last layer's, not normed
