"""Machine code, and what else is believed, comes from folders and files that this user alone can write."""
from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from llamina.engine.run import thread_choice
from llamina.kernels import compile_cache, trusted
from llamina.kernels.trusted import read_own, why_not

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "code"
    path.mkdir(mode=0o700)
    return path


def somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process believes to be another user than whoever made the files so far, and not root."""
    uid = os.geteuid() + 12345
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_own(folder: Path) -> None:
    assert why_not(folder) is None
    (folder / "f").write_bytes(b"x")
    (folder / "f").chmod(0o644)
    assert read_own(folder / "f") == b"x"


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o707, 0o702])
def test_writable_by_others(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    assert "can be written by others" in (why_not(folder) or "")
    folder.chmod(0o755)
    (folder / "f").write_bytes(b"x")
    (folder / "f").chmod(mode)
    with pytest.raises(PermissionError):
        read_own(folder / "f")


def test_group_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems with a group for each user make folders that this group can write."""
    folder.chmod(0o775)
    monkeypatch.setattr(trusted, "_private_group", lambda gid: True)
    assert why_not(folder) is None
    monkeypatch.setattr(trusted, "_private_group", lambda gid: False)
    assert why_not(folder)


def test_of_somebody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "f").write_bytes(b"x")
    somebody_else(monkeypatch)
    assert "belongs to another user" in (why_not(folder) or "")
    with pytest.raises(PermissionError):
        read_own(folder / "f")


def test_below_what_others_can_rename(folder: Path) -> None:
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    folder.chmod(0o777)
    assert why_not(inner) == f"{folder} can be written by others"
    folder.chmod(0o1777)  # as /tmp
    assert why_not(inner) is None


def test_links_and_others(folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    (folder / "link").symlink_to(folder / "f")
    os.mkfifo(folder / "pipe")
    for name in ("link", "pipe", "missing"):
        with pytest.raises(OSError):
            read_own(folder / name)
    (folder.parent / "link").symlink_to(folder)
    assert why_not(folder.parent / "link")


@pytest.fixture
def _chosen_anew() -> Iterator[None]:
    compile_cache._choose.cache_clear()
    yield
    compile_cache._choose.cache_clear()


@pytest.mark.usefixtures("_chosen_anew")
def test_the_compile_cache_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that others can write is not used: the next place is, or none, and people are told which and why."""
    asked, user = tmp_path / "asked", tmp_path / "user"
    asked.mkdir()
    asked.chmod(0o777)
    monkeypatch.setenv("LLAMINA_COMPILE_CACHE", str(asked))
    monkeypatch.setattr(compile_cache, "user_folder", lambda: user)
    monkeypatch.setattr(compile_cache, "PACKAGE", tmp_path / "no" / "checkout")
    compile_cache.fingerprint()
    found = compile_cache.cache_folder()
    assert found is not None and found.parent == user
    assert compile_cache.cache_note() == f"LLAMINA_COMPILE_CACHE={asked} is not used: {asked} can be written by others; compiled code goes to {user}"
    compile_cache._choose.cache_clear()
    user.chmod(0o777)
    (tmp_path / "no").write_text("")
    assert compile_cache.cache_folder() is None
    note = compile_cache.cache_note() or ""
    assert "every start compiles anew" in note and f"{user} can be written by others" in note and "\n" not in note


@pytest.mark.usefixtures("_chosen_anew")
def test_planted_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the right name and checksum that others could have written is compiled anew."""
    monkeypatch.setattr(compile_cache, "_places", lambda: [tmp_path])

    def function() -> object:
        def answer(x: int) -> int:
            return x + 41
        return compile_cache.jit()(answer)
    assert function()(1) == 42  # type: ignore[operator]
    before = compile_cache.stats.loaded
    assert function()(1) == 42 and compile_cache.stats.loaded == before + 1  # type: ignore[operator]
    [planted] = tmp_path.glob("llamina-*/*.nbc")
    planted.chmod(0o666)
    assert function()(1) == 42 and compile_cache.stats.loaded == before + 1  # type: ignore[operator]
    assert planted.stat().st_mode & 0o777 == 0o600  # replaced by our own


def test_thread_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_choice, "_file", lambda: tmp_path / "llamina-threads.json")
    thread_choice.keep(600 << 20, 3)
    assert list(thread_choice._kept().values()) == [3]
    (tmp_path / "llamina-threads.json").chmod(0o666)
    assert thread_choice._kept() == {}


def test_a_new_folder_is_private() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(os.path.realpath(place)) / "llamina-x"
        before = os.umask(0)
        try:
            assert compile_cache._ready(folder) is None
        finally:
            os.umask(before)
        assert folder.stat().st_mode & 0o777 == 0o700 and [p.stat().st_mode & 0o777 for p in folder.iterdir()] == [0o600]
