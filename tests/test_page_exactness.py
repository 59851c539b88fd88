"""The promise for every page: the same bits on any threads, in any chunks, beside another sequence, open or fused, on any target; saved and resumed, found in
the prefix cache, guessed ahead. PRODUCT's pages hold every op between them and are run in the full product; every case has its digest."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import encoder_cases
import numpy as np
import pytest
import targets
from llamina.engine.model import Model, load
from llamina.engine.run.ops.table import OPS
from llamina.engine.run.runtime import Feed, Runtime
from llamina.kernels import target
from page_cases import CASES, CAUSAL, IDS, N_TOKENS, write_case
from runs import digest, open_runtime, run, same
from small_models import random_ids

PRODUCT = {"gemma3 pattern": "Q8_0", "glm4": "Q4_0", "olmo3": "F32", "arcee": "Q8_0", "lfm2": "Q8_0", "qwen35": "Q4_0", "deepseek2 sigmoid": "Q8_0",
           "qwen2moe": "Q4_0", "gpt-oss": "F32", "gemma4 experts": "Q8_0", "granitehybrid": "Q4_0"}
"""Case -> format. Sandwich norms, norms of heads, two ropes, windows, GELU; fused rows, pairs of half a head, biases; norms of whole projections, none before
the sublayers, layers that are not scaled; a block without a gate, squared ReLU; short convolutions; the delta rule, gated attention; experts in groups, chosen
with a bias, in fused rows, latent attention; a shared one; with biases and a clamped gate, sinks; experts beside a dense block, embeddings of each
layer; Mamba-2."""

DIGESTS = {
    "llama": "b250e06be6a950ac", "llama biases": "f760d7973d30add7", "llama window": "6474c017b37155d6", "llama arrays": "62e1b47ac18522f7",
    "llama factors": "7decdea7f91f8f84", "llama yarn": "2bff9bde2e9e2648", "llama linear": "80c2e9d18fbe82cf", "qwen2": "c6496177c7a5a2e8",
    "qwen3": "3831ba106f17ec1e", "qwen3 yarn": "10c09e36efb0f469", "smollm3": "5a1348fdd6f384c2", "seed_oss": "de5a027e1773e6da",
    "exaone": "9af1f8c8a164dfc4", "exaone4": "ed52c210418863eb", "exaone4 small": "5cbcfabd430116f3", "arcee": "2203ff56124a27c7",
    "hunyuan": "8a01b86135ee1dfa", "ernie4_5": "deefc1b8030de363", "gemma": "698bd188fdc138ff", "gemma2": "99aacab04bad8e51",
    "gemma2 27b": "f1d0979d0f6aa957", "gemma3": "99655b311af1b181", "gemma3 pattern": "959a50e363172faf", "phi3": "66e28b4724099ed2",
    "phi3 long": "f6d5ff806536c897", "granite": "c0ecaec64d35993f", "mistral3": "582acffc0b84f21a", "olmo2": "f525588de379deb5",
    "olmo3": "b227ff190d91e89e", "glm4": "98323c69d315d825", "minicpm": "05d1bf971f85c75f", "minicpm scales": "61dd4430f2a20f27",
    "lfm2": "80cb0d3f14c645e7", "lfm2 odd": "cd486bf8d2f1d1a3", "qwen35": "2e641fb3b4e451f0", "qwen35 wide": "31f8d75fc40d9858",
    "mixtral": "d85e57e43dada88c", "qwen2moe": "601d294efa4b3854", "qwen3moe": "28a20aff1131f700", "qwen3moe sigmoid": "52b1c3a57592f9fb",
    "olmoe": "3797865ee547a994", "granitemoe": "ad141a7a7c8f95b1", "granitemoe shared": "afd06ef82ef3c83d", "gpt-oss": "0653b5c423ddab77",
    "stablelm": "2cd4c04ece7db640", "stablelm parallel": "d71e959b5e26a907", "gemma4": "a062a7ccfe001cb8", "gemma4 v is k": "16ac6476a197919b",
    "gpt2": "a78da11c54ab3f32", "gptneox": "fac11ad56242ddd0", "gptneox sequential": "14834e16e3892336", "phi2": "1b8642785e076e8a",
    "starcoder2": "f133418b12df870c", "command-r": "69592cfeea420cfb", "cohere2": "89ac56abd282a427",
    "lfm2moe": "19419764132a1897", "qwen35moe": "edfbcbbdf1457597", "command-r plus": "a078a7f1ccf4518f", "stablelm 12b": "6ccef8027bb1eb7a",
    "gemma4 experts": "1d25391f7ac1e6ca", "qwen3next": "9ba59ad5af526b74", "granitehybrid": "ec54dc16017fe7ee",
    "granitehybrid dense": "da55f668b69db81b", "nemotron_h": "3bcb312c14b22281", "nemotron_h_moe": "a97d2df8f51c300f", "falcon-h1": "2473cf6f5e342cbf",
    "falcon-h1 plain": "d626cb7ba25373c4", "deepseek2": "1b72e1466fae6373", "deepseek2 sigmoid": "ee8b788e64f6b59f",
    "bert": "f8a5c0646c6cdbe5", "bert odd": "a07d54e3fe3afc03", "bert rank": "1f932b40d5407231", "nomic-bert": "31be7736b3e09bc0",
    "modern-bert": "fc5571cffae6508f", "modern-bert rank": "f83fe945f8365f8a", "gemma-embedding": "ac29859f1fe5a8b2",
}
"""Of the logits of every case's Q8_0 file, or an encoder's rows: one computer's bits are every computer's."""

LOOKING = {"pattern", "summary", "keep", "gated_keeping"}
"""Ops that no pass has unless it is looked at: engine/run/looking.py adds them, or they are the keeping form's; tests/test_look_*.py and test_keeping.py hold
them to the same bits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def digests(folder: Path) -> dict[str, str]:
    """Of the rows of encoders, of the logits of others."""
    found = {}
    for name in encoder_cases.CASES:
        with open_runtime(encoder_cases.write_encoder(folder / "m.gguf", name, "Q8_0"), 2, 256) as runtime:
            found[name] = digest(encoder_cases.rows_of(runtime, IDS, encoder_cases.TYPES if encoder_cases.typed(name) else None))[:16]
    for name in CASES:
        with open_runtime(write_case(folder / "m.gguf", name, "Q8_0"), 2, 256) as runtime:
            found[name] = digest(run(runtime, IDS, 30))[:16]
    return found


def test_the_product_holds_every_op(folder: Path) -> None:
    used = set()
    for name, format in PRODUCT.items():
        with open_runtime(write_case(folder / f"{name}.gguf", name, format)) as runtime:
            def records(matrix: Any, format: str = format) -> bool:
                return format != "F32"
            layers, end = runtime.config.fused(records)
            used |= {stage.op for stages in (*layers, end) for stage in stages}
            used |= {stage.op for i in range(runtime.config.n_layers) for stage in runtime.config.open(i, records)}
    assert used == set(OPS) - LOOKING


def test_digests(folder: Path) -> None:
    assert {case.architecture for case in CASES.values()} == CAUSAL
    assert digests(folder) == DIGESTS


@pytest.mark.parametrize("name", targets.TAKEN)
def test_targets(name: str, tmp_path: Path) -> None:
    """One process for all pages."""
    targets.needs(name)
    environment = {**os.environ, **target.EMULATION[name]}
    result = subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {"target": name, "digests": DIGESTS}


def beside(runtime: Runtime, chunk: int) -> np.ndarray:
    """Logits of a sequence whose steps hold tokens of another one, before and after its own in turns."""
    sequence, other, rows = runtime.new_sequence(), runtime.new_sequence(), []
    strange = random_ids(N_TOKENS, seed=5)
    for n, i in enumerate(range(0, N_TOKENS, chunk)):
        part, guests, first = IDS[i:i + chunk], strange[i:i + 3], n % 2 == 0
        feeds = [Feed(sequence, part, "all"), Feed(other, guests, "all")]
        found = runtime.step(feeds if first else feeds[::-1])
        rows.append((found[:len(part)] if first else found[len(guests):]).copy())
    sequence.close()
    other.close()
    return np.concatenate(rows)


def opened(runtime: Runtime, chunk: int, sites: list[str]) -> np.ndarray:
    """Logits of steps in which the layers of these sites take the open form."""
    sequence = runtime.new_sequence()
    observe: Any = {name: lambda rows: None for name in sites}
    rows = [runtime.step([Feed(sequence, IDS[i:i + chunk], "all")], observe).copy() for i in range(0, N_TOKENS, chunk)]
    sequence.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("kv", ["f16", "q8_0", "f32"])
@pytest.mark.parametrize("name", PRODUCT)
def test_threads_chunks_batches_forms(name: str, kv: str, folder: Path) -> None:
    path = write_case(folder / f"{name}.gguf", name, PRODUCT[name])
    with open_runtime(path, 1, 256, kv) as runtime:
        expected = run(runtime, IDS)
    assert np.isfinite(expected).all() and expected.std() > 0.1
    for threads in 1, 2, 3:
        with open_runtime(path, threads, 320, kv) as runtime:
            sites = [name for name in runtime.config.sites() if name.endswith("hook_z")]  # one a layer
            for chunk in 1, 7, 64:
                assert same(run(runtime, IDS, chunk), expected), f"{threads} threads, chunks of {chunk}"
                assert same(beside(runtime, chunk), expected), f"{threads} threads, chunks of {chunk}, beside another"
            for chunk, observed in (7, sites), *((34, [site]) for site in sites):
                assert same(opened(runtime, chunk, observed), expected), f"{threads} threads, chunks of {chunk}, open: {observed}"


@pytest.mark.parametrize("name", CASES)
def test_open_form(name: str, folder: Path) -> None:
    """Every page's: the open form of all layers has the fused form's bits."""
    with open_runtime(write_case(folder / "open.gguf", name, "Q8_0"), 2, 256) as runtime:
        assert same(opened(runtime, 34, list(runtime.config.sites())), run(runtime, IDS))


def answer(model: Model, prompt: list[int], **options: Any) -> Any:
    return model.generate(prompt, max_tokens=60, ignore_eos=True, temperature=0.0, logprobs=2, **options)


@pytest.mark.parametrize("name", [*PRODUCT, "lfm2moe", "qwen35moe"])  # the last two: states and experts at once
def test_resumed_reused_and_guessed(name: str, folder: Path, tmp_path: Path) -> None:
    """Ids and log-probabilities of the answer in one go are those after a save, after a prefix hit, and with speculation on."""
    from test_speculation import Eager  # every draft pays

    path = write_case(folder / f"{name}.gguf", name, PRODUCT.get(name, "Q8_0"))
    prompt = [1, *[40, 41, 42, 43, 44, 45] * 13]
    with load(path, threads=2, context=256) as model, load(path, threads=1, context=256) as again:
        model.costs = Eager()
        plain = answer(model, prompt, speculate=False)
        plain.text()
        hit, guessed = answer(model, prompt, speculate=False), answer(model, prompt, speculate=True)
        for other in hit, guessed:
            other.text()
            assert (other.ids, other.logprobs) == (plain.ids, plain.logprobs)
        assert plain.stats.reused_tokens == 0 and hit.stats.reused_tokens >= 64
        assert guessed.stats.drafted_tokens > 0 or name not in PRODUCT  # their answers repeat nothing: test_states_experts.py guesses
        part = answer(again, prompt, speculate=False)
        while len(part.ids) < 25:
            next(part)
        part.save(tmp_path / "s")
        rest = model.resume(tmp_path / "s")
        rest.text()
        assert (rest.ids, rest.logprobs) == (plain.ids, plain.logprobs)


def main() -> None:
    print(json.dumps({"target": target.TARGET, "digests": digests(Path(sys.argv[1]))}))


if __name__ == "__main__":
    main()
