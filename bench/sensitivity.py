"""What share of a relative output error reaches the logits, by kind of matrix: the table in convert/fit.py.

    python -m llamina.bench.sensitivity MODEL TEXT_FILE [FORMAT]

One kind at a time is quantised to FORMAT (default q3_k), the rest stays F16; KL is measured on the text, the output error as convert/fit.py defines it.
"""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from ..convert.convert import convert
from ..convert.fit import logit_energy
from ..convert.importance import collect
from ..convert.sources import open_source
from ..engine.model import load
from ..engine.score.perplexity import divergence
from ..kernels.formats import registry
from ..kernels.formats.encoders import encode

KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


def sensitivities(source: str, text: str, name: str = "q3_k", context: int = 256, windows: int = 40) -> dict[str, float]:
    """Kind -> KL divergence by that of the same relative error in all logits (fit.logit_energy)."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        reference, trial = Path(folder) / "reference.gguf", Path(folder) / "trial.gguf"
        convert(source, reference, "f16", verify=False)
        opened = open_source(reference)
        tied = all(t.name != "output.weight" for t in opened.tensors)
        with load(reference, context=context) as exact:
            energy = logit_energy(opened, {})
            importance = {k: v.means() for k, v in collect(exact, text, context, windows).items()}
            for kind in KINDS:
                tensor = "token_embd" if kind == "output" and tied else kind
                pattern = rf"(^|\.){tensor}\.weight"
                convert(source, trial, "f16", verify=False, overrides=[f"{pattern}={name}"])
                with load(trial, context=context) as model:
                    kl = divergence(model, exact, text, context, most=windows).mean_kl
                error, matrices = 0.0, 0
                for t in opened.tensors:
                    if t.name.split(".")[-2] == tensor:
                        x = t.rows(0, t.shape[0])
                        y = registry.decode(name.upper(), encode(name.upper(), x))
                        w = importance[t.name]
                        matrices += 1
                        error += float((np.square(x.astype(np.float64) - y) * w).sum() / (np.square(x.astype(np.float64)) * w).sum())
                result[kind] = kl / (0.5 * energy * error / matrices)
        opened.close()
    return result


if __name__ == "__main__":
    found = sensitivities(sys.argv[1], Path(sys.argv[2]).read_text(), sys.argv[3] if len(sys.argv) > 3 else "q3_k")
    for kind, value in found.items():
        print(f"{kind:12s} {value:.3f} of the relative error, squared, is in the logits")
