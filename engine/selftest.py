"""The exactness promise, checked on this machine: digests of the demo model's logits, computed in every way that must not matter.

    fixed ids -> logits in chunks, on 1..n threads, interleaved, on each target (a process each) -> SHA-256 of their bits == data/golden.json

golden.json names the arithmetic version and the model file that its digests belong to. Whoever changes one of them on purpose writes it anew:

    python -m llamina.engine.selftest --record
"""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FileError, FormatError, LlaminaError
from .model import DEMO, Model, load

GOLDEN = DEMO.with_name("golden.json")
N_IDS = 320  # five pages of the KV cache
TEXT = "Once upon a time, Zoë's dog\nsaid: [INST] 1,234 + 5 = ? [/INST] \N{GRINNING FACE}"
TIMEOUT = 900  # seconds for a process that compiles all kernels of another target first


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    passed: bool
    detail: str
    seconds: float


def fixed_ids(model: Model, start: int, n: int | None = None) -> list[int]:
    """`n` (default N_IDS) ids from a linear congruential generator: no tokenizer is involved."""
    ids, x = [], start
    for _ in range(N_IDS if n is None else n):
        x = (x * 1103515245 + 12345) % 2**31
        ids.append((x >> 8) % model.config.n_vocab)
    return ids


def digest(array: np.ndarray) -> str:
    """SHA-256 (hex) of a C-ordered array's bytes, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).hexdigest()


def logits_digest(model: Model, chunk: int | None = None, start: int = 1) -> str:
    return digest(model.logits(fixed_ids(model, start), chunk))


def interleaved_digests(model: Model) -> list[str]:
    """Two sequences that take turns and share steps, in uneven pieces."""
    from .run.runtime import Feed
    all_ids = [fixed_ids(model, 1), fixed_ids(model, 2)]
    sequences = [model.runtime.new_sequence() for _ in all_ids]
    rows: list[list[np.ndarray]] = [[], []]
    try:
        for turn in range(2 * N_IDS):
            pieces = [ids[s.length:s.length + n] for ids, s, n in zip(all_ids, sequences, ((1, 9), (13, 2), (5, 0))[turn % 3])]
            feeds = [(i, Feed(sequences[i], piece, "all")) for i, piece in enumerate(pieces) if piece]
            if not feeds:
                if all(s.length == N_IDS for s in sequences):
                    break
                continue
            out = model.runtime.step([f for _, f in feeds])
            for i, f in feeds:
                rows[i].append(out[:len(f.ids)].copy())
                out = out[len(f.ids):]
    finally:
        for s in sequences:
            s.close()
    return [digest(np.concatenate(r)) for r in rows]


def sampled_digest(model: Model) -> str:
    """100 tokens drawn with all sampler stages on."""
    answer = model.generate(fixed_ids(model, 3, 20), max_tokens=100, temperature=1.1, top_k=200, top_p=0.98, min_p=0.001, repeat_penalty=1.1, seed=42,
                            ignore_eos=True)
    answer.text()
    return digest(np.array(answer.ids, np.int64))


def text_digest(model: Model) -> str:
    return digest(np.array(model.tokenize(TEXT), np.int64))


def compute(threads: int | None = None) -> dict[str, Any]:
    """What golden.json holds, as this process computes it."""
    from ..kernels import ARITHMETIC_VERSION
    with load(DEMO, threads=threads) as model:
        return {
            "arithmetic_version": ARITHMETIC_VERSION, "model_sha256": hashlib.sha256(DEMO.read_bytes()).hexdigest(), "text": text_digest(model),
            "logits": [logits_digest(model), logits_digest(model, start=2)], "sampled": sampled_digest(model), "logits_q8_0": _with_kv("q8_0", threads),
        }


def read_golden(path: Path = GOLDEN) -> dict[str, Any]:
    """The committed digests. FileError or FormatError."""
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
        if golden.keys() >= {"arithmetic_version", "model_sha256", "text", "logits", "sampled"}:
            return golden
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}): install llamina again") from None
    except (ValueError, AttributeError):
        pass
    raise FormatError(f"{path}: is damaged: install llamina again")


def run(quick: bool = False, golden_path: Path = GOLDEN) -> Iterator[Check]:
    """All checks, one by one as they are done; `quick` leaves out the processes for other targets. Raises what `load` raises."""
    from ..kernels import ARITHMETIC_VERSION
    from ..kernels.target import FEATURES, HAS_BF16_DOT, TARGET, emulatable
    from ..kernels.threads import default_threads, usable_threads
    golden = read_golden(golden_path)
    yield check("arithmetic version", golden["arithmetic_version"], lambda: ARITHMETIC_VERSION)
    yield check("model file", golden["model_sha256"], lambda: hashlib.sha256(DEMO.read_bytes()).hexdigest())
    n_default = default_threads()
    with load(DEMO, threads=n_default) as model:
        yield check("text to tokens", golden["text"], lambda: text_digest(model))
        yield check(f"logits: {TARGET}, {n_default} threads", golden["logits"][0], lambda: logits_digest(model))
        for chunk in 1, 7, 64:
            yield check(f"logits: prompt in chunks of {chunk}", golden["logits"][0], lambda n=chunk: logits_digest(model, n))  # type: ignore[misc]
        yield check("logits: two sequences interleaved", golden["logits"], lambda: interleaved_digests(model))
        yield check("sampled tokens", golden["sampled"], lambda: sampled_digest(model))
    yield check("logits: keys and values in 8 bits", golden.get("logits_q8_0"), lambda: _with_kv("q8_0", n_default))
    for threads in sorted({1, 2, 3, min(256, usable_threads())} - {n_default}):
        yield check(f"logits: {threads} threads", golden["logits"][0], lambda n=threads: _with_threads(n))  # type: ignore[misc]
    if HAS_BF16_DOT:
        from ..kernels.bfloat16 import dot_differences
        yield check("the CPU's dot product of bfloat16: as two fma", [0] * 8, lambda: [dot_differences(seed=seed) for seed in range(8)])
    if quick:
        return
    from ..kernels.target import EMULATION
    for target in emulatable(FEATURES):
        yield check(f"all of it: {target} kernels, in a process of its own", golden, lambda t=target: _in_process(t, EMULATION[t]))  # type: ignore[misc]
    yield check("all of it: without NumPy's CPU dispatch", golden, lambda: _in_process(TARGET, {"NPY_DISABLE_CPU_FEATURES": " ".join(_numpy_dispatch())}))


def check(name: str, expected: Any, compute: Callable[[], Any]) -> Check:
    """Run one computation; an error of ours is a failed check."""
    start = time.perf_counter()
    try:
        found = compute()
        detail = "" if found == expected else f"expected {_short(expected)}, found {_short(found)}"
    except LlaminaError as error:
        detail = str(error)
    return Check(name, not detail, detail, time.perf_counter() - start)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    return str(value)[:12]


def _with_kv(kv: str, threads: int | None) -> str:
    """A token at a time, so that every position is read back from the cache."""
    with load(DEMO, threads=threads, kv=kv) as model:
        return logits_digest(model, 1)


def _with_threads(threads: int) -> str:
    with load(DEMO, threads=threads) as model:
        return logits_digest(model)


def _numpy_dispatch() -> list[str]:
    """CPU features of this machine for which NumPy has code of its own chosen at run time."""
    try:
        from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    except ImportError:  # NumPy 1.26
        from numpy.core._multiarray_umath import __cpu_dispatch__, __cpu_features__  # type: ignore[no-redef]
    return [feature for feature in __cpu_dispatch__ if __cpu_features__.get(feature)]


def _in_process(target: str, environment: dict[str, str]) -> dict[str, Any]:
    """`compute` in a fresh Python with these environment variables, which make it compile for `target`."""
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        process = subprocess.run([sys.executable, "-m", __name__], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LlaminaError(f"the process did not do it: {error}") from None
    if process.returncode != 0:
        raise LlaminaError(f"the process ended with code {process.returncode}: {' '.join(process.stderr.split())[-300:]}")
    found = json.loads(process.stdout)
    compiled_for = found.pop("target")
    if compiled_for != target:
        raise LlaminaError(f"the process compiled for {compiled_for}, not for {target}")
    return found


def _main(arguments: list[str]) -> None:
    from ..kernels.target import TARGET
    result = compute()
    if arguments == ["--record"]:
        GOLDEN.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    else:
        print(json.dumps({**result, "target": TARGET}))


if __name__ == "__main__":
    _main(sys.argv[1:])
