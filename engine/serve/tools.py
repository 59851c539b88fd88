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

BEFORE = {"hermes": "<tool_call>\n", "mistral": "[TOOL_CALLS]"}
"""How a template's calls begin."""
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')


def schema_of(tools: Sequence[dict[str, Any]], format: str | None) -> dict[str, Any]:
    """One call of one of the tools; OpenAI's and llamina's form of a tool, the inner dict alone as well."""
    key, calls = "parameters" if format == "llama3" else "arguments", []
    for tool in tools:
        inner = tool.get("function", tool)
        parameters = inner.get("parameters") or {"type": "object"}
        calls.append({"type": "object", "properties": {"name": {"const": inner["name"]}, key: parameters}, "required": ["name", key],
                      "additionalProperties": False})
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def forced_prompt(model: Model, ids: list[int], format: str | None) -> list[int]:
    """The prompt with the beginning of a call."""
    before = BEFORE.get(format or "")
    return ids + model.tokenizer.encode(before, bos=False, eos=False, parse_special=True) if before else ids


class Forced:
    """The forced call as it comes. push(text) -> (its name, once it is known, else None; more of the arguments' JSON text)."""

    def __init__(self) -> None:
        self._text, self._name, self._at = "", "", -1

    def push(self, text: str, last: bool = False) -> tuple[str | None, str]:
        self._text += text
        told = None
        if self._at < 0:
            found = _ARGUMENTS.search(self._text)
            if not found:
                return None, ""
            self._at = found.end()
            name = re.search(r'"name"\s*:\s*("(?:[^"\\]|\\.)*")', self._text[:found.start()])
            told = self._name = json.loads(name[1]) if name else ""
        rest = self._text[self._at:]
        end = len(rest.rstrip()) - 1 if last and rest.rstrip().endswith("}") else len(rest.rstrip(" \t\r\n}")) if not last else len(rest)
        end = max(0, end)
        self._at += end
        return told, rest[:end]
