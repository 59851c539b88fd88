"""Process start to first token, and peak memory, beside llama.cpp: whole processes, alternating.

    python -m llamina.bench.start MODEL.gguf [--python PEER/bin/python] [--rounds 7] [--threads N] [--first]

llama.cpp is a small C program (peers/llamacpp_first.c), compiled here against the library and header in llama-cpp-python's environment, so that no Python is
started for it. --first: instead, how long our first run ever takes, with an empty compile cache.
"""
from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..kernels.threads import default_threads
from .peers.child import PeerError
from .peers.llamacpp import VARIABLE
from .peers.machine import machine

PROMPT = "Once upon a time"


def once(command: list[str], environment: dict[str, str]) -> tuple[float, float, int]:
    """(seconds to the first byte on stdout, seconds to the exit, peak resident bytes). PeerError: no answer."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment}) as process:
        assert process.stdout
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if not first:
        raise PeerError(f"no answer from {' '.join(command)} (exit code {process.returncode})")
    return seconds, time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ours(model: Path, threads: int) -> list[str]:
    return [sys.executable, "-m", "llamina", "generate", str(model), "-p", PROMPT, "-n", "1", "--temperature", "0", "--threads", str(threads)]


def build_llamacpp(python: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Compile the C program -> (it, the environment it runs in). PeerError."""
    site = subprocess.run([python, "-c", "import importlib.util; print(importlib.util.find_spec('llama_cpp').origin)"], capture_output=True, text=True)
    library = Path(site.stdout.strip()).parent / "lib"
    header, compiler = library.parents[1] / "include", shutil.which("cc") or shutil.which("gcc")
    if site.returncode or not compiler or not (header / "llama.h").exists():
        raise PeerError("llama.cpp's start needs a C compiler, and llama-cpp-python with its header (llama.h)")
    command = [compiler, "-O2", str(Path(__file__).parent / "peers" / "llamacpp_first.c"), f"-I{header}", f"-L{library}", "-lllama", "-lggml", "-lggml-base",
               f"-Wl,-rpath-link,{library}", "-o", str(folder / "first")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeerError(f"{compiler}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return folder / "first", {"LD_LIBRARY_PATH": str(library)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.start", description="Process start to first token.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", default=os.environ.get(VARIABLE), help=f"Python with llama-cpp-python (default: ${VARIABLE})")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: one for each physical core")
    parser.add_argument("--first", action="store_true", help="our first run ever instead")
    args = parser.parse_args(argv)
    threads, times = args.threads or default_threads(), dict[str, list[tuple[float, float, int]]]()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if args.first:
                for i in range(args.rounds):
                    times.setdefault("llamina, first run ever", []).append(once(ours(args.model, threads), {"LLAMINA_COMPILE_CACHE": str(folder / str(i))}))
            else:
                commands = {"llamina": (ours(args.model, threads), dict[str, str]())}
                if args.python:
                    program, environment = build_llamacpp(args.python, folder)
                    commands["llama.cpp"] = [str(program), str(args.model), str(threads), PROMPT], environment
                for i in range(args.rounds + 1):
                    for engine, (command, environment) in list(commands.items())[::1 if i % 2 else -1]:
                        result = once(command, environment)
                        if i:  # the first warms up the page cache and ours the compile cache
                            times.setdefault(engine, []).append(result)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    m, size = machine(), args.model.stat().st_size / 1e6
    print(f"{args.model.name}, {size:.0f} MB, {threads} threads, {m['cpu']}, {m['system']}; medians of {args.rounds}, alternating\n")
    print("| | first token, s | exit, s | peak memory, MB |\n|---|---|---|---|")
    for engine, results in times.items():
        first, whole, memory = zip(*results)
        print(f"| {engine} | {statistics.median(first):.2f} ({min(first):.2f}-{max(first):.2f}) | {statistics.median(whole):.2f} | {max(memory) / 1e6:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
