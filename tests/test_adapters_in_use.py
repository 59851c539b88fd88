"""Adapters as users meet them: answers, sessions, the command line, journals, the server, merging, PEFT folders, control vectors."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llamina
import numpy as np
import pytest
from adapters import random_adapter, write_peft
from llamina.engine.errors import OptionError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.train.adapter import Adapter
from runs import same
from small_models import random_ids, write_small_model
from test_adapters import config_of, folder, q4

__all__ = ["folder", "q4"]
f32 = np.float32


def test_answers_and_the_prefix_cache(q4: Path, folder: Path) -> None:
    """The prefix cache gives a text nothing that was computed with other adapters, or other scales; but with the same ones it does."""
    config = config_of(q4)
    random_adapter(config, seed=1).save(folder / "law.gguf")
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
    prompt = random_ids(200, seed=3)
    with llamina.load(q4, threads=2) as model:
        plain = model.generate(prompt, **options)
        plain.text()
        assert model.add_adapter(folder / "law.gguf", 0.5, default=False) == "law"
        asked: list[Any] = [{"law": 1.0}, {"law": 0.5}, ["law"], {"law": 1.0}, {}]
        answers = [model.generate(prompt, adapters=adapters, **options) for adapters in asked]
        for answer in answers:
            answer.text()
        ids = [answer.ids for answer in answers]
        assert ids[0] == ids[3] and ids[1] == ids[2] and ids[4] == plain.ids and ids[0] != ids[4] and ids[1] != ids[4]
        assert [answer.stats.reused_tokens > 0 for answer in answers] == [False, False, True, True, True]
        model.clear_prefix_cache()
        assert model.generate(prompt, adapters={"law": 1}, **options).text() == answers[0].text()
        batch = list(model.generate_many([{"prompt": prompt, "adapters": adapters} for adapters in asked], ordered=True, **options))
        assert [result.ids for result in batch] == ids
        for bad in {"tax": 1.0}, {"law": float("nan")}, {"law": "much"}, 3, ["tax"]:
            with pytest.raises(OptionError, match="adapter"):
                model.generate(prompt, adapters=bad, **options)
        with pytest.raises(OptionError, match="already"):
            model.add_adapter(folder / "law.gguf", name="law")
        model.remove_adapter("law")
        assert model.add_adapter(folder / "law.gguf", 0.5) == "law"
        assert model.generate(prompt, **options).text() == answers[1].text()
        assert model.generate(prompt, adapters=[], **options).text() == plain.text()
        sequence = model.new_sequence()
        assert sequence.adapters and model.adapters["law"]["default"] == 0.5


def test_sessions_know_their_adapters(q4: Path, folder: Path) -> None:
    """An answer that was saved halfway goes on with its adapters, or, where they are not loaded, is computed again and says so."""
    random_adapter(config_of(q4), seed=4).save(folder / "tax.gguf")
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 0.0}
    prompt = random_ids(90, seed=8)
    with llamina.load(q4, threads=2) as model:
        model.add_adapter(folder / "tax.gguf", default=False)
        whole = model.generate(prompt, adapters={"tax": 0.75}, **options)
        whole.text()
        half = model.generate(prompt, adapters={"tax": 0.75}, **options)
        while len(half.ids) < 5:
            next(half)
        half.save(folder / "half.session")
        half.close()
        told: list[str] = []
        again = model.resume(folder / "half.session", note=told.append)
        again.text()
        assert again.ids == whole.ids and not told and again.stats.reused_tokens > 0
        model.remove_adapter("tax")
        del whole, half, again
        other = model.resume(folder / "half.session", note=told.append)
        other.text()
        assert len(told) == 1 and "other adapters" in told[0]


def test_the_command_line(q4: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--lora FILE=SCALE is what add_adapter does; of scale 0 it is nobody's who doesn't ask."""
    from llamina.engine.cli import main
    random_adapter(config_of(q4), seed=5).save(folder / "cli.gguf")

    def command(*more: str) -> tuple[int, str]:
        code = main(["generate", str(q4), "-p", "a b", "-n", "8", "--temperature", "0", "--threads", "2", "-q", *more])
        captured = capsys.readouterr()
        return code, captured.out + captured.err
    plain, adapted, off = command(), command("--lora", f"{folder / 'cli.gguf'}=0.5"), command("--lora", f"{folder / 'cli.gguf'}=0")
    with llamina.load(q4, threads=2) as model:
        model.add_adapter(folder / "cli.gguf", 0.5)
        assert adapted == (0, model.generate("a b", max_tokens=8, temperature=0.0).text())
    assert plain == off != adapted
    for bad, says in ("missing.gguf", "no such file"), (f"{folder / 'cli.gguf'}=x", "FILE=NUMBER"), (str(q4), "expected an adapter"):
        code, text = command("--lora", bad)
        assert code in (1, 2) and says in text and text.count("\n") == 1, bad


def test_a_batch_is_bound_to_its_adapters(q4: Path, folder: Path) -> None:
    """Lines may ask for adapters by name; a journal goes on with the same ones only."""
    from llamina.engine.answers.batch_job import bound_adapters
    random_adapter(config_of(q4), seed=7).save(folder / "lines.gguf")
    (folder / "in.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "a b", "adapters": {"lines": 0.5}}\n{"prompt": "a b", "adapters": ["none"]}\n')
    from llamina.engine.cli import main
    assert main(["batch", "-m", str(q4), str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "-n", "6", "--temperature", "0", "--threads", "2", "-q",
                 "--lora", f"{folder / 'lines.gguf'}=0"]) in (0, 1)
    records = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    with llamina.load(q4, threads=2) as model:
        assert bound_adapters(model) == {}
        model.add_adapter(folder / "lines.gguf", default=False)
        assert bound_adapters(model)["adapters"]["lines"][0] == model.adapters["lines"]["digest"]
        expected = [model.generate("a b", max_tokens=6, temperature=0.0, adapters=a).text() for a in ({}, {"lines": 0.5})]
    assert [record.get("text") for record in records] == [*expected, None] and "no adapter called 'none'" in records[2]["error"]


@pytest.mark.parametrize("command", [("embed", "{m}", "{i}"), ("rerank", "{m}", "query", "{i}", "--judge", "a,b"),
                                     ("classify", "{m}", "{i}", "--labels", "a,b")], ids=lambda command: command[0])
def test_an_interrupted_file_goes_on_with_the_same_adapters_only(command: tuple[str, ...], q4: Path, folder: Path, run: Any,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    from llamina.engine.answers.batch_journal import Journal
    for seed in (5, 6):
        random_adapter(config_of(q4), seed=seed).save(folder / f"bound{seed}.gguf")
    (folder / "bound.txt").write_text("a b\nc d\n")
    out = folder / f"{command[0]}.jsonl"
    argv = [*(part.format(m=q4, i=folder / "bound.txt") for part in command), "-o", str(out), "--threads", "2"]

    def with_adapter(seed: int) -> Any:
        return run(*argv, "--lora", str(folder / f"bound{seed}.gguf"))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        assert with_adapter(5).code == 130 and not out.exists()
    for found in with_adapter(6), run(*argv):
        assert found.code == 2 and "was begun with other adapters" in found.err and not out.exists(), found
    assert with_adapter(5).code == 0
    bytes_of = out.read_bytes()
    out.unlink()
    assert with_adapter(6).code == 0 and out.read_bytes() != bytes_of


def test_the_server(q4: Path, folder: Path) -> None:
    """A request's `lora` says which, by number or name; /lora-adapters lists them; the fingerprint carries them."""
    serving = pytest.importorskip("serving", reason="the extra serve is not installed")
    random_adapter(config_of(q4), seed=6).save(folder / "web.gguf")
    with serving.serving(path=q4, threads=2) as server:
        from llamina.engine.serve.registry import fingerprint
        body = {"prompt": "a b", "n_predict": 6, "temperature": 0}
        plain, before = server.ok("/completion", **body)["content"], fingerprint(server.model, server.model.digest)
        server.model.add_adapter(folder / "web.gguf", default=False)
        [listed] = server.http.get("/lora-adapters").json()
        assert {k: listed[k] for k in ("id", "name", "scale", "path")} == {"id": 0, "name": "web", "scale": 0.0, "path": "web.gguf"}
        expected = server.model.generate("a b", max_tokens=6, temperature=0.0, adapters={"web": 2.0}).text()
        for entry in {"id": 0, "scale": 2.0}, {"name": "web", "scale": 2.0}:
            assert server.ok("/completion", **body, lora=[entry])["content"] == expected != plain
            answer = server.ok("/v1/completions", prompt="a b", max_tokens=6, temperature=0, lora=[entry])
            assert answer["choices"][0]["text"] == expected
        assert server.ok("/completion", **body)["content"] == plain == server.ok("/completion", **body, lora=[])["content"]
        assert fingerprint(server.model, server.model.digest) != before
        for bad in [{"id": 3, "scale": 1}], [{"name": "x"}], [3], [{"scale": 1}], [{"id": 0, "weight": 1}]:
            assert server.post("/completion", **body, lora=bad).status_code == 400, bad


# -- conversions ------------------------------------------------------------------------------------------------------------------------------

def test_merging(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The merged model is what the adapter does at run time, told as a KL divergence; matrices without a pair are copied; the bytes are no library's."""
    from llamina.engine.cli import main
    base = write_small_model(folder / "base.gguf", "Q8_0")
    adapter = random_adapter(config_of(base), rank=3, seed=9, only=lambda name: "attn" in name)
    adapter.save(folder / "merge.gguf")
    code = main(["convert", str(base), str(folder / "merged.gguf"), "--lora", f"{folder / 'merge.gguf'}=0.5", "--threads", "1", "--overwrite"])
    told = capfd.readouterr().err
    assert code == 0 and "merged with merge.gguf x 0.5: 8 matrices" in told, told
    assert 0 < float(told.split("mean KL ")[1].split(",")[0]) < 0.01
    with open_gguf(base) as before, open_gguf(folder / "merged.gguf") as after:
        from llamina.kernels.formats.registry import decode
        for name, info in before.tensors.items():
            pair = adapter.pairs.get(name)
            assert after.tensors[name].format.name == info.format.name
            if pair is None:
                assert np.array_equal(before.data(name), after.data(name)), name
            else:
                wanted = decode("Q8_0", before.data(name)) + 0.5 * pair.scale * (pair.b.astype(np.float64) @ pair.a)
                assert np.abs(decode("Q8_0", after.data(name)) - wanted).max() < 0.01 * np.abs(wanted).max()
    for bad, says in ("base.gguf", "expected an adapter"), ("none.gguf", "no such file"):
        assert main(["convert", str(base), str(folder / "x.gguf"), "--lora", str(folder / bad)]) != 0 and says in capfd.readouterr().err


def test_a_peft_folder_becomes_a_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from llamina.engine.cli import main
    base = write_small_model(folder / "of.gguf", "Q8_0")
    adapter = random_adapter(config_of(base), rank=4, seed=10)
    peft = write_peft(folder / "peft", config_of(base), adapter)
    assert main(["convert", str(peft), str(folder / "peft.gguf"), "--base", str(base)]) == 0 and adapter.digest in capfd.readouterr().err
    assert Adapter.read(folder / "peft.gguf").digest == adapter.digest == Adapter.read(peft, config_of(base)).digest
    for more, says in ((), "--base"), (("--base", str(base)), "exists already"), (("--base", str(base), "--type", "q4_0"), "--type"):
        assert main(["convert", str(peft), str(folder / "peft.gguf"), *more, *(["--overwrite"] if not more else [])]) != 0
        assert says in capfd.readouterr().err
    for text, says in ("{", "adapter_config.json: is not valid JSON"), ("[1]", "adapter_config.json: must hold a JSON object"):
        (peft / "adapter_config.json").write_text(text)
        assert main(["convert", str(peft), str(folder / "peft.gguf"), "--overwrite"]) != 0 and says in capfd.readouterr().err


# -- control vectors --------------------------------------------------------------------------------------------------------------------------

def test_control_vectors(q4: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `steer` does in a block, for everything: several are summed, the prefix cache tells them apart, sessions and fingerprints carry them."""
    from llamina.engine.answers.batch_job import bound_adapters
    from llamina.engine.cli import main
    from llamina.engine.look.steer import SteeringVector
    rng = np.random.default_rng(3)
    vectors = [SteeringVector({1: rng.standard_normal(64).astype(f32)}, "llama") for _ in range(2)]
    for i, vector in enumerate(vectors):
        vector.save(folder / f"v{i}.gguf")
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
    prompt = random_ids(150, seed=2)
    with llamina.load(q4, threads=2) as model:
        plain = model.generate(prompt, **options)
        plain.text()
        model.control((folder / "v0.gguf", 0.5), (vectors[1], -0.25))
        digest = bound_adapters(model)["control"]
        controlled = [model.generate(prompt, **options) for _ in range(2)]
        for answer in controlled:
            answer.text()
        assert controlled[0].ids == controlled[1].ids != plain.ids
        assert [answer.stats.reused_tokens > 0 for answer in controlled] == [False, True]
        logits = model.logits(prompt)
        model.control(vectors[0], layers=[1])
        assert bound_adapters(model)["control"] != digest
        model.control()
        assert bound_adapters(model) == {} and model.generate(prompt, **options).text() == plain.text()
        with model.steer(0.5 * vectors[0] + -0.25 * vectors[1]):
            assert same(model.logits(prompt), logits)
        with pytest.raises(OptionError, match="layers"):
            model.control(vectors[0], layers=[0])
        model.control((vectors[0], 2.0))
        expected = model.generate("a b", **options).text()
    common = ["generate", str(q4), "-p", "a b", "-n", "8", "--temperature", "0", "--threads", "2", "-q"]
    assert main([*common, "--control-vector", f"{folder / 'v0.gguf'}=2", "--layers", "1"]) == 0 and capsys.readouterr().out == expected
    for wrong, says in (["--layers", "1"], "--control-vector"), (["--control-vector", str(folder / "v0.gguf"), "--layers", "3-1"], "FIRST-LAST"):
        assert main([*common, *wrong]) != 0 and says in capsys.readouterr().err
