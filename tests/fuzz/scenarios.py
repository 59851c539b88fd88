"""Random scenarios: many clients of one model in little memory, each of whose answers must be, to the bit, what it is alone.

    seed ──► Scenario (model, KV type, context, memory for 1 to 3 contexts, threads) ──► clients, a thread each ──► answers with a digest of each row of logits
                                                                          afterwards: the same requests alone, in a model with room; and the pool is whole

    python -m tests.fuzz.scenarios --cases 1000 --seed 1        a failing case names its seed: --cases 1 --seed THAT

Clients share beginnings of texts, take samples, ban texts, shift contexts, guess ahead, save and resume, stop in the middle, drop answers, fork sequences.
Nothing may end an answer but itself: whoever waits for memory gets it, and who doesn't wait is refused before the first token.
"""
from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import random
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with contextlib.suppress(ValueError):  # run as a module of the checkout, whose other folders are no packages of that name
    sys.path.remove(str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamina.engine.answers.batch import Batch
from llamina.engine.answers.chat import Chat
from llamina.engine.answers.generation import Generation
from llamina.engine.answers.speculation import MAX_DRAFT, Costs
from llamina.engine.errors import ContextFullError, OutOfMemoryError
from llamina.engine.model import Model, load
from llamina.engine.run.kv_cache import pages_of
from pool_check import check_whole, watch_pools
from small_models import SMALL, write_small_model

WAIT = 60.0  # seconds; nobody holds memory that long
SECONDS = 300  # of one case, before it counts as hanging
Found = tuple[Any, ...]


class Eager(Costs):
    """Costs at which every draft pays; lengths vary."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.one, self.limit, self.rng = 1.0, 1, rng

    def observe(self, m: int, seconds: float) -> None:
        pass

    def ratio(self, m: int) -> float:
        if m == 2:
            self.limit = self.rng.randrange(2, MAX_DRAFT)
        return 1.0 if m <= self.limit else 99.0


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Every answer keeps a checksum of each row of logits it chose from (`rows`); pools are looked at after every operation."""
    take, result = Generation._take_row, Batch._result

    def take_row(self: Any) -> np.ndarray:
        row = take(self)
        self.__dict__.setdefault("rows", []).append(zlib.crc32(row.tobytes()))
        return row

    def with_rows(answer: Any, error: Any) -> Any:
        found: Any = result(answer, error)
        found.rows = answer.generation.__dict__.get("rows", [])
        return found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generation, "_take_row", take_row)
        patch.setattr(Batch, "_result", staticmethod(with_rows))
        watch_pools(patch)
        yield


def outcome(g: Any) -> Found:
    """All that must be equal."""
    text = g.text if isinstance(g.text, str) else g.so_far
    return g.ids, getattr(g, "rows", []), text, g.finish_reason, [(p.id, p.logprob, tuple(p.top)) for p in g.logprobs]


class Scenario:
    """One case. `problems`: what went wrong, as texts."""

    def __init__(self, seed: int, folder: Path, references: dict[Any, Model]) -> None:
        self.rng, self.folder, self.seed, self.references = random.Random(seed), folder, seed, references
        r = self.rng
        self.context = r.choice([64, 96, 128, 192, 256, 320])
        self.kv = r.choice(["f16", "f16", "q8_0", "f32"])
        self.path = _model(folder, r.randrange(2))
        self.draft = _model(folder, r.randrange(2)) if r.random() < 0.15 else None
        self.threads = r.choice([1, 1, 2, 3])
        self.pages = pages_of(self.context) * r.choice([1, 1, 2, 3]) + r.choice([0, 0, 1, 2])
        self.clients = r.choice([1, 2, 3, 5, 8])
        self.bases = [[1] + [r.randrange(3, SMALL.n_vocab) for _ in range(400)] for _ in range(2)]
        self.bases.append(self.bases[0][:70] + [r.randrange(3, SMALL.n_vocab) for _ in range(400)])
        self.bases.append([1] + [40, 41, 42, 43] * 100)
        self.problems: list[str] = []
        self.answers: list[tuple[str, dict[str, Any], Found]] = []
        self._lock = threading.Lock()

    def run(self) -> list[str]:
        """-> problems."""
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        what: dict[str, Any] = dict(threads=self.threads, context=self.context, kv=self.kv)
        with load(self.path, **what) as model:
            memory = model.memory_plan.weights + self.pages * model.runtime.page_bytes
        if self.draft:
            memory += 2 * memory
        with recording(), load(self.path, memory=memory, draft=self.draft, **what) as model:
            pool = model.runtime._pool
            if not self.draft:
                pool.max_pages = self.pages
            if self.rng.random() < 0.6:
                model.costs = Eager(random.Random(self.seed))
            workers = [threading.Thread(target=self.client, args=(model, random.Random(self.rng.random()), i)) for i in range(self.clients)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            gc.collect()
            model.clear_prefix_cache()
            try:
                check_whole(pool)
            except AssertionError as error:
                self.problems.append(f"the pool is not whole: {error}")
            for name, request, found in self.answers:
                self.compare(name, request, found)
        faulthandler.cancel_dump_traceback_later()
        return [f"seed {self.seed}: context {self.context}, {self.kv}, {self.pages} pages, {self.threads} threads, {self.clients} clients, "
                f"draft {bool(self.draft)}: {problem}" for problem in self.problems]

    # -- alone ----------------------------------------------------------------------------------------------------------------------------

    def alone(self) -> Model:
        """A model with room for everything, where nothing was computed before."""
        key = self.path, self.context, self.kv
        if key not in self.references:
            while len(self.references) > 4:
                self.references.pop(next(iter(self.references))).close()
            self.references[key] = load(self.path, threads=1, context=self.context, kv=self.kv)
        model = self.references[key]
        model.speculate = False
        model.clear_prefix_cache()
        return model

    def compare(self, name: str, request: dict[str, Any], found: Found) -> None:
        """An answer, or as far as it went, with the same one alone."""
        asked = dict(request)
        with self.alone().generate(asked.pop("prompt"), **asked) as g:
            while len(g.ids) < len(found[0]) and g.finish_reason is None or found[3] != "interrupted" and g.finish_reason is None:
                next(g, "")
            ref = outcome(g)
        whole = found[3] != "interrupted"
        n = len(found[1])
        for what, a, b in zip(("ids", "logits", "text", "finish_reason", "logprobs"), found, ref):
            if what == "logits" and not whole:
                a, b = a[:min(n, len(b))], b[:min(n, len(b))]
            if not whole and what in ("ids", "text", "finish_reason", "logprobs"):
                continue
            if a != b:
                at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b))) if hasattr(a, "__len__") and hasattr(b, "__len__") else 0
                self.problems.append(f"{name}: {what} differ at {at}: {str(a)[:80]} / {str(b)[:80]} for {str(request)[:300]}")
                return

    def keep(self, name: str, request: dict[str, Any], g: Any) -> None:
        with self._lock:
            self.answers.append((name, request, outcome(g)))

    # -- clients --------------------------------------------------------------------------------------------------------------------------

    def client(self, model: Model, r: random.Random, number: int) -> None:
        """Some actions, one after the other; what they raise is a problem."""
        actions = [self.answer, self.answer, self.answer, self.cancelled, self.resumed, self.batch, self.batch, self.interleaved, self.sequences, self.chat]
        for _ in range(r.randrange(1, 6)):
            action = r.choice(actions)
            try:
                action(model, r)
            except Exception as error:
                self.problems.append(f"client {number}, {action.__name__}: {type(error).__name__}: {error}")
                if not isinstance(error, OutOfMemoryError):
                    import traceback
                    traceback.print_exc()

    def request(self, r: random.Random, model: Model) -> dict[str, Any]:
        """A prompt and options of `generate`."""
        base = r.choice(self.bases)
        n = r.choice([1, 8, 63, 64, 65, 127, 128, 129, r.randrange(1, self.context)])
        own = [r.randrange(3, SMALL.n_vocab) for _ in range(r.choice([0, 1, 5, 20, 70]))]
        prompt = (base[:n] + own)[:self.context]
        options: dict[str, Any] = {"prompt": prompt, "max_tokens": r.choice([0, 1, 5, 20, 40, 90]), "ignore_eos": r.random() < 0.9}
        options |= r.choice([{"temperature": 0.0}, {"temperature": 0.0}, {"seed": r.randrange(9)}, {"seed": r.randrange(9), "temperature": 1.5, "top_k": 0},
                             {"seed": r.randrange(9), "mirostat": 2}, {"seed": r.randrange(9), "repeat_penalty": 1.2}])
        if r.random() < 0.25:
            options["banned"] = r.sample(["e", "a", "t", "th", "ab", "4", " ", "o", "er"], r.randrange(1, 4))
        if r.random() < 0.2:
            options["stop"] = r.choice(["e", "zq", "the"])
        if r.random() < 0.3:
            options |= {"context_shift": True, "max_tokens": r.choice([30, 90, 150])}
            if r.random() < 0.5:
                options["keep"] = r.randrange(0, min(len(prompt), self.context // 2) + 1)
        if r.random() < 0.2:
            options["logprobs"] = r.randrange(3)
        if r.random() < 0.2:
            options["speculate"] = False
        return options

    def answer(self, model: Model, r: random.Random) -> None:
        request = self.request(r, model)
        with model.generate(wait=WAIT, **request) as g:
            g.text()
        self.keep("answer", request, g)

    def cancelled(self, model: Model, r: random.Random) -> None:
        """Given up in the middle, by close() or by forgetting it."""
        request = self.request(r, model)
        g = model.generate(wait=WAIT, **request)
        for _ in range(r.randrange(0, 30)):
            next(g, "")
        if r.random() < 0.5:
            g.close()
            self.keep("cancelled", request, g)

    def resumed(self, model: Model, r: random.Random) -> None:
        request = self.request(r, model)
        request.pop("stop", None)
        path = self.folder / f"{threading.get_ident()}-{r.random()}.session"
        with model.generate(wait=WAIT, **request) as g:
            for _ in range(r.randrange(0, 40)):
                next(g, "")
            g.save(path)
            before = list(getattr(g, "rows", []))
        again: Any = model.resume(path, wait=WAIT)
        again.rows = before
        with again:
            again.text()
        path.unlink()
        ids, _, text, reason, logprobs = outcome(again)
        with self._lock:
            self.answers.append(("resumed", request, (ids, again.rows, text, reason, logprobs)))

    def batch(self, model: Model, r: random.Random) -> None:
        asked = []
        for _ in range(r.randrange(1, 8)):
            request = self.request(r, model)
            request.setdefault("seed", 3)
            asked.append({**request, "samples": r.choice([1, 1, 1, 2, 4])})
        left = r.random() < 0.15
        with model.generate_many([dict(a) for a in asked], ordered=r.random() < 0.5, live=r.choice([1, 2, 5, 16]), wait=WAIT) as batch:
            for result in batch:
                request = {k: v for k, v in asked[result.index].items() if k != "samples"} | {"sample_index": result.sample}
                if result.error is not None:
                    self.problems.append(f"batch: {type(result.error).__name__}: {result.error} for {str(request)[:200]}")
                else:
                    self.keep("batch", request, result)
                if left and r.random() < 0.3:
                    break

    def interleaved(self, model: Model, r: random.Random) -> None:
        """Several of one thread, in turns. They don't wait (for whom? for oneself), so some are refused, before their first token."""
        going: list[tuple[dict[str, Any], Any]] = []
        for _ in range(r.randrange(2, 5)):
            request = self.request(r, model)
            g = model.generate(**request)
            try:
                next(g, "")
            except OutOfMemoryError:
                if g.ids:
                    self.problems.append("interleaved: no memory in the middle")
                continue
            going.append((request, g))
        while going:
            request, g = r.choice(going)
            next(g, "")
            if g.finish_reason is not None:
                self.keep("interleaved", request, g)
                going = [item for item in going if item[1] is not g]
            elif r.random() < 0.01:
                going = [item for item in going if item[1] is not g]  # dropped
                del g

    def sequences(self, model: Model, r: random.Random) -> None:
        """Texts of one's own: fed, forked, cut; with a promise, what was promised is there, whatever is cut."""
        text = r.choice(self.bases)[:r.randrange(1, self.context)]
        s = model.new_sequence()
        promised = False
        try:
            if r.random() < 0.5:
                s.promise(self.context)
                promised = True
            model.feed(s, text)
            for _ in range(r.randrange(1, 4)):
                n = r.randrange(0, len(text) + 1)
                other = s.fork(n) if r.random() < 0.5 else None
                s.truncate(n)
                text = text[:n] + [r.randrange(3, SMALL.n_vocab) for _ in range(r.randrange(1, max(2, self.context - n)))]
                row = model.feed(s, text[n:])[-1].tobytes()
                with self._lock:
                    self.answers.append(("sequence", {"prompt": text, "max_tokens": 1, "temperature": 0.0, "ignore_eos": True},
                                         ([], [zlib.crc32(row)], "", "interrupted", [])))
                if other and r.random() < 0.5:
                    other.close()
                del other
        except OutOfMemoryError:
            if promised and "fork" not in str(sys.exc_info()[1]):
                raise
        finally:
            if r.random() < 0.5:
                s.close()

    def chat(self, model: Model, r: random.Random) -> None:
        """Two turns; the second one with what the first left. Not compared: what fits depends on what was said; it must not fail in the middle."""
        with contextlib.suppress(ContextFullError), Chat(model) as chat:
            for question in "Hi", "Why?":
                g = chat.ask(question, max_tokens=r.choice([5, 40]), seed=1, context_shift=True)
                try:
                    g.text()
                except OutOfMemoryError:
                    if g.ids:
                        raise
                    return


def _model(folder: Path, number: int) -> Path:
    path = folder / f"model-{number}.gguf"
    if not path.exists():
        write_small_model(path, "Q8_0", seed=number, context_length=512)
    return path


def main(cases: int, seed: int) -> int:
    """So many scenarios from a seed on -> how many failed."""
    failed, start = 0, time.monotonic()
    references: dict[Any, Model] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in range(cases):
            if problems := Scenario(seed + case, Path(folder), references).run():
                failed += 1
                print("\n".join(problems), flush=True)
            if case % 50 == 49 or case + 1 == cases:
                print(f"{case + 1} scenarios, {failed} failed, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        for model in references.values():
            model.close()
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.exit(bool(main(args.cases, args.seed)))
