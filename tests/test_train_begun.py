"""`llamina train --full`: a new model from its config.json, the same file on any threads, in any micro-batches, killed or not; and what is refused."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from llamina import convert, load
from llamina.convert.sources import open_config
from llamina.engine.errors import FileError, FormatError, OptionError, UnsupportedError
from llamina.engine.score.perplexity import perplexity
from llamina.engine.train.model_weights import ModelWeights
from llamina.engine.train.normal import inverse, normal
from test_demo import demo
from train_cases import kill_at_a_checkpoint

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 160, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
SETTINGS = ["--full", "--tokenizer", "demo", "--epochs", "2", "--batch", "4", "--lr", "0.01", "--seed", "3", "--weight-decay", "0.1"]


def stories(n: int, seed: int) -> list[str]:
    from random import Random
    return [demo("stories").story(Random(f"{seed} {i}"), False).text.split("\n")[0] for i in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json, and a text to learn."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "d.txt").write_text("\n".join(stories(12, 0)) + "\n")
    return folder


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(folder / "config.json"), str(folder / "d.txt"), "-o", str(out), *SETTINGS, *more]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def right(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of what the command makes, here through Python."""
    top = tmp_path_factory.mktemp("right")
    with open_config(folder / "config.json", "demo", seed=3) as source:
        convert(source, top / "start.gguf", "f32", verify=False)
    with load(top / "start.gguf", threads=2, context=512) as model:
        before = model.logprobs([1, 2, 3])[-1].logprob
        trained = model.train(folder / "d.txt", top / "m.gguf", full=True, epochs=2, batch=4, lr=0.01, seed=3, weight_decay=0.1, context=256)
        assert model.logprobs([1, 2, 3])[-1].logprob == before, "the model is what its file says"
        with pytest.raises(OptionError, match="there is no adapter"):
            _ = trained.adapter
        assert "numbers" in trained._repr_html_() and trained.weights["output_norm.weight"].shape == (64,)
    losses = [r["loss"] for r in trained.history]
    assert len(losses) == 6 and losses[-1] < losses[0] - 1
    return sha(top / "m.gguf")


def test_command_line(run: Any, right: str, folder: Path, tmp_path: Path) -> None:
    """The same bytes; what it makes opens everywhere, and quantised."""
    out = tmp_path / "m.gguf"
    result = run(*command(folder, out, "--threads", "1", "--micro-batch", "1", "--context", "256"))
    assert result.code == 0 and result.out == "" and "20 tensors, " in result.err and "numbers are trained; memory" in result.err
    assert "weights drawn from seed 3, standard deviation 0.02" in result.err
    assert sha(out) == right and os.listdir(tmp_path) == ["m.gguf"]
    convert(out, tmp_path / "q.gguf", "q8_0", verify=False)
    with load(tmp_path / "q.gguf", threads=1) as model:
        assert model.generate("Once", temperature=0.0, max_tokens=4).text()
    again = run("train", str(out), str(folder / "d.txt"), "-o", str(tmp_path / "n.gguf"), "--full", "--steps", "1", "--threads", "2")
    assert again.code == 0 and (tmp_path / "n.gguf").stat().st_size == out.stat().st_size
    assert run("train", str(tmp_path / "q.gguf"), str(folder / "d.txt"), "-o", str(tmp_path / "o.gguf"), "--full").err.count("is Q8_0: ") == 1


def test_killed(right: str, folder: Path, tmp_path: Path) -> None:
    """SIGKILL once the first checkpoint is there; then the same command."""
    whole = [sys.executable, "-m", "llamina", *command(folder, tmp_path / "m.gguf", "--save-every", "1", "--context", "256")]
    kill_at_a_checkpoint(whole, tmp_path / "m.gguf")
    if not (tmp_path / "m.gguf").exists():
        result = subprocess.run(whole, capture_output=True, text=True)
        assert result.returncode == 0 and "going on after step" in result.stderr
    assert sha(tmp_path / "m.gguf") == right and os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--rank", "4", "--full"], "rank is of adapters"), ([], "is a configuration, of a model without weights"),
    (["--full", "--tokenizer", "no.json"], "no.json"),
    (["--full", "--memory", "100kB"], "training takes "),
])
def test_refused(run: Any, folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [] if "--tokenizer" in arguments else ["--tokenizer", "demo"]
    result = run("train", str(folder / "config.json"), str(folder / "d.txt"), "-o", str(tmp_path / "m.gguf"), *given, *arguments)
    assert result.code and message in result.err.splitlines()[-1] and not os.listdir(tmp_path)


def test_numbers_that_run_away(run: Any, folder: Path, tmp_path: Path) -> None:
    """Told with step and rows; nothing is written, and nothing is left behind."""
    result = run(*command(folder, tmp_path / "m.gguf", "--lr", "1e38", "--clip", "0", "--schedule", "constant", "--warmup", "0"))
    assert result.code == 1 and not os.listdir(tmp_path)
    last = result.err.splitlines()[-1]
    assert "of 6 (" in last and "d.txt, line " in last and "Train with a lower learning rate (--lr, now 1e+38)" in last, last


def test_another_beginning_is_refused(run: Any, folder: Path, tmp_path: Path) -> None:
    """A run that was interrupted goes on as it was begun, or not at all."""
    out = tmp_path / "m.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelWeights, "save", lambda self, path: (_ for _ in ()).throw(FileError("no room")))
        assert run(*command(folder, out)).code == 1
    assert sorted(os.listdir(tmp_path / "m.gguf.training")) == ["checkpoint-0", "lock"]
    result = run(*command(folder, out, "--seed", "4"))
    assert result.code == 2 and "was begun with other " in result.err and run(*command(folder, out)).code == 0 and os.listdir(tmp_path) == ["m.gguf"]


def test_a_tokenizer_is_for_new_models(run: Any, folder: Path) -> None:
    result = run("train", "demo", str(folder / "d.txt"), "-o", "m.gguf", "--full", "--tokenizer", "demo")
    assert result.code == 2 and "--tokenizer is for new models" in result.err


def test_what_is_drawn(folder: Path, tmp_path: Path) -> None:
    """Normal numbers, each of seed, tensor and place alone; gains 1, biases 0; as many rows as the tokenizer has tokens."""
    p = np.concatenate([[2.0**-33, 1 - 2.0**-33, 0.075, 0.0749, 0.5, 0.925], np.random.default_rng(0).random(500)])
    assert np.abs(inverse(p) - [NormalDist().inv_cdf(x) for x in p.tolist()]).max() < 1e-14
    whole = normal(5, "blk.0.attn_q.weight", 0, 60, 50, 0.02)
    assert (whole[7:9] == normal(5, "blk.0.attn_q.weight", 7, 2, 50, 0.02)).all() and abs(whole.std() - 0.02) < 1e-3
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "attention_bias": True, "tie_word_embeddings": False, "initializer_range": 0.1}))
    with open_config(tmp_path, "demo", 5) as source:
        tensors = {t.name: t.rows(0, t.n_rows) for t in source.tensors}
        assert tensors["token_embd.weight"].shape == tensors["output.weight"].shape == (len(source.metadata["tokenizer.ggml.tokens"]), 64)
        assert (tensors["blk.1.attn_norm.weight"] == 1).all() and not tensors["blk.1.attn_q.bias"].any()
        assert (tensors["blk.0.attn_q.weight"][7:9, :50] == normal(5, "blk.0.attn_q.weight", 7, 2, 64, 0.1)[:, :50]).all()
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 99}))
    with pytest.raises(FormatError, match="field 'vocab_size' is 99, but .* has 2048 tokens"):
        open_config(tmp_path, "demo")
    shutil.copy(Path(__file__).parent / "trained" / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 2052}))
    with open_config(tmp_path) as source:
        assert source.metadata["tokenizer.ggml.tokens"][-1] == "[PAD2051]" and source.tensors[0].shape == (2052, 64)
    experts = {**CONFIG, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    (tmp_path / "config.json").write_text(json.dumps(experts))
    with pytest.raises(UnsupportedError, match="architecture llama can't be begun: layer 0 has blocks that training does not know: Experts"):
        open_config(tmp_path, "demo")


def test_perplexity_falls(run: Any, folder: Path, tmp_path: Path) -> None:
    """Of sentences that were not learned."""
    out, more = tmp_path / "m.gguf", tmp_path / "more.txt"
    more.write_text("\n".join(stories(120, 0)))
    assert run("train", str(folder / "config.json"), str(more), "-o", str(out), *SETTINGS, "-q").code == 0
    with load(out, threads=1) as model:
        assert perplexity(model, "\n".join(stories(12, 1)), 128).perplexity < 300, "of 2048 tokens"
