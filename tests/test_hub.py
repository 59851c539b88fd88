"""hf:org/repo names, against a small hub on this machine: choices, cache, resuming, hashes, refusals, offline."""
from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("huggingface_hub", exc_type=ImportError)

import huggingface_hub.constants as constants
import huggingface_hub.file_download
from checkpoints import write_hf
from hub_server import COMMIT, Hub, digest
from llamina.convert.convert import convert
from llamina.engine.errors import FileError, FormatError, LlaminaError, OptionError, UnsupportedError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.home import hub_client
from llamina.engine.home.hub import HubName, checkpoint, download, model_file, parse
from llamina.engine.model import DEMO, load_vocabulary

BIG = bytes(range(256)) * 400  # 102,400 bytes
A, B = BIG, BIG[::-1]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = Hub()
    hub.repos["org/one"] = {"README.md": b"a card", "one.Q4_0.gguf": BIG}
    hub.repos["org/many"] = {"m.Q4_0.gguf": A, "m.Q4_K_M.gguf": B, "m.Q8_0-00001-of-00002.gguf": A, "m.Q8_0-00002-of-00002.gguf": B, "mmproj-f16.gguf": A}
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    for module in constants, huggingface_hub.file_download:  # older versions keep it in both
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    yield hub
    hub.close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


class Interrupt:
    """Ctrl-C after so many bytes of a transfer."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, what: str, done: int, total: int) -> None:
        if what.startswith("downloading") and self.after <= done < total:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("name", "parts"), [
    ("hf:org/repo", HubName("org/repo")),
    ("hf:org/repo/file.gguf", HubName("org/repo", path="file.gguf")),
    ("hf:org/re.po-2/a/b.gguf", HubName("org/re.po-2", path="a/b.gguf")),
    ("hf:org/repo@v1/f.gguf", HubName("org/repo", "v1", "f.gguf")),
    ("hf:org/repo@refs/pr/1/f.gguf", HubName("org/repo", "refs/pr/1", "f.gguf")),
    ("hf:org/repo@feature%2Fx", HubName("org/repo", "feature/x")),
    ("hf:org/repo:q4_k_m", HubName("org/repo", quant="q4_k_m")),
    ("hf:org/repo@v1:Q8_0", HubName("org/repo", "v1", quant="Q8_0")),
])
def test_names(name: str, parts: HubName):
    assert parse(name) == parts
    assert parse(str(parts)) == parts


@pytest.mark.parametrize("name", ["hf:", "hf:repo", "hf:org/", "hf:/repo", "hf:org/repo/", "hf:org/repo/../x.gguf", "hf:org/repo/a//b", "hf:org/repo@",
                                  "hf:org/re po/x", "hf:org/repo@v1@v2/x", "hf:../../etc", "hf:org/repo:", "hf:org/repo/./x", "hf:org/repo@..%2Fx/f",
                                  "hf:../repo"])
def test_impossible_names(name: str):
    with pytest.raises(OptionError, match="names no model of the hub"):
        parse(name)


@pytest.mark.parametrize(("name", "found"), [
    ("hf:org/one", "one.Q4_0.gguf"), ("hf:org/one/one.Q4_0.gguf", "one.Q4_0.gguf"), ("hf:org/many:q4_k_m", "m.Q4_K_M.gguf"),
    ("hf:org/many/Q4_K_M", "m.Q4_K_M.gguf"), ("hf:org/many:Q4_0", "m.Q4_0.gguf"), ("hf:org/many:q8_0", "m.Q8_0-00001-of-00002.gguf"),
    ("hf:org/one@v1", "one.Q4_0.gguf"),
])
def test_chooses(server: Hub, name: str, found: str):
    path = model_file(name)
    assert path.name == found
    assert path.read_bytes() == server.repos[parse(name).repo][found]


def test_all_shards_come(server: Hub):
    path = model_file("hf:org/many/m.Q8_0-00001-of-00002.gguf")
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.Q8_0-00001-of-00002.gguf", "m.Q8_0-00002-of-00002.gguf"]
    del server.repos["org/many"]["m.Q8_0-00002-of-00002.gguf"]
    with pytest.raises(FileError, match="shard m.Q8_0-00002-of-00002.gguf is missing"):
        model_file("hf:org/many:Q8_0")


@pytest.mark.parametrize(("name", "message"), [
    ("hf:org/many", "3 GGUF files could be meant, give one: m.Q4_0.gguf, m.Q4_K_M.gguf, m.Q8_0-00001-of-00002.gguf"),
    ("hf:org/many:q5_0", "no such GGUF file in the repository; it has m.Q4_0.gguf"),
    ("hf:org/many/x.gguf", "no such GGUF file in the repository; it has m.Q4_0.gguf"),
    ("hf:org/many:q4_k", "no such GGUF file"),
    ("hf:org/none", "hf:org/none: no such repository, or it is private: check the name, or set HF_TOKEN"),
    ("hf:org/one@v9", "hf:org/one@v9: the repository has no such revision"),
])
def test_refuses(server: Hub, name: str, message: str):
    with pytest.raises(LlaminaError) as caught:
        model_file(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "code", "message"), [
    (401, "", "no such repository, or it is private"), (401, "RepoNotFound", "no such repository, or it is private"),
    (403, "GatedRepo", "is gated: accept its terms"), (403, "", "access was refused"), (418, "", "HTTP status 418"),
    (503, "", "can't be reached (HTTP status 503)"),
])
def test_hub_says_no(server: Hub, status: int, code: str, message: str):
    server.deny = status, code
    with pytest.raises(FileError) as caught:
        model_file("hf:org/one")
    assert message in str(caught.value)


def test_token_is_sent(server: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    model_file("hf:org/one")
    assert server.tokens == {"Bearer hf_secret"}


def test_large_files_come_from_elsewhere(server: Hub, monkeypatch: pytest.MonkeyPatch):
    """A redirect to another host, which must not see the token; resumed there, too."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.redirect = True
    with pytest.raises(KeyboardInterrupt):
        model_file("hf:org/one", Interrupt(40000))
    assert model_file("hf:org/one").read_bytes() == BIG
    elsewhere = [r for method, path, r in server.requests if path.startswith("/cdn/")]
    assert elsewhere[0] == "" and elsewhere[1].startswith("bytes=")
    assert server.tokens == {"Bearer hf_secret"}


def test_cache_is_huggingface_hubs(server: Hub):
    path = model_file("hf:org/one")
    assert path.parent.name == COMMIT
    assert path.resolve().name == digest(BIG)
    assert huggingface_hub_finds("org/one", "one.Q4_0.gguf") == str(path)
    before = len(server.bodies())
    assert model_file("hf:org/one") == path
    assert len(server.bodies()) == before == 1
    # and what huggingface_hub fetched is not fetched again
    from huggingface_hub import hf_hub_download
    theirs = hf_hub_download("org/many", "m.Q4_0.gguf", endpoint=server.url, cache_dir=constants.HF_HUB_CACHE)
    before = len(server.bodies())
    assert model_file("hf:org/many:q4_0") == Path(theirs)
    assert len(server.bodies()) == before


def huggingface_hub_finds(repo: str, file: str) -> object:
    from huggingface_hub import try_to_load_from_cache
    return try_to_load_from_cache(repo, file, cache_dir=constants.HF_HUB_CACHE)


def test_interrupted_goes_on(server: Hub):
    with pytest.raises(KeyboardInterrupt):
        model_file("hf:org/one", Interrupt(40000))
    [partial] = Path(constants.HF_HUB_CACHE).rglob("*.incomplete")
    have = partial.stat().st_size
    assert 40000 <= have < len(BIG)
    assert huggingface_hub_finds("org/one", "one.Q4_0.gguf") is None
    seen = []
    path = model_file("hf:org/one", lambda what, done, total: seen.append((what, done, total)))
    assert path.read_bytes() == BIG
    assert server.bodies() == ["", f"bytes={have}-"]
    assert seen[0] == ("downloading one.Q4_0.gguf", have, len(BIG))
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete*"))


def test_broken_connection_goes_on(server: Hub):
    server.stop_after = 50000
    assert model_file("hf:org/one").read_bytes() == BIG
    first, second = server.bodies()
    assert first == "" and second.startswith("bytes=")


def test_hub_without_ranges(server: Hub):
    with pytest.raises(KeyboardInterrupt):
        model_file("hf:org/one", Interrupt(40000))
    server.ignore_range = True
    try:
        path = model_file("hf:org/one")
    except FormatError as error:  # older versions of huggingface_hub append the whole file: seen, and thrown away
        assert "thrown away, try again" in str(error)
        path = model_file("hf:org/one")
    assert path.read_bytes() == BIG


@pytest.mark.parametrize("resumed", [False, True])
def test_wrong_hash(server: Hub, resumed: bool):
    if resumed:
        with pytest.raises(KeyboardInterrupt):
            model_file("hf:org/one", Interrupt(40000))
    server.corrupt.add("one.Q4_0.gguf")
    with pytest.raises(FormatError, match="has the hash .*, the hub says .*: thrown away, try again"):
        model_file("hf:org/one")
    assert not [p for p in Path(constants.HF_HUB_CACHE).rglob("*") if p.is_file() and p.suffix != ".lock"]
    server.corrupt.clear()
    assert model_file("hf:org/one").read_bytes() == BIG


def test_offline(server: Hub, offline):
    with_cache = model_file("hf:org/many:q4_0")
    n = len(server.requests)
    offline()
    assert model_file("hf:org/many:q4_0") == model_file("hf:org/many") == with_cache
    with pytest.raises(FileError, match="no such GGUF file in the repository .as far as it is in the cache.; it has m.Q4_0.gguf"):
        model_file("hf:org/many:q4_k_m")
    with pytest.raises(FileError, match="hf:org/one: is not in the cache .*, and HF_HUB_OFFLINE is set"):
        model_file("hf:org/one")
    assert len(server.requests) == n


def test_no_network(server: Hub, monkeypatch: pytest.MonkeyPatch):
    cached = model_file("hf:org/one")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert model_file("hf:org/one") == cached
    with pytest.raises(FileError, match="hf:org/many:q4_0: is not in the cache .*, and http://127.0.0.1:1 can't be reached"):
        model_file("hf:org/many:q4_0")


def test_disk_full(server: Hub, monkeypatch: pytest.MonkeyPatch):
    write = hub_client.Sink.write

    def full(self, data):
        if self.tell() >= 50000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)
    monkeypatch.setattr(hub_client.Sink, "write", full)
    with pytest.raises(FileError, match="No space left on device.*make room, and the same command goes on from there"):
        model_file("hf:org/one")
    monkeypatch.setattr(hub_client.Sink, "write", write)
    assert model_file("hf:org/one").read_bytes() == BIG
    assert server.bodies()[1].startswith("bytes=5")
    monkeypatch.setattr(hub_client.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 1 << 20})())
    server.repos["org/large"] = {"l.gguf": bytes(3 << 20)}
    with pytest.raises(FileError, match="has 1.0 MB free, but org/large: l.gguf needs 3.1 MB: make room"):
        model_file("hf:org/large")


def test_unwritable_cache(server: Hub, tmp_path: Path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(FileError, match="cache.*cannot be written"):
        model_file("hf:org/one")


@pytest.mark.parametrize("path", ["../up.gguf", "/etc/x.gguf", "a/../../x.gguf", "a\\b.gguf"])
def test_hostile_listing(server: Hub, path: str):
    server.repos["org/evil"] = {path: BIG}
    with pytest.raises(FormatError, match="impossible name"):
        model_file("hf:org/evil")


def test_download_to_a_folder(server: Hub, tmp_path: Path):
    folder = tmp_path / "models"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        download("hf:org/many:q8_0", folder, Interrupt(140000))
    paths = download("hf:org/many:q8_0", folder)
    assert [p.read_bytes() for p in paths] == [A, B]
    assert sorted(p.name for p in folder.iterdir()) == ["m.Q8_0-00001-of-00002.gguf", "m.Q8_0-00002-of-00002.gguf"]
    n = len(server.bodies())
    assert n == 3 and server.bodies()[2].startswith("bytes=")
    assert download("hf:org/many:q8_0", folder) == paths
    assert len(server.bodies()) == n
    paths[0].write_bytes(B)
    with pytest.raises(FileError, match="exists, and is not the file of hf:org/many:q8_0: move it away first"):
        download("hf:org/many:q8_0", folder)
    assert paths[0].read_bytes() == B


def test_checkpoint_files(server: Hub):
    config = b"{}"
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    shards = {"model-00001-of-00002.safetensors": A, "model-00002-of-00002.safetensors": B}
    server.repos["org/hf"] = {"config.json": config, "model.safetensors.index.json": index, **shards, "tokenizer.json": b"t", "pytorch_model.bin": A,
                              "original/params.json": b"p", "original/consolidated.00.pth": B, "original/tokenizer.model": b"s", "onnx/model.onnx": A,
                              "generation_config.json": b"g", "chat_template.jinja": b"c"}
    folder, listing = checkpoint("hf:org/hf")
    assert sorted(p.name for p in folder.iterdir()) == sorted([
        "config.json", "model.safetensors.index.json", *shards, "tokenizer.json", "generation_config.json", "chat_template.jinja"])
    assert listing.commit == COMMIT
    original, _ = checkpoint("hf:org/hf/original")
    assert sorted(p.name for p in original.iterdir()) == ["consolidated.00.pth", "params.json", "tokenizer.model"]
    assert checkpoint("hf:org/one")[0].name == "one.Q4_0.gguf"
    del server.repos["org/hf"]["model-00002-of-00002.safetensors"]
    server.commit = "d" * 40
    with pytest.raises(FileError, match="shard model-00002-of-00002.safetensors of model.safetensors.index.json is missing"):
        checkpoint("hf:org/hf")
    server.repos["org/hf"]["model.safetensors.index.json"] = b'{"weight_map": 3}'
    server.commit = "e" * 40
    with pytest.raises(FormatError, match="is not an index of shards"):
        checkpoint("hf:org/hf")
    server.repos["org/text"] = {"README.md": b"", "sub/config.json": b"{}"}
    with pytest.raises(FileError, match="holds no checkpoint that llamina knows.*try one of its folders: hf:org/text/sub"):
        checkpoint("hf:org/text")


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'llamina\[hub\]'"):
        model_file("hf:org/one")


def test_load(server: Hub):
    server.repos["org/demo"] = {"demo.gguf": DEMO.read_bytes()}
    assert load_vocabulary("hf:org/demo").vocab_digest() == load_vocabulary("demo").vocab_digest()


def test_convert(server: Hub, tmp_path: Path):
    write_hf(tmp_path / "local")
    server.repos["org/tiny"] = {p.name: p.read_bytes() for p in (tmp_path / "local").iterdir()}
    report = convert("hf:org/tiny", tmp_path / "a.gguf", "q8_0")
    convert(tmp_path / "local", tmp_path / "b.gguf", "q8_0")
    assert report.notes[0] == f"hf:org/tiny: commit {COMMIT}" and report.verification.passed
    with open_gguf(tmp_path / "a.gguf") as a, open_gguf(tmp_path / "b.gguf") as b:
        assert a.metadata["general.name"] == "tiny"
        assert a.metadata["general.source.repo_url"] == "https://huggingface.co/org/tiny"
        for t in a.tensors.values():
            assert np.array_equal(a.data(t.name), b.data(t.name))


def test_command_line(server: Hub, tmp_path: Path):
    """As a user runs it: endpoint, cache and offline mode from the environment."""
    server.repos["org/demo"] = {"demo.gguf": DEMO.read_bytes()}
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "c"), "HF_HUB_OFFLINE": "0"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "llamina", *arguments], env={**environment, **more}, capture_output=True, text=True, timeout=120)
    refused = run("tokenize", "hf:org/demo", "Once", HF_HUB_OFFLINE="1")
    assert (refused.returncode, refused.stdout) == (1, "") and refused.stderr.count("\n") == 1 and "HF_HUB_OFFLINE is set" in refused.stderr
    done = run("tokenize", "hf:org/demo", "Once upon")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout == run("tokenize", "hf:org/demo/demo.gguf", "Once upon", HF_HUB_OFFLINE="1").stdout


def test_killed(server: Hub, tmp_path: Path):
    """kill -9 in the middle of a file; the next run asks for the rest."""
    content = bytes(24 << 20)
    server.repos["org/zeros"] = {"zeros.gguf": content}
    server.stall = (20 << 20, threading.Event())
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "c"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "llamina", "tokenize", "hf:org/zeros", "x"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            found = list((tmp_path / "c").rglob("*.incomplete"))
            if found and found[0].stat().st_size >= 10 << 20 or process.poll() is not None:
                break
            time.sleep(0.1)
        process.kill()
    have = found[0].stat().st_size
    assert 10 << 20 <= have < len(content)
    server.stall[1].set()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert server.bodies() == ["", f"bytes={have}-"]
    assert "zeros.gguf: is not a GGUF file" in done.stderr  # what came is what the hub has
