"""What each format costs in quality: perplexity and divergence from F16, with and without importance. The tables in the README.

    python -m llamina.bench.quality                                              the demo model, on text of its own generator that it was not trained on
    python -m llamina.bench.quality FOLDER --text valid.txt --types q8_0,q4_0    any model or checkpoint, any text

The model is first brought to F16, which is the reference. Perplexity as llama.cpp's, in windows; KL: mean divergence of the predictions from F16's, in
thousandths of a nat per token; top-1: how often the likeliest token is the same.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from ..convert.convert import convert
from ..convert.importance import collect
from ..engine.model import Model, load
from ..engine.score.perplexity import Divergence, divergence
from . import demo_text

TYPES = "f16,q8_0,q6_k,q5_k_m,q4_k_m,q4_0,iq4_xs,q3_k_m,q2_k"


class Texts:
    """What is measured on what: windows of `context` tokens."""

    def __init__(self, test: str, importance: str, context: int, windows: int, special: bool) -> None:
        self.test, self.importance, self.context, self.windows, self.special = test, importance, context, windows, special

    def compare(self, path: Path, reference: Model) -> Divergence:
        with load(path, context=self.context) as model:
            return divergence(model, reference, self.test, self.context, most=self.windows, special=self.special)


def table(source: str, types: list[str], texts: Texts, folder: Path) -> None:
    """Print the Markdown table, row by row."""
    f16, trial = folder / "f16.gguf", folder / "trial.gguf"
    convert(source, f16, "f16", verify=False)
    with load(f16, context=texts.context) as reference:
        columns = collect(reference, texts.importance, texts.context, texts.windows, special=texts.special)
        importance = {name: c.means() for name, c in columns.items()}
        print("| type | MB | bits per weight | perplexity | KL | top-1 | with importance: perplexity | KL | top-1 |\n" + "|---" * 9 + "|", flush=True)
        for type in types:
            report = convert(f16, trial, type, verify=False)
            cells = [type.upper(), f"{report.bytes / 1e6:.2f}", f"{report.bits_per_weight:.2f}", *_cells(texts.compare(trial, reference))]
            if type not in ("f32", "f16", "bf16"):
                convert(f16, trial, type, verify=False, importance=importance)
                cells += _cells(texts.compare(trial, reference))
            print("| " + " | ".join([*cells, *[""] * (9 - len(cells))]) + " |", flush=True)
    measured = f"{len(texts.test)} characters, windows of {texts.context} tokens, at most {texts.windows}"
    print(f"\nmeasured on {measured}; importance on {len(texts.importance)} other characters")


def _cells(d: Divergence) -> list[str]:
    return [f"{d.model.perplexity:.3f} ± {d.model.error:.3f}", f"{1000 * d.mean_kl:.2f}", f"{100 * d.top1_agreement:.1f} %"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", nargs="?", default="demo", help="a model, or a checkpoint of any kind")
    parser.add_argument("--text", type=Path, help="default: held-out text of the demo's generator, with special tokens")
    parser.add_argument("--importance-text", type=Path, help="default: training text of the demo's generator")
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=100, help="at most so many")
    args = parser.parse_args()
    special = args.text is None
    test = demo_text.text(120_000) if special else args.text.read_text(encoding="utf-8")
    importance = args.importance_text.read_text(encoding="utf-8") if args.importance_text else demo_text.text(120_000, False, 2, special)
    with tempfile.TemporaryDirectory() as folder:
        table(args.source, args.types.split(","), Texts(test, importance, args.context, args.windows, special), Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
