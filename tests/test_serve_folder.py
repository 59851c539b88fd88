"""`llamina serve` without a model: the models folder, loaded when asked for, within a memory limit, the least recently used unloaded."""
from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Server, serving

ASKED: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}
CONTEXT = 128


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds one, sub/two and broken; the demo is always there."""
    from llamina.engine.home.resolve import resolve
    (tmp_path / "sub").mkdir()
    for name in ("one", "sub/two"):
        shutil.copyfile(resolve("demo"), tmp_path / f"{name}.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    monkeypatch.setenv("LLAMINA_HOME", str(tmp_path))
    return tmp_path


def loaded(server: Server) -> set[str]:
    return {served.name for served in server.registry.all() if served.model is not None}


def held(server: Server) -> int:
    """Bytes of the models that are loaded."""
    return sum(s.model.memory_plan.weights + s.model.memory_plan.kv for s in server.registry.all() if s.model is not None)


def size_of_one(parallel: int) -> int:
    """What one of them takes at most: weights, and a context for each answer and one more."""
    import llamina
    with llamina.load("demo", context=CONTEXT) as model:
        return model.memory_plan.weights + (parallel + 1) * model.memory_plan.context_bytes


def test_asked_for_while_it_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has to go, and that somebody wants before its closing has begun: it comes again, whole."""
    import llamina
    from llamina.engine.serve.registry import Registry
    at_once = asyncio.to_thread

    async def go() -> None:
        begun, may = asyncio.Event(), asyncio.Event()

        async def late(work: Any, *arguments: Any) -> Any:
            if not isinstance(arguments[0], str):  # closing, not loading
                begun.set()
                await may.wait()
            return await at_once(work, *arguments)
        monkeypatch.setattr(asyncio, "to_thread", late)
        registry = Registry(lambda path, memory: llamina.load(path, memory=memory, context=CONTEXT, threads=1), 2, 16, size_of_one(2), {"context": CONTEXT})
        registry.release(await registry.acquire("one"))
        two = asyncio.create_task(registry.acquire("sub/two"))
        await begun.wait()
        one = asyncio.create_task(registry.acquire("one"))
        await asyncio.sleep(0.05)
        assert not one.done()
        may.set()
        registry.release(await two)
        assert (await one).loaded[0].generate("x", max_tokens=1).text() is not None
        registry.close()
    asyncio.run(asyncio.wait_for(go(), 60))


def test_loaded_when_asked_for(folder: Path) -> None:
    with serving(path=None, context=CONTEXT) as server:
        names = [m["id"] for m in server.http.get("/v1/models").json()["data"]]
        assert sorted(names) == ["broken", "demo", "one", "sub/two"] and not loaded(server)
        assert sorted(m["name"] for m in server.http.get("/api/tags").json()["models"]) == sorted(names)
        texts = [server.ok("/v1/completions", model=name, **ASKED) for name in ("one", "sub/two", "demo", "one:latest")]
        assert len({t["choices"][0]["text"] for t in texts}) == 1 and texts[1]["model"] == "sub/two" and loaded(server) == {"one", "sub/two", "demo"}
        assert server.http.get("/v1/models/sub/two").json()["meta"]["n_ctx"] == CONTEXT
        for name, status, says in (("three", 404, "sub/two"), (None, 400, "model is missing"),
                                   ("broken", 400, "broken.gguf: is GGUF version 0"), ("../one", 404, "exist"), (5, 400, "model")):
            answer = server.post("/v1/completions", model=name, **ASKED)
            assert answer.status_code == status and says in answer.json()["error"]["message"], answer.text
            assert str(folder) not in answer.text
        shutil.copyfile(folder / "one.gguf", folder / "new.gguf")  # while the server runs
        assert server.ok("/v1/completions", model="new", **ASKED)["model"] == "new"
        assert all(served.users == 0 for served in server.registry.all())


def test_within_the_memory(folder: Path) -> None:
    """Room for two: the third takes the place of the one that was used longest ago, and not of one that answers."""
    most = size_of_one(2) * 2
    with serving(path=None, parallel=2, memory=most, context=CONTEXT) as server:
        first = server.ok("/v1/completions", model="one", **ASKED)
        server.ok("/v1/completions", model="sub/two", **ASKED)
        assert loaded(server) == {"one", "sub/two"} and held(server) <= most
        server.ok("/v1/completions", model="one", **ASKED)
        server.ok("/v1/completions", model="demo", **ASKED)
        assert loaded(server) == {"one", "demo"} and held(server) <= most
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(lambda i: server.post("/v1/completions", model=("one", "sub/two", "demo")[i % 3], **ASKED), range(18)))
        for answer in found:  # all together need more than there is: some may be told to wait, none differs
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) or answer.json()["choices"] == first["choices"], answer.text
        assert any(answer.status_code == 200 for answer in found) and held(server) <= most
        text = server.http.get("/metrics").text
        assert 0 < float(text.split("\nllamina_memory_limit_share ")[1].split()[0]) <= 1


def test_too_little_memory(folder: Path) -> None:
    with serving(path=None, memory=1 << 20) as server:
        answer = server.post("/v1/completions", model="one", **ASKED)
        assert answer.status_code == 503 and "one.gguf" in answer.json()["error"]["message"] and not loaded(server)
        assert server.http.get("/health").status_code == 200
