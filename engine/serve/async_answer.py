"""Answers for asyncio programs: `async for piece in model.agenerate(…)`. All those of a model share the steps of one engine thread, the server's.

    model.agenerate(…) -> AsyncAnswer -> first piece asked for: a ticket to the engine thread -> pieces on the event loop -> the end, or nobody waits any more
"""
from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import InternalError, LlaminaError
from .engine import Engine, Ticket

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model

LIVE = 64
"""Most answers of one model under way at once; memory may allow fewer, the others wait."""
_making = threading.Lock()


class AsyncAnswer:
    """An asynchronous iterator over pieces of text, each what `generate` would give: the bits don't depend on what else runs. Its sequence is freed within a
    step when the task that waits for it is cancelled, at the end of `async with`, or when it is dropped. .generation: ids, stats, finish_reason, …"""

    def __init__(self, model: Model, generation: Generation) -> None:
        self._model, self.generation = model, generation
        self._ticket: Ticket | None = None

    def __aiter__(self) -> AsyncAnswer:
        return self

    async def __anext__(self) -> str:
        """Raises what `generate`'s steps raise."""
        if self._ticket is None:
            if self.generation.finish_reason is not None:
                raise StopAsyncIteration
            self._ticket = Ticket([self.generation], asyncio.get_running_loop(), most_unread=None)
            engine_of(self._model).submit(self._ticket)
        try:
            while (event := await self._ticket.next()) is not None:
                if event.error is not None:
                    raise event.error if isinstance(event.error, LlaminaError) else InternalError(str(event.error))
                if event.text:
                    return event.text
        except BaseException:
            self._ticket.cancel()
            raise
        raise StopAsyncIteration

    async def text(self) -> str:
        """Run to the end; all pieces as one string."""
        async for _ in self:
            pass
        return self.generation.so_far

    async def aclose(self) -> None:
        """Give the answer up, if it has not ended. Harmless twice."""
        if self._ticket is None:
            self.generation.close()
            return
        self._ticket.cancel()
        while await self._ticket.next() is not None:
            pass

    async def __aenter__(self) -> AsyncAnswer:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if (ticket := getattr(self, "_ticket", None)) is not None:
            ticket.abandon()

    def __getattr__(self, name: str) -> Any:
        if name in ("ids", "stats", "finish_reason", "logprobs", "so_far", "tool_calls", "message"):
            return getattr(self.generation, name)
        raise AttributeError(name)


def engine_of(model: Model) -> Engine:
    """The model's engine thread for asyncio, begun at first use; `Model.close` ends it."""
    with _making:
        if model._engine is None:
            model._engine = Engine(model, LIVE, 1 << 30)
        return model._engine
