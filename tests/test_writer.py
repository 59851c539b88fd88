"""The GGUF writer: what it writes is read back, and only finished files have their name."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from llamina.convert.writer import Output, OutTensor, check_target, divide, shard_paths
from llamina.engine.errors import FileError, OptionError
from llamina.engine.gguf.file import open_gguf

META = {
    "general.architecture": "llama", "general.name": "größe", "a.small": 7, "a.large": 1 << 40, "a.negative": -3, "a.float": 1e-6, "a.bool": True,
    "a.strings": ["a", "", "▁b"], "a.numbers": np.array([1.5, -2], np.float32), "a.ints": np.array([1, -2], np.int32), "a.empty": "",
}
TENSORS = [OutTensor("one", (3, 32), "Q8_0"), OutTensor("two", (5,), "F32"), OutTensor("three", (2, 7), "F16")]


def data(t: OutTensor) -> np.ndarray:
    return np.random.default_rng(len(t.name)).integers(0, 256, t.n_bytes, np.uint8)


def write(path: Path, split: int | None = None) -> list[Path]:
    with Output(path, META, TENSORS, split) as out:
        for t in TENSORS:
            for part in np.array_split(data(t), 3):
                out.write(part)
        return out.finish()


@pytest.mark.parametrize("split", [None, 40])
def test_what_is_written_is_read(tmp_path: Path, split: int | None) -> None:
    paths = write(tmp_path / "m.gguf", split)
    assert [p.name for p in paths] == (["m.gguf"] if split is None else [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)])
    assert sorted(os.listdir(tmp_path)) == sorted(p.name for p in paths)
    with open_gguf(paths[0]) as file:
        assert list(file.tensors) == [t.name for t in TENSORS] and len(file.paths) == len(paths)
        for t in TENSORS:
            info = file.tensors[t.name]
            assert (info.shape, info.format.name) == (t.shape, t.format)
            np.testing.assert_array_equal(file.data(t.name).ravel(), data(t))
        meta = file.metadata
        assert meta["general.name"] == "größe" and meta["a.small"] == 7 and meta["a.large"] == 1 << 40 and meta["a.negative"] == -3 and meta["a.bool"] is True
        assert meta["a.float"] == float(np.float32(1e-6)) and meta["a.strings"] == ["a", "", "▁b"] and meta["a.empty"] == ""
        for key in "a.numbers", "a.ints":
            np.testing.assert_array_equal(meta[key], META[key])
            assert meta[key].dtype == META[key].dtype  # type: ignore[union-attr, attr-defined]
        assert ("split.count" in meta) == (split is not None)


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    import gguf
    reader = gguf.GGUFReader(write(tmp_path / "m.gguf")[0])
    assert [t.name for t in reader.tensors] == [t.name for t in TENSORS]
    assert reader.tensors[0].data.tobytes() == data(TENSORS[0]).tobytes()


def test_division() -> None:
    sizes = [OutTensor(str(n), (n,), "F32") for n in (8, 8, 64, 8)]  # 32, 32, 256, 32 bytes
    assert [[t.name for t in g] for g in divide(sizes, 64)] == [["8", "8"], ["64"], ["8"]]
    assert divide(sizes, None) == [sizes]
    assert [p.name for p in shard_paths(Path("a.b.gguf"), 2)] == ["a.b-00001-of-00002.gguf", "a.b-00002-of-00002.gguf"]


def test_abandoned_or_failed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with Output(path, META, TENSORS) as out:
        out.write(data(TENSORS[0]))
        assert path.read_bytes() == b"old" and len(os.listdir(tmp_path)) == 2
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.gguf"]
    write(path)
    assert path.read_bytes()[:4] == b"GGUF"


def test_patch(tmp_path: Path) -> None:
    meta = {**META, "hash": "0123456789" * 2}
    with Output(tmp_path / "m.gguf", meta, TENSORS) as out:
        for t in TENSORS:
            out.write(data(t))
        out.patch(b"0123456789" * 2, b"abcdefghij" * 2)
        out.finish()
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata["hash"] == "abcdefghij" * 2
        np.testing.assert_array_equal(file.data("three").ravel(), data(TENSORS[2]))


def test_targets_that_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(b"x")
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    hard = tmp_path / "hard.gguf"
    os.link(source, hard)
    for target in source, link, hard:
        with pytest.raises(OptionError, match="never overwrites what it reads"):
            check_target(target, [source])
    with pytest.raises(FileError, match="is a directory"):
        check_target(tmp_path, [])
    with pytest.raises(FileError, match="does not exist"):
        check_target(tmp_path / "none" / "m.gguf", [])
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        for special in tmp_path / "fifo", Path(os.devnull):
            with pytest.raises(FileError, match="is not a regular file"):
                check_target(special, [])
    with pytest.raises(FileError, match="does not exist"):
        check_target(source / "m.gguf", [])
    shard = tmp_path / "m-00002-of-00003.gguf"
    shard.write_bytes(b"x")
    with pytest.raises(OptionError, match="m-00002-of-00003"):
        Output(tmp_path / "m.gguf", META, TENSORS, 40, [shard])
    assert source.read_bytes() == shard.read_bytes() == b"x" and not [n for n in os.listdir(tmp_path) if n.endswith(".part")]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_no_permission() -> None:
    """As an ordinary user: root, who may write anywhere, becomes nobody for it."""
    import gguf  # noqa: F401 - nobody may not be able to read it
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which other users can't enter
        os.chmod(name, 0o555)
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(FileError, match="no permission"):
                write(Path(name) / "m.gguf")
        finally:
            os.seteuid(user)
            os.chmod(name, 0o700)


CHILD = """
import sys, time, resource
import numpy as np
from pathlib import Path
from llamina.convert.writer import Output, OutTensor
from llamina.engine.errors import FileError
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
tensors = [OutTensor("a", (1 << 18,), "F32"), OutTensor("b", (1 << 18,), "F32")]
try:
    with Output(Path(sys.argv[1]), {"general.architecture": "llama"}, tensors) as out:
        out.write(np.zeros(1 << 20, np.uint8))
        if not limit:
            print("half", flush=True)
            time.sleep(60)
        out.write(np.zeros(1 << 20, np.uint8))
        out.finish()
except FileError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize("limit", [100, 5000, 1_200_000])
def test_full_disk(tmp_path: Path, limit: int) -> None:
    """A limit on the file's size stands for it: write fails with EFBIG in the header, in the data, at the end."""
    (tmp_path / "m.gguf").write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "m.gguf"), str(limit)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "m.gguf: cannot be written (the file would be too large" in result.stdout and result.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == ["m.gguf"] and (tmp_path / "m.gguf").read_bytes() == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_kill_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "m.gguf"), "0"], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "half\n"
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    left = os.listdir(tmp_path)
    assert len(left) == 1 and left[0].startswith(".m.gguf.llamina-") and not left[0].endswith(".gguf")
