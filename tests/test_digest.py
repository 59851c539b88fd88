"""The full digest of a model file: what sha256sum says, kept by path, size and time, refused when the file has changed."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from llamina.engine import errors
from llamina.engine.gguf import digest
from llamina.engine.model import load
from small_models import write_small_model


def test_full_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "user_folder", lambda: tmp_path / "home")
    path = write_small_model(tmp_path / "m.gguf")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    with load(path, threads=1) as model:
        assert model.digest == expected
        monkeypatch.setattr(digest.hashlib, "sha256", None)  # from here on it is known
        assert model.digest == expected
        with open(path, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        os.utime(path, (1, 1))
        with pytest.raises(errors.FileError, match="has changed since"):
            assert model.digest
        path.unlink()
        with pytest.raises(errors.FileError, match="no such file"):
            assert model.digest


def test_what_was_kept_is_not_believed_if_others_may_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "user_folder", lambda: tmp_path / "home")
    path = write_small_model(tmp_path / "m.gguf")
    with load(path, threads=1) as model:
        right = model.digest
        kept = tmp_path / "home" / "digests.json"
        kept.write_text(kept.read_text().replace(right, "0" * 64))
        assert model.digest == "0" * 64
        kept.chmod(0o666)
        assert model.digest == right
