"""Messages as people and servers give them, to what chat templates expect: the one place for it, before any template.

    [{"role", "content": str | parts, "tool_calls": …}, …] -> normalise() -> content is a text, arguments of calls are objects -> ChatTemplate

Templates were written for one form and say nothing when they meet another: a list of parts becomes Python's repr of it, arguments given as JSON text (as
OpenAI's interface has them) are encoded a second time. What can't be said in a template's form is an OptionError that names the place.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import OptionError


def normalise(messages: Any, template: str = "") -> list[dict[str, Any]]:
    """New messages with the same meaning; others' keys stay. template: its source, which tells what it knows besides. OptionError."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise OptionError("chat messages must be a list of dicts with role and content")
    return [_message(message, f"messages[{i}]", template) for i, message in enumerate(messages)]


def _message(message: Any, where: str, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise OptionError(f'chat messages must be a list of dicts with role and content: {where} must be an object with "role" and "content"')
    found = dict(message)
    if found.get("function_call") is not None and not found.get("tool_calls"):  # how calls were written before there could be several
        found["tool_calls"] = [{"type": "function", "function": found.pop("function_call")}]
    calls = found.get("tool_calls")
    if "content" not in found and not calls:
        raise OptionError(f'{where} must be an object with "role" and "content"')
    if found["role"] == "developer" and "developer" not in template:  # OpenAI's newer name
        found["role"] = "system"
    found["content"] = _text(found.get("content"), found["role"], f"{where}.content", template)
    if calls is not None:
        if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
            raise OptionError(f"{where}.tool_calls must be a list, found {type(calls).__name__}")
        found["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
        if not calls:  # templates ask whether there are any, not how many
            del found["tool_calls"]
    return found


def _text(content: Any, role: str, where: str, template: str) -> Any:
    """A content as one text: parts are joined by line breaks, as llama.cpp and vLLM join them; what a tool gave as data becomes JSON."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray)) and all(
            isinstance(part, str) or isinstance(part, Mapping) and "type" in part for part in content):
        return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    if role in ("tool", "ipython", "function"):
        if isinstance(content, Mapping) and "is mapping" in template:  # it writes the JSON itself
            return content
        try:
            return json.dumps(content, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            pass
    raise OptionError(f"{where} must be a text or a list of parts, found {type(content).__name__}")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text")
    if part["type"] not in ("text", "input_text", "output_text") or not isinstance(text, str):
        raise OptionError(f'{where} is of the type {part["type"]!r:.40}: only {{"type": "text", "text": …}} can be read')
    return text


def _call(call: Any, where: str) -> dict[str, Any]:
    """{"id", "type", "function": {"name", "arguments": an object}}; the inner one alone is enough."""
    if not isinstance(call, Mapping):
        raise OptionError(f"{where} must be an object, found {type(call).__name__}")
    outer = dict(call) if "function" in call else {"type": "function", "function": call}
    inner = outer["function"]
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise OptionError(f'{where} must have {{"function": {{"name": …, "arguments": …}}}}')
    given = inner.get("arguments")
    arguments = {} if given is None or isinstance(given, str) and not given.strip() else given
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping):
        raise OptionError(f"{where}.function.arguments must be an object, or one as JSON text, found {given!r:.60}")
    outer["function"] = {**inner, "arguments": dict(arguments)}
    return {**outer, "type": outer.get("type") or "function"}


def left_out(messages: Sequence[Mapping[str, Any]], written: str) -> str | None:
    """A line about system messages whose text a template did not write, or None."""
    seen = None
    for i, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") != "system" or not isinstance(content, str) or content.strip() in written:
            continue
        seen = "".join(written.split()) if seen is None else seen
        if "".join(content.split()) not in seen:
            return f"the chat template leaves out the system message (messages[{i}]): the model doesn't see it; put it into the first question"
    return None
