"""Answers with adapters where more is going on: guesses, chats that are saved, known beginnings, little memory."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adapters import random_adapter
from llamina import load
from llamina.engine.answers.chat import Chat
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.cli import main
from llamina.engine.errors import OptionError, OutOfMemoryError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.model import Model
from llamina.engine.run.adapters import memory_of
from llamina.engine.train.adapter import Adapter
from small_models import random_ids, write_small_model
from test_speculation import Eager


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("models") / "q4.gguf", "Q4_0")


def adapter_of(path: Path, to: Path, **more: Any) -> Path:
    with open_gguf(path) as file:
        random_adapter(ModelConfig.from_gguf(file), **more).save(to)
    return to


# -- guesses ----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("with_draft", [False, True])
def test_guesses_change_nothing(path: Path, tmp_path: Path, with_draft: bool) -> None:
    """Tokens and log-probabilities with == on and off, for texts with one adapter, two, and none, alone and beside each other; from the text itself, and by a
    draft model that is the main one without adapters: sometimes right."""
    prompt = (random_ids(24, seed=1) * 4)[:90]
    options: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "logprobs": 2}
    samplings: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.8, "seed": 5}]
    uses: list[Any] = [{"one": 1.0}, {"one": 0.5, "two": -1.0}, {}, {"two": 0.05}]
    with load(path, threads=2, draft=path if with_draft else None) as model:
        model.costs = Eager()
        for seed, name in enumerate(("one", "two")):
            model.add_adapter(adapter_of(path, tmp_path / f"{name}.gguf", seed=seed), name=name, default=False)
        guessed = right = 0
        for sampling in samplings:
            expected = []
            for use in uses:
                found = []
                for speculate in False, True:
                    model.clear_prefix_cache()
                    answer = model.generate(prompt, speculate=speculate, adapters=use, **options, **sampling)
                    answer.text()
                    found.append((answer.ids, [token.logprob for token in answer.logprobs]))
                    guessed, right = guessed + answer.stats.drafted_tokens, right + answer.stats.accepted_tokens
                assert found[0] == found[1], (sampling, use)
                expected.append(found[0][0])
            assert len({tuple(ids) for ids in expected}) == len(uses)
            model.clear_prefix_cache()
            together = model.generate_many([{"prompt": prompt, "adapters": use} for use in uses], ordered=True, speculate=True, **options, **sampling)
            assert [result.ids for result in together] == expected
        assert guessed > right > 0


def test_chats_that_are_saved(path: Path, tmp_path: Path) -> None:
    """A saved chat goes on with its adapters, guessing or not, from the pages that were saved, and from what the prefix cache has of the same adapters only."""
    file = adapter_of(path, tmp_path / "law.gguf", seed=3)
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    with load(path, threads=2, adapters=[(file, 0.5)]) as model:
        said = {}
        for speculate in False, True:
            model.speculate = speculate
            chat = Chat(model)
            for text in ("a b c a b c a b c", "and then a b c"):
                chat.ask(text, **options).text()
            chat.save(tmp_path / f"{speculate}.session")
            said[speculate] = chat.messages
            chat.close()
        assert said[False] == said[True]
        again = []
        for speculate in False, True:
            model.clear_prefix_cache()
            chat, model.speculate = Chat(model), not speculate
            assert chat.load(tmp_path / f"{speculate}.session") is None
            answer = chat.ask("a b c", **options)
            again.append(answer.text())
            assert answer.stats.reused_tokens > 0
            chat.close()
        assert again[0] == again[1]
        model.use_adapters({"law": 0.25})
        assert "other adapters" in str(Chat(model).load(tmp_path / "True.session"))


# -- memory -----------------------------------------------------------------------------------------------------------------------------------

def told_plan(model: Model) -> str:
    plan = model.memory_plan
    assert plan.kv == plan.pages * plan.page_bytes == model.runtime._pool.max_pages * plan.page_bytes
    return str(plan)


def test_adapters_are_in_the_memory_plan(path: Path, tmp_path: Path) -> None:
    """Those that a model is loaded with: what is told and kept to counts them, and what does not fit is refused before the weights are loaded."""
    file = adapter_of(path, tmp_path / "a.gguf", rank=32)
    with load(path, threads=1) as model:
        full, size = model.memory_plan, memory_of(Adapter.read(file), model.config)
        needs = full.weights + full.context_bytes
    assert 200_000 < size < 1_000_000
    notes: list[str] = []
    with load(path, threads=1, memory=needs + size, context=1024, adapters=[(file, 1.0)], note=notes.append) as model:
        plan = model.memory_plan
        assert plan.adapters == size and plan.weights + plan.kv <= needs + size and plan.weights - plan.adapters <= full.weights and plan.context == 1024
        assert ", adapters " in notes[0] == told_plan(model) and list(model.adapters) == ["a"]
        assert model.runtime.adapters.by_name["a"].nbytes <= size
    loaded: list[str] = []
    smallest = full.weights - full.buffers + full.context_bytes
    with pytest.raises(OutOfMemoryError, match=r"weights \(.*\), adapters \(.*\), buffers .* don't fit into the"):
        load(path, threads=1, memory=smallest + size // 2, context=1024, adapters=[(file, 1.0)], progress=lambda what, *_: loaded.append(what))
    assert "loading" not in loaded


def test_adapters_that_come_later(path: Path, tmp_path: Path) -> None:
    """They get what the KV cache has not promised, never what a context needs; one that does not fit changes nothing; what is let go, the next one gets."""
    file = adapter_of(path, tmp_path / "a.gguf", rank=32)
    with load(path, threads=1) as model:
        full, size = model.memory_plan, memory_of(Adapter.read(file), model.config)
    budget = full.weights + full.context_bytes + 2 * size + 2 * full.page_bytes
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    prompt = random_ids(500)
    with load(path, threads=1, memory=budget, context=1024) as model:
        model.generate(prompt, **options).text()  # the prefix cache holds pages, which make room
        for name in "one", "two":
            model.add_adapter(file, name=name, default=False)
            plan = model.memory_plan
            assert plan.weights + plan.kv <= budget and plan.kv >= plan.context_bytes and ", adapters " in told_plan(model)
        before = model.memory_plan
        with pytest.raises(OutOfMemoryError, match="adapter 'three' takes .* are left of the memory allowed"):
            model.add_adapter(file, name="three", default=False)
        assert model.memory_plan == before and list(model.adapters) == ["one", "two"] and told_plan(model)
        sequence = model.new_sequence()
        sequence.promise(1024)
        sequence.close()
        expected = model.generate(prompt, adapters={"two": 1}, **options).text()
        model.remove_adapter("one")
        model.add_adapter(file, name="three", default=False)
        assert model.memory_plan == before and model.generate(prompt, adapters={"three": 1}, **options).text() == expected
    with load(path, threads=1, memory=budget, context=1024) as model:
        busy = [model.new_sequence() for _ in range(model.memory_plan.pages // 16)]
        for sequence in busy:
            sequence.promise(1024)
        with pytest.raises(OutOfMemoryError, match="answers under way"):
            model.add_adapter(file, name="one")


def test_the_command_tells_them(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = adapter_of(path, tmp_path / "a.gguf", rank=32)
    common = ["generate", str(path), "-p", "a", "-n", "1", "--threads", "1", "--lora", str(file)]
    assert main([*common, "--memory", "100MB"]) == 0 and ", adapters " in capsys.readouterr().err
    assert main([*common, "--memory", "500KB"]) != 0
    said = capsys.readouterr().err
    assert "adapters (" in said and said.count("\n") == 1 and "Traceback" not in said


def test_what_everything_has_is_changed(path: Path, tmp_path: Path) -> None:
    with load(path, threads=1, adapters=[(adapter_of(path, tmp_path / "a.gguf"), 0.5), (adapter_of(path, tmp_path / "b.gguf", seed=1), 0.0)]) as model:
        def scales() -> list[float]:
            return [entry["default"] for entry in model.adapters.values()]
        assert scales() == [0.5, 0.0]
        model.use_adapters({"b": -1.0})
        assert scales() == [0.0, -1.0]
        with pytest.raises(OptionError, match="no adapter called 'c'"):
            model.use_adapters(["a", "c"])
        assert scales() == [0.0, -1.0]
        model.use_adapters([])
        assert scales() == [0.0, 0.0]
