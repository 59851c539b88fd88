"""Samplers' distributions against the logits processors of Hugging Face `transformers` (extra `oracle`) on fixed logits."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llamina.engine.sampling.sampler import Sampler, SamplingOptions

torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
transformers = pytest.importorskip("transformers", reason="extra 'oracle' is not installed")

OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "seed": 1}
HISTORY = [3, 9, 9, 250, 3, 17]


def processors(**o: Any) -> Any:
    """Those of generate() for these options, in its order: penalties, biases, temperature, top-k, top-p, min-p, typical."""
    t = transformers.generation.logits_process
    made: list[Any] = []
    if "logit_bias" in o:
        made.append(t.SequenceBiasLogitsProcessor({(id,): bias for id, bias in o["logit_bias"].items()}))
    if "repeat_penalty" in o:
        made.append(t.RepetitionPenaltyLogitsProcessor(o["repeat_penalty"]))
    if "temperature" in o:
        made.append(t.TemperatureLogitsWarper(o["temperature"]))
    for name, kind in ("top_k", t.TopKLogitsWarper), ("top_p", t.TopPLogitsWarper), ("min_p", t.MinPLogitsWarper), ("typical_p", t.TypicalLogitsWarper):
        if name in o:
            made.append(kind(o[name]))
    return t.LogitsProcessorList(made)


CASES: list[dict[str, Any]] = [
    {"temperature": 0.7}, {"top_k": 20}, {"top_p": 0.9}, {"top_p": 0.3}, {"min_p": 0.05}, {"typical_p": 0.9}, {"typical_p": 0.2}, {"repeat_penalty": 1.3},
    {"logit_bias": {5: 3.5, 8: -2.0}}, {"repeat_penalty": 1.2, "temperature": 1.4, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.8},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_distribution_is_that_of_transformers(case):
    rng = np.random.default_rng(0)
    sampler = Sampler(SamplingOptions(**{**OFF, **case}, repeat_last_n=-1, order="bias;penalties;temperature;top_k;top_p;min_p;typical"))
    for _ in range(20):
        logits = (3 * rng.standard_normal(300)).astype(np.float32)
        made = processors(**case)(torch.tensor([HISTORY]), torch.from_numpy(logits)[None].double())
        ref = torch.softmax(made, -1)[0].numpy()
        comp = np.zeros(300)
        for id, p in sampler.distribution(logits, 0, HISTORY).items():
            comp[id] = p
        np.testing.assert_allclose(comp, ref, rtol=1e-5, atol=1e-12)
