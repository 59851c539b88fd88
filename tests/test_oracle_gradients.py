"""Gradients of adapters against PyTorch's: tiny models of four families, float32 autograd through transformers' own class, with the pairs beside its matrices
(extra `oracle`). F32: relative error of each matrix's gradient at most 1e-4. Q8_0, Q4_0: cosine to float32's on the dequantised weights at least 0.99. And of
all weights, every tensor of them: at most 1e-4."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import checkpoint
from llamina.convert.convert import convert
from llamina.engine.architectures.hf import hf_tensors, row_orders
from llamina.engine.architectures.pages import PAGES
from llamina.engine.gguf.file import GGUFFile, open_gguf
from llamina.engine.train.full import FullGradients
from llamina.engine.train.gradients import Gradients
from llamina.engine.train.model_weights import ModelWeights
from llamina.engine.train.optimiser import clip_factor, gradient_norm, make
from llamina.kernels.formats import registry
from train_cases import opened, random_adapter, random_rows

torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
pytest.importorskip("transformers", reason="extra 'oracle' is not installed")


def torch_gradients(model: Any, rows: list[Any], pairs: dict[str, tuple[Any, Any, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name of a module: (a, b, scale)} -> its gradients, of the mean loss of the rows' targets."""
    leaves = {}
    for name, (a, b, scale) in pairs.items():
        a, b = (torch.tensor(x, requires_grad=True) for x in (a, b))
        leaves[name] = a, b

        def add(module: Any, inputs: Any, out: Any, a: Any = a, b: Any = b, scale: float = scale) -> Any:
            return out + scale * (inputs[0] @ a.T) @ b.T
        model.get_submodule(name).register_forward_hook(add)
    mean_loss(model, rows).backward()
    return {name: (a.grad.numpy(), b.grad.numpy()) for name, (a, b) in leaves.items()}


def mean_loss(model: Any, rows: list[Any]) -> Any:
    losses = []
    for row in rows:
        logp = torch.log_softmax(model(torch.tensor(row.ids[None].astype(np.int64))).logits[0], -1)
        wanted = np.flatnonzero(row.loss_mask)
        losses.append(-logp[wanted - 1, row.ids[wanted].astype(np.int64)])
    return torch.cat(losses).mean()


def take_matrices(model: Any, gguf: GGUFFile, orders: dict[str, Any], modules: dict[str, str]) -> None:
    """A file's matrices, dequantised, become transformers' model's. modules: {tensor: parameter}."""
    with torch.no_grad():
        for tensor, hf in modules.items():
            info = gguf.tensors[tensor]
            if len(info.shape) == 2:
                values = registry.decode(info.format.name, gguf.data(tensor)).reshape(info.shape)
                model.get_parameter(hf).copy_(torch.tensor(values[np.argsort(orders[tensor])] if tensor in orders else values))


@pytest.mark.parametrize("format", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi2"])
def test_gradients_are_torchs(name: str, format: str, tmp_path: Path) -> None:
    folder, model = checkpoint(name, tmp_path / "hf")
    path = tmp_path / "m.gguf"
    convert(folder, path, format)
    with opened(path) as ours, open_gguf(path) as gguf:
        config, page = ours.config, PAGES[ours.config.architecture]
        orders, modules = row_orders(page, config), {t.name: hf for hf, t in hf_tensors(page, config).items()}
        if format != "f32":
            take_matrices(model, gguf, orders, modules)
        adapter, rows = random_adapter(config), random_rows(config.n_vocab, [70, 9, 33])
        found = Gradients(ours, adapter)
        found.accumulate(rows, float(sum(row.targets for row in rows)), 0)
        pairs = {}
        for tensor, pair in adapter.pairs.items():
            b = pair.b[np.argsort(orders[tensor])] if tensor in orders else pair.b
            pairs[modules[tensor].removesuffix(".weight")] = pair.a, b, pair.scale
        expected = torch_gradients(model, rows, pairs)
    for tensor in adapter.pairs:
        a, b = expected[modules[tensor].removesuffix(".weight")]
        b = b[orders[tensor]] if tensor in orders else b
        for ours_, theirs in ((found.arrays[f"{tensor}.lora_a"], a), (found.arrays[f"{tensor}.lora_b"], b)):
            x, y = ours_.astype(np.float64), theirs.astype(np.float64)
            if format == "f32":
                assert np.linalg.norm(x - y) <= 1e-4 * np.linalg.norm(y), tensor
            else:
                assert (x * y).sum() >= 0.99 * np.linalg.norm(x) * np.linalg.norm(y), tensor


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi2"])
def test_gradients_of_all_weights_are_torchs(name: str, tmp_path: Path) -> None:
    folder, model = checkpoint(name, tmp_path / "hf")
    convert(folder, tmp_path / "m.gguf", "f32")
    with opened(tmp_path / "m.gguf") as ours:
        config, page = ours.config, PAGES[ours.config.architecture]
        orders, modules = row_orders(page, config), {t.name: hf for hf, t in hf_tensors(page, config).items()}
        rows, found = random_rows(config.n_vocab, [70, 9, 33]), FullGradients(ModelWeights(ours))
        found.accumulate(rows, float(sum(row.targets for row in rows)), 0)
    model.zero_grad()
    model.get_input_embeddings().padding_idx = None  # whose row PyTorch would not learn
    mean_loss(model, rows).backward()
    for tensor, array in found.arrays.items():
        theirs = model.get_parameter(modules[tensor]).grad.numpy()
        theirs = theirs[orders[tensor]] if tensor in orders else theirs
        x, y = array.astype(np.float64), theirs.astype(np.float64)
        assert np.linalg.norm(x - y) <= 1e-4 * np.linalg.norm(y) and y.any(), tensor


def test_forty_steps_are_torchs(tmp_path: Path) -> None:
    """AdamW on all weights, clipped, vectors without decay: the losses of both, step by step."""
    folder, model = checkpoint("llama", tmp_path / "hf")
    convert(folder, tmp_path / "m.gguf", "f32")
    model.get_input_embeddings().padding_idx = None
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    theirs = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=3e-3)
    with opened(tmp_path / "m.gguf") as ours:
        weights = ModelWeights(ours)
        found, batches = FullGradients(weights), [random_rows(ours.config.n_vocab, [20, 9, 33], seed) for seed in range(4)]
        adam = make("adamw", weights.arrays, weight_decay=0.1, plain={name for name, array in weights.arrays.items() if array.ndim < 2})
        losses = []
        for step in range(40):
            rows = batches[step % 4]
            found.zero()
            said = found.accumulate(rows, float(sum(row.targets for row in rows)), step)
            adam.step(found.arrays, 3e-3, clip_factor(gradient_norm(found.arrays), 1.0))
            loss = mean_loss(model, rows)
            theirs.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            theirs.step()
            losses.append((float(said.nll.mean()), float(loss.detach())))
    assert losses[-1][0] < losses[0][0] - 1 and all(abs(a - b) < 1e-3 * b for a, b in losses), losses
