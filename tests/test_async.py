"""Model.agenerate and achat: the same answers as without asyncio, many at once, and nothing left when nobody waits any more."""
from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import llamina
import pytest
from llamina.engine.errors import ClosedError, ContextFullError, OptionError


@pytest.fixture(scope="module")
def model() -> Iterator[llamina.Model]:
    with llamina.load("demo") as found:
        yield found


async def freed(model: Any) -> bool:
    for _ in range(300):
        if sum(model.runtime.kv_pages()[:2]) == 0:
            return True
        await asyncio.sleep(0.01)
    return False


def test_many_at_once_are_each_what_they_are_alone(model: llamina.Model) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [(f"Number {i} was", {"seed": i, "max_tokens": 5 + i, "logprobs": 1}) for i in range(24)]
    alone = [model.generate(prompt, **options) for prompt, options in asked]
    texts = [g.text() for g in alone]

    async def one(prompt: str, options: dict[str, Any]) -> tuple[str, Any]:
        answer = model.agenerate(prompt, **options)
        return "".join([piece async for piece in answer]), answer

    async def main() -> None:
        found = await asyncio.gather(*(one(*a) for a in asked))
        assert [text for text, _ in found] == texts
        for g, (_, answer) in zip(alone, found):
            assert answer.ids == g.ids and answer.logprobs == g.logprobs and answer.finish_reason == g.finish_reason
        assert await model.achat("Tell me a story", seed=1, max_tokens=9).text() == model.chat("Tell me a story", seed=1, max_tokens=9).text()
        assert await freed(model)
    asyncio.run(main())


def test_who_no_longer_waits_holds_nothing(model: llamina.Model) -> None:
    async def main() -> None:
        async def consume() -> None:
            async for _ in model.agenerate("Once upon a time", max_tokens=450, ignore_eos=True):
                pass
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await freed(model)
        async for _ in model.agenerate("Once upon a time", max_tokens=450, ignore_eos=True):
            break
        assert await freed(model)
        async with model.agenerate("Once upon a time", max_tokens=450, ignore_eos=True) as answer:
            await anext(answer)
        assert answer.finish_reason == "interrupted" and await freed(model)
        unused = model.agenerate("Once")
        await unused.aclose()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.agenerate("Once upon", max_tokens=450, ignore_eos=True).text(), 0.05)
        assert await freed(model)
    asyncio.run(main())


def test_errors_are_generates() -> None:
    async def main() -> None:
        with llamina.load("demo") as model:
            with pytest.raises(OptionError):
                model.agenerate("a", temperature=-1)
            with pytest.raises(ContextFullError):
                model.agenerate([5] * 5000)
            answer = model.agenerate("Once", max_tokens=450, ignore_eos=True)
            await anext(answer)
        with pytest.raises(ClosedError):
            await answer.text()
        with pytest.raises(ClosedError):
            model.agenerate("a")
    asyncio.run(main())
