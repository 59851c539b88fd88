"""The models folder: short names, `llamina list`, `llamina pull`, completion in the shell, and `llamina` alone."""
from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf_builder
import pytest
from llamina.engine.cli import COMMANDS, OVERVIEW, main
from llamina.engine.errors import FileError, OptionError
from llamina.engine.home.hub import from_address
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
    assert len(lines) == 8 and lines[0].split() == ["NAME", "FILE", "WEIGHTS", "FORMAT", "HERE"]
    assert lines[6].split()[:6] == ["tiny", "5.6", "MB", "5.2M", "Q8_0", "runs"] and lines[7].startswith("demo ") and lines[7].endswith(", chats")
    assert "4 B" in lines[1] and "doesn't run: the version needs 4 bytes" in lines[1] and str(folder) not in lines[1]
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries[5]["problem"] is None and entries[5]["architecture"] == "llama" and entries[0]["problem"] and entries[5]["path"] == str(folder / "tiny.gguf")


def test_an_empty_or_wrong_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LLAMINA_HOME", str(tmp_path / "none"))
    assert main(["list"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("demo ") and "llamina pull" in err
    (tmp_path / "file").write_text("")
    for name in "file", "file/below":
        monkeypatch.setenv("LLAMINA_HOME", str(tmp_path / name))
        assert main(["pull", "hf:a/b"]) == 1
        assert "set LLAMINA_HOME" in capsys.readouterr().err or name == "file"
    monkeypatch.setenv("LLAMINA_HOME", str(tmp_path / "file"))
    assert main(["list"]) == 1 and "is not a folder" in capsys.readouterr().err
    for name in "repo", "./repo", "/org/repo", "https://example.org/org/repo":
        assert main(["pull", name]) == 2 and ("org/repo" in (err := capsys.readouterr().err)) and err.count("\n") == 1, name


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
    assert (done.returncode, done.stdout) == (0, "demo.Q8_0\n")
    assert "5.6 MB; llama, 5.2M parameters, Q8_0; runs here in about 1" in done.stderr and "llamina chat demo.Q8_0" in done.stderr
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
    assert complete("generate", "--tempe") == ["plain,--temperature"]
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


# ---- before a download


@pytest.fixture
def asked(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The small hub, asked by this process."""
    import huggingface_hub.constants as constants
    import huggingface_hub.file_download as file_download
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    for module in constants, file_download:
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("LLAMINA_HOME", str(tmp_path / "models"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    return hub


def test_what_would_not_run_is_not_downloaded(asked, tmp_path, capsys):
    """Its header says so, and no more of it is asked for: neither by pull, nor by a command that would load it."""
    b = gguf_builder.llama()
    b.set("general.architecture", "gptzilla")
    path = b.write(tmp_path / "x.gguf")
    asked.repos["org/other"] = {"other.gguf": path.read_bytes() + bytes(3 << 20), "text.gguf": b"not a model" * 1000}
    for argv in ["pull", "org/other/other.gguf"], ["generate", "hf:org/other/other.gguf", "-p", "x"], ["chat", "hf:org/other/other.gguf", "x"]:
        assert main(argv) == 1
        err = capsys.readouterr().err
        assert "would not run here" in err and "'gptzilla'" in err and "nothing was downloaded" in err and err.count("\n") == 1
        assert "/tmp" not in err and "llamina-" not in err
    assert main(["pull", "org/other/text.gguf"]) == 1 and "is not a GGUF file" in capsys.readouterr().err
    assert asked.bodies() and all(r == "bytes=0-1048575" for r in asked.bodies()[:3]) and not (tmp_path / "cache").exists()
    assert main(["pull", "org/other/other.gguf", "--anyway"]) == 0 and (tmp_path / "models" / "other.gguf").stat().st_size > 3 << 20


@pytest.mark.parametrize("ignore_range", [False, True])
def test_inspect_reads_only_the_header_of_a_model_on_the_hub(asked, capsys, ignore_range):
    asked.ignore_range = ignore_range
    assert main(["inspect", "hf:org/demo", "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert asked.bodies() == ["bytes=0-1048575"]
    assert main(["inspect", "demo", "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert there.pop("path") == "hf:org/demo" and here.pop("path")
    for report in here, there:
        report["verdict"].pop("free")
    assert there == here  # as good as the file itself


def test_a_long_header_is_asked_for_in_pieces(asked, monkeypatch, capsys):
    from llamina.engine.home import hub_peek
    monkeypatch.setattr(hub_peek, "STEPS", (100, 10_000, 1 << 20))
    assert main(["inspect", "hf:org/demo"]) == 0 and "runs here: yes" in capsys.readouterr().out
    assert asked.bodies() == ["bytes=0-99", "bytes=0-9999", "bytes=0-1048575"]


def test_a_split_model_is_judged_by_all_its_shards(asked, tmp_path, capsys):
    from llamina.convert.convert import convert
    convert(DEMO, tmp_path / "s.gguf", type="keep", split=3_000_000)
    shards = {path.name: path.read_bytes() for path in sorted(tmp_path.glob("s-0*.gguf"))}
    assert len(shards) > 1
    asked.repos["org/split"] = shards
    assert main(["inspect", "hf:org/split"]) == 0
    out = capsys.readouterr().out
    assert "runs here: yes" in out and f"{len(shards)} shards" in out and len(asked.bodies()) == len(shards)
    assert main(["pull", "org/split"]) == 0 and capsys.readouterr().out == "s\n"
    assert main(["rm", "s", "--yes"]) == 0 and not list((tmp_path / "models").glob("*.gguf"))


@pytest.mark.parametrize(("address", "name"), [
    ("https://huggingface.co/org/repo", "hf:org/repo"), ("http://huggingface.co/org/repo/", "hf:org/repo"), ("huggingface.co/org/repo", "hf:org/repo"),
    ("hf.co/org/repo:Q4_K_M", "hf:org/repo:Q4_K_M"), ("https://www.huggingface.co/org/repo/tree/main", "hf:org/repo"),
    ("https://huggingface.co/org/repo/blob/main/a/m.gguf", "hf:org/repo/a/m.gguf"),
    ("https://huggingface.co/org/repo/resolve/main/m%20x.gguf?download=true", "hf:org/repo/m x.gguf"),
    ("https://huggingface.co/org/repo/blob/v1/m.gguf#L1", "hf:org/repo@v1/m.gguf"), ("https://huggingface.co/org/repo/tree/refs/pr/3", "hf:org/repo@refs/pr/3"),
    ("hf:org/repo", "hf:org/repo"), ("org/repo", "org/repo"),
])
def test_pasted_addresses(address, name):
    assert from_address(address) == name


@pytest.mark.parametrize("address", ["https://example.org/a/b", "https://huggingface.co/org", "https://huggingface.co/org/repo/discussions/1", "https://", "http://x"])
def test_other_addresses(address):
    with pytest.raises(OptionError, match="is no address"):
        from_address(address)


def test_pull_takes_what_people_paste(asked, tmp_path, capsys):
    for name in "org/demo", "hf:org/demo", f"{asked.url}/org/demo/blob/main/demo.Q8_0.gguf", "org/demo:q8_0", "https://huggingface.co/org/demo":
        assert main(["pull", name]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out == "demo.Q8_0\n", name


# ---- names


def test_names_that_match(folder):
    for name, file in [("DEEP", "sub/deep.gguf"), ("dee", "sub/deep.gguf"), ("sub:deep", "sub/deep.gguf"), ("SPLIT", "split-00001-of-00002.gguf"),
                       ("spl", "split-00001-of-00002.gguf")]:
        assert find(name) == folder / file, name
    with pytest.raises(OptionError, match="win: could be a/twin or b/twin"):
        find("win")
    with pytest.raises(FileError, match="did you mean sub/deep"):
        find("sub_deep")
    with pytest.raises(FileError, match="llamina pull org/repo:Q4_K_M"):
        find("org/repo:Q4_K_M")
    with pytest.raises(FileError, match="no such file"):
        find("dee.gguf")  # a file's name is meant as it stands


def test_rm(folder, capsys, monkeypatch):
    assert main(["rm", "deep", "-y"]) == 1 and "did you mean sub/deep?" in capsys.readouterr().err  # whole names only
    assert main(["rm", "sub/deep", "none", "-y"]) == 1 and (folder / "sub/deep.gguf").exists()  # all or nothing
    assert main(["rm", "demo", "-y"]) == 1
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"n\ny\n")))
    assert main(["rm", "split"]) == 2 and "say --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["rm", "split"]) == 0 and (folder / "split-00001-of-00002.gguf").exists()
    assert main(["rm", "split"]) == 0 and not list(folder.glob("split*"))
    out, err = capsys.readouterr()
    assert out == "" and "2 files" in err and "removed split, 8 B" in err
    assert main(["rm", "sub/deep", "sub/tiny", "-y"]) == 0 and sorted(p.name for p in (folder / "sub").iterdir()) == [".hidden"]
