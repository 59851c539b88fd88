"""`llamina bench`: how fast a model runs here, against this machine's own limits."""
from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..engine.cli.options import debug_option
from ..engine.cli.progress import Progress
from ..engine.errors import OptionError

if TYPE_CHECKING:
    from .speed import Test


@click.command("bench")
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--shape", metavar="NAME", help="Instead of MODEL: random weights in this shape, written to a temporary file: 15m, 1b, 7b, qwen3-4b, "
              "gemma3-1b, gemma3-4b, gemma4-e2b, phi4-mini, qwen3-30b-a3b, lfm2-8b-a1b, gpt-oss-20b; NAME:N has N layers.")
@click.option("--type", "kind", default="q4_0", show_default=True, metavar="NAME", help="Format of the random weights: q4_0, q4_k_m, q8_0, f16, "
              "mxfp4 (experts, beside q8_0) ...")
@click.option("--keep", type=click.Path(file_okay=False), metavar="FOLDER", help="Keep the file of random weights here, and use it if it is there already.")
@click.option("--prompt", type=int, default=512, show_default=True, metavar="N", help="Tokens of the prompt; 0: no such test.")
@click.option("--generate", type=int, default=64, show_default=True, metavar="N", help="Tokens to generate one by one; 0: no such test.")
@click.option("--batch", default="1,8", show_default=True, metavar="N,...", help="Sequences that generate at once; a test for each number.")
@click.option("--context-depth", type=int, default=0, show_default=True, metavar="N", help="Positions that the KV cache holds already (made-up values).")
@click.option("--repetitions", type=int, default=5, show_default=True, metavar="N", help="Times that each test is run, after one to warm up.")
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: measured once]")
@click.option("--kv", metavar="TYPE", help="What keys and values are kept as: f16, q8_0, f32.  [default: f16; f32 for F32 files]")
@click.option("--profile", is_flag=True, help="Also time every stage of the forward pass, and tell which kernel each tensor got.")
@click.option("--json", "output", flag_value="json", help="Print one JSON object, with every sample.")
@click.option("--csv", "output", flag_value="csv", help="Print comma-separated values.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@debug_option
def command(model: str | None, shape: str | None, kind: str, keep: str | None, prompt: int, generate: int, batch: str, context_depth: int, repetitions: int,
            threads: int | None, kv: str | None, profile: bool, output: str | None, quiet: bool) -> None:
    """Time prompts, generation and generation for several sequences at once; tell tokens a second, memory traffic, and the share of what this machine can do.

    The limits (read bandwidth, multiply-adds a second) are measured in the same run. Speeds are of the model alone, without sampling and
    text, as llama-bench's are.

    \b
    Examples:
      llamina bench model.gguf
      llamina bench --shape 1b --type q4_0 --profile
      llamina bench model.gguf --prompt 0 --batch 1 --context-depth 4096 --json
    """
    if (model is None) == (shape is None):
        raise OptionError("name a MODEL, or --shape for random weights" + ("; not both" if model else ""))
    for name, value, least in (("prompt", prompt, 0), ("generate", generate, 0), ("context-depth", context_depth, 0), ("repetitions", repetitions, 1)):
        if not least <= value <= 1 << 20:
            raise OptionError(f"--{name} must be between {least} and {1 << 20}, found {value}")
    batches = _numbers(batch)
    if not prompt and not generate:
        raise OptionError("nothing to measure: --prompt and --generate are both 0")
    from ..engine.home.resolve import resolve
    from .report import as_csv, markdown, rate, report, tests_of
    tests: list[Test] = tests_of(prompt, generate, batches, context_depth)
    with Progress(quiet) as progress, _file(model and str(resolve(model, progress.loading)), shape, kind, keep, progress) as path:
        result = report(path, tests, threads=threads, kv=kv, repetitions=repetitions, profile=profile, progress=progress.loading,
                        note=lambda what: progress.stage(f"measuring {what} ..."),
                        done=lambda s: progress.note(f"{s.test.name}: {rate(s.mean, s.spread)} tokens/s") if progress.shows else None)
        progress.clear()
    print(json.dumps(result) if output == "json" else as_csv(result).rstrip("\n") if output == "csv" else "\n".join(markdown(result)))


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= n <= 512 for n in numbers):
        raise OptionError(f"--batch must be numbers between 1 and 512 with commas between them, found {text!r}")
    return numbers


@contextlib.contextmanager
def _file(model: str | None, shape: str | None, kind: str, keep: str | None, progress: Progress) -> Iterator[Path]:
    """The model's file; random weights are written by a process of their own, which leaves no mark on our peak memory."""
    if model is not None:
        yield Path(model)
        return
    assert shape is not None  # one of both is given
    from .synthetic import _FILE_TYPES, shape_named
    shape_named(shape)
    if kind.lower() not in _FILE_TYPES:
        raise OptionError(f"unknown type {kind!r}: choose from {', '.join(_FILE_TYPES)}")
    with contextlib.ExitStack() as stack:
        folder = Path(keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="llamina-bench-")))
        path = folder / f"{shape}.{kind.lower()}.gguf"
        if not path.exists():
            progress.stage(f"writing random weights to {path.name} ...")
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OptionError(f"--keep {folder}: {error.strerror}") from None
            partial = path.with_suffix(".partial")
            done = subprocess.run([sys.executable, "-m", __package__ + ".synthetic", shape, kind.lower(), str(partial)], capture_output=True, text=True)
            if done.returncode:
                partial.unlink(missing_ok=True)
                raise OptionError(f"no random weights of type {kind} in shape {shape}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
            partial.replace(path)
        yield path
