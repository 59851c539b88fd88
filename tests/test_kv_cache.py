"""Pages, promises, forks, rewinding and the prefix cache, on real steps and on random operations against a plain model of what each sequence must hold."""
from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llamina.engine.answers.chat import Chat
from llamina.engine.errors import ContextFullError, OptionError, OutOfMemoryError
from llamina.engine.model import Model, load
from llamina.engine.run.kv_cache import PAGE, Sequence, pages_of
from pool_check import check_sequences, check_whole
from small_models import random_ids, write_small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_small_model(tmp_path_factory.mktemp("models") / "m.gguf", "Q8_0", context_length=512)
    with load(path, threads=1) as model:
        yield model


def write(sequence: Sequence, ids: list[int]) -> None:
    """What a step does to the pages, one byte a position."""
    start = sequence.length
    sequence.reserve(start + len(ids))
    for i, id in enumerate(ids):
        page, at = divmod(start + i, PAGE)
        assert sequence._pages[page].users == 1
        sequence._pages[page].data[at] = id
    sequence.append(ids)


def check(sequence: Sequence, text: list[int]) -> None:
    assert sequence.ids == text and sequence.length == len(text)
    for i, page in enumerate(sequence._pages[:pages_of(len(text))]):
        part = text[i * PAGE:(i + 1) * PAGE]
        assert page.data[:len(part)].tolist() == part
        assert sequence.table[0, i] == page.data.ctypes.data


def test_random_operations(model, monkeypatch):
    """Whatever is shared, copied, evicted, forked or cut: each sequence reads what was written for it, promises hold, and in the end all pages are there."""
    counts = [operations(model, seed, monkeypatch) for seed in range(12)]
    assert all(sum(column) > 50 for column in zip(*counts)), counts


def operations(model: Model, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """400 of them -> how often memory was refused, how many tokens were taken over."""
    pool = model.runtime._pool
    model.clear_prefix_cache()
    for name, value in (("max_pages", 24), ("pages", set()), ("claimed", 0), ("_free", []), ("most_idle", (24, 5, 0)[seed % 3])):
        monkeypatch.setattr(pool, name, value)
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, 400).tolist()
    live: list[tuple[Sequence, list[int]]] = []
    promised: dict[int, int] = {}
    refused = reused = 0
    for _ in range(400):
        what = rng.choice(["new", "append", "append", "append", "cut", "fork", "close", "promise", "drop"])
        if what == "new" or not live:
            text = [*base[:int(rng.integers(0, 400))], *rng.integers(0, 256, int(rng.integers(0, 40))).tolist()]
            s = Sequence(pool, 512, cached=bool(rng.random() < 0.8))
            reused += s.match(text)
            live.append((s, text[:s.length]))
            continue
        at = int(rng.integers(len(live)))
        s, text = live[at]
        try:
            if what == "append":
                more = (base[len(text):] if rng.random() < 0.7 and text == base[:len(text)] else []) or rng.integers(0, 256, 90).tolist()
                more = more[:min(int(rng.integers(1, 100)), 512 - len(text))]
                within = len(text) + len(more) <= promised.get(id(s), 0)
                if more:
                    try:
                        write(s, more)
                    except OutOfMemoryError:
                        assert not within, "a promise was broken"
                        raise
                    text += more
            elif what == "cut":
                n = int(rng.integers(0, len(text) + 1))
                s.truncate(n)
                del text[n:]
                if n and rng.random() < 0.5:
                    reused += s.match(base[n:])
                    text[:] = s.ids
            elif what == "fork":
                n = int(rng.integers(0, len(text) + 1))
                live.append((s.fork(n), text[:n]))
            elif what == "promise":
                n = int(rng.integers(len(text), 513))
                s.promise(n)
                promised[id(s)] = n
            else:
                live.pop(at)
                promised.pop(id(s), None)
                if what == "close":
                    s.close()
        except OutOfMemoryError:
            refused += 1
        s = None  # type: ignore[assignment]  # or one dropped would still be there
        check_sequences(pool, [sequence for sequence, _ in live])
        for at in range(len(live)):
            check(*live[at])
    s = None  # type: ignore[assignment]
    live.clear()  # dropped without close(): all comes back all the same
    pool.clear_prefix_cache()
    check_whole(pool)
    assert pool.free_pages == 24 and len(pool._free) == pool.claimed
    return refused, reused


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_fork_and_rewind_on_real_steps(model, length):
    """A sequence goes back to any position, or two go on from it, with the logits of a fresh text."""
    ids = random_ids(260, seed=3)
    sequence = model.new_sequence()
    model.feed(sequence, ids[:220])
    other = sequence.fork(length)
    ends = [random_ids(40, seed=s) for s in (4, 5)]
    for s, end in zip((other, sequence), ends):
        s.truncate(length)
        rows = model.feed(s, end, "all")
        assert rows.tobytes() == model.logits(ids[:length] + end)[length:].tobytes()
    again = model.feed(other, [7])
    assert again.tobytes() == model.logits([*ids[:length], *ends[0], 7])[-1:].tobytes()
    for s in sequence, other:
        s.close()
    for wrong in -1, 1:
        with pytest.raises(ValueError, match="cannot fork"):
            model.new_sequence().fork(wrong)
    with pytest.raises(OptionError, match="at least one token"):
        model.feed(model.new_sequence(), [])
    with pytest.raises(ContextFullError):
        model.feed(model.new_sequence(), [1] * 513)


@pytest.mark.parametrize("case", [{"temperature": 0.0}, {"seed": 3, "temperature": 1.2}], ids=str)
@pytest.mark.parametrize("length", [10, 64, 65, 130, 191, 300])
def test_a_prefix_hit_is_as_cold(model, case, length):
    prompt = random_ids(length, seed=length)

    def run() -> Any:
        g = model.generate(prompt, max_tokens=70, ignore_eos=True, logprobs=1, **case)
        return g.text(), g.ids, g.logprobs, g.stats.reused_tokens
    model.clear_prefix_cache()
    cold, warm = run(), run()
    assert warm[:3] == cold[:3] and cold[3] == 0
    assert length - 8 <= warm[3] < length  # the one whose logits are wanted is always fed, and fewer than eight of a page are not worth a copy
    longer = model.generate([*prompt, *cold[1][:40], 9], max_tokens=5, **case)  # the answer's tokens are known, too
    longer.text()
    assert length + 32 < longer.stats.reused_tokens <= length + 40
    model.clear_prefix_cache()
    assert run() == cold


def test_kept_pages_give_way_least_recently_used_first(model, monkeypatch):
    pool = model.runtime._pool
    model.clear_prefix_cache()
    gc.collect()
    for name, value in (("max_pages", 9), ("pages", set()), ("claimed", 0), ("_free", [])):
        monkeypatch.setattr(pool, name, value)

    def reused(seed: int) -> int:
        g = model.generate(random_ids(129, seed=seed), max_tokens=1)
        g.text()
        return g.stats.reused_tokens
    assert [reused(s) for s in (1, 2, 3)] == [0, 0, 0]  # three pages each: full
    assert reused(1) == 128
    assert reused(4) == 0  # takes from 2, which was used least recently
    assert reused(1) == 128 and reused(3) >= 64
    assert reused(2) < 128
    assert pool.claimed == 9
    model.clear_prefix_cache()


def test_little_is_kept_where_little_is_asked_for(model, monkeypatch):
    """Texts one after the other claim no more memory than one and what is kept."""
    pool = model.runtime._pool
    model.clear_prefix_cache()
    gc.collect()
    for name, value in (("max_pages", 100), ("pages", set()), ("claimed", 0), ("_free", []), ("most_idle", pool.most_idle)):
        monkeypatch.setattr(pool, name, value)
    model.runtime.keep_at_most(4 * pool.page_bytes)
    for seed in range(12):
        model.generate(random_ids(129, seed=seed), max_tokens=1).text()
    assert pool.claimed <= 4 + 1 + 3
    last = model.generate(random_ids(129, seed=11), max_tokens=1)
    last.text()
    assert last.stats.reused_tokens == 128
    model.clear_prefix_cache()


def test_a_chat_pays_for_new_tokens_only():
    """Counted: what goes through steps in the second turn is what the first one had not."""
    fed: list[int] = []
    with load("demo", threads=1) as demo:
        step = demo.runtime.step

        def counting(feeds: list[Any]) -> np.ndarray:
            fed.append(sum(len(feed.ids) for feed in feeds))
            return step(feeds)
        demo.runtime.step = counting  # type: ignore[method-assign, assignment]
        demo.speculate = False
        with Chat(demo, "You are brief. " * 10) as chat:
            first = chat.ask("Tell me a story about a fox.", seed=1, max_tokens=20)
            first.text()
            before, n_before = len(fed), sum(fed)
            assert n_before == first.stats.prompt_tokens + len(first.ids) - (first.finish_reason == "length")
            second = chat.ask("And a dog?", seed=1, max_tokens=1)
            second.text()
            new = second.stats.prompt_tokens - second.stats.reused_tokens
            assert sum(fed[before:]) == new < 40 and second.stats.prompt_tokens > 60
        with Chat(demo, "You are brief. " * 10) as again:  # another conversation begins with the same instructions
            third = again.ask("Who are you?", seed=1, max_tokens=1)
            third.text()
            assert third.stats.reused_tokens > 40


# ---------------------------------------------------------------------------------------------------------------- the context is full

@pytest.mark.parametrize("case", [{"temperature": 0.0}, {"seed": 3, "temperature": 1.2}, {"seed": 5, "mirostat": 2},
                                  {"seed": 2, "repeat_penalty": 1.2}], ids=str)
@pytest.mark.parametrize("keep", [None, 0, 20])
def test_after_a_context_shift_as_after_a_fresh_prompt(tmp_path, case, keep):
    path = write_small_model(tmp_path / "m.gguf", "Q8_0", context_length=96)
    with load(path, threads=1) as small:
        g = small.generate(random_ids(50), max_tokens=170, ignore_eos=True, context_shift=True, keep=keep, **case)
        windows: list[list[int]] = []
        while g.finish_reason is None:
            next(g, "")
            if g.stats.context_shifts > len(windows):
                windows.append(list(g.window))
        assert len(g.ids) == 170 and g.finish_reason == "length" and len(windows) == g.stats.context_shifts >= 2
        kept = 1 if keep is None else keep
        for window in windows:
            assert window[:kept] == random_ids(50)[:kept]
        n = kept + (96 - kept) // 2
        last = windows[-1][:n]
        fresh = small.generate(last, max_tokens=97 - n, ignore_eos=True, **case)
        fresh._dropped = g.stats.dropped_tokens  # random numbers go on where they were
        fresh._sampler.restore(n + fresh._dropped, g._sampler.state(n + fresh._dropped))
        fresh.text()
        rest = g.window[n:]
        assert fresh.ids[:len(rest)] == rest and len(rest) > 5
        assert len(g.history) == 220 and g.stats.dropped_tokens + len(g.window) == 220
        with pytest.raises(OptionError, match="at most half of its 96"):
            small.generate(random_ids(60), context_shift=True, keep=49)
        with pytest.raises(OptionError, match="keep"):
            small.generate(random_ids(60), keep=4)
