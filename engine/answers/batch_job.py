"""A batch job: a file of prompts, a line of JSON each, to a file of answers in the same order.

    lines -> Line (or an error record) -> Core.generate_many -> records -> Journal (batch_journal.py) -> the output file

A record depends on nothing but its line, the model and the options (docs/exactness.md), and holds no time: so a run that was interrupted anywhere and a run
that wasn't write the same bytes.
"""
from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, LlaminaError, OptionError, why
from ..files import open_regular, reason, shown
from ..run.adapters import described
from ..sampling.options import MAX_SEED, SamplingOptions
from .batch import LIVE, own_error

if TYPE_CHECKING:
    from .batch import Result
    from .batch_journal import Journal
    from .batch_stream import RecordStream
    from .core import Core

MAX_LINE = 16 << 20
"""Bytes of a line of the input; longer ones become error records."""
GRAMMARS = ("json_schema", "regex", "grammar", "choices")
OPTIONS = (*(f.name for f in fields(SamplingOptions)), "max_tokens", "stop", "ignore_eos", "special", "logprobs", "context_shift", "keep", "adapters",
           *GRAMMARS)
"""What a line may say about its own answer."""
_WHAT = ("id", "prompt", "messages", "tools")
_CHUNK = 1 << 16
_LONGEST_ERROR = 2000


@dataclass
class Line:
    """A line that asks for an answer."""

    number: int
    """Among those that are not blank, from 0 on."""
    at: int
    """Among all, from 0 on."""
    id: Any
    prompt: Any
    """A str, a list of ids, or None: then `messages` are a conversation."""
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    format: str | None = None
    names: Collection[str] = ()
    """How calls of tools are written, and which there are."""


@dataclass(frozen=True)
class Progress:
    """How far a job is. done, errors: of `lines`, those of earlier runs too; tokens: generated in this run."""

    lines: int
    done: int
    errors: int
    tokens: int
    resumed: int


def count_lines(path: Path) -> tuple[int, str]:
    """(lines that are not blank, SHA-256 of the file in hexadecimal). FileError."""
    digest, count = hashlib.sha256(), 0
    for _, raw in lines_of(path, digest.update):
        count += bool(raw.strip())
    return count, digest.hexdigest()


def lines_of(path: Path, seen: Callable[[bytes], object] = lambda raw: None) -> Iterator[tuple[int, bytes]]:
    """(number, line) with no more than MAX_LINE bytes (+ 1, which tells) of each."""
    with open_regular(path, "a file of prompts, which is read twice") as file:
        try:
            number = 0
            while raw := file.readline(MAX_LINE + 1):
                seen(raw)
                rest = raw
                if number == 0:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                while len(rest) > MAX_LINE and not rest.endswith(b"\n"):  # skip the rest of an endless line
                    rest = file.readline(MAX_LINE + 1)
                    seen(rest)
                yield number, raw
                number += 1
        except OSError as error:
            raise FileError(f"{shown(path)}: cannot be read ({reason(error)})") from None


def fingerprint(path: Path) -> str:
    """Tells models apart: SHA-256 over a file's size, its first MiB, and 64 pieces of 64 KiB spread over it. A whole digest would take seconds a start."""
    try:
        with open_regular(path, "a model") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            digest.update(file.read(1 << 20))
            for i in range(64):
                file.seek(size * i // 64)
                digest.update(file.read(_CHUNK))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def parse_line(raw: bytes, number: int, at: int, chat: bool = False, system: str | None = None) -> Line:
    """A line's request. chat: texts are questions, not texts to continue. system: stands before a conversation that has no system message.
    OptionError says what is wrong with it; its `id` attribute is the line's, if that can be told."""
    if len(raw) > MAX_LINE:
        raise OptionError(f"is longer than {MAX_LINE} bytes")
    try:
        found = json.loads(raw.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise OptionError(f"is not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02X})") from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"is not JSON: {why(error)}") from None
    if isinstance(found, str):
        found = {"prompt": found}
    if not isinstance(found, dict):
        raise OptionError(f'must be a text or an object with "prompt" or "messages", found {type(found).__name__}')
    id = found.pop("id", None)
    try:
        json.dumps(id, allow_nan=False)
    except (ValueError, RecursionError):
        raise OptionError('"id" is nothing that can be written again') from None
    try:
        options = {name: value for name, value in found.items() if name not in _WHAT}
        unknown = next((name for name in options if name not in OPTIONS), None)
        if unknown is not None:
            close = difflib.get_close_matches(unknown, OPTIONS, 1)
            raise OptionError(f"there is no option {unknown!r:.60}{f': did you mean {close[0]}?' if close else ''}")
        if ("prompt" in found) == ("messages" in found):
            raise OptionError('must have one of "prompt" and "messages"')
        messages = found.get("messages")
        if "messages" in found and (not isinstance(messages, list) or not messages):
            raise OptionError(f'"messages" must be a list of messages, found {type(messages).__name__}')
        prompt = found.get("prompt")
        if "prompt" in found and not isinstance(prompt, (str, list)):
            raise OptionError(f'"prompt" must be a text or a list of ids, found {type(prompt).__name__}')
        if chat and isinstance(prompt, str):
            prompt, messages = None, [{"role": "user", "content": prompt}]
        if messages is None and found.get("tools"):
            raise OptionError('"tools" go with "messages"')
        if messages and system is not None and not (isinstance(messages[0], dict) and messages[0].get("role") == "system"):
            messages = [{"role": "system", "content": system}, *messages]
    except OptionError as error:
        error.id = id  # type: ignore[attr-defined]
        raise
    return Line(number, at, at + 1 if id is None else id, prompt, messages, found.get("tools"), options)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def bound_adapters(model: Core) -> dict[str, Any]:
    """What a journal says of adapters and control vectors, if there are any."""
    table = model.runtime.adapters
    found = {name: [loaded.digest, loaded.scale] for name, loaded in table.by_name.items()}
    control = {"control": table.control_digest} if table.control_digest else {}
    return {"adapters": found, "default_adapters": described(table.default), **control} if found else control


class BatchJob:
    """Runs a job: `run()` yields after every record. kv: as given to `load`, for the journal.
    options: of all lines; a line's own go before them. seed: of the first line, the next has the next."""

    def __init__(self, model: Core, source: Path, journal: Journal | RecordStream, lines: int, digest: str, options: Mapping[str, Any], *,
                 seed: int | None = None, kv: str | None = None, chat: bool = False, system: str | None = None,
                 parallel: int | None = None, template: str | None = None) -> None:
        """template: that was given instead of the model's own, for the journal."""
        assert set(options) <= set(OPTIONS), set(options) - set(OPTIONS)  # or every line would be an error
        self._model, self._source, self._journal, self._options = model, source, journal, dict(options)
        self._chat, self._system, self._parallel = chat, system, parallel
        self.lines, self.resumed = lines, len(journal.done)
        known = (journal.header or {}).get("seed") if seed is None else None
        self.seed: int = known if isinstance(known, int) else int.from_bytes(os.urandom(4), "little") if seed is None else seed
        self._errors, self._tokens = sum("error" in record for record in journal.records()), 0
        self._ready: deque[tuple[int, dict[str, Any]]] = deque()  # records of lines that ask for nothing that can be done
        self._asked: dict[int, Line] = {}
        journal.begin({"input": digest, "model": fingerprint(model.path), "context": model.context, "kv": kv, "chat": chat, "system": system,
                       "options": self._options, "seed": self.seed, **({"template": template} if template is not None else {}),
                       **bound_adapters(model)})

    def run(self) -> Iterator[Progress]:
        """Journal every record, then write the output. FileError; ClosedError; whatever stops it, the journal stays."""
        with self._model.generate_many(self._requests(), live=self._parallel or LIVE) as results:
            for result in results:
                line = self._asked.pop(result.index)
                self._keep(line, result)
                self._tokens += len(result.ids)
                self._keep_ready()
                yield self.progress
        self._keep_ready()
        if len(self._journal.done) != self.lines:
            raise FileError(f"{self._source}: has changed while it was read: remove {self._journal.path} and run again")
        self._journal.finish(self.lines)
        yield self.progress

    @property
    def progress(self) -> Progress:
        return Progress(self.lines, len(self._journal.done), self._errors, self._tokens, self.resumed)

    def _keep_ready(self) -> None:
        while self._ready:
            self._journal.add(*self._ready.popleft())

    def _keep(self, line: Line, result: Result) -> None:
        """Its record; one of an error if what the answer holds can't be a record."""
        try:
            self._journal.add(line.number, self._record(line, result))
        except FileError:
            raise
        except Exception as error:
            self._journal.add(line.number, self._error(line.at, None if isinstance(error, RecursionError) else line.id, own_error(error)))

    def _requests(self) -> Iterator[dict[str, Any]]:
        """What is left to do, in the input's order; numbers count lines that are not blank."""
        number, index = -1, 0
        for at, raw in lines_of(self._source):
            if not raw.strip():
                continue
            number += 1
            if number in self._journal.done:
                continue
            try:
                line = parse_line(raw, number, at, self._chat, self._system)
                request = self._request(line)
            except FileError:
                raise
            except Exception as error:
                self._ready.append((number, self._error(at, getattr(error, "id", None), own_error(error))))
                if len(self._ready) > 1000:
                    self._keep_ready()
                continue
            self._asked[index] = line
            index += 1
            yield request

    def _request(self, line: Line) -> dict[str, Any]:
        own = line.options
        options = {**self._options, "seed": (self.seed + line.number) % (MAX_SEED + 1)}
        if any(own.get(name) is not None for name in GRAMMARS):  # a line's replaces the common one, of whatever kind
            options = {name: value for name, value in options.items() if name not in GRAMMARS}
        options |= {name: value for name, value in own.items() if value is not None}
        prompt = line.prompt
        try:
            if line.messages is not None:
                from .chat_answer import chat_prompt
                prompt, line.format, line.names = chat_prompt(self._model, line.messages, line.tools)
            SamplingOptions(**{name: value for name, value in options.items() if name in _SAMPLING})
        except Exception as error:
            found = own_error(error)
            found.id = line.id  # type: ignore[attr-defined]
            raise found from None
        return {"prompt": prompt, **options}

    def _record(self, line: Line, result: Result) -> dict[str, Any]:
        if result.error is not None or result.stats is None:
            message = str(result.error or "there is no answer").removeprefix(f"prompt {result.index}: ")  # which depends on where the run began
            return self._error(line.at, line.id, LlaminaError(message))
        record: dict[str, Any] = {"id": line.id, "text": result.text}
        if line.format:
            from ..text.tool_calls import calls_before, parse, written_ids
            text = self._model.tokenizer.decode(result.ids, special=written_ids(self._model.tokenizer, line.format))
            content, calls = parse(text, line.format, line.names, calls_before(line.messages or ()))
            if calls or line.format == "harmony":
                record |= {"text": content, **({"tool_calls": [call.as_dict() for call in calls]} if calls else {})}
        record |= {"finish_reason": result.finish_reason, "prompt_tokens": result.stats.prompt_tokens, "generated_tokens": len(result.ids),
                   "seed": result.stats.seed}
        if result.logprobs:
            record["logprobs"] = [entry.as_dict() for entry in result.logprobs]
        return record

    def _error(self, at: int, id: Any, error: LlaminaError) -> dict[str, Any]:
        self._errors += 1
        return {"id": at + 1 if id is None else id, "line": at + 1, "error": str(error)[:_LONGEST_ERROR]}


_SAMPLING = frozenset(f.name for f in fields(SamplingOptions))
