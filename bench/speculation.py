"""What speculation is worth in time: the same forced answers with and without it, on the real steps of a model.

    python -m llamina.bench.speculation MODEL.gguf [--generate 256] [--prompt 512] [--rounds 3] [--threads N] [--draft SMALL.gguf]

Random weights say nothing sensible, so the answer is written here instead of sampled (everything else is as always: steps, sampler, n-grams, account):
"edit": the prompt is a file of this package, the answer the same file with one name changed, as when code is edited or a text is revised.
"fresh": the prompt is that file, the answer another one, whose words are mostly new.
"random": the answer is random tokens: no guess is ever right.
Rounds alternate; ids are words hashed into the vocabulary.
"""
from __future__ import annotations

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from ..engine.model import Model, load
from ..kernels.threads import default_threads
from .peers.machine import machine

FILES = Path(__file__).resolve().parents[1] / "engine"


def ids_of(text: str, n_vocab: int) -> list[int]:
    """One id for each word, space or sign."""
    return [3 + crc32(word.encode()) % (n_vocab - 3) for word in re.findall(r" ?\w{1,7}|\s+|[^\w\s]", text)]


def texts(n_vocab: int, n_prompt: int, n_answer: int) -> dict[str, tuple[list[int], list[int]]]:
    """{case: (prompt, answer)}"""
    source = (FILES / "answers" / "generation.py").read_text(encoding="utf-8")
    prompt = ids_of(source, n_vocab)[:n_prompt]
    edited = ids_of(re.sub(r"\bmodel\b", "network", source), n_vocab)
    fresh = ids_of((FILES / "run" / "rope.py").read_text(encoding="utf-8") + (FILES / "gguf" / "file.py").read_text(encoding="utf-8"), n_vocab)
    noise = np.random.default_rng(0).integers(3, n_vocab, n_answer).tolist()
    return {"edit": (prompt, edited[:n_answer]), "fresh": (prompt, fresh[:n_answer]), "random": (prompt, noise)}


def run(model: Model, prompt: list[int], answer: list[int], speculate: bool) -> tuple[float, Any]:
    """(seconds after the first token, the generation)."""
    g = model.generate(prompt, max_tokens=len(answer), ignore_eos=True, seed=1, speculate=speculate)
    sample = g._sampler.sample

    def forced(logits: np.ndarray, position: int, *rest: Any) -> int:
        sample(logits, position, *rest)  # it takes its time
        return answer[position - len(prompt)]

    g._sampler.sample = forced  # type: ignore[method-assign, assignment]
    while not g.ids:
        next(g)
    start = time.perf_counter()
    for _ in g:
        pass
    return time.perf_counter() - start, g


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llamina.bench.speculation", description="What speculation is worth in time.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="edit,fresh,random")
    parser.add_argument("--threads", type=int, help="default: one for each physical core")
    args = parser.parse_args()
    threads = args.threads or default_threads()
    with load(args.model, threads=threads, context=args.prompt + args.generate, draft=args.draft) as model:
        print(f"{args.model.name}, prompt {args.prompt}, {args.generate} generated, {threads} threads; {machine()['cpu']}")
        cases = texts(model.config.n_vocab, args.prompt, args.generate)
        run(model, *cases["edit"], True)  # learns what steps cost
        for case in args.cases.split(","):
            seconds: dict[bool, list[float]] = {False: [], True: []}
            stats = None
            for i in range(args.rounds):
                for speculate in (False, True) if i % 2 == 0 else (True, False):
                    took, g = run(model, *cases[case], speculate)
                    seconds[speculate].append(took)
                    stats = g.stats if speculate else stats
            assert stats is not None
            off, on = (statistics.median(seconds[s]) for s in (False, True))
            pairs = [b / a for a, b in zip(seconds[False], seconds[True])]
            print(f"{case:7} off {args.generate / off:6.1f} tokens/s, on {args.generate / on:6.1f}: {off / on:.2f} x; time on / off, pair by pair: "
                  f"{', '.join(f'{p:.3f}' for p in pairs)}; {stats.accepted_tokens} of {stats.drafted_tokens} guesses right")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
