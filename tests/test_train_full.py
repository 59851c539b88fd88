"""All weights of a model, trained: gradients of every tensor are right, the same bits however rows are divided; and whole runs, from a file and from a
configuration."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina.engine.train.full import FullGradients
from llamina.engine.train.model_weights import ModelWeights
from naive_families import FAMILIES
from naive_gradients import Twin
from page_cases import write_case
from train_cases import LENGTHS, opened, random_rows


class FullTwin(Twin):
    """The float64 model, with something added to its tensors."""

    def along(self, directions: dict[str, np.ndarray], h: float = 1e-5) -> float:
        """The loss's derivative along {tensor: direction}, all at once."""
        weight, bias, values = self._weight, getattr(self._model, "bias", None), []
        for step in h, -h:
            def moved(name: str, found: np.ndarray, step: float = step) -> np.ndarray:
                return found + step * directions[name] if name in directions else found
            self._weight = lambda name, moved=moved: moved(name + ".weight", weight(name))
            self._model.bias = lambda name, moved=moved: moved(name + ".bias", bias(name))
            values.append(self.loss({}))
        self._weight, self._model.bias = weight, bias
        return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("name", ["llama arrays", "llama biases", "qwen3", "phi3", "gemma2", "stablelm parallel", "hunyuan", "olmo2", "gpt2", "phi2", "granite", "command-r", "mistral3", "starcoder2", "cohere2", "gemma3", "glm4", "minicpm"])
def test_gradients_are_the_slopes_of_a_float64_model(name: str, tmp_path: Path) -> None:
    path, rng = write_case(tmp_path / "m.gguf", name), np.random.default_rng(1)
    with opened(path) as model:
        rows = random_rows(model.config.n_vocab, [35, 2, 9])
        weights, twin = ModelWeights(model), FullTwin(path, model.config.architecture, rows)
        found = FullGradients(weights)
        said = found.accumulate(rows, float(sum(row.targets for row in rows)), 0)
        assert abs(said.nll.mean() - twin.loss({})) < 2e-6
        parts: dict[str, dict[str, np.ndarray]] = {}
        for tensor, array in found.arrays.items():
            parts.setdefault(tensor.split(".", 2)[-1] if tensor.startswith("blk.") else tensor, {})[tensor] = array.astype(np.float64)
        for part, g in parts.items():
            along = {n: a / np.linalg.norm(a) + 3 * rng.standard_normal(a.shape) / a.size**0.5 for n, a in g.items()}
            slope, size = sum((g[n] * along[n]).sum() for n in g), sum(np.linalg.norm(a) for a in g.values())
            assert abs(twin.along(along) - slope) < 3e-6 * size, part
