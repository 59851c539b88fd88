"""Models larger than memory: with places for some experts only, the same bits; misses counted, memory kept to, damage and change told."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamina import load
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.errors import FileError, FormatError, OutOfMemoryError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.run.expert_arena import ExpertArena, all_experts, least_places, place_bytes
from llamina.engine.run.kv_cache import kv_type
from llamina.engine.run.memory import plan
from llamina.engine.run.runtime import Feed, Runtime
from llamina.engine.run.step_memory import step_memory
from llamina.engine.run.weights import weight_bytes
from page_cases import IDS, write_case
from runs import open_runtime, run
from small_models import write_family

WIDE: dict[str, Any] = {"embedding_length": 256, "attention.head_count": 4, "attention.head_count_kv": 2, "feed_forward_length": 256, "context_length": 1024,
                        "expert_count": 16, "expert_used_count": 2, "expert_feed_forward_length": 512, "block_count": 4}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most of it experts."""
    return write_family(tmp_path_factory.mktemp("arena") / "m.gguf", "qwen3moe", WIDE, "Q8_0")


def tight(path: Path, share: float = 0.5, context: int = 256) -> int:
    """Memory with places for about so many of the experts, beside the smallest step and one context."""
    with open_gguf(path) as gguf:
        config = ModelConfig.from_gguf(gguf)
        whole, small = plan(gguf, config, context, threads=2), step_memory(config, kv_type(config, None), 2, context).bytes(8)
        return int(whole.weights - whole.buffers + small + whole.context_bytes - (1 - share) * all_experts(gguf, config))


def opened(path: Path, memory: int | None, threads: int = 2, context: int = 256) -> tuple[Any, Runtime]:
    gguf = open_gguf(path)
    return gguf, Runtime(gguf, ModelConfig.from_gguf(gguf), threads=threads, context=context, memory=memory)


@pytest.mark.parametrize("name, format", [("qwen3moe sigmoid", "Q8_0"), ("gpt-oss", "F32"), ("qwen2moe", "Q4_0"), ("gemma4 experts", "Q8_0")])
def test_the_same_bits(name: str, format: str, tmp_path: Path) -> None:
    path = write_case(tmp_path / "m.gguf", name, format)
    with open_runtime(path, 2, 256) as runtime:
        expected = run(runtime, IDS)
        sites = [site for site in runtime.config.sites() if site.endswith("hook_post") or site.endswith("hook_z")]
    for threads in 1, 2:
        gguf, runtime = opened(path, tight(path), threads)
        assert runtime.arena is not None and runtime.arena.places < 3 * runtime.arena._blocks[0].experts
        for chunk in runtime.max_batch, 7, 1:
            assert np.array_equal(run(runtime, IDS, chunk).view(np.uint32), expected.view(np.uint32))
        sequence = runtime.new_sequence()
        few = IDS[:runtime.max_batch]
        found = runtime.step([Feed(sequence, few, "all")], {site: lambda rows: None for site in sites})
        assert np.array_equal(found.view(np.uint32), expected[:len(few)].view(np.uint32))
        use = runtime.arena.use
        assert 0 < use.missed < use.wanted and use.bytes_read > 0
        sequence.close()
        runtime.close()
        gguf.close()


def test_half_of_the_memory(wide: Path) -> None:
    """Weights and places are inside what is allowed; one that is used again costs nothing; an answer tells what was read."""
    allowed = tight(wide)
    with load(wide, threads=2, context=256, memory=allowed) as model, load(wide, threads=2, context=256) as whole:
        held = model.memory_plan
        assert held.experts and held.weights + held.context_bytes <= allowed and "the others are read when they are needed" in str(held)
        assert 0 < held.experts < held.all_experts and not whole.memory_plan.experts
        answers = [m.generate([1, 40, 41, 42], max_tokens=30, ignore_eos=True, temperature=0.0, logprobs=2) for m in (model, whole)]
        texts = [a.text() for a in answers]
        assert texts[0] == texts[1] and answers[0].ids == answers[1].ids and answers[0].logprobs == answers[1].logprobs
        first = answers[0].stats
        assert 0 < first.experts_read < first.experts_wanted and answers[1].stats.experts_wanted == 0
        arena = model.runtime.arena
        assert arena is not None
        before = arena.use.missed
        arena.need(0, [1, 2])
        again = arena.use.missed
        arena.need(0, [2, 1])
        assert arena.use.missed == again <= before + 2


def test_long_prompts(wide: Path) -> None:
    """Steps of many tokens, which need most of a layer's experts at once."""
    with open_runtime(wide, 2, 1024) as runtime:
        expected = run(runtime, IDS)
    with open_gguf(wide) as gguf:
        config = ModelConfig.from_gguf(gguf)
        most = step_memory(config, kv_type(config, None), 2, 1024).bytes(128)
        whole = plan(gguf, config, 1024, threads=2)
        memory = weight_bytes(gguf, config) + most + whole.context_bytes - all_experts(gguf, config) // 4
    gguf, runtime = opened(wide, memory, context=1024)
    assert runtime.arena is not None
    for chunk in min(100, runtime.max_batch), 33:
        assert np.array_equal(run(runtime, IDS, chunk).view(np.uint32), expected.view(np.uint32))
    runtime.close()
    gguf.close()


def test_least_recently_used_first_out(wide: Path) -> None:
    with open_gguf(wide) as gguf:
        config = ModelConfig.from_gguf(gguf)
        one = place_bytes(gguf, config)
        arena = ExpertArena(gguf, config, one * least_places(config), 1)
        arena.need(0, range(16))
        arena.need(0, [3, 5])
        arena.need(1, [7])  # takes the place of expert 0, which was used longest ago
        assert arena.use.missed == 17 and [e for e in range(16) if not arena.at["blk.0.ffn_up_exps.weight"][e]] == [0]
        assert arena.at["blk.1.ffn_up_exps.weight"][7] and arena.at["blk.1.ffn_up_exps.weight"].astype(bool).sum() == 1
        arena.need(1, [e for e in range(16) if e != 7])
        assert not arena.at["blk.0.ffn_up_exps.weight"].any()
        arena.close()


def test_not_even_one_layer_fits(wide: Path) -> None:
    with open_gguf(wide) as gguf:
        config = ModelConfig.from_gguf(gguf)
        memory = weight_bytes(gguf, config) - all_experts(gguf, config) + place_bytes(gguf, config)
        with pytest.raises(OutOfMemoryError, match="don't fit"):
            plan(gguf, config, 256, memory, threads=1)


def test_damage_is_told_when_it_is_read(tmp_path: Path) -> None:
    def edit(name: str, x: np.ndarray) -> np.ndarray:
        if name == "blk.2.ffn_down_exps.weight":
            x[5, 17, 3] = np.nan
        return x
    path = write_family(tmp_path / "m.gguf", "qwen3moe", WIDE, "F32", edit=edit)
    memory = tight(path)
    gguf, runtime = opened(path, memory)
    sequence = runtime.new_sequence()
    with pytest.raises(FormatError, match=rf"blk\.2\.ffn_down_exps\.weight.* NaN or infinity in row {5 * 256 + 17}"):
        runtime.step([Feed(sequence, IDS, "last")])
    assert sequence.length == 0
    runtime.close()
    gguf.close()


def test_a_file_that_changes_is_told(tmp_path: Path) -> None:
    path = write_family(tmp_path / "m.gguf", "qwen3moe", WIDE, "Q8_0")
    memory = tight(path)
    with load(path, threads=1, context=256, memory=memory) as model:
        sequence = model.runtime.new_sequence()
        path.write_bytes(path.read_bytes()[:-4096])
        with pytest.raises(FileError):
            model.runtime.step([Feed(sequence, IDS, "last")])
        assert sequence.length == 0
