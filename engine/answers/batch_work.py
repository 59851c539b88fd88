"""What a batch job does with its lines, as plain data: so it can be done here, or sent to other machines (engine/score/cluster.py).

    Raw -> Line (batch_line.py), or an error record -> Core.generate_many -> record

A record depends on nothing but its line, the model and the options (docs/exactness.md), and holds no time.
"""
from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import FileError, LlaminaError
from ..sampling.options import MAX_SEED, SamplingOptions
from .batch import LIVE, own_error
from .batch_line import GRAMMARS, Line, parse_line

if TYPE_CHECKING:
    from .batch import Result
    from .core import Core

Records = Iterator[tuple[int, dict[str, Any]]]
"""(a line's number, its record)"""
_LONGEST_ERROR = 2000
_MOST_READY = 1000  # records of errors that wait, while nothing is generated
_SAMPLING = frozenset(f.name for f in fields(SamplingOptions))


class Raw(NamedTuple):
    """A line of the input. number: among those that are not blank; at: among all, both from 0 on."""

    number: int
    at: int
    raw: bytes


@dataclass
class BatchWork:
    """options: of all lines; a line's own go before them. seed: of the first line, the next has the next. chat: texts are questions. system: stands before
    conversations. parallel: most answers under way at once."""

    options: dict[str, Any]
    seed: int
    chat: bool = False
    system: str | None = None
    parallel: int | None = None

    def records(self, model: Core, rows: Iterable[Raw]) -> Records:
        """The record of each line, in any order; lines are taken as there is room."""
        left, ready = iter(rows), list[tuple[int, dict[str, Any]]]()  # ready: of lines that ask for nothing that can be done
        while (first := next(left, None)) is not None:  # once, unless there are very many bad lines
            asked: dict[int, Asked] = {}
            with model.generate_many(self._requests(model, itertools.chain([first], left), asked, ready), live=self.parallel or LIVE) as results:
                for result in results:
                    yield from _taken(ready)
                    asking = asked.pop(result.index)
                    yield asking.line.number, self._kept(model, asking, result)
            yield from _taken(ready)

    def failed(self, row: Raw, error: LlaminaError) -> dict[str, Any]:
        """The record of a line for which nothing can be computed."""
        try:
            id = parse_line(row.raw, row.number, row.at).id
        except LlaminaError as found:
            id = getattr(found, "id", None)
        return _error(row.at, id, error)

    @staticmethod
    def weight(row: Raw) -> int:
        """Bytes of a row, roughly."""
        return len(row.raw)

    def _requests(self, model: Core, rows: Iterable[Raw], asked: dict[int, Asked], ready: list[tuple[int, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        index = 0
        for number, at, raw in rows:
            try:
                asking = Asked(parse_line(raw, number, at, self.chat, self.system))
                request = self._request(model, asking)
            except FileError:
                raise
            except Exception as error:
                ready.append((number, _error(at, getattr(error, "id", None), own_error(error))))
                if len(ready) >= _MOST_READY:
                    return
                continue
            asked[index] = asking
            index += 1
            yield request

    def _request(self, model: Core, asking: Asked) -> dict[str, Any]:
        line = asking.line
        own = line.options
        options = {**self.options, "seed": (self.seed + line.number) % (MAX_SEED + 1)}
        if any(own.get(name) is not None for name in GRAMMARS):  # a line's replaces the common one, of whatever kind
            options = {name: value for name, value in options.items() if name not in GRAMMARS}
        options |= {name: value for name, value in own.items() if value is not None}
        prompt = line.prompt
        try:
            if line.messages is not None:
                from .chat_answer import chat_prompt
                prompt, asking.format, asking.names = chat_prompt(model, line.messages, line.tools)
            SamplingOptions(**{name: value for name, value in options.items() if name in _SAMPLING})
        except Exception as error:
            found = own_error(error)
            found.id = line.id  # type: ignore[attr-defined]
            raise found from None
        return {"prompt": prompt, **options}

    def _kept(self, model: Core, asking: Asked, result: Result) -> dict[str, Any]:
        """Its record; one of an error if what the answer holds can't be a record."""
        line = asking.line
        try:
            record = self._record(model, asking, result)
            json.dumps(record, allow_nan=False)
            return record
        except Exception as error:
            return _error(line.at, None if isinstance(error, RecursionError) else line.id, own_error(error))

    @staticmethod
    def _record(model: Core, asking: Asked, result: Result) -> dict[str, Any]:
        line = asking.line
        if result.error is not None or result.stats is None:
            message = str(result.error or "there is no answer").removeprefix(f"prompt {result.index}: ")  # which depends on where the run began
            return _error(line.at, line.id, LlaminaError(message))
        record: dict[str, Any] = {"id": line.id, "text": result.text}
        if asking.format:
            from ..text.tool_calls import calls_before, parse, written_ids
            text = model.tokenizer.decode(result.ids, special=written_ids(model.tokenizer, asking.format))
            content, calls = parse(text, asking.format, asking.names, calls_before(line.messages or ()))
            if calls or asking.format == "harmony":
                record |= {"text": content, **({"tool_calls": [call.as_dict() for call in calls]} if calls else {})}
        record |= {"finish_reason": result.finish_reason, "prompt_tokens": result.stats.prompt_tokens, "generated_tokens": len(result.ids),
                   "seed": result.stats.seed}
        if result.logprobs:
            record["logprobs"] = [entry.as_dict() for entry in result.logprobs]
        return record


@dataclass
class Asked:
    """A line under way. format, names: how calls of tools are written, and which there are."""

    line: Line
    format: str | None = None
    names: Collection[str] = field(default=())


def _taken(ready: list[tuple[int, dict[str, Any]]]) -> Records:
    while ready:
        yield ready.pop(0)


def _error(at: int, id: Any, error: LlaminaError) -> dict[str, Any]:
    return {"id": at + 1 if id is None else id, "line": at + 1, "error": str(error)[:_LONGEST_ERROR]}
