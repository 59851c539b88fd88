"""Lines of a batch job's input: read one by one, of bounded length, and what each asks for.

    file -> lines_of -> parse_line -> Line, or an OptionError that says what is wrong with it
"""
from __future__ import annotations

import codecs
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import FileError, OptionError, why
from ..files import open_regular, reason, shown
from ..sampling.options import SamplingOptions

MAX_LINE = 16 << 20
"""Bytes of a line of the input; longer ones become error records."""
GRAMMARS = ("json_schema", "regex", "grammar", "choices")
OPTIONS = (*(f.name for f in fields(SamplingOptions)), "max_tokens", "stop", "ignore_eos", "special", "logprobs", "context_shift", "keep", "adapters",
           *GRAMMARS)
"""What a line may say about its own answer."""
_WHAT = ("id", "prompt", "messages", "tools")


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
