"""A file that changes under us: loaded models don't notice, loading and converting say so, and nothing ever dies of a SIGBUS."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llamina
import pytest
from checkpoints import TINY, hf_weights, random_weights, with_, write_hf, write_llama2c, write_torch
from gguf_builder import llama
from llamina.convert.convert import convert
from llamina.convert.sources import open_source
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.errors import FileError, LlaminaError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.model import DEMO
from llamina.engine.run import weights
from llamina.engine.run.runtime import Runtime


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zero(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))


def copy_over(path: Path) -> None:
    path.write_bytes(b"GGUF" + os.urandom(1 << 20))


def unlink(path: Path) -> None:
    path.unlink()


CHANGES = [truncate, empty, zero, copy_over, unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_loaded_model(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Says what it would have said: answers, templates, recommended options, sessions."""
    path = tmp_path / "m.gguf"
    shutil.copy(DEMO, path)

    def everything(model: llamina.Model) -> list[object]:
        said = [model.generate("A dog and a cat went to sea", max_tokens=8, seed=1).text(), model.chat("hi there", max_tokens=3, seed=1).text()]
        answer = model.generate("Once", max_tokens=4, seed=2)
        answer.text()
        answer.save(tmp_path / "s")
        return [*said, model.runtime.digest, model.sampling_defaults, model.logits([1, 2, 3, 500, 600]).tobytes(), model.resume(tmp_path / "s").text()]

    with llamina.load(DEMO, threads=2) as model:
        expected = everything(model)
    with llamina.load(path, threads=2) as model:
        change(path)
        assert everything(model) == expected


@pytest.mark.parametrize("change", CHANGES[:-1])
def test_while_it_is_loaded(tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the header and the weights, and within the weights."""
    path = llama(n_vocab=300, dim=256, ffn_dim=512, n_layers=2).write(tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        config = ModelConfig.from_gguf(gguf)
        change(path)
        with pytest.raises(FileError, match=r"m\.gguf: (ended at byte|was changed)"):
            Runtime(gguf, config, threads=2)
    llama(n_vocab=300, dim=256, ffn_dim=512, n_layers=2).write(path)
    monkeypatch.setattr(weights, "_PIECE", 1 << 14)
    with open_gguf(path) as gguf:
        config, seen = ModelConfig.from_gguf(gguf), []
        read_into = gguf.read_into

        def reading(name: str, at: int, into: object) -> None:
            seen.append(name)
            if len(seen) == 4:
                change(path)
            read_into(name, at, into)  # type: ignore[arg-type]
        monkeypatch.setattr(gguf, "read_into", reading)
        with pytest.raises(FileError, match=r"m\.gguf: (ended at byte|was changed)"):
            Runtime(gguf, config, threads=2)


def _gguf(folder: Path) -> tuple[Path, Path]:
    path = llama(n_layers=1, n_vocab=300, format="Q8_0").write(folder / "m.gguf")
    return path, path


def _safetensors(folder: Path) -> tuple[Path, Path]:
    path = write_hf(folder / "hf", with_(TINY, n_layers=1))
    return path, path / "model.safetensors"


def _torch(folder: Path) -> tuple[Path, Path]:
    t = with_(TINY, n_layers=1)
    path = write_hf(folder / "hf", t)
    (path / "model.safetensors").unlink()
    return path, write_torch(path / "pytorch_model.bin", hf_weights(t, random_weights(t)))


def _llama2c(folder: Path) -> tuple[Path, Path]:
    t = with_(TINY, n_layers=1)
    path = write_llama2c(folder / "m.bin", t, random_weights(t), 2)
    shutil.copy(write_hf(folder / "hf", t) / "tokenizer.model", folder / "tokenizer.model")
    return path, path


@pytest.mark.parametrize("make", [_gguf, _safetensors, _torch, _llama2c])
@pytest.mark.parametrize("change", [truncate, zero])
def test_a_source_that_is_converted(tmp_path: Path, make: Callable[[Path], tuple[Path, Path]], change: Callable[[Path], None],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed between opening and reading, or when half was read: no result, and no part of one."""
    path, file = make(tmp_path)
    whole = file.read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    with open_source(path) as source:
        change(file)
        with pytest.raises(FileError, match="ended at byte|was changed"):
            convert(source, out / "a.gguf", "f32", verify=False, threads=1)
    assert os.listdir(out) == []
    file.write_bytes(whole)
    with open_source(path) as source:
        once: list[int] = []

        def halfway(what: str, done: int, total: int) -> None:
            if 2 * done > total and not once:
                once.append(done)
                change(file)
        with pytest.raises(FileError, match="ended at byte|was changed"):
            convert(source, out / "a.gguf", "f32", verify=False, threads=1, progress=halfway)
        assert once
    assert os.listdir(out) == []


CHILD = """
import os, random, sys, threading, time
from llamina.engine.errors import LlaminaError
from llamina.engine.model import load
path, whole = sys.argv[1], open(sys.argv[1], "rb").read()
end, rng = time.time() + 3, random.Random(0)
def vandal():
    while time.time() < end:
        with open(path, "r+b") as file:
            file.truncate(rng.randrange(len(whole)))
            time.sleep(rng.random() / 50)
            file.seek(0)
            file.write(whole)
        time.sleep(rng.random() / 20)
thread = threading.Thread(target=vandal)
thread.start()
outcomes = {}
while time.time() < end:
    try:
        with load(path, threads=1) as model:
            outcomes[model.generate("Once upon a time", max_tokens=3, temperature=0).text()] = 1
    except LlaminaError as error:
        outcomes[type(error).__name__] = 1
thread.join()
print(sorted(outcomes))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files that are open can't be cut there")
def test_a_vandal(tmp_path: Path) -> None:
    """Somebody cuts and restores the file all the time: each load gives the right answer or an error of ours."""
    path = tmp_path / "m.gguf"
    shutil.copy(DEMO, path)
    with llamina.load(DEMO, threads=1) as model:
        right = model.generate("Once upon a time", max_tokens=3, temperature=0).text()
    result = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = eval(result.stdout)
    assert "FileError" in found or "FormatError" in found
    assert set(found) <= {right, "FileError", "FormatError", "TokenizerError", "UnsupportedError"}, found
    assert all(issubclass(getattr(llamina.errors, name), LlaminaError) for name in found if name != right)
