"""Training data: the rows of a .jsonl (or .csv, .tsv, .txt) file, recognised by their keys, to examples.

    {"messages", "tools"}       a conversation                         {"prompt", "completion"}   what is to be said after a prompt
    {"text"}                    plain text                             rows of `llamina eval`     {text, label}, {prompt, target}, {source, reference}, …

All rows of a file are of one kind. All are read and tokenised before anything is trained; what is wrong with one is told by file and line. Rows of eval's kinds
are asked with the same template and the same blank between question and answer, so that what was trained is what `llamina eval` measures.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, LlaminaError, OptionError, quoted
from ..score.prompts import Prompts
from ..score.table import Row, digest_of, file_of, format_of, read_rows
from ..score.task import KINDS as TASKS
from ..score.template import fields_of, filled
from .examples import LOSSES, Example, chat_examples, completion_example, text_example

if TYPE_CHECKING:
    from ..answers.core import Core

KINDS = {"chat": ("messages",), "completion": ("prompt", "completion"), **TASKS, "text": ("text",)}
"""Kind -> keys that its rows have, and that tell it, the first that fits."""
LONG = ("refuse", "cut", "skip")


@dataclass(frozen=True)
class Reading:
    """How rows are read. loss: what is learned (None: as the kind has it). long: what becomes of rows with more than `context` tokens. template, delimiter,
    labels, chat, system: as of `llamina eval`. OptionError."""

    context: int = 512
    loss: str | None = None
    long: str = "refuse"
    template: str | None = None
    delimiter: str | None = None
    labels: Mapping[str, str] | None = None
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in ("loss", self.loss, (None, *LOSSES)), ("long", self.long, LONG):
            if value not in allowed:
                raise OptionError(f"{name} must be one of {', '.join(filter(None, allowed))}, found {quoted(value)}")
        if self.context < 2:
            raise OptionError(f"context must be a whole number from 2 on, found {self.context}")

    def bound(self) -> dict[str, Any]:
        """For checkpoints: what examples depend on beside the rows."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "labels": dict(self.labels) if self.labels else None}


@dataclass
class DataSet:
    """Examples in the order of the file, and what was met on the way."""

    name: str
    kind: str
    digest: str
    examples: list[Example] = field(default_factory=list)
    duplicates: int = 0
    empty: int = 0
    cut: int = 0
    skipped: int = 0
    parted: int = 0
    """Conversations that became several examples."""
    labels: dict[str, str] = field(default_factory=dict)
    """Of rows with labels: name -> text."""
    chat_template: str | None = None
    """SHA-256 of the template that conversations were written by; None: there are none."""

    @property
    def tokens(self) -> int:
        return sum(len(e.ids) for e in self.examples)

    @property
    def targets(self) -> int:
        return sum(int(e.mask.sum()) for e in self.examples)

    @property
    def examples_digest(self) -> str:
        """SHA-256 of what is trained, to the token: of all ids and masks. A template may write what no file says (the date)."""
        found = hashlib.sha256()
        for e in self.examples:
            found.update(len(e.ids).to_bytes(8, "little") + e.ids.astype("<i4").tobytes() + e.mask.tobytes())
        return found.hexdigest()

    def bound(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"rows": self.digest, "chat_template": self.chat_template, "examples": self.examples_digest}

    def row_name(self, number: int) -> str:
        """Of an example, for messages."""
        return f"{self.name}, line {self.examples[number].line}"

    def note(self) -> str | None:
        """A line about what people should know."""
        told = [(self.duplicates, "duplicates"), (self.empty, "empty but for the end"), (self.cut, "too long and cut"),
                (self.skipped, "too long and left out"), (self.parted, "an example for each turn (the chat template rewrites earlier turns)")]
        return f"{self.name}: rows that are {', '.join(f'{what}: {n}' for n, what in told if n)}" if any(n for n, _ in told) else None


def open_data(model: Core, source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], reading: Reading, name: str | None = None,
              seen: Callable[[int], object] = lambda done: None) -> DataSet:
    """Read a file, or rows themselves. seen: called with how many rows have been read. FileError, FormatError (naming file and line), OptionError."""
    with file_of(source, "training data") as (path, made):
        return _Reader(model, path, name or ("data" if made else str(source)), reading, seen).read()


class _Reader:
    def __init__(self, model: Core, path: Path, name: str, reading: Reading, seen: Callable[[int], object]) -> None:
        self._model, self._path, self._name, self._reading, self._seen = model, path, name, reading, seen
        self._prompts: Prompts | None = None
        self._format = format_of(str(path))
        self._kind, self._loss, self._long = "", "", 0
        self._first_long: tuple[int, int] | None = None

    def read(self) -> DataSet:
        found = DataSet(self._name, "", "")
        texts: set[bytes] = set()
        for row in read_rows(self._path, self._format, self._name):
            if not self._kind:
                self._begin(row)
                found.kind, found.labels = self._kind, self._prompts.task.labels if self._prompts is not None else {}
            made = self._examples(row)
            found.parted += len(made) > 1
            for example in made:
                kept = self._fitted(found, replace(example, line=row.line))
                if kept is None:
                    continue
                if not kept.mask.any():
                    raise self._bad(row, "none of its tokens is a target: there is nothing to learn")
                found.empty += kept.empty
                text = kept.ids.tobytes() + kept.mask.tobytes()
                found.duplicates += text in texts
                texts.add(text)
                found.examples.append(kept)
            self._seen(row.number + 1)
        if not self._kind:
            raise FormatError(f"{self._name}: has no rows")
        if self._kind == "chat" or self._reading.chat:
            found.chat_template = hashlib.sha256(self._model.chat_template.sources.encode(errors="surrogatepass")).hexdigest()
        found.digest = self._prompts.task.digest if self._prompts is not None else digest_of(self._path)
        if self._first_long is not None:
            line, tokens = self._first_long
            raise FormatError(f"{self._name}, line {line}: has {tokens} tokens, {self._reading.context} are allowed (--context){self._others()}: "
                              "allow more, or have such rows cut or left out (--long cut, --long skip)")
        if not found.examples:
            raise FormatError(f"{self._name}: no row is left: all have more than {self._reading.context} tokens (--context)")
        return found

    def _others(self) -> str:
        return "" if self._long == 1 else f"; {self._long} rows have too many"

    def _bad(self, row: Row, problem: str) -> FormatError:
        return FormatError(f"{self._name}, line {row.line}: {problem}")

    def _fitted(self, found: DataSet, example: Example) -> Example | None:
        """The example if it fits, or what is left of it."""
        most, n = self._reading.context, len(example.ids)
        if n <= most:
            return example
        if self._reading.long == "refuse":
            self._long += 1
            self._first_long = self._first_long or (example.line, n)
            return None
        short = replace(example, ids=example.ids[:most], mask=example.mask[:most])
        if self._reading.long == "skip" or not short.mask.any():
            found.skipped += 1
            return None
        found.cut += 1
        return short

    # -- kinds ----------------------------------------------------------------------------------------------------------------------------

    def _begin(self, row: Row) -> None:
        """Which kind the rows are of, by the first."""
        reading = self._reading
        self._kind = next((kind for kind, keys in KINDS.items() if all(key in row.fields for key in keys)), "")
        if not self._kind:
            has = ", ".join(map(quoted, row.fields)) or "nothing"
            raise self._bad(row, f'has {has}: expected "messages", or "prompt" and "completion", or "text", or what `llamina eval` takes '
                                 "(see docs/train.md)")
        talk = self._kind == "chat" or reading.chat
        self._loss = reading.loss or ("assistant" if talk else "all" if self._kind == "text" else "completion")
        if self._loss == "assistant" and not talk or self._loss == "completion" and self._kind == "text":
            what = "messages" if self._loss == "assistant" else "completions"
            raise OptionError(f"{self._name}: its rows have no {what}: --loss {self._loss} is not for them")
        asks = self._kind in TASKS or self._kind == "completion"
        for option, given in ("template", reading.template), ("delimiter", reading.delimiter), ("labels", reading.labels), ("chat", reading.chat or None):
            if given is not None and (not asks or option == "labels" and self._kind != "label"):
                what = {"text": "texts", "chat": "conversations"}.get(self._kind, "no labels")
                raise OptionError(f"{self._name}: its rows are {what}: --{option} is not for them")
        if reading.system is not None and not talk:
            raise OptionError(f"{self._name}: instructions (--system) stand in conversations, these rows are none: give --chat, too")
        if self._kind in TASKS:
            options: dict[str, Any] = {"labels": dict(reading.labels)} if reading.labels else {}
            if self._kind != "label" or reading.labels:
                options["limit"] = 1  # which labels there are is known when all rows have been seen; the rest is told by each row as it is read
            self._prompts = Prompts.open(str(self._path), name=self._name, chat=reading.chat, system=reading.system, template=reading.template,
                                         delimiter=" " if reading.delimiter is None else reading.delimiter, **options)

    def _examples(self, row: Row) -> list[Example]:
        fields, model = row.fields, self._model
        for key in KINDS[self._kind]:
            if key not in fields or fields[key] is None:
                raise self._bad(row, f'has no "{key}", as the rows before it' if key not in fields else f'has no "{key}": it is null')
        try:
            if self._kind == "chat":
                return chat_examples(model, self._instructed(fields["messages"]), fields.get("tools"), self._loss)
            if self._kind == "text":
                return [text_example(model, _text(fields, "text"))]
            asked, answer, gap = self._asked(row)
            if self._reading.chat:
                turns = self._instructed([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])
                return chat_examples(model, turns, None, self._loss)
            return [completion_example(model, asked, answer if gap and answer[:1].isspace() else gap + answer if answer else "", self._loss)]
        except FormatError:
            raise
        except LlaminaError as error:
            raise self._bad(row, str(error)) from None

    def _instructed(self, messages: Any) -> Any:
        """With the instructions given, unless the conversation has its own."""
        system = self._reading.system
        if system is None or not isinstance(messages, list) or not messages or isinstance(messages[0], Mapping) and messages[0].get("role") == "system":
            return messages
        return [{"role": "system", "content": system}, *messages]

    def _asked(self, row: Row) -> tuple[str, str, str]:
        """(question, answer, what stands between them)"""
        if self._prompts is not None:
            item = self._prompts.task.item(row)
            asked = filled(self._prompts.task.template or "", item.fields)
            return asked, item.gold[0], self._prompts.gap(asked)
        template = self._reading.template or "{prompt}"
        _text(row.fields, "prompt" if template == "{prompt}" else "completion")
        missing = [name for name in fields_of(template) if name not in row.fields]
        if missing:
            raise OptionError(f"has no {quoted(missing[0])}, which the template asks for")
        asked = filled(template, row.fields)
        delimiter = self._reading.delimiter or ""
        return asked, _text(row.fields, "completion"), "" if asked[-1:].isspace() else delimiter


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields[key]
    if not isinstance(value, str):
        raise OptionError(f'"{key}" must be a text, found {quoted(value)}')
    return value


def shown(model: Core, example: Example) -> Iterator[tuple[str, bool]]:
    """(text, whether its tokens are targets) of each run of tokens, special ones by their names: for people who look whether it is what they meant."""
    pairs = list(zip(example.ids.tolist(), example.mask.tolist()))
    for target, run in groupby(pairs, key=lambda pair: pair[1]):
        raw = b"".join(model.tokenizer.token_text(id).encode() if model.tokenizer.is_control(id) else model.tokenizer.token_bytes(id) for id, _ in run)
        yield raw.decode(errors="replace"), target


def lengths(data: DataSet) -> tuple[int, int]:
    """(median, longest) of the examples, in tokens."""
    sizes = np.sort([len(e.ids) for e in data.examples])
    return int(sizes[len(sizes) // 2]), int(sizes[-1])
