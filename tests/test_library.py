"""The models folder: short names, `llamina list`, `llamina pull`, completion in the shell, and `llamina` alone."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llamina.engine.cli import COMMANDS, OVERVIEW, main
from llamina.engine.errors import FileError, OptionError
from llamina.engine.home.library import find, model_files, models_folder
from llamina.engine.model import DEMO, load_vocabulary, resolve


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "models"
    (home / "sub" / ".hidden").mkdir(parents=True)
    shutil.copy(DEMO, home / "tiny.gguf")
    for name in ("split-00001-of-00002.gguf", "split-00002-of-00002.gguf", "sub/deep.gguf", "sub/tiny.gguf", "sub/.hidden/x.gguf", ".part.gguf", "notes.txt",
                 "a/twin.gguf", "b/twin.gguf"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(b"GGUF")
    monkeypatch.setenv("LLAMINA_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


def test_short_names(folder, tmp_path):
    assert [path.relative_to(folder).as_posix() for path in model_files(folder)] == [
        "a/twin.gguf", "b/twin.gguf", "split-00001-of-00002.gguf", "sub/deep.gguf", "sub/tiny.gguf", "tiny.gguf"]
    for name, file in [("tiny", "tiny.gguf"), ("tiny.gguf", "tiny.gguf"), ("split", "split-00001-of-00002.gguf"), ("deep", "sub/deep.gguf"),
                       ("sub/tiny", "sub/tiny.gguf"), ("b/twin", "b/twin.gguf")]:
        assert find(name) == resolve(name) == folder / file, name
    assert resolve("demo") == DEMO and resolve(Path("tiny")) == Path("tiny")  # a Path is a path
    assert load_vocabulary("tiny").n_vocab > 0
    with pytest.raises(OptionError, match="twin: could be a/twin or b/twin"):
        find("twin")
    with pytest.raises(FileError, match=r"none: no such file, and no model of that name in .*, which has a/twin, b/twin, split"):
        find("none")
    assert find("./none.gguf") == Path("./none.gguf") and find("x/none.gguf") == Path("x/none.gguf") and find("a\0b") == Path("a\0b")
    (tmp_path / "tiny.gguf").write_bytes(b"here")  # what exists as a path is that path
    assert find("tiny.gguf") == Path("tiny.gguf")
    (tmp_path / "deep").mkdir()
    assert find("deep") == folder / "sub/deep.gguf"  # but a model rather than a directory


def test_the_folders_place(monkeypatch, tmp_path):
    monkeypatch.delenv("LLAMINA_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert models_folder() == tmp_path / "llamina" / "models"
    monkeypatch.setenv("LLAMINA_HOME", "~/x")
    assert models_folder() == Path.home() / "x"


def test_list(folder, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[5].startswith("tiny ") and "parameters" in lines[5] and lines[6].startswith("demo ") and "4 B" in lines[0]
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries[5]["problem"] is None and entries[5]["architecture"] == "llama" and entries[0]["problem"] and entries[5]["path"] == str(folder / "tiny.gguf")


def test_an_empty_or_wrong_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LLAMINA_HOME", str(tmp_path / "none"))
    assert main(["list"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("demo ") and "llamina pull" in err
    (tmp_path / "file").write_text("")
    for name in "file", "file/below":
        monkeypatch.setenv("LLAMINA_HOME", str(tmp_path / name))
        assert main(["pull", "hf:a/b"]) == 1
        assert "set LLAMINA_HOME" in capsys.readouterr().err or name == "file"
    monkeypatch.setenv("LLAMINA_HOME", str(tmp_path / "file"))
    assert main(["list"]) == 1 and "is not a folder" in capsys.readouterr().err
    assert main(["pull", "org/repo"]) == 2 and "hf:org/repo" in capsys.readouterr().err


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The small hub of hub_server.py, asked by processes of our own too."""
    pytest.importorskip("huggingface_hub", exc_type=ImportError)
    from hub_server import Hub
    hub = Hub()
    hub.repos["org/demo"] = {"demo.Q8_0.gguf": DEMO.read_bytes(), "README.md": b"x"}
    yield hub
    hub.close()


def pull(hub: Any, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder.parent / "hf"), "LLAMINA_HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run([sys.executable, "-m", "llamina", "pull", *argv], env=environment, capture_output=True, text=True, timeout=120)


def test_pull(hub, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "models"
    hub.corrupt = {"demo.Q8_0.gguf"}
    failed = pull(hub, folder, "hf:org/demo")
    assert failed.returncode == 1 and failed.stdout == "" and not list(folder.glob("*.gguf")), failed.stderr
    hub.corrupt = set()
    done = pull(hub, folder, "hf:org/demo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "demo.Q8_0\n", "")
    assert (folder / "demo.Q8_0.gguf").read_bytes() == DEMO.read_bytes() and [path.name for path in folder.iterdir()] == ["demo.Q8_0.gguf"]
    monkeypatch.setenv("LLAMINA_HOME", str(folder))
    assert main(["tokenize", "demo.Q8_0", "a fox"]) == 0
    bodies = len(hub.bodies())
    assert pull(hub, folder, "hf:org/demo").returncode == 0 and len(hub.bodies()) == bodies  # it is there already
    missing = pull(hub, folder, "hf:org/none")
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1


def test_pull_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants
    import huggingface_hub.file_download as file_download
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    for module in constants, file_download:
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    folder, half = tmp_path / "models", DEMO.stat().st_size // 2
    monkeypatch.setenv("LLAMINA_HOME", str(folder))
    hub.stop_after = half
    assert main(["pull", "hf:org/demo"]) == 0  # the connection breaks once, and it goes on by itself
    assert any(r.startswith("bytes=") and int(r[6:].split("-")[0]) > 0 for r in hub.bodies())
    assert (folder / "demo.Q8_0.gguf").read_bytes() == DEMO.read_bytes()


# ---- llamina alone, and the shell


def test_llamina_alone_says_what_it_can_do_in_ten_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out == OVERVIEW and out.count("\n") == 10 and max(map(len, out.splitlines())) < 80
    assert all(line.split()[1] in COMMANDS for line in out.splitlines() if line.startswith("  llamina "))
    monkeypatch.setenv("COLUMNS", "40")
    assert main([]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 46  # an example is not broken


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(capsys, monkeypatch, shell):
    monkeypatch.setenv("_LLAMINA_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    assert "_LLAMINA_COMPLETE" in capsys.readouterr().out


def test_completion(folder, capsys, monkeypatch):
    def complete(*words: str) -> list[str]:
        monkeypatch.setenv("_LLAMINA_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(["llamina", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        assert main([]) == 0
        return capsys.readouterr().out.split()
    assert complete("gen") == ["plain,generate"]
    assert complete("generate", "--temp") == ["plain,--temperature"]
    assert complete("chat", "ti") == ["plain,tiny"] and complete("chat", "zz") == ["file,zz"]
    monkeypatch.setenv("LLAMINA_CONFIG", str(folder / "none.toml"))
    complete("chat", "ti")  # a broken settings file is no reason to print an error into the command line


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_completion_in_bash(folder, tmp_path):
    script = tmp_path / "complete.sh"
    environment = {**os.environ, "_LLAMINA_COMPLETE": "bash_source", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    (tmp_path / "llamina").write_text(f'#!/bin/sh\nexec {sys.executable} -m llamina "$@"\n')
    (tmp_path / "llamina").chmod(0o755)
    script.write_text(subprocess.run([tmp_path / "llamina"], env=environment, capture_output=True, text=True, timeout=60).stdout)
    environment.pop("_LLAMINA_COMPLETE")
    ask = f'source {script}; COMP_WORDS=(llamina perp); COMP_CWORD=1; _llamina_completion llamina; echo "${{COMPREPLY[@]}}"'
    assert subprocess.run(["bash", "-c", ask], env=environment, capture_output=True, text=True, timeout=60).stdout == "perplexity\n"
