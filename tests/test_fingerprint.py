"""The compile cache's fingerprint: it follows every source that compiles something, and is quick."""
from __future__ import annotations

import ast
from pathlib import Path

import pytest
from llamina.kernels import compile_cache


def test_the_fingerprint_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kernels/a.py", "kernels/formats/b.py", "engine/run/forward.py", "engine/other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(compile_cache, "PACKAGE", tmp_path)

    def now() -> str:
        compile_cache.fingerprint.cache_clear()
        return compile_cache.fingerprint()
    try:
        seen = [now()]
        for name in ("kernels/a.py", "kernels/formats/b.py", "engine/run/forward.py"):
            (tmp_path / name).write_text("2")
            seen.append(now())
        (tmp_path / "kernels/a.py").rename(tmp_path / "kernels/c.py")
        seen.append(now())
        assert len(set(seen)) == len(seen)
        (tmp_path / "engine/other.py").write_text("2")
        assert now() == seen[-1]
    finally:
        compile_cache.fingerprint.cache_clear()


def test_every_compiled_function_is_in_the_fingerprint() -> None:
    """Numba doesn't notice edits in files that a function's own file imports: all files of kernels and engine that compile something must be known."""
    package = compile_cache.PACKAGE
    known = {path for pattern in compile_cache.SOURCES for path in package.glob(pattern)}
    makers = {"compiled", "jit", "intrinsic"}
    found = set()
    for path in (p for folder in ("kernels", "engine") for p in (package / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {a.asname or a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "kernels" in (node.module or "") + path.as_posix()
                 for a in node.names if a.name in makers}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if names & used:
            found.add(path)
    assert package / "kernels" / "matmul.py" in found and package / "engine" / "run" / "forward.py" in found
    assert not found - known, sorted(p.relative_to(package).as_posix() for p in found - known)
