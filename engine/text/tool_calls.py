"""Calls of tools in what a model writes, in the ways that the chat templates of the Llama family ask for.

    answer's text, markers included -> Visible.push() -> what is no call          -> parse(text) -> (content, [ToolCall])

    llama3    {"name": …, "parameters": {…}} and nothing else, several parted by ; or lines; <|python_tag|> before it, or before name.call(key="value")
    mistral   [TOOL_CALLS] [{"name": …, "arguments": {…}, "id": …}, …]    or, since 2025, [TOOL_CALLS]name[ARGS]{…} for each
    hermes    <tool_call>{"name": …, "arguments": {…}}</tool_call> for each, text before, between and after
    function  <function=name>{…}</function> for each
    qwen      <tool_call><function=name><parameter=key>value</parameter></function></tool_call> for each                 (tool_forms.py)
    gemma4    <|tool_call>call:name{key:<|"|>value<|"|>}<tool_call|> for each                                            (tool_forms.py)
    harmony   channels and recipients of messages (harmony.py)

What does not parse stays text, beside the calls that do: a model's mistake is nothing to raise over. Markers inside of JSON strings are text.
"""
from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from . import harmony
from .harmony import CONTROLS, Harmony, is_harmony
from .tool_forms import CALL, CALL_END, QUOTE, gemma_calls, qwen_calls

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

PYTHON_TAG = "<|python_tag|>"
MARKERS = {"mistral": ("[TOOL_CALLS]",), "hermes": ("<tool_call>",), "function": ("<function=", PYTHON_TAG), "llama3": (PYTHON_TAG,),
           "qwen": ("<tool_call>", "<function="), "gemma4": (CALL,)}
"""How a call begins; in "llama3" also with a brace that begins the answer."""
WRITTEN = (PYTHON_TAG, "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<tool_call>", "</tool_call>", CALL, CALL_END, QUOTE)
"""Control tokens whose text is wanted to find calls; others have none."""
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\.call\((.*)\)\s*", re.DOTALL)
_ARGS = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?\[ARGS\]")
_TAGS = {"hermes": (re.compile("<tool_call>()"), "</tool_call>"), "function": (re.compile(r"<function=([\w.-]+)>"), "</function>")}
_MOST_BLANKS = 1000
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class ToolCall:
    """One call. id: the model's own, or made up so that it is one of a kind in the conversation; arguments: parsed from JSON."""

    name: str
    arguments: dict[str, Any]
    id: str

    def as_dict(self) -> dict[str, Any]:
        """As chat templates want it in a message's "tool_calls"."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def tool_format(template: str) -> str | None:
    """How a chat template (its source) wants calls written; None if it takes no tools, or in another way."""
    if is_harmony(template):
        return "harmony"
    if "tools" not in template:
        return None
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if CALL in template and CALL_END in template:
        return "gemma4"
    if "<tool_call>" in template:  # with both (Qwen 3.5, Qwen3-Coder) arguments are XML-like
        return "qwen" if "<function=" in template else "hermes"
    if "<function=" in template:
        return "function"
    return "llama3" if PYTHON_TAG in template or "ipython" in template or '"parameters": dictionary' in template else None


def written_ids(tokenizer: Tokenizer, format: str | None = None) -> frozenset[int]:
    """Ids of the control tokens among WRITTEN, or those of Harmony."""
    wanted = CONTROLS if format == "harmony" else WRITTEN
    return frozenset(tokenizer.control.ids[text] for text in wanted if text in tokenizer.control.ids)


def visible(format: str | None) -> Visible | Harmony:
    """What lets through what is no call, for a format."""
    return Harmony() if format == "harmony" else Visible(format)


def calls_before(messages: Sequence[Any]) -> int:
    """How many calls a conversation holds already."""
    return sum(len(m.get("tool_calls") or ()) for m in messages if isinstance(m, Mapping))


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools as templates want them, {"type": "function", "function": {"name", "description", "parameters"}}; the inner dict alone is enough. OptionError."""
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise OptionError(f"tools must be a list of dicts, found {type(tools).__name__}")
    checked = []
    for i, tool in enumerate(tools):
        outer = tool if isinstance(tool, Mapping) and "function" in tool else {"type": "function", "function": tool}
        inner = outer["function"]
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise OptionError(f'tools[{i}] must have a name: {{"type": "function", "function": {{"name": …, "description": …, "parameters": <JSON schema>}}}}')
        checked.append(dict(outer))
    return checked


class Visible:
    """Lets through what is no call; from the first sign of one on everything is held back."""

    def __init__(self, format: str | None) -> None:
        self._markers, self._brace = MARKERS.get(format or "", ()), format == "llama3"
        self._begun = self._call = False
        self._held = ""

    def push(self, text: str) -> str:
        self._held += text
        if self._call or not self._markers:
            return "" if self._call else self._release(len(self._held))
        if not self._begun:
            start = self._held.lstrip()
            self._begun = bool(start)
            self._call = self._brace and start[:1] == "{"
            if self._call or not start:
                return ""
        found = [at for marker in self._markers if (at := self._held.find(marker)) >= 0]
        if found:
            self._call = True
            return self._release(min(found))
        longest = max((n for marker in self._markers for n in range(1, len(marker)) if self._held.endswith(marker[:n])), default=0)
        return self._release(len(self._held) - longest)

    def _release(self, n: int) -> str:
        text, self._held = self._held[:n], self._held[n:]
        return text


def parse(text: str, format: str | None, names: Collection[str] = (), first: int = 0) -> tuple[str, list[ToolCall]]:
    """(what is no call, calls) of a whole answer with its markers. names: the tools there are (a bare JSON object is a call only if it names one), best with
    the schemas of their parameters; first: the number of the first call, for ids."""
    calls: list[ToolCall] = []

    def add(name: Any, arguments: Any, id: Any = None) -> bool:
        if isinstance(arguments, str):  # some models write the object as a string
            arguments = _json(arguments)
        arguments = _plain(arguments)
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return False
        calls.append(ToolCall(name, arguments, id if isinstance(id, str) and id else f"call{first + len(calls):05d}"))  # nine characters: Mistral insists
        return True

    if format == "harmony":
        parts = harmony.messages(text)
        for name, arguments in harmony.calls(parts):
            add(name, arguments)
        return harmony.shown(parts), calls
    if format == "mistral":
        content, marker, rest = text.partition("[TOOL_CALLS]")
        content += "".join(written for call, written in _mistral(rest) if not add(*call)) if marker else ""
        ok = bool(marker)
    elif format in ("hermes", "function"):
        begins, end = _TAGS[format]
        content, at, ok = "", 0, True
        while match := begins.search(text, at):
            content += text[at:match.start()]
            found, at = _tagged(text, match.end(), end)
            if not (add(match[1], found) if format == "function" else isinstance(found, dict) and add(found.get("name"), found.get("arguments", {}))):
                content += text[match.start():at]  # a bad one stays text, beside the good ones
        content = (content + text[at:]).replace(PYTHON_TAG, "")
    elif format in ("gemma4", "qwen"):
        schemas = names if isinstance(names, Mapping) else {}
        content, ok = "", True
        for tool, given, written in gemma_calls(text) if format == "gemma4" else qwen_calls(text, schemas):
            if tool is None or not add(tool, given):
                content += written
    elif format == "llama3":
        content, marker, rest = text.partition(PYTHON_TAG)
        content, rest = (content, rest) if marker else ("", text)
        called = _CALL.fullmatch(rest) if marker else None
        objects = _objects(rest)
        if called:
            ok = add(called[1], _keywords(called[2]))
        elif objects:
            ok = True
            for o, written in objects:
                known = isinstance(o, dict) and (bool(marker) or isinstance(o.get("name"), str) and o["name"] in names)
                if not (known and add(o.get("name"), o.get("parameters", o.get("arguments")))):
                    content += written
        else:  # a program for the interpreter
            ok = bool(marker and rest.strip()) and add("code_interpreter", {"code": rest.strip()})
    else:
        ok, content = False, text
    return (content, calls) if ok and calls else (text, [])


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _plain(arguments: Any) -> Any:
    """As they come back from JSON; None for what JSON has no way to say (a set, bytes, infinity), for they are to be sent on."""
    try:
        return json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None


def _value(text: str, at: int) -> tuple[Any, int]:
    """(JSON value from there on, its end); (None, at) if there is none. Its strings may hold any marker."""
    at += len(text[at:at + _MOST_BLANKS]) - len(text[at:at + _MOST_BLANKS].lstrip())
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at


def _tagged(text: str, at: int, end: str) -> tuple[Any, int]:
    """(the value between tags that begins there, where the text goes on after the closing tag); None for anything but one value. A last closing tag may
    be missing."""
    value, after = _value(text, at)
    rest = text[after:].lstrip()
    if value is not None and (not rest or rest.startswith(end)):
        return value, len(text) - len(rest) + (len(end) if rest else 0)
    close = text.find(end, at)
    return None, len(text) if close < 0 else close + len(end)


def _objects(text: str) -> list[tuple[Any, str]]:
    """(JSON value, as it was written), one after the other, parted by blanks or semicolons; none if there is anything else."""
    found, at = [], 0
    while at < len(text):
        if text[at] in " \t\r\n;":
            at += 1
            continue
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found.append((value, text[at:end]))
        at = end
    return found


def _mistral(text: str) -> Iterator[tuple[tuple[Any, Any, Any], str]]:
    """((name, arguments, id), as it was written); three Nones for what is no call."""
    nothing = (None, None, None)
    if _ARGS.match(text):
        at = 0
        while at < len(text):
            head = _ARGS.match(text, at)
            value, end = _value(text, head.end()) if head else (None, at)
            rest = text[end:].lstrip()
            if value is None or rest and not rest.startswith("[TOOL_CALLS]"):
                end = text.find("[TOOL_CALLS]", at)
                end, head = len(text) if end < 0 else end, None
            yield (head[1], value, head[2]) if head else nothing, text[at:end]
            at = len(text) - len(text[end:].lstrip())
            at += len("[TOOL_CALLS]") if text.startswith("[TOOL_CALLS]", at) else 0
        return
    found = _json(text.strip())
    if not isinstance(found, list):
        found = [found]
    for call in found:
        yield (call.get("name"), call.get("arguments", {}), call.get("id")) if isinstance(call, dict) else nothing, json.dumps(call, ensure_ascii=False)


def _keywords(text: str) -> dict[str, Any] | None:
    """'query="x", n=2' -> a dict."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if isinstance(call, ast.Call) and not call.args:
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return None
