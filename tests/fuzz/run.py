"""One worker process makes the cases and prints a line for each; the process above it sees it crash, hang or grow, notes that, and starts another behind.

    watch(kind, cases, seed, save) -> findings        parent: reads "case N", "done N OUTCOME", "finding N TEXT"; no line for SECONDS: a hang
    work(kind, first, last, seed, save)               child: under a limit of its address space
"""
from __future__ import annotations

import importlib
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from llamina.engine.errors import LlaminaError
from runs import resident_megabytes

from fuzz import KINDS

SECONDS = 120.0  # of a case, before it hangs: a new format's kernels may be compiled in it
SLOW = 5.0  # seconds of CPU time of a case that ends
MEGABYTES = 400  # that a case may add to resident memory
ADDRESS_SPACE = 8 << 30
MESSAGE = 2600  # characters of an error's line


def generator(seed: int, n: int) -> random.Random:
    """The random numbers of case n."""
    return random.Random(f"{seed}/{n}")


def attempt(fuzzer: Any, n: int) -> tuple[str, str | None]:
    """A case -> (outcome, finding or None): an error that is not ours or not one line, too much time or memory."""
    before, start = resident_megabytes("VmRSS"), time.thread_time()
    try:
        outcome = fuzzer.case(n)
    except LlaminaError as error:
        outcome, text = type(error).__name__, str(error)
        if "\n" in text or len(text) > MESSAGE or not text:
            return outcome, f"a message of {len(text)} characters, {text.count(chr(10))} line ends: {text[:200]!r}"
    except Exception as error:
        return "escaped", f"{error!r:.300} {traceback.format_tb(error.__traceback__)[-1]!r:.300}"
    if (seconds := time.thread_time() - start) > SLOW:
        return outcome, f"{seconds:.1f} s"
    if (grown := resident_megabytes("VmHWM") - before) > MEGABYTES:
        return outcome, f"{grown:.0f} MB"
    return outcome, None


def work(kind: str, first: int, last: int, seed: int, save: Path | None) -> Counter[str]:
    """Cases first <= n < last, told on stdout -> outcomes."""
    module = importlib.import_module(f"fuzz.{KINDS[kind]}")
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = module.Fuzzer(Path(folder), seed)
        for n in range(first, last):
            print(f"case {n} {folder}", flush=True)
            outcome, finding = attempt(fuzzer, n)
            outcomes[outcome] += 1
            if finding:
                keep(Path(folder), save, kind, seed, n)
                print(f"finding {n} {finding}", flush=True)
            print(f"done {n} {outcome}", flush=True)
    return outcomes


def keep(folder: Path, save: Path | None, kind: str, seed: int, n: int) -> None:
    if save is not None:
        shutil.copytree(folder, save / f"{kind}-{seed}-{n}", dirs_exist_ok=True, ignore_dangling_symlinks=True)


def limited(kind: str, first: int, last: int, seed: int, save: Path | None) -> None:
    """The child's main: `work` under limits."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work(kind, first, last, seed, save)


def watch(kind: str, cases: int, seed: int, save: Path | None) -> list[str]:
    """Run all cases -> a line for each finding; progress goes to stderr."""
    findings: list[str] = []
    outcomes: Counter[str] = Counter()
    at, start, told = 0, time.monotonic(), time.monotonic()
    while at < cases:
        command = [sys.executable, "-m", "tests.fuzz", kind, "--cases", str(cases), "--seed", str(seed), "--worker", str(at)]
        child = subprocess.Popen(command + (["--save", str(save)] if save else []), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout
        current, folder, ended, buffer, waited = at, None, False, b"", SECONDS * 10  # the first: it compiles
        while not ended:
            if not select.select([child.stdout], [], [], waited)[0]:
                findings.append(f"{kind} --seed {seed}, case {current}: hangs (no end in {waited:.0f} s)")
                child.send_signal(signal.SIGKILL)
                break
            data = os.read(child.stdout.fileno(), 1 << 16)
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                word, _, rest = line.decode(errors="replace").partition(" ")
                number, _, text = rest.partition(" ")
                if word == "case":
                    current, folder = int(number), Path(text)
                elif word == "done":
                    outcomes[text] += 1
                    at, waited = int(number) + 1, SECONDS
                elif word == "finding":
                    findings.append(f"{kind} --seed {seed}, case {number}: {text}")
                    print(findings[-1], flush=True)
            ended = not data
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{at} of {cases} cases, {len(findings)} findings, {told - start:.0f} s: {dict(outcomes)}", file=sys.stderr, flush=True)
        code = child.wait()
        if at < cases:  # it did not get to its end
            if ended:
                findings.append(f"{kind} --seed {seed}, case {current}: the process ended with {code}")
            print(findings[-1], flush=True)
            if folder is not None and folder.is_dir():
                keep(folder, save, kind, seed, current)
                shutil.rmtree(folder, ignore_errors=True)
            at = current + 1
    print(f"{cases} cases, {len(findings)} findings, {time.monotonic() - start:.0f} s: {dict(outcomes)}", file=sys.stderr, flush=True)
    return findings
