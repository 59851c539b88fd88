"""What a conversation understands besides questions: /help, /system, /reset, /undo, /retry, /save, /load, /stats, /set, /exit.

    line -> Commands.run(line) -> done, or a question to ask again (/retry); everything it says goes to stderr
"""
from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, LlaminaError, OptionError, quoted
from ..files import write_file
from . import one_line
from .options import check_sampling, read_text
from .progress import closing_line, tell

if TYPE_CHECKING:
    from ..answers.chat import Chat, ChatTurn

MAX_FILE = 64 << 20
SESSION = b"LLAMINA"
"""What files of --session begin with."""
ALIASES = {"clear": "reset", "?": "help", "quit": "exit", "bye": "exit", "q": "exit"}


class Leave(Exception):
    """/exit: the conversation ends."""


class Commands:
    """The slash commands of one conversation. `options` is what questions are asked with: max_tokens, stop, and the sampling options."""

    def __init__(self, chat: Chat, options: dict[str, Any], say: Callable[[str], None] | None = None, verbose: bool = False) -> None:
        self.chat, self.options, self.verbose = chat, options, verbose
        self._given = dict(options)
        self.last: ChatTurn | None = None
        self._say = say or (lambda text: tell(text, 11 if text.startswith("  ") else 2))
        self._file: Path | None = None  # saved to or loaded from: may be written over
        self._retries = 0

    @classmethod
    def names(cls) -> dict[str, str]:
        """Command -> what it does, in the order of /help."""
        return {"/" + name[1:]: getattr(cls, name).__doc__ or "" for name in vars(cls) if name.startswith("_") and name[1:] in _ORDER}

    def ask(self, text: str) -> ChatTurn:
        """The answer to a question, with the options in force."""
        self.last, self._retries = self.chat.ask(text, **self.options), 0
        return self.last

    def run(self, line: str) -> ChatTurn | None:
        """Do what a line that begins with "/" says -> the answer to print, if that leads to one. Errors are said, not raised. Raises Leave."""
        name, *more = line[1:].split(None, 1) if line[1:2].strip() else [""]
        name, rest = ALIASES.get(name.lower(), name.lower()), more[0] if more else ""
        try:
            if name not in _ORDER:
                like = difflib.get_close_matches(name, (*_ORDER, *ALIASES), 1)
                hint = f"did you mean /{like[0]}?" if like else "/help lists them"
                raise OptionError(f"/{one_line(name)[:40]} is not a command: {hint} (for a question that begins with a slash put a space before it)")
            return getattr(self, "_" + name)(rest.strip())
        except LlaminaError as error:
            self._say(f"llamina: {one_line(str(error))}")
            return None

    def _help(self, rest: str) -> None:
        """this list"""
        for name, what in self.names().items():
            self._say(f"  {name:8} {what}")
        self._say("  Enter sends, Alt-Enter starts a new line, a paste keeps its lines. Ctrl-C stops an answer, Ctrl-D leaves.")

    def _system(self, rest: str) -> None:
        """TEXT: instructions that stand before the conversation; - takes them away, nothing shows them"""
        if rest:
            self.chat.instruct(None if rest == "-" else rest)
            self._say("the instructions are gone" if rest == "-" else f"from now on: {one_line(rest)}")
            return
        messages = self.chat.messages
        self._say(messages[0]["content"] if messages and messages[0]["role"] == "system" else "(no instructions)")

    def _reset(self, rest: str) -> None:
        """forget the conversation, keep the instructions (also /clear)"""
        n = len(self.chat.settled())
        self.chat.clear()
        self.last = None
        self._say(f"forgot {_messages(n - len(self.chat.messages))}")

    def _undo(self, rest: str) -> None:
        """take the last question and its answer back"""
        text = self.chat.undo()
        self._say("nothing to take back" if text is None else f"taken back: {one_line(text)[:60]}")

    def _retry(self, rest: str) -> ChatTurn | None:
        """another answer to the last question (with the next seed, if one was set)"""
        text = self.chat.undo()
        if text is None:
            self._say("nothing was asked yet")
            return None
        self._retries += 1
        seed = self.options.get("seed")
        self.last = self.chat.ask(text, **{**self.options, "seed": None if seed is None else (seed + self._retries) % 2**64})
        return self.last

    def _save(self, rest: str) -> None:
        """FILE: write the conversation (JSON)"""
        path = Path(rest).expanduser() if rest else self._file
        if path is None:
            raise OptionError("/save needs a file's name")
        if path != self._file and path.exists():
            raise FileError(f"{path}: exists already: choose another name")
        messages = self.chat.settled()
        write_file(path, json.dumps({"messages": messages}, ensure_ascii=False, indent=1) + "\n", overwrite=path == self._file)
        self._file = path
        self._say(f"saved {_messages(len(messages))}")

    def _load(self, rest: str) -> None:
        """FILE: go on with a saved conversation"""
        if not rest:
            raise OptionError("/load needs a file's name")
        path = Path(rest).expanduser()
        try:
            if path.is_file() and path.stat().st_size > MAX_FILE:
                raise FileError(f"{path}: is larger than any conversation")
        except (OSError, ValueError):
            pass
        try:
            with open(path, "rb") as file:
                if file.read(len(SESSION)) == SESSION:
                    raise FileError(f"{path}: was kept by --session: go on with it by llamina chat MODEL --session {path}")
        except (OSError, ValueError):
            pass  # told by what follows
        try:
            data = json.loads(read_text(str(path)))
        except (ValueError, RecursionError):
            raise FileError(f"{path}: is not a saved conversation (JSON)") from None
        self.chat.restore(data.get("messages") if isinstance(data, dict) else data)
        self._file, self.last = path, None
        self._say(f"loaded {_messages(len(self.chat.messages))}")

    def _stats(self, rest: str) -> None:
        """speeds and memory of the last answer, and how full the context is"""
        if self.last is None:
            self._say("nothing was asked yet")
            return
        self._say(closing_line(self.last.stats))
        self._say(f"context: {self.chat.tokens} of {self.chat.model.context} tokens; {_messages(len(self.chat.settled()))}")

    def _set(self, rest: str) -> None:
        """NAME VALUE: change an option, e.g. /set temperature 0.2; nothing shows them all"""
        name, *more = rest.split(None, 1) or [""]
        name, _, joined = name.partition("=")  # /set temperature=0.2, too
        name, value = name.lstrip("-").replace("-", "_").lower(), " ".join(part for part in (joined, *more) if part).strip()
        if not name:
            width = max(map(len, self.options))
            for key, now in self.options.items():
                self._say(f"  {key:{width}}  {_shown(now)}" + (f"  (at first {_shown(self._given[key])})" if now != self._given[key] else ""))
            return
        if name not in self.options:
            like = difflib.get_close_matches(name, self.options, 1)
            raise OptionError(f"there is no option {one_line(name)[:40]}: " + (f"did you mean {like[0]}?" if like else "/set alone shows all"))
        if not value:
            self._say(f"{name} is {_shown(self.options[name])}")
            return
        try:
            parsed = None if value in ("none", "random") else json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        if isinstance(parsed, str) and isinstance(self.options[name], bool):
            parsed = {"on": True, "yes": True, "off": False, "no": False}.get(parsed.lower(), parsed)
        changed = {**self.options, name: parsed}
        check_options(changed)
        self.options = changed
        self._say(f"{name} is now {_shown(parsed)}")

    def _exit(self, rest: str) -> None:
        """leave (also /quit, /bye, Ctrl-D)"""
        raise Leave


def _shown(value: Any) -> str:
    """An option's value, as it may be typed after /set."""
    return "none" if value is None else one_line(json.dumps(value, ensure_ascii=False, default=list))


def _messages(n: int) -> str:
    return f"{n} message{'' if n == 1 else 's'}"


_ORDER = ("help", "system", "reset", "undo", "retry", "save", "load", "stats", "set", "exit")


def check_options(options: dict[str, Any]) -> None:
    """OptionError unless a question could be asked with these."""
    from ..checks import check_max_tokens
    check_max_tokens(options["max_tokens"])
    for name in "ignore_eos", "context_shift":
        if not isinstance(options.get(name, False), bool):
            raise OptionError(f"{name} must be true or false, found {quoted(options[name])}")
    try:
        check_sampling(options)
    except TypeError as error:
        raise OptionError(str(error)) from None
