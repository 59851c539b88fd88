"""llama.cpp opens what llamina writes, and llamina what llama.cpp's quantiser writes, with the same perplexity: the table in docs/convert.md.

    LLAMINA_PEER_LLAMACPP=/path/to/venv/bin/python python -m llamina.bench.crosscheck [MODEL [TEXT_FILE]] [--windows N]

MODEL (default: the demo) is first brought to F16. Then every recipe, with and without importance, is written by llamina; every type that llama.cpp's quantiser
knows is written by it (with llamina's importance, without which it refuses the small ones); and both programs measure both kinds of files on the same
windows. The exit code is 1 if a file is refused, or perplexities differ by more than 0.5 % on one of them.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..convert.convert import convert
from ..convert.importance import collect
from ..convert.recipes import RECIPES
from ..engine.errors import LlaminaError
from ..engine.model import load, resolve
from ..engine.score.perplexity import perplexity
from . import demo_text
from .peers.child import PeerError
from .peers.llamacpp import LlamaCpp, start

CONTEXT = 256
LIMIT = 0.005
TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_xs",
         "iq4_nl", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "q2_k", "q2_k_s", "iq2_m", "iq2_s",
         "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "tq2_0", "tq1_0")


class Row(NamedTuple):
    """One file, measured by both; a text instead of a number is why not."""

    writer: str
    type: str
    bytes: int
    ours: float | str
    theirs: float | str

    @property
    def difference(self) -> float | None:
        if isinstance(self.ours, str) or isinstance(self.theirs, str):
            return None
        return self.ours / self.theirs - 1

    @property
    def good(self) -> bool:
        return self.difference is not None and abs(self.difference) <= LIMIT


def measure(writer: str, type: str, path: Path, text: Path, peer: LlamaCpp, windows: int | None) -> Row:
    """Both perplexities of a file."""
    try:
        with load(path, context=CONTEXT) as model:
            ours: float | str = perplexity(model, text.read_text(encoding="utf-8"), CONTEXT, most=windows).perplexity
    except LlaminaError as error:
        ours = str(error)
    try:
        peer.ask("load", model=str(path), threads=1)
        theirs: float | str = peer.ask("perplexity", path=str(text), context=CONTEXT, chunks=windows or 0)["perplexity"]
    except PeerError as error:
        theirs = str(error)
    return Row(writer, type, path.stat().st_size, ours, theirs)


def crosscheck(source: Path, text: Path, importance_text: str, peer: LlamaCpp, folder: Path, windows: int | None = None, types: set[str] | None = None,
               writer: str | None = None) -> Iterator[Row]:
    """Every file that either side writes of `source`, measured by both; only these types, only by this writer."""
    f16 = folder / "source.f16.gguf"
    convert(source, f16, "f16", verify=False)
    with load(f16, context=CONTEXT) as model:
        importance = {k: v.means() for k, v in collect(model, importance_text, CONTEXT, 100).items()}
    np.savez(folder / "importance.npz", **importance)  # type: ignore[arg-type]
    path = folder / "trial.gguf"
    for recipe in [r for r in RECIPES if writer != "llama.cpp" and (types is None or r in types)]:
        convert(f16, path, recipe, verify=False)
        yield measure("llamina", recipe, path, text, peer, windows)
        if recipe not in ("f32", "f16", "bf16"):
            convert(f16, path, recipe, verify=False, importance=importance)
            yield measure("llamina, importance", recipe, path, text, peer, windows)
    for type in [t for t in TYPES if writer != "llamina" and (types is None or t in types)]:
        path.unlink(missing_ok=True)
        try:
            peer.ask("quantize", source=str(f16), target=str(path), type=type, importance=str(folder / "importance.npz"))
        except PeerError as error:
            yield Row("llama.cpp", type, 0, "", str(error))
            continue
        yield measure("llama.cpp", type, path, text, peer, windows)


def shown(row: Row) -> str:
    """A line of Markdown."""
    def number(x: float | str) -> str:
        return x if isinstance(x, str) else f"{x:.4f}"
    difference = "" if row.difference is None else f"{100 * row.difference:+.2f} %"
    return f"| {row.writer} | {row.type} | {row.bytes} | {number(row.ours)} | {number(row.theirs)} | {difference} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.crosscheck", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--importance-text", type=Path, help="default: text of the demo's generator")
    parser.add_argument("--windows", type=int, help=f"at most so many windows of {CONTEXT} tokens")
    parser.add_argument("--types", help="only these, with commas between")
    parser.add_argument("--writer", choices=("llamina", "llama.cpp"), help="only files written by this one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, start() as peer:
        folder = Path(name)
        text = args.text or folder / "text.txt"
        if args.text is None:
            text.write_text(demo_text.text(90_000, special=False), encoding="utf-8")
        importance_text = demo_text.text(90_000, held=False, seed=2, special=False)
        if args.importance_text:
            importance_text = args.importance_text.read_text(encoding="utf-8")
        print("| written by | type | bytes | perplexity | llama.cpp's | difference |\n|---|---|---:|---:|---:|---:|", flush=True)
        rows = []
        for row in crosscheck(resolve(args.model), text, importance_text, peer, folder, args.windows,
                              set(args.types.split(",")) if args.types else None, args.writer):
            rows.append(row)
            print(shown(row), flush=True)
    differences = [abs(row.difference) for row in rows if row.difference is not None]
    bad = [f"{row.writer} {row.type}" for row in rows if not row.good]
    print(f"\n{len(rows)} files, {len(rows) - len(bad)} within {100 * LIMIT:g} %; mean difference {100 * sum(differences) / max(1, len(differences)):.3f} %, "
          f"largest {100 * max(differences, default=0):.3f} %" + (f"; not: {', '.join(bad)}" if bad else ""))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
