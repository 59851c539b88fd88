"""Which models are served: one that was named, or the models folder, loaded when asked for, within a memory limit, least recently used unloaded."""
from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...kernels import ARITHMETIC_VERSION
from ..answers.batch_job import bound_adapters
from ..architectures.config import ModelConfig
from ..errors import ClosedError, LlaminaError, OutOfMemoryError, quoted
from ..gguf.file import open_gguf
from ..home.library import model_files, models_folder, short_name
from ..home.resolve import resolve
from ..run.memory import plan
from .engine import Engine
from .errors import ApiError, of

if TYPE_CHECKING:
    from ..model import Model


@dataclass
class Served:
    """A model that clients can name. `model` and `engine` are None while it is not loaded."""

    name: str
    path: Path | str
    created: int
    model: Model | None = None
    engine: Engine | None = None
    users: int = 0
    used: float = 0.0
    digest: str = ""
    """Of the model's file as it was loaded; the file itself may go."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def fingerprint(self) -> str:
        """As of now: adapters may come and go."""
        return "" if self.model is None else fingerprint(self.model, self.digest)

    @property
    def loaded(self) -> tuple[Model, Engine]:
        assert self.model is not None and self.engine is not None
        return self.model, self.engine


class Registry:
    """load(path, memory) makes a Model. memory: bytes for all loaded models together, None: no limit but the system's. options: what `load` says of
    context and kv, by which it is known what a model can make use of."""

    def __init__(self, load: Callable[..., Model], parallel: int, queue: int, memory: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        self._load, self._parallel, self._queue, self.memory, self._options = load, parallel, queue, memory, dict(options or {})
        self._models: dict[str, Served] = {}
        self._single: Served | None = None
        self._turn = threading.Lock()
        self.started = int(time.time())
        self._room = asyncio.Lock()
        self._closing = False

    def serve_one(self, path: str, name: str) -> Served:
        """Load and serve one model under every name. Raises as `load`."""
        served = Served(name, path, self.started)
        self._begin(served, self._load(path, memory=self.memory))
        self._single = self._models[name] = served
        return served

    def _begin(self, served: Served, model: Model) -> None:
        served.digest = model.digest  # which takes its time at first
        served.model = model
        served.engine = Engine(model, self._parallel, self._queue, self._turn)

    @property
    def is_folder(self) -> bool:
        return self._single is None

    def all(self) -> list[Served]:
        """What can be named now; the folder is looked at again."""
        if self._single is None:
            folder = models_folder()
            found = {short_name(path, folder): path for path in (model_files(folder) if folder.is_dir() else [])}
            found.setdefault("demo", Path("demo"))
            for name, path in found.items():
                if name not in self._models:
                    with contextlib.suppress(OSError):
                        self._models[name] = Served(name, "demo" if name == "demo" else path, int(path.stat().st_mtime) if name != "demo" else self.started)
            for name in [n for n, served in self._models.items() if n not in found and served.model is None]:
                del self._models[name]
        return list(self._models.values())

    def find(self, name: Any) -> Served:
        """ApiError 404 with the names there are. A server of one model serves it under every name, as llama-server does."""
        if self._single is not None:
            return self._single
        every = self.all()
        names = [served.name for served in every]
        if name is None or name == "":
            loaded = [served for served in every if served.model is not None]
            if len(loaded) == 1 or len(every) == 1:
                return (loaded or every)[0]
            raise ApiError(400, f"model is missing: one of {', '.join(names[:20])}", "model")
        wanted = str(name).removesuffix(":latest")
        for served in every:
            if served.name == wanted:
                return served
        raise ApiError(404, f"the model {quoted(name, 80)} does not exist here; there are {', '.join(names[:20]) or 'none'}", "model", "model_not_found")

    async def acquire(self, name: Any) -> Served:
        """The model, loaded, and kept loaded until `release`. ApiError."""
        if self._closing:
            raise of(ClosedError("the server is stopping"))
        served = self.find(name)
        served.users += 1
        try:
            async with served.lock:
                if served.model is None:
                    await self._make_loaded(served)
        except BaseException:
            served.users -= 1
            raise
        served.used = time.monotonic()
        return served

    def release(self, served: Served) -> None:
        served.users -= 1
        served.used = time.monotonic()

    async def _make_loaded(self, served: Served) -> None:
        async with self._room:
            while True:
                held = sum(s.model.memory_plan.weights + s.model.memory_plan.kv for s in self._models.values() if s.model is not None)
                room = None if self.memory is None else self.memory - held
                try:
                    if room is not None and room <= 0:
                        raise OutOfMemoryError("the memory allowed is in use by other models")
                    model = await asyncio.to_thread(self._load_within, str(served.path), room)
                    break
                except OutOfMemoryError as error:
                    idle = [s for s in self._models.values() if s.model is not None and not s.users]
                    if not idle:
                        raise of(error) from None
                    # out of the list at once: whoever asks for it while it closes must find it gone, and wait for this lock
                    await asyncio.to_thread(_close, *_taken_out(min(idle, key=lambda s: s.used)))
                except LlaminaError as error:
                    raise of(error) from None
            if self._closing:  # meanwhile
                model.close()
                raise of(ClosedError("the server is stopping"))
            self._begin(served, model)

    def _load_within(self, path: str, room: int | None) -> Model:
        return self._load(path, memory=self._useful(path, room))

    def _useful(self, path: str, room: int | None) -> int | None:
        """Of `room` bytes, what a model can make use of: weights, and a full context for each answer that may be under way and one more, for beginnings that
        are kept. What is left is for other models. Raises what `load` raises."""
        if room is None:
            return None
        with open_gguf(resolve(path)) as gguf:
            found = plan(gguf, ModelConfig.from_gguf(gguf), self._options.get("context"), room, self._options.get("kv"))
        return min(room, found.weights + (self._parallel + 1) * found.context_bytes)

    def unload(self, served: Served) -> None:
        _close(*_taken_out(served))

    def engines(self) -> list[Engine]:
        return [served.engine for served in self._models.values() if served.engine is not None]

    def close(self, seconds: float = 0.0) -> None:
        """Take nothing new; let running answers end for so many seconds, then end everything. Harmless twice."""
        self._closing = True
        threads = [threading.Thread(target=engine.drain, args=(seconds,)) for engine in self.engines()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for served in list(self._models.values()):
            self.unload(served)


def _taken_out(served: Served) -> tuple[Model | None, Engine | None]:
    found = served.model, served.engine
    served.model = served.engine = None
    return found


def _close(model: Model | None, engine: Engine | None) -> None:
    if engine is not None:
        engine.close()
    if model is not None:
        model.close()


def fingerprint(model: Model, digest: str) -> str:
    """system_fingerprint: equal on two machines exactly if the same requests get the same bits: arithmetic version, model, KV type, adapters. digest: of the
    model's file."""
    facts: tuple[Any, ...] = (ARITHMETIC_VERSION, digest, model.runtime.kv.name, model.context)
    if adapters := bound_adapters(model):
        facts = (*facts, adapters)
    return "b" + hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
