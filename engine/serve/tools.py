"""Calls of tools that are forced: a grammar holds them, so that they always parse.

    tool_choice "required" or a named one -> the template's own beginning of a call is put before the answer, then one JSON object of a schema made of the tools
"""
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import Model

BEFORE = {"hermes": "<tool_call>\n", "mistral": "[TOOL_CALLS] ["}
"""How a template's calls begin."""
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
_NAME = re.compile(r'"name"\s*:\s*("(?:[^"\\]|\\.)*")')


def schema_of(tools: Sequence[dict[str, Any]], format: str | None) -> dict[str, Any]:
    """One call of one of the tools, in OpenAI's form."""
    key, calls, parameters = "parameters" if format == "llama3" else "arguments", [], {}
    for i, tool in enumerate(tools):
        inner, at = tool["function"], f"#/$defs/tool{i}"
        parameters[f"tool{i}"] = _moved({"type": "object", **(inner.get("parameters") or {})}, at)
        calls.append({"type": "object", "properties": {"name": {"const": inner["name"]}, key: {"$ref": at}}, "required": ["name", key],
                      "additionalProperties": False})
    return {"$defs": parameters, **(calls[0] if len(calls) == 1 else {"anyOf": calls})}


def _moved(schema: Any, at: str) -> Any:
    """A schema that is no longer the root: what it refers to within itself is under `at`."""
    if isinstance(schema, dict):
        return {key: at + value[1:] if key == "$ref" and isinstance(value, str) and value.startswith("#") else _moved(value, at)
                for key, value in schema.items() if key not in ("$schema", "$id")}
    return [_moved(item, at) for item in schema] if isinstance(schema, list) else schema


def forced_prompt(model: Model, ids: list[int], format: str | None) -> list[int]:
    """The prompt with the beginning of a call."""
    before = BEFORE.get(format or "")
    return ids + model.tokenizer.encode(before, bos=False, eos=False, parse_special=True) if before else ids


class Forced:
    """The forced call as it comes. push(text) -> (its name, once it is known, else None; more of the arguments' JSON text)."""

    def __init__(self) -> None:
        self._text = ""
        self._begun = self._done = self._in_string = self._escaped = False
        self._depth = 0

    def push(self, text: str) -> tuple[str | None, str]:
        if self._begun:
            return None, self._take(text)
        self._text += text
        found = _ARGUMENTS.search(self._text)
        if not found:
            return None, ""
        self._begun = True
        name = _NAME.search(self._text[:found.start()])
        return json.loads(name[1]) if name else "", self._take(self._text[found.end():])

    def _take(self, text: str) -> str:
        """What of the text belongs to the arguments, one JSON object: all up to its last brace."""
        for i, c in enumerate(text):
            if self._done:
                return text[:i]
            if self._in_string:
                self._in_string = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
            elif c == '"':
                self._in_string = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                self._done = not self._depth
        return text
